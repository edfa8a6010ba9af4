"""VMamba: selective scans along rows and columns, both ways, in a pyramid of grids (Liu et al. 2024, arXiv 2401.10166).

Shapes: B images, H and W sides in pixels, D width of the first stage, E inner width, N d_state, R rank of step sizes.
"""

import math
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mambaeye.encoders.base import DenseEncoder, PublishedWeights
from mambaeye.errors import InputError
from mambaeye.ops.cross_scan import PATCH, CrossScan, CrossScanBlock, Pyramid, reset_cross_scans
from mambaeye.ops.cross_scan_sizes import FIRST, sizes_in, widths_of
from mambaeye.ops.kernel_selection import Kernels
from mambaeye.ops.s6_block import scan_backend, undecayed
from mambaeye.ops.shapes import of_layout, require_sizes

DIRECTIONS = ("h", "v", "h_flip", "v_flip")
DEPTHS = (2, 2, 8, 2)
# the authors' names, as patterns, and what is put in their place: their older ones -> the later ones -> ours
OLDER = {
    r"^patch_embed\.proj\.": "patch_embed.0.",
    r"^patch_embed\.norm\.": "patch_embed.2.",
    r"\.ln_1\.": ".norm.",
    r"\.self_attention\.": ".op.",
    r"\.(x_proj|dt_projs)_weight$": r".\1.weight",
    r"\.downsample\.norm\.": ".downsample.1.",
    r"\.downsample\.reduction\.": ".downsample.2.",
    r"^(norm|head)\.": r"classifier.\1.",
}
OURS = {
    r"^layers\.": "pyramid.stages.",
    r"\.op\.": ".mixer.",
    r"\.conv2d\.": ".conv.",
    r"\.norm2\.": ".mlp_norm.",
    r"\.mixer\.A_logs$": ".mixer.A_log",
    r"\.mixer\.Ds$": ".mixer.D",
    r"\.mixer\.dt_projs_bias$": ".mixer.dt_bias",
    r"\.mixer\.x_proj\.weight$": ".mixer.x_proj",
    r"\.mixer\.dt_projs\.weight$": ".mixer.dt_weight",
    r"^classifier\.norm\.": "pyramid.norm.",
    r"^classifier\.head\.": "head.",
}
OF_CONVOLUTIONS = {
    r"^patch_embed\.0\.": "pyramid.stem.0.",
    r"^patch_embed\.2\.": "pyramid.stem.1.",
    r"^patch_embed\.5\.": "pyramid.stem.3.",
    r"^patch_embed\.7\.": "pyramid.stem.4.",
    r"\.downsample\.1\.": ".merge.0.",
    r"\.downsample\.3\.": ".merge.1.",
}
OF_PATCHES = {
    r"^patch_embed\.0\.": "pyramid.stem.0.proj.",
    r"^patch_embed\.2\.": "pyramid.stem.1.",
    r"\.downsample\.": ".merge.",
}
STACKED = (".A_log", ".D", ".x_proj", ".dt_weight")  # our names of what has the directions one behind the other


class VMamba(DenseEncoder):
    """Stages of blocks that scan a grid of tokens in four directions; each has half the sides and twice the width.

    The defaults are the current tiny model's. Any canvas will do: there are no positions.

    Args:
        num_classes: Number of classes that the head tells apart.
        dim: Width of the first stage: values a token.
        depths: Blocks of each stage; null for the tiny model's 2, 2, 8, 2.
        expand: Inner width of a mixer as a multiple of its stage's.
        d_state: State values a channel of the recurrence.
        mlp_ratio: Inner width of the MLPs as a multiple of their stage's; 0 for blocks without, as the first models'.
        gated: Multiply what a mixer makes by a second projection, as the older models do.
        conv_bias: Give the mixers' convolutions a bias, as the older models do.
        overlapping: Convolutions of 3 x 3 as stem and between stages; false for patches of 4 x 4 pixels and of 2 x 2
            tokens, as the older models have.
        kernels: Selective scan of mamba-ssm on a GPU: cuda, plain torch, or auto for the kernel where it can be had.
    """

    published_as = "vmamba"
    patch = stride = PATCH

    def __init__(
        self,
        num_classes: int = 1000,
        dim: int = 96,
        depths: list[int] | None = None,
        expand: int = 1,
        d_state: int = 1,
        mlp_ratio: float = 4.0,
        gated: bool = False,
        conv_bias: bool = False,
        overlapping: bool = True,
        kernels: Kernels = "auto",
    ) -> None:
        super().__init__()
        counts = DEPTHS if depths is None else tuple(depths)
        require_sizes(num_classes=num_classes, dim=dim, expand=expand, d_state=d_state)
        if not 0 <= mlp_ratio < math.inf:
            raise InputError(f"encoder.mlp_ratio is {mlp_ratio}: give 0 or more")
        widths = widths_of(dim, counts, overlapping)
        self.kernels = kernels

        def block(width: int) -> CrossScanBlock:
            mixer = CrossScan(width, DIRECTIONS, expand, d_state, gated, conv_bias, kernels=kernels)
            return CrossScanBlock(width, mixer, int(width * mlp_ratio))

        blocks = [[block(width) for _ in range(count)] for width, count in zip(widths, counts, strict=True)]
        self.pyramid = Pyramid(dim, blocks, overlapping)
        self.head = nn.Linear(widths[-1], num_classes)
        reset_cross_scans(self)

    def image_features(self, images: Tensor) -> Tensor:
        features: Tensor = self.pyramid(images)
        return features

    def feature_modules(self) -> tuple[list[nn.Module], nn.Module]:
        return self.pyramid.feature_modules()

    def no_weight_decay(self) -> set[str]:
        return super().no_weight_decay() | undecayed(self)

    def backend(self, device: torch.device) -> str:
        return scan_backend(self.kernels, device) or super().backend(device)

    @classmethod
    def from_published(cls, tensors: Mapping[str, Tensor], where: str) -> PublishedWeights | None:
        later = {renamed(name, OLDER): tensor for name, tensor in tensors.items()}
        first = "layers.0.blocks.0.op."
        needed = {f"{first}A_logs", f"{first}dt_projs_bias", f"{first}out_norm.weight"}
        others = (".multi_scan.", ".state_fusion.")  # which LocalVMamba has, and Spatial-Mamba
        if not needed <= later.keys() or any(part in name for name in later for part in others):
            return None
        with of_layout(cls.published_as, where):
            ours = OURS | (OF_CONVOLUTIONS if "patch_embed.5.weight" in later else OF_PATCHES)
            state = {renamed(name, ours): tensor for name, tensor in later.items()}
            state = {name: of_our_shape(name, tensor) for name, tensor in state.items()}
            return PublishedWeights(sizes_in(state), state)

    @classmethod
    def settings_in(cls, tensors: Mapping[str, Tensor]) -> dict[str, Any] | None:
        if f"{FIRST}mixer.out_norm.weight" not in tensors or f"{FIRST}mixer.gate.norm.weight" in tensors:
            return None
        try:
            return sizes_in(tensors)
        except (KeyError, ValueError, ZeroDivisionError):
            return None


def renamed(name: str, patterns: Mapping[str, str]) -> str:
    """Return a name after all replacements, one after the other."""
    for pattern, replacement in patterns.items():
        name = re.sub(pattern, replacement, name)
    return name


def of_our_shape(name: str, tensor: Tensor) -> Tensor:
    """Return a tensor, by our name, with an axis for the directions, and without those of a convolution of 1 x 1.

    Raises:
        ValueError: it is not of as many directions.
    """
    if tensor.shape[2:] == (1, 1):  # channel-first networks have linear maps so
        tensor = tensor.flatten(1)
    if name.endswith(STACKED) and tensor.ndim != 3 and ".mixer." in name:
        if not tensor.ndim or len(tensor) % len(DIRECTIONS):
            raise ValueError(f"{name} is not of {len(DIRECTIONS)} directions")
        return tensor.unflatten(0, (len(DIRECTIONS), -1))
    return tensor
