"""The S6 mixer of the vision Mambas: projections in and out, and between them selective scans in several directions.

Shapes: B images, L tokens, S steps (tokens and empty ones), K directions, D model width, E inner width, N d_state, R
rank of the step sizes, W taps of the convolution.
"""

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambaeye.geometry.directions import direction, with_token
from mambaeye.ops.kernel_selection import Kernels, select_scan
from mambaeye.ops.mamba2 import causal_conv
from mambaeye.ops.s6_directions import S6Directions, uniform_by_fan_in_

REDUCTION = 8  # of the channel gate's inner width
UNDECAYED = ("A_log", "D", "conv_bias", "dt_bias")  # parameters of the mixer, one row a direction


class Sequences(NamedTuple):
    """Orders in which the directions of a mixer visit the same tokens."""

    tokens: Tensor
    """(K, S) int64: the token of each step; L where the step is empty."""
    steps: Tensor
    """(K, L) int64: the step of each token."""

    @classmethod
    def of(cls, orders: Sequence[Tensor]) -> Self:
        """Return the sequences of orders that visit each token once; in steps with a negative number, none.

        The shorter ones get empty steps at their ends, where nothing is seen any more.
        """
        length = max(len(order) for order in orders)
        tokens = torch.stack([F.pad(order, (0, length - len(order)), value=-1) for order in orders])
        empty = tokens < 0
        of_all = torch.where(empty, tokens.max() + 1, tokens)
        steps = of_all.argsort(dim=1, stable=True)[:, : int(tokens.max()) + 1]
        return cls(of_all, steps)

    def to(self, device: torch.device) -> Self:
        """Return the sequences on another device."""
        return type(self)(*(part.to(device, non_blocking=True) for part in self))

    def laid_out(self, x: Tensor) -> Tensor:
        """Return what every step of every direction sees of tokens x (B, L, E): (B, S, K, E), zeros in empty steps."""
        x = F.pad(x, (0, 0, 0, 1))
        return torch.stack([x.index_select(1, tokens) for tokens in self.tokens], dim=2)

    def gathered(self, y: Tensor) -> Tensor:
        """Return what the steps y (B, S, K, E) of every direction say of each token: (B, L, K, E)."""
        return torch.stack([y[:, :, k].index_select(1, steps) for k, steps in enumerate(self.steps)], dim=2)


@lru_cache(maxsize=256)
def sequences_of(names: tuple[str, ...], rows: int, cols: int, middle: bool = False) -> Sequences:
    """Return the sequences of a grid's tokens in directions of these names.

    Args:
        names: of geometry/directions.py.
        rows: of the grid.
        cols: of the grid.
        middle: put a class token in the same step of each, in the middle.
    """
    orders = [direction(name, rows, cols) for name in names]
    if middle:
        orders = [with_token(order, rows * cols // 2) for order in orders]
    return Sequences.of([torch.from_numpy(order) for order in orders])


@lru_cache(maxsize=64)
def both_ways(tokens: int) -> Sequences:
    """Return the sequences forwards and backwards."""
    order = torch.arange(tokens)
    return Sequences.of([order, order.flip(0)])


class ChannelGate(nn.Module):
    """y times a gate of every channel, from the mean of the normalised tokens (LocalMamba's BiAttn)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.reduce = nn.Linear(channels, max(1, channels // REDUCTION))
        self.select = nn.Linear(self.reduce.out_features, channels)

    def forward(self, y: Tensor) -> Tensor:
        """Gate y (B, L, K, E), every direction by itself."""
        mean = self.norm(y).mean(1, keepdim=True)
        return y * self.select(F.gelu(self.reduce(mean))).sigmoid()


class S6Mixer(S6Directions):
    """Selective scans of the same tokens in K directions, each with parameters of its own but for the projections.

    Parameters of the directions are stacked along a first axis. All start as Mamba-1's, and out_proj by the square root
    of depth smaller.

    Args:
        dim: D.
        directions: K.
        depth: blocks of the model.
        d_state: N.
        d_conv: W.
        expand: E as a multiple of dim.
        gate: gate every direction's channels before the sum.
        divide: take the directions' mean instead of their sum.
        kernels: what the scan runs on.
        masked: directions whose steps do not read what they themselves add to the state.
        residual_state: start from the first step's input in place of a state of zeros.
    """

    def __init__(
        self,
        dim: int,
        directions: int,
        depth: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        gate: bool = False,
        divide: bool = True,
        kernels: Kernels = "auto",
        masked: tuple[int, ...] = (),
        residual_state: bool = False,
    ) -> None:
        super().__init__()
        inner, rank = expand * dim, math.ceil(dim / 16)
        self.divide, self.masked, self.residual_state = divide, masked, residual_state
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)  # x, z
        self.conv_weight = nn.Parameter(torch.empty(directions, inner, d_conv))
        self.conv_bias = nn.Parameter(torch.empty(directions, inner))
        self.add_recurrences(directions, inner, rank, d_state, kernels)
        self.gate = ChannelGate(inner) if gate else None
        self.out_proj = nn.Linear(inner, dim, bias=False)
        self.reset(depth)

    @torch.no_grad()
    def reset(self, depth: int) -> None:
        """Draw new parameters: step sizes log-uniform in [0.001, 0.1], A = -1 ... -N, D one; the rest as torch does."""
        for parameter in (self.conv_weight, self.conv_bias):
            uniform_by_fan_in_(parameter, self.conv_weight.shape[-1])
        self.reset_recurrences()
        self.reset_output(depth)

    @torch.no_grad()
    def reset_output(self, depth: int) -> None:
        """Draw what the mixer adds to the residual stream as torch does, and by the square root of depth smaller."""
        self.out_proj.reset_parameters()
        self.out_proj.weight.div_(math.sqrt(depth))

    def forward(self, u: Tensor, sequences: Sequences) -> Tensor:
        """Mix tokens: u (B, L, D) -> (B, L, D)."""
        x, z = self.in_proj(u).chunk(2, dim=-1)  # (B, L, E)
        y = sequences.gathered(self.scan(self.convolve(sequences.laid_out(x))))
        z = F.silu(z)
        y = y.sum(2) * z if self.gate is None else self.gate(y * z.unsqueeze(2)).sum(2)  # (B, L, K, E) -> (B, L, E)
        mixed: Tensor = self.out_proj((y / len(self.D) if self.divide else y).to(u.dtype))
        return mixed

    def convolve(self, x: Tensor) -> Tensor:
        """Convolve every direction over its steps, causally, then SiLU: (B, S, K, E) -> the same."""
        weight = self.conv_weight.flatten(0, 1).unsqueeze(1)  # (K E, 1, W)
        before = x.new_zeros(len(x), len(weight), weight.shape[-1] - 1)
        y, _ = causal_conv(x.flatten(2), weight, self.conv_bias.flatten(), before)
        return F.silu(y).unflatten(2, x.shape[2:])


class S6Block(nn.Module):
    """r + mixer(RMSNorm(r)), with the residual stream r in float32 or wider. Arguments as for S6Mixer."""

    def __init__(self, mixer: S6Mixer, dim: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(dim, eps=1e-5)
        self.mixer = mixer

    def forward(self, residual: Tensor, sequences: Sequences) -> Tensor:
        """Add what the mixer makes of the residual stream (B, L, D) to it."""
        mixed: Tensor = self.mixer(self.norm(residual.to(self.norm.weight.dtype)), sequences)
        return residual + mixed


@torch.no_grad()
def start_alike(model: nn.Module, depth: int, std: float) -> None:
    """Start all linear maps of a model from normal weights and zero biases, and what its mixers add as S6Mixer does.

    LocalVim's and VideoMamba's authors do so. Step sizes keep Mamba's own start: theirs lose it to this, which is taken
    for an oversight.
    """
    for part in model.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=std)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        if isinstance(part, S6Mixer):
            nn.init.trunc_normal_(part.x_proj, std=std)
    for part in model.modules():
        if isinstance(part, S6Mixer):
            part.reset_output(depth)


def undecayed(module: nn.Module, *tables: str) -> set[str]:
    """Return the parameters of the mixers in a module that weight decay must not touch, and tables of the module's."""
    named = {name for name, _ in module.named_parameters() if name.rpartition(".")[2] in UNDECAYED}
    return named | set(tables)


def scan_backend(kernels: Kernels, device: torch.device) -> str | None:
    """Return in words what the mixers run on if they have a kernel there; None for plain torch."""
    if select_scan(kernels, torch.empty(0, device=device)):
        return "plain torch and the selective scan of mamba-ssm"
    return None
