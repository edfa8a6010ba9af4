"""A Hi-Mamba-style encoder: scans of patches and of regions in one direction, which changes from block to block.

The idea is Hi-Mamba's (arXiv 2410.10140): a block scans what is near (the patches) and what is far (means of regions)
in a single direction, and directions take turns over the blocks, in place of four scans in each. The network is not
theirs: it is for super-resolution, without public code or weights. This one classifies, within Vim's frame, and what it
shares with the paper is that idea alone. Shapes: B images, R rows and C columns of patches, M = R C patches, G regions,
D model width, E inner width.
"""

import math
from functools import lru_cache
from itertools import cycle
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambaeye.encoders.base import DenseEncoder
from mambaeye.errors import InputError
from mambaeye.geometry.directions import EMPTY, direction
from mambaeye.ops.dense import PatchEmbed, resized
from mambaeye.ops.kernel_selection import Kernels
from mambaeye.ops.mamba2 import causal_conv
from mambaeye.ops.s6_block import scan_backend, undecayed
from mambaeye.ops.s6_directions import S6Directions
from mambaeye.ops.shapes import require_sizes

STD = 0.02  # that the position table and the head start with


class Orders(NamedTuple):
    """The order of one direction, of patches and of regions; int64."""

    patch_at: Tensor
    """(M,): the patch of each step."""
    step_of_patch: Tensor
    """(M,): the step of each patch."""
    region_at: Tensor
    """(G,)."""
    step_of_region: Tensor
    """(G,)."""


class Scan(S6Directions):
    """A causal convolution and a selective scan over one sequence.

    Args:
        inner: E.
        rank: of the step sizes.
        d_state: state values a channel of the recurrence.
        d_conv: taps of the convolution.
        kernels: what the scan runs on.
    """

    def __init__(self, inner: int, rank: int, d_state: int, d_conv: int, kernels: Kernels) -> None:
        super().__init__()
        self.conv1d = nn.Conv1d(inner, inner, d_conv, groups=inner)
        self.add_recurrences(1, inner, rank, d_state, kernels)
        self.reset_recurrences()

    def forward(self, x: Tensor, at: Tensor, step_of: Tensor) -> Tensor:
        """Scan a map (B, R, C, E) in an order: the place of each step, and the step of each place."""
        steps = x.flatten(1, 2).index_select(1, at)
        before = x.new_zeros(len(x), x.shape[-1], self.conv1d.kernel_size[0] - 1)
        steps, _ = causal_conv(steps, self.conv1d.weight, self.conv1d.bias, before)
        y = self.scan(F.silu(steps).unsqueeze(2)).squeeze(2)  # of one direction
        return y.index_select(1, step_of).unflatten(1, x.shape[1:3])


class HierarchicalMixer(nn.Module):
    """Two scans in one direction behind one projection: of the patches, and of the means of square regions of them.

    What the scan of regions says of one is added to all patches in it. Regions that leave the grid are means of what is
    in it.

    Args:
        dim: D.
        depth: blocks of the model, by the root of which out_proj starts smaller.
        region: patches along the side of a region.
        d_state: state values a channel of the recurrences.
        d_conv: taps of the convolutions.
        expand: E as a multiple of dim.
        kernels: what the scans run on.
    """

    def __init__(
        self, dim: int, depth: int, region: int, d_state: int, d_conv: int, expand: int, kernels: Kernels
    ) -> None:
        super().__init__()
        self.region = region
        self.in_proj = nn.Linear(dim, 2 * expand * dim, bias=False)  # x, z
        self.of_patches, self.of_regions = (
            Scan(expand * dim, math.ceil(dim / 16), d_state, d_conv, kernels) for _ in range(2)
        )
        self.out_proj = nn.Linear(expand * dim, dim, bias=False)
        with torch.no_grad():
            self.out_proj.weight.div_(math.sqrt(depth))

    def forward(self, u: Tensor, orders: Orders) -> Tensor:
        """Mix patches u (B, R, C, D) in one direction."""
        x, z = self.in_proj(u).chunk(2, dim=-1)  # (B, R, C, E)
        rows, cols = x.shape[1:3]
        near = self.of_patches(x, orders.patch_at, orders.step_of_patch)
        means = F.avg_pool2d(x.permute(0, 3, 1, 2), self.region, ceil_mode=True).permute(0, 2, 3, 1)
        far = self.of_regions(means, orders.region_at, orders.step_of_region)
        for axis in (1, 2):
            far = far.repeat_interleave(self.region, axis)
        y = (near + far[:, :rows, :cols]) * F.silu(z)
        mixed: Tensor = self.out_proj(y.to(u.dtype))
        return mixed


class Block(nn.Module):
    """r + mixer(RMSNorm(r)) in one direction, with the residual stream r in float32 or wider."""

    def __init__(self, mixer: HierarchicalMixer, dim: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(dim, eps=1e-5)
        self.mixer = mixer

    def forward(self, residual: Tensor, orders: Orders) -> Tensor:
        """Add what the mixer makes of the residual stream (B, R, C, D) to it."""
        mixed: Tensor = self.mixer(self.norm(residual.to(self.norm.weight.dtype)), orders)
        return residual + mixed


class HiMambaStyle(DenseEncoder):
    """Blocks of a local and a regional scan in one direction each, over patches, whose mean answers. No published net.

    Args:
        num_classes: Number of classes that the head tells apart.
        dim: Width of the residual stream: values a token.
        depth: Number of blocks.
        directions: Directions that take turns, one a block: h row by row, v column by column, w2 by windows of 2, or
            hilbert, each also with _flip, from the end. One alone never changes.
        region: Patches along the side of a region.
        d_state: State values a channel of a recurrence.
        d_conv: Taps of the causal convolutions, in patches or regions.
        expand: Inner width of a block as a multiple of dim.
        patch: Side of a patch in pixels.
        grid: Patches along each side of the square that the position table is made for; others get it resized.
        kernels: Selective scan of mamba-ssm on a GPU: cuda, plain torch, or auto for the kernel where it can be had.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        dim: int = 192,
        depth: int = 24,
        directions: tuple[str, ...] = ("h", "v", "h_flip", "v_flip"),
        region: int = 2,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        patch: int = 16,
        grid: int = 14,
        kernels: Kernels = "auto",
    ) -> None:
        super().__init__()
        require_sizes(num_classes=num_classes, dim=dim, depth=depth, region=region, d_state=d_state, d_conv=d_conv)
        require_sizes(expand=expand, patch=patch, grid=grid)
        if not directions:
            raise InputError("encoder.directions is empty: give at least one direction, such as h")
        for name in directions:
            direction(name, 1, 1)
        self.patch = self.stride = patch
        self.directions, self.region, self.kernels = tuple(directions), region, kernels
        self.patch_embed = PatchEmbed(dim, patch, patch)
        self.positions = nn.Parameter(torch.empty(grid, grid, dim))
        self.blocks = nn.ModuleList(
            Block(HierarchicalMixer(dim, depth, region, d_state, d_conv, expand, kernels), dim) for _ in range(depth)
        )
        self.norm = nn.RMSNorm(dim, eps=1e-5)
        self.head = nn.Linear(dim, num_classes)
        for table in (self.positions, self.head.weight):
            nn.init.trunc_normal_(table, std=STD)
        nn.init.zeros_(self.head.bias)

    def image_features(self, images: Tensor) -> Tensor:
        patches = self.patch_embed(images)  # (B, R, C, D)
        rows, cols = patches.shape[1:3]
        x = patches + resized(self.positions, rows, cols)
        for block, name in zip(self.blocks, cycle(self.directions), strict=False):
            orders = orders_of(name, rows, cols, self.region)
            x = block(x, Orders(*(part.to(x.device, non_blocking=True) for part in orders)))
        return self.norm(x.to(self.norm.weight.dtype)).mean((1, 2))

    def feature_modules(self) -> tuple[list[nn.Module], nn.Module]:
        return [*self.blocks], self.norm

    def no_weight_decay(self) -> set[str]:
        return super().no_weight_decay() | undecayed(self, "positions")

    def backend(self, device: torch.device) -> str:
        return scan_backend(self.kernels, device) or super().backend(device)


@lru_cache(maxsize=256)
def orders_of(name: str, rows: int, cols: int, region: int) -> Orders:
    """Return the orders of a direction in a grid of patches; windows that leave the grid are not filled up."""
    grids = ((rows, cols), (-(-rows // region), -(-cols // region)))
    tokens = [torch.from_numpy(order[order != EMPTY]) for order in (direction(name, *grid) for grid in grids)]
    return Orders(tokens[0], tokens[0].argsort(), tokens[1], tokens[1].argsort())
