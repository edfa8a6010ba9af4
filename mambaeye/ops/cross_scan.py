"""VMamba's blocks and what they make up: a mixer that scans a grid of tokens in several directions, stages, and a
pyramid of them.

Shapes: B images, R rows and C columns of tokens, L = R C tokens, S steps (tokens and empty ones), K directions, D model
width, E inner width.
"""

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambaeye.ops.cross_scan_sizes import widths_of
from mambaeye.ops.grid_layers import GridConv, overlapping_merge, overlapping_stem, patch_merge, patch_stem
from mambaeye.ops.kernel_selection import Kernels
from mambaeye.ops.precision import wide
from mambaeye.ops.s6_block import ChannelGate, Sequences, sequences_of
from mambaeye.ops.s6_directions import S6Directions
from mambaeye.ops.transformer import MLP, STD, reset_linear

PATCH = 4  # pixels along each side of a token of the first stage


class CrossScan(S6Directions):
    """Selective scans of a grid in K directions behind one two-dimensional convolution (VMamba's SS2D).

    Args:
        dim: D.
        directions: names of K directions, as in geometry/directions.py.
        expand: E as a multiple of dim.
        d_state: state values a channel of the recurrence.
        gated: multiply by a second projection, as Mamba does.
        conv_bias: give the convolution a bias.
        channel_gate: gate every direction's channels before the sum (LocalMamba).
        kernels: what the scan runs on.
    """

    def __init__(
        self,
        dim: int,
        directions: tuple[str, ...],
        expand: int,
        d_state: int,
        gated: bool,
        conv_bias: bool,
        channel_gate: bool = False,
        kernels: Kernels = "auto",
    ) -> None:
        super().__init__()
        inner = expand * dim
        self.directions, self.gated = directions, gated
        self.in_proj = nn.Linear(dim, (2 if gated else 1) * inner, bias=False)
        self.conv = GridConv(inner, inner, 3, padding=1, groups=inner, bias=conv_bias)
        self.add_recurrences(len(directions), inner, math.ceil(dim / 16), d_state, kernels)
        self.gate = ChannelGate(inner) if channel_gate else None
        self.out_norm = nn.LayerNorm(inner)
        self.out_proj = nn.Linear(inner, dim, bias=False)
        self.reset_recurrences()

    def forward(self, u: Tensor, sequences: Sequences) -> Tensor:
        """Mix tokens: u (B, R, C, D) -> (B, R, C, D)."""
        x, *z = self.in_proj(u).chunk(2 if self.gated else 1, dim=-1)
        x = F.silu(self.conv(x))
        y = sequences.gathered(self.scan(sequences.laid_out(x.flatten(1, 2)))).to(u.dtype)  # (B, L, K, E)
        y = (y if self.gate is None else self.gate(y)).sum(2)
        y = self.out_norm(y.view(x.shape))  # (B, R, C, E)
        mixed: Tensor = self.out_proj(y * F.silu(z[0]) if z else y)
        return mixed


class CrossScanBlock(nn.Module):
    """r + mixer(LayerNorm(r)), and to that MLP(LayerNorm(.)) if it has one; r in float32 or wider.

    Args:
        dim: D.
        mixer: of that width.
        hidden: width of the MLP; 0 for none.
    """

    def __init__(self, dim: int, mixer: CrossScan, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.mixer = mixer
        self.mlp_norm = nn.LayerNorm(dim) if hidden else None
        self.mlp = MLP(dim, hidden) if hidden else None

    def forward(self, residual: Tensor, sequences: Sequences) -> Tensor:
        """Add what the mixer makes of the residual stream (B, R, C, D) to it, then the MLP's."""
        dtype = self.norm.weight.dtype
        residual = residual + self.mixer(self.norm(residual.to(dtype)), sequences)
        if self.mlp is None or self.mlp_norm is None:
            return residual
        return residual + self.mlp(self.mlp_norm(residual.to(dtype)))


class Stage(nn.Module):
    """Blocks over a grid of one size, and the step to the next one, unless it is the last.

    Args:
        blocks: one or more.
        merge: (B, R, C, D) -> (B, R / 2, C / 2, 2 D), sides rounded up; None for the last stage.
    """

    def __init__(self, blocks: Sequence[CrossScanBlock], merge: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.merge = merge

    def forward(self, x: Tensor) -> Tensor:
        """Run x (B, R, C, D) through the blocks, and on to the next grid."""
        rows, cols = x.shape[1:3]
        blocks = cast(list[CrossScanBlock], [*self.blocks])
        names = {block.mixer.directions for block in blocks}
        sequences = {some: sequences_of(some, rows, cols).to(x.device) for some in names}
        x = x.to(wide(x.dtype))
        for block in blocks:
            x = block(x, sequences[block.mixer.directions])
        return x if self.merge is None else self.merge(x.to(blocks[-1].norm.weight.dtype))


class Pyramid(nn.Module):
    """A stem, stages of which each has half as many rows and columns and is twice as wide, a norm, and the mean.

    Args:
        dim: D of the first stage.
        blocks: of every stage, the first one's first.
        overlapping: convolutions of 3 x 3 as stem and between stages; otherwise patches of 4 x 4, and of 2 x 2 tokens.
    """

    def __init__(self, dim: int, blocks: Sequence[Sequence[CrossScanBlock]], overlapping: bool) -> None:
        super().__init__()
        merge = overlapping_merge if overlapping else patch_merge
        self.stem = overlapping_stem(dim) if overlapping else patch_stem(dim, PATCH)
        widths = widths_of(dim, [len(some) for some in blocks], overlapping)
        merges = [*(merge(width) for width in widths[:-1]), None]
        self.stages = nn.Sequential(*(Stage(some, after) for some, after in zip(blocks, merges, strict=True)))
        self.norm = nn.LayerNorm(widths[-1])

    def feature_modules(self) -> tuple[list[nn.Module], nn.Module]:
        """Return the last block of every stage, before the step to the next one, and the norm."""
        return [cast(Stage, stage).blocks[-1] for stage in self.stages], self.norm

    def forward(self, images: Tensor) -> Tensor:
        """Return the mean of the last stage's tokens, normed: images (B, 3, H, W) -> (B, D of the last stage).

        Raises:
            InputError: there are patches, and they do not cover the images.
        """
        return self.norm(self.stages(self.stem(images)).to(self.norm.weight.dtype)).mean((1, 2))


@torch.no_grad()
def reset_cross_scans(network: nn.Module) -> None:
    """Start linear maps, those into the recurrences too, from normal weights of deviation 0.02 and zero biases.

    Step sizes, A and D keep Mamba's own start, and convolutions torch's, as in the authors' network.
    """
    reset_linear(network)
    for part in network.modules():
        if isinstance(part, CrossScan):
            nn.init.trunc_normal_(part.x_proj, std=STD)
            nn.init.trunc_normal_(part.dt_weight, std=STD)
