"""LocalVim: Vim's blocks with four searched directions in each, some through local windows (Huang et al. 2024, arXiv
2403.09338).

Shapes: B images, R rows and C columns of patches, M = R C patches, D model width.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mambaeye.encoders.base import DenseEncoder, PublishedWeights
from mambaeye.errors import InputError
from mambaeye.geometry.directions import of_blocks
from mambaeye.ops.dense import PatchEmbed, insert, resized
from mambaeye.ops.kernel_selection import Kernels
from mambaeye.ops.rope import rotate, rotations
from mambaeye.ops.s6_block import S6Block, S6Mixer, scan_backend, sequences_of, start_alike, undecayed
from mambaeye.ops.s6_weights import renamed, sizes_in, split_table
from mambaeye.ops.shapes import of_layout, require_sizes

# the authors' names -> ours
GATE = {
    ".mixer.attn.norm.": ".mixer.gate.norm.",
    ".mixer.attn.global_reduce.": ".mixer.gate.reduce.",
    ".mixer.attn.channel_select.": ".mixer.gate.select.",
}
STD = 0.02  # that tokens, position table and linear weights start with
# found by the authors' search, for 20 blocks
SEARCHED = (
    *("h v_flip w7 w7_flip", "h_flip w2_flip w7 w7_flip", "h h_flip v w7", "h h_flip v v_flip"),
    *("h h_flip v v_flip", "h h_flip v v_flip", "h_flip v v_flip w7", "h_flip v v_flip w2_flip"),
    *("h h_flip v v_flip", "h h_flip v v_flip", "h v v_flip w2", "h v v_flip w2_flip"),
    *("h h_flip v_flip w7", "h_flip v v_flip w2", "h h_flip v v_flip", "h v w2 w2_flip"),
    *("v v_flip w2 w7", "h h_flip v w2", "h h_flip w2_flip w7", "v v_flip w2 w2_flip"),
)


class LocalVim(DenseEncoder):
    """Pre-norm S6 blocks whose directions are gated channel by channel and added; tokens have rotary positions, too.

    Args:
        num_classes: Number of classes that the head tells apart.
        dim: Width of the residual stream: values a token.
        depth: Number of blocks.
        directions: Directions of each block, such as [h, v_flip, w7]: rows, columns from the end, windows of 7 patches;
            a single list for all blocks alike; null for the published ones of 20 blocks.
        middle_class_token: Answer from a class token in the middle of the patches, and rotate nothing; otherwise from
            the mean of all patches.
        d_state: State values a channel of the recurrence.
        d_conv: Taps of the causal convolution, in patches.
        expand: Inner width of a block as a multiple of dim.
        patch: Side of a patch in pixels.
        grid: Patches along each side of the square that the position table is made for; others get it resized.
        kernels: Selective scan of mamba-ssm on a GPU: cuda, plain torch, or auto for the kernel where it can be had.
    """

    published_as = "localvim"

    def __init__(
        self,
        num_classes: int = 1000,
        dim: int = 192,
        depth: int = 20,
        directions: list[list[str]] | None = None,
        middle_class_token: bool = False,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        patch: int = 16,
        grid: int = 14,
        kernels: Kernels = "auto",
    ) -> None:
        super().__init__()
        require_sizes(num_classes=num_classes, dim=dim, depth=depth, d_state=d_state, d_conv=d_conv, expand=expand)
        require_sizes(patch=patch, grid=grid)
        if dim % 4 and not middle_class_token:
            raise InputError(f"encoder.dim is {dim}: rotary positions of two axes need a multiple of 4")
        self.patch = self.stride = patch
        self.kernels = kernels
        self.directions = of_blocks(directions, depth, {len(SEARCHED): SEARCHED})
        self.patch_embed = PatchEmbed(dim, patch, patch)
        self.positions = nn.Parameter(torch.empty(grid, grid, dim))
        self.class_token = nn.Parameter(torch.empty(1, dim)) if middle_class_token else None
        self.class_position = nn.Parameter(torch.empty(1, dim)) if middle_class_token else None
        mixers = (
            S6Mixer(dim, len(names), depth, d_state, d_conv, expand, gate=True, divide=False, kernels=kernels)
            for names in self.directions
        )
        self.blocks = nn.ModuleList(S6Block(mixer, dim) for mixer in mixers)
        self.norm = nn.RMSNorm(dim, eps=1e-5)
        self.head = nn.Linear(dim, num_classes)
        start_alike(self, depth, STD)
        for table in (self.positions, self.class_token, self.class_position):
            if table is not None:
                nn.init.trunc_normal_(table, std=STD)

    def image_features(self, images: Tensor) -> Tensor:
        patches = self.patch_embed(images)  # (B, R, C, D)
        rows, cols = patches.shape[1:3]
        x = (patches + resized(self.positions, rows, cols)).flatten(1, 2)
        middle = rows * cols // 2
        rotation = None
        if self.class_token is None or self.class_position is None:
            rotation = rotations(rows, cols, x.shape[-1], x.device)
        else:
            x = insert(x, self.class_token + self.class_position, [middle])  # (B, M + 1, D)
        for names, block in zip(self.directions, self.blocks, strict=True):
            if rotation is not None:
                x = rotate(x, rotation)  # of what blocks before have added, again
            x = block(x, sequences_of(names, rows, cols, rotation is None).to(x.device))
        if rotation is None:
            features: Tensor = self.norm(x[:, middle].to(self.norm.weight.dtype))
            return features
        return self.norm(x.to(self.norm.weight.dtype)).mean(1)

    def feature_modules(self) -> tuple[list[nn.Module], nn.Module]:
        return [*self.blocks], self.norm

    def extra_places(self, tokens: int) -> list[int]:
        return [] if self.class_token is None else [tokens // 2]

    def no_weight_decay(self) -> set[str]:
        tokens = [] if self.class_token is None else ["class_token", "class_position"]
        return super().no_weight_decay() | undecayed(self, "positions", *tokens)

    def backend(self, device: torch.device) -> str:
        return scan_backend(self.kernels, device) or super().backend(device)

    @classmethod
    def from_published(cls, tensors: Mapping[str, Tensor], where: str) -> PublishedWeights | None:
        if not {"pos_embed", "layers.0.mixer.A_log_0", "layers.0.mixer.attn.norm.weight"} <= tensors.keys():
            return None
        with of_layout(cls.published_as, where):
            kept = {name: tensor for name, tensor in tensors.items() if not name.startswith("rope.")}  # computed here
            count = sum(name.startswith("layers.0.mixer.D_") for name in kept)
            state = renamed(kept, [f"_{k}" for k in range(count)], "A_log{}", {"cls_token": "class_token"})
            state = {gate_name(name): tensor for name, tensor in state.items()}
            with_class = "class_token" in state
            if with_class:
                (state["class_token"],) = state["class_token"]
            split_table(state, (tensors["pos_embed"].shape[1] - 1) // 2 if with_class else None)
            return PublishedWeights({**sizes_in(state), "middle_class_token": with_class}, state)

    @classmethod
    def settings_in(cls, tensors: Mapping[str, Tensor]) -> dict[str, Any] | None:
        if "blocks.0.mixer.gate.norm.weight" not in tensors:
            return None
        try:
            return {**sizes_in(tensors), "middle_class_token": "class_token" in tensors}
        except (KeyError, ValueError):
            return None


def gate_name(name: str) -> str:
    """Return our name of a tensor of the channel gate, given the authors'; any other name as it is."""
    for theirs, ours in GATE.items():
        name = name.replace(theirs, ours)
    return name
