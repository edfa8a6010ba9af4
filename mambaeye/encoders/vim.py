"""Vim: selective scans over the patches of a whole canvas, forwards and backwards (Zhu et al. 2024, arXiv 2401.09417).

Shapes: B images, R rows and C columns of patches, M = R C patches, S side of the position table, D model width.
"""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor, nn

from mambaeye.encoders.base import DenseEncoder, PublishedWeights
from mambaeye.errors import InputError
from mambaeye.geometry.directions import direction, with_token
from mambaeye.ops.dense import PatchEmbed, insert, resized
from mambaeye.ops.kernel_selection import Kernels
from mambaeye.ops.s6_block import S6Block, S6Mixer, Sequences, scan_backend, undecayed
from mambaeye.ops.s6_weights import BOTH_WAYS, laid_out_as_vim, renamed, sizes_in, split_table
from mambaeye.ops.shapes import of_layout, require_sizes

Directions = Literal[1, 2, 4]
Order = Literal["raster", "hilbert"]
LINES: dict[Order, tuple[str, str]] = {"raster": ("h", "v"), "hilbert": ("hilbert", "hilbert_v")}
STD = 0.02  # that tokens, position table and head start with


class Vim(DenseEncoder):
    """Pre-norm S6 blocks, without MLPs, over patches with a class token in their middle, which answers.

    Args:
        num_classes: Number of classes that the head tells apart.
        dim: Width of the residual stream: values a token.
        depth: Number of blocks.
        directions: Scans of a block: 1 forwards, 2 also backwards (published), 4 both along the columns, too.
        order: Path of the scans: row by row (published), or along Hilbert's curve (FractalMamba's idea).
        divide: Take the mean of the directions (published) instead of their sum.
        d_state: State values a channel of the recurrence.
        d_conv: Taps of the causal convolution, in patches.
        expand: Inner width of a block as a multiple of dim.
        patch: Side of a patch in pixels.
        stride: Pixels from one patch to the next; null for patch, so that patches do not overlap.
        grid: Patches along each side of the square that the position table is made for; others get it resized.
        channels: Channels of images.
        kernels: Selective scan of mamba-ssm on a GPU: cuda, plain torch, or auto for the kernel where it can be had.
    """

    published_as = "vim"

    def __init__(
        self,
        num_classes: int = 1000,
        dim: int = 192,
        depth: int = 24,
        directions: Directions = 2,
        order: Order = "raster",
        divide: bool = True,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        patch: int = 16,
        stride: int | None = None,
        grid: int = 14,
        channels: int = 3,
        kernels: Kernels = "auto",
    ) -> None:
        super().__init__()
        require_sizes(num_classes=num_classes, dim=dim, depth=depth, d_state=d_state, d_conv=d_conv, expand=expand)
        require_sizes(patch=patch, grid=grid, channels=channels)
        self.channels = channels
        if directions not in get_args(Directions):
            raise InputError(f"encoder.directions is {directions}: give 1, 2 or 4")
        if order not in LINES:
            raise InputError(f"encoder.order is {order!r}: choose one of {', '.join(LINES)}")
        self.patch, self.stride = patch, patch if stride is None else stride
        self.directions, self.order, self.kernels = directions, order, kernels
        self.patch_embed = PatchEmbed(dim, self.patch, self.stride, channels)
        self.positions = nn.Parameter(torch.empty(grid, grid, dim))
        self.class_token = nn.Parameter(torch.empty(1, dim))
        self.class_position = nn.Parameter(torch.empty(1, dim))
        self.blocks = nn.ModuleList(
            S6Block(S6Mixer(dim, directions, depth, d_state, d_conv, expand, divide=divide, kernels=kernels), dim)
            for _ in range(depth)
        )
        self.norm = nn.RMSNorm(dim, eps=1e-5)
        self.head = nn.Linear(dim, num_classes)
        for table in (self.positions, self.class_token, self.class_position, self.head.weight):
            nn.init.trunc_normal_(table, std=STD)
        nn.init.zeros_(self.head.bias)

    def image_features(self, images: Tensor) -> Tensor:
        patches = self.patch_embed(images)  # (B, R, C, D)
        rows, cols = patches.shape[1:3]
        middle = rows * cols // 2
        x = (patches + resized(self.positions, rows, cols)).flatten(1, 2)
        x = insert(x, self.class_token + self.class_position, [middle])  # (B, M + 1, D)
        sequences = sequences_of(self.order, self.directions, rows, cols).to(x.device)
        for block in self.blocks:
            x = block(x, sequences)
        features: Tensor = self.norm(x[:, middle].to(self.norm.weight.dtype))
        return features

    def feature_modules(self) -> tuple[list[nn.Module], nn.Module]:
        return [*self.blocks], self.norm

    def extra_places(self, tokens: int) -> list[int]:
        return [tokens // 2]

    def no_weight_decay(self) -> set[str]:
        return super().no_weight_decay() | undecayed(self, "positions", "class_token", "class_position")

    def backend(self, device: torch.device) -> str:
        return scan_backend(self.kernels, device) or super().backend(device)

    @classmethod
    def from_published(cls, tensors: Mapping[str, Tensor], where: str) -> PublishedWeights | None:
        if not laid_out_as_vim(tensors):
            return None
        with of_layout(cls.published_as, where):
            state = renamed(tensors, BOTH_WAYS, "A{}_log", {"cls_token": "class_token"})
            (state["class_token"],) = state["class_token"]
            split_table(state, (tensors["pos_embed"].shape[1] - 1) // 2)
            return PublishedWeights(vim_sizes(state), state)

    @classmethod
    def settings_in(cls, tensors: Mapping[str, Tensor]) -> dict[str, Any] | None:
        if "class_position" not in tensors or "blocks.0.mixer.gate.norm.weight" in tensors:  # the latter LocalVim has
            return None
        try:
            return vim_sizes(tensors)
        except (KeyError, ValueError):
            return None


def vim_sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the sizes that a state dict by our names tells. Raises as sizes_in."""
    directions, _ = state["blocks.0.mixer.D"].shape
    return {**sizes_in(state), "directions": directions}


@lru_cache(maxsize=64)
def sequences_of(order: Order, directions: int, rows: int, cols: int) -> Sequences:
    """Return the directions' sequences of a grid's patches with the class token in the middle of each."""
    lines = [with_token(direction(name, rows, cols), rows * cols // 2) for name in LINES[order]]
    both_ways = [way for line in lines for way in (line, line[::-1])]
    return Sequences.of([torch.from_numpy(np.ascontiguousarray(way)) for way in both_ways[:directions]])
