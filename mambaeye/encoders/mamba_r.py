"""Mamba-R: Vim with registers spread among the patches, which all answer together (Wang et al. 2024, arXiv 2405.14858).

Shapes: B images, R rows and C columns of patches, M = R C patches, G registers, D model width.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mambaeye.encoders.base import DenseEncoder, PublishedWeights
from mambaeye.errors import InputError
from mambaeye.ops.dense import PatchEmbed, insert, picked, resized
from mambaeye.ops.kernel_selection import Kernels
from mambaeye.ops.s6_block import S6Block, S6Mixer, both_ways, scan_backend, undecayed
from mambaeye.ops.s6_weights import BOTH_WAYS, renamed, sizes_in, split_table
from mambaeye.ops.shapes import of_layout, require_sizes

STD = 0.02  # that registers, position tables, neck and head start with


class MambaR(DenseEncoder):
    """Pre-norm S6 blocks in both directions over patches and registers; the head sees all registers side by side.

    Args:
        num_classes: Number of classes that the head tells apart.
        dim: Width of the residual stream: values a token.
        depth: Number of blocks.
        registers: Learned tokens, evenly spread among the patches.
        reduction: How many times narrower than dim the head sees each register; 1 for as it is.
        d_state: State values a channel of the recurrence.
        d_conv: Taps of the causal convolution, in patches.
        expand: Inner width of a block as a multiple of dim.
        patch: Side of a patch in pixels.
        grid: Patches along each side of the square that the position table is made for; others get it resized.
        kernels: Selective scan of mamba-ssm on a GPU: cuda, plain torch, or auto for the kernel where it can be had.
    """

    published_as = "mambar"

    def __init__(
        self,
        num_classes: int = 1000,
        dim: int = 192,
        depth: int = 24,
        registers: int = 12,
        reduction: int = 1,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        patch: int = 16,
        grid: int = 14,
        kernels: Kernels = "auto",
    ) -> None:
        super().__init__()
        require_sizes(num_classes=num_classes, dim=dim, depth=depth, d_state=d_state, d_conv=d_conv, expand=expand)
        require_sizes(patch=patch, grid=grid, registers=registers, reduction=reduction)
        if dim % reduction:
            raise InputError(f"encoder.reduction is {reduction}, which does not divide dim {dim}: give a divisor")
        self.patch = self.stride = patch
        self.kernels = kernels
        self.patch_embed = PatchEmbed(dim, patch, patch)
        self.positions = nn.Parameter(torch.empty(grid, grid, dim))
        self.registers = nn.Parameter(torch.empty(registers, dim))
        self.register_positions = nn.Parameter(torch.empty(registers, dim))
        self.blocks = nn.ModuleList(
            S6Block(S6Mixer(dim, len(BOTH_WAYS), depth, d_state, d_conv, expand, kernels=kernels), dim)
            for _ in range(depth)
        )
        self.norm = nn.RMSNorm(dim, eps=1e-5)
        width = registers * dim // reduction
        self.neck = nn.Linear(dim, dim // reduction, bias=False) if reduction > 1 else None
        self.norm_neck = nn.RMSNorm(width, eps=1e-5) if reduction > 1 else None
        self.head = nn.Linear(width, num_classes)
        necks = [] if self.neck is None else [self.neck.weight]
        for table in (self.positions, self.registers, self.register_positions, self.head.weight, *necks):
            nn.init.trunc_normal_(table, std=STD)
        nn.init.zeros_(self.head.bias)

    def image_features(self, images: Tensor) -> Tensor:
        patches = self.patch_embed(images)  # (B, R, C, D)
        rows, cols = patches.shape[1:3]
        places = self.extra_places(rows * cols)
        x = (patches + resized(self.positions, rows, cols)).flatten(1, 2)
        x = insert(x, self.registers + self.register_positions, places)  # (B, M + G, D)
        sequences = both_ways(x.shape[1]).to(x.device)
        for block in self.blocks:
            x = block(x, sequences)
        x = self.norm(picked(x, places).to(self.norm.weight.dtype))  # (B, G, D)
        if self.neck is None or self.norm_neck is None:
            return x.flatten(1)
        features: Tensor = self.norm_neck(self.neck(x).flatten(1).to(self.norm_neck.weight.dtype))
        return features

    def feature_modules(self) -> tuple[list[nn.Module], nn.Module]:
        return [*self.blocks], self.norm

    def extra_places(self, tokens: int) -> list[int]:
        """Return the registers' places in the sequence of so many patches: each follows a run of them, all as long."""
        run = tokens // (len(self.registers) + 1)
        return [register * (run + 1) + run for register in range(len(self.registers))]

    def no_weight_decay(self) -> set[str]:
        return super().no_weight_decay() | undecayed(self, "positions", "registers", "register_positions")

    def backend(self, device: torch.device) -> str:
        return scan_backend(self.kernels, device) or super().backend(device)

    @classmethod
    def from_published(cls, tensors: Mapping[str, Tensor], where: str) -> PublishedWeights | None:
        if not {"cls_token", "pos_embed_cls", "layers.0.mixer.A_b_log"} <= tensors.keys():
            return None
        with of_layout(cls.published_as, where):
            names = {"cls_token": "registers", "pos_embed_cls": "register_positions"}
            state = renamed(tensors, BOTH_WAYS, "A{}_log", names)
            for name in names.values():
                (state[name],) = state[name]
            split_table(state, None)
            return PublishedWeights(register_sizes(state), state)

    @classmethod
    def settings_in(cls, tensors: Mapping[str, Tensor]) -> dict[str, Any] | None:
        try:
            return register_sizes(tensors)
        except (KeyError, ValueError, ZeroDivisionError):
            return None


def register_sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the sizes that a state dict by our names tells. Raises as sizes_in; ZeroDivisionError of empty tensors."""
    registers, dim = state["registers"].shape
    reduction = dim // len(state["neck.weight"]) if "neck.weight" in state else 1
    return {**sizes_in(state), "registers": registers, "reduction": reduction}
