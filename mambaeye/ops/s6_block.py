"""The S6 mixer of the vision Mambas: projections in and out, and between them selective scans in several directions.

Shapes: B images, L tokens, S steps (tokens and empty ones), K directions, D model width, E inner width, N d_state, R
rank of the step sizes, W taps of the convolution.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambaeye.ops.kernel_selection import Kernels, select_scan
from mambaeye.ops.mamba2 import DT_MAX, DT_MIN, causal_conv
from mambaeye.ops.precision import no_autocast, wide
from mambaeye.ops.s6 import selective_scan

DT_FLOOR = 1e-4
REDUCTION = 8  # of the channel gate's inner width
ALL = slice(None)
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


class S6Mixer(nn.Module):
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
    ) -> None:
        super().__init__()
        inner, rank = expand * dim, math.ceil(dim / 16)
        self.sizes = (rank, d_state, d_state)
        self.divide, self.kernels = divide, kernels
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)  # x, z
        self.conv_weight = nn.Parameter(torch.empty(directions, inner, d_conv))
        self.conv_bias = nn.Parameter(torch.empty(directions, inner))
        self.x_proj = nn.Parameter(torch.empty(directions, sum(self.sizes), inner))  # dt before its projection, B, C
        self.dt_weight = nn.Parameter(torch.empty(directions, inner, rank))
        self.dt_bias = nn.Parameter(torch.empty(directions, inner))
        self.A_log = nn.Parameter(torch.empty(directions, inner, d_state))
        self.D = nn.Parameter(torch.empty(directions, inner))
        self.gate = ChannelGate(inner) if gate else None
        self.out_proj = nn.Linear(inner, dim, bias=False)
        self.reset(depth)

    @torch.no_grad()
    def reset(self, depth: int) -> None:
        """Draw new parameters: step sizes log-uniform in [0.001, 0.1], A = -1 ... -N, D one; the rest as torch does."""
        for parameter, fan_in in (
            (self.conv_weight, self.conv_weight.shape[-1]),
            (self.conv_bias, self.conv_weight.shape[-1]),
            (self.x_proj, self.x_proj.shape[-1]),
            (self.dt_weight, self.dt_weight.shape[-1]),
        ):
            parameter.uniform_(-(fan_in**-0.5), fan_in**-0.5)
        draw_step_sizes(self.dt_bias)
        states = torch.arange(1, self.A_log.shape[-1] + 1, dtype=self.A_log.dtype, device=self.A_log.device)
        self.A_log.copy_(states.log().expand_as(self.A_log))
        self.D.fill_(1.0)
        self.reset_output(depth)

    @torch.no_grad()
    def reset_output(self, depth: int) -> None:
        """Draw what the mixer adds to the residual stream as torch does, and by the square root of depth smaller."""
        self.out_proj.reset_parameters()
        self.out_proj.weight.div_(math.sqrt(depth))

    def forward(self, u: Tensor, sequences: Sequences) -> Tensor:
        """Mix tokens: u (B, L, D) -> (B, L, D)."""
        x, z = self.in_proj(u).chunk(2, dim=-1)  # (B, L, E)
        x = F.pad(x, (0, 0, 0, 1))  # what empty steps show: zeros
        x = torch.stack([x.index_select(1, tokens) for tokens in sequences.tokens], dim=2)  # (B, S, K, E)
        y = self.scan(self.convolve(x))
        y = torch.stack([y[:, :, k].index_select(1, steps) for k, steps in enumerate(sequences.steps)], dim=2)
        z = F.silu(z)
        y = y.sum(2) * z if self.gate is None else self.gate(y * z.unsqueeze(2)).sum(2)  # (B, L, K, E) -> (B, L, E)
        mixed: Tensor = self.out_proj((y / len(self.D) if self.divide else y).to(u.dtype))
        return mixed

    def convolve(self, x: Tensor, of: slice = ALL) -> Tensor:
        """Convolve every direction, or some, over its steps, causally, then SiLU: (B, S, K, E) -> the same."""
        weight = self.conv_weight[of].flatten(0, 1).unsqueeze(1)  # (K E, 1, W)
        before = x.new_zeros(len(x), len(weight), weight.shape[-1] - 1)
        y, _ = causal_conv(x.flatten(2), weight, self.conv_bias[of].flatten(), before)
        return F.silu(y).unflatten(2, x.shape[2:])

    def scan(self, x: Tensor, of: slice = ALL) -> Tensor:
        """Run the selective scan of all directions, or some, over x (B, S, K, E), in float32 or wider always."""
        projected = torch.einsum("bske,kre->bskr", x, self.x_proj[of])
        dtype = wide(x.dtype)
        with no_autocast(x.device):
            dt, B, C = projected.to(dtype).split(self.sizes, dim=-1)
            dt = F.softplus(
                torch.einsum("bskr,ker->bske", dt, self.dt_weight[of].to(dtype)) + self.dt_bias[of].to(dtype)
            )
            scan = select_scan(self.kernels, dt) or selective_scan
            return scan(x.to(dtype), dt, -self.A_log[of].to(dtype).exp(), B, C, self.D[of].to(dtype))


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
def draw_step_sizes(bias: Tensor) -> None:
    """Fill a bias with what softplus turns into step sizes log-uniform in [0.001, 0.1]."""
    dt = torch.empty_like(bias).uniform_(math.log(DT_MIN), math.log(DT_MAX)).exp().clamp(min=DT_FLOOR)
    bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus


def undecayed(module: nn.Module, *tables: str) -> set[str]:
    """Return the parameters of the mixers in a module that weight decay must not touch, and tables of the module's."""
    named = {name for name, _ in module.named_parameters() if name.rpartition(".")[2] in UNDECAYED}
    return named | set(tables)


def scan_backend(kernels: Kernels, device: torch.device) -> str | None:
    """Return in words what the mixers run on if they have a kernel there; None for plain torch."""
    if select_scan(kernels, torch.empty(0, device=device)):
        return "plain torch and the selective scan of mamba-ssm"
    return None
