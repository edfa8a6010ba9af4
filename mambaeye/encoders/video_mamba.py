"""VideoMamba: Vim's blocks over the patches of all frames of a clip (Li et al. 2024, arXiv 2403.06977), and the two
changes to their scans that VideoMambaPro makes (Lu et al. 2024, arXiv 2406.19006).

Shapes: B clips, T frames, H and W sides in pixels, F tubelets in time, R rows and C columns of patches, M = F R C
tubelets, D model width.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mambaeye.encoders.base import DenseEncoder, PublishedWeights
from mambaeye.errors import InputError
from mambaeye.ops.dense import TubeletEmbed, insert, resized, take_out
from mambaeye.ops.kernel_selection import Kernels
from mambaeye.ops.s6_block import S6Block, S6Mixer, both_ways, scan_backend, start_alike, undecayed
from mambaeye.ops.s6_weights import BOTH_WAYS, laid_out_as_vim, renamed, sizes_in, split_table
from mambaeye.ops.shapes import of_layout, require_sizes

STD = 0.02  # that tokens, the table of rows and columns and linear weights start with
PATCHES, TIMES = "patch_embed.proj.weight", "temporal_positions"
FRAMES = 8  # as the shortest clips that it was published for
BACKWARDS = 1  # number of that direction


class VideoMamba(DenseEncoder):
    """Pre-norm S6 blocks, forwards and backwards, over all tubelets of a clip behind a class token, which answers.

    The tubelets come frame by frame, and row by row within a frame. An image is a clip of one frame. Frames that do not
    fill a tubelet are followed by the last one, again.

    Args:
        num_classes: Number of classes that the head tells apart.
        dim: Width of the residual stream: values a token.
        depth: Number of blocks.
        frames: Frames that the table of times is made for; clips of another length get it resized. Null for none, as
            the published models for images.
        tubelet: Frames of a tubelet; 1 in all published models.
        masked_backward: Take out of the backward scan what every token adds to it itself (VideoMambaPro).
        residual_state: Start the state of each scan from its first input in place of zeros (VideoMambaPro).
        d_state: State values a channel of the recurrence.
        d_conv: Taps of the causal convolution, in tubelets.
        expand: Inner width of a block as a multiple of dim.
        patch: Side of a patch in pixels.
        grid: Patches along each side of the square that the position table is made for; others get it resized.
        kernels: Selective scan of mamba-ssm on a GPU: cuda, plain torch, or auto for the kernel where it can be had.
    """

    published_as = "videomamba"

    def __init__(
        self,
        num_classes: int = 1000,
        dim: int = 192,
        depth: int = 24,
        frames: int | None = FRAMES,
        tubelet: int = 1,
        masked_backward: bool = False,
        residual_state: bool = False,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        patch: int = 16,
        grid: int = 14,
        kernels: Kernels = "auto",
    ) -> None:
        super().__init__()
        require_sizes(num_classes=num_classes, dim=dim, depth=depth, d_state=d_state, d_conv=d_conv, expand=expand)
        require_sizes(patch=patch, grid=grid, tubelet=tubelet)
        times = tubelets_in(frames, tubelet)
        self.patch = self.stride = patch
        self.tubelet, self.kernels = tubelet, kernels
        self.patch_embed = TubeletEmbed(dim, patch, tubelet)
        self.positions = nn.Parameter(torch.empty(grid, grid, dim))
        self.temporal_positions = nn.Parameter(torch.zeros(times, dim)) if times else None
        self.class_token = nn.Parameter(torch.empty(1, dim))
        self.class_position = nn.Parameter(torch.empty(1, dim))
        mixer = partial(S6Mixer, dim, len(BOTH_WAYS), depth, d_state, d_conv, expand, divide=False, kernels=kernels)
        masked = (BACKWARDS,) if masked_backward else ()
        self.blocks = nn.ModuleList(
            S6Block(mixer(masked=masked, residual_state=residual_state), dim) for _ in range(depth)
        )
        self.norm = nn.RMSNorm(dim, eps=1e-5)
        self.head = nn.Linear(dim, num_classes)
        start_alike(self, depth, STD)
        for table in (self.positions, self.class_token, self.class_position):
            nn.init.trunc_normal_(table, std=STD)

    def features(self, canvases: Tensor) -> Tensor:
        """Return what the head sees, (B, D), of clips (B, T, H, W, 3) or images (B, H, W, 3), uint8."""
        if canvases.ndim == 5 and (lacking := -canvases.shape[1] % self.tubelet):
            last = canvases[:, -1:].expand(-1, lacking, -1, -1, -1)
            canvases = torch.cat((canvases, last), dim=1)
        return super().features(canvases)

    def image_features(self, images: Tensor) -> Tensor:
        """Return what the head sees, (B, D), of normalised clips (B, 3, T, H, W) that tubelets cover exactly, or of
        images (B, 3, H, W) that patches do.
        """
        if images.ndim == 4:
            images = images.unsqueeze(2).expand(-1, -1, self.tubelet, -1, -1)
        tubelets = self.patch_embed(images)  # (B, F, R, C, D)
        times, rows, cols = tubelets.shape[1:4]
        x = tubelets + resized(self.positions, rows, cols)
        if self.temporal_positions is not None:
            x = x + resized(self.temporal_positions.unsqueeze(1), times, 1).unsqueeze(1)  # (F, 1, 1, D)
        x = insert(x.flatten(1, 3), self.class_token + self.class_position, [0])  # (B, 1 + M, D)
        sequences = both_ways(x.shape[1]).to(x.device)
        for block in self.blocks:
            x = block(x, sequences)
        features: Tensor = self.norm(x[:, 0].to(self.norm.weight.dtype))
        return features

    def looks_at(self, axes: int) -> bool:
        return axes in (2, 3)

    def feature_modules(self) -> tuple[list[nn.Module], nn.Module]:
        return [*self.blocks], self.norm

    def extra_places(self, tokens: int) -> list[int]:
        return [0]

    def as_map(self, output: Tensor, sides: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """Return the map (B, D, F, R, C) of a clip, (B, D, R, C) of an image, and the class token (B, 1, D)."""
        steps = (self.tubelet, self.patch, self.patch)[-len(sides) :]
        grid = [math.ceil(side / step) for side, step in zip(sides, steps, strict=True)]
        tubelets, extra = take_out(output, [0])
        return tubelets.mT.unflatten(2, grid), extra

    def no_weight_decay(self) -> set[str]:
        tables = ["positions", "class_token", "class_position", *([] if self.temporal_positions is None else [TIMES])]
        return super().no_weight_decay() | undecayed(self, *tables)

    def backend(self, device: torch.device) -> str:
        return scan_backend(self.kernels, device) or super().backend(device)

    @classmethod
    def from_published(cls, tensors: Mapping[str, Tensor], where: str) -> PublishedWeights | None:
        if not {"cls_token", "pos_embed", "temporal_pos_embedding", "layers.0.mixer.A_b_log"} <= tensors.keys():
            return None
        with of_layout(cls.published_as, where):
            state = by_our_names(tensors)
            (state[TIMES],) = state[TIMES]
            return PublishedWeights(clip_sizes(state), state)

    @classmethod
    def from_published_for(
        cls, tensors: Mapping[str, Tensor], where: str, settings: Mapping[str, Any]
    ) -> PublishedWeights | None:
        """Return what from_published does, and a model for images as one for clips, of `frames` and `tubelet`.

        Models for images have Vim's layout, but for the place of the class token, which nothing in them tells. Each
        patch becomes the middle frame of a tubelet, all else of which is zero, as are the times: a clip of one frame
        gets the answer that the image had.
        """
        if not laid_out_as_vim(tensors):
            return cls.from_published(tensors, where)
        frames, tubelet = settings.get("frames", FRAMES), settings.get("tubelet", 1)
        require_sizes(tubelet=tubelet)
        times = tubelets_in(frames, tubelet)
        with of_layout(cls.published_as, where):
            state = by_our_names(tensors)
            still = state[PATCHES]
            dim, channels, *sides = still.shape  # (D, 3, P, P)
            state[PATCHES] = still.new_zeros(dim, channels, tubelet, *sides)
            state[PATCHES][:, :, tubelet // 2] = still
            if times:
                state[TIMES] = still.new_zeros(times, dim)
            return PublishedWeights({**clip_sizes(state), "frames": frames}, state)

    @classmethod
    def settings_in(cls, tensors: Mapping[str, Tensor]) -> dict[str, Any] | None:
        if "class_position" not in tensors or PATCHES not in tensors or tensors[PATCHES].ndim != 5:
            return None
        try:
            return clip_sizes(tensors)
        except (KeyError, ValueError):
            return None


def tubelets_in(frames: int | None, tubelet: int) -> int:
    """Return the tubelets of a table of times; 0 where there is none.

    Raises:
        InputError: tubelets do not fill its frames.
    """
    if frames is None:
        return 0
    require_sizes(frames=frames)
    if frames % tubelet:
        raise InputError(f"encoder.frames is {frames}, which tubelets of {tubelet} do not fill: give a multiple")
    return frames // tubelet


def by_our_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict by our names, with the table of times and the patches as they are. Raises as renamed."""
    names = {"cls_token": "class_token", "temporal_pos_embedding": TIMES}
    state = renamed(tensors, BOTH_WAYS, "A{}_log", names)
    (state["class_token"],) = state["class_token"]
    split_table(state, 0)
    return state


def clip_sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the sizes that a state dict by our names tells. Raises as sizes_in."""
    _, _, tubelet, _, _ = state[PATCHES].shape
    frames = len(state[TIMES]) * tubelet if TIMES in state else None
    return {**sizes_in({**state, PATCHES: state[PATCHES][:, :, 0]}), "frames": frames, "tubelet": tubelet}
