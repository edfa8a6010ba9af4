"""LocalVMamba: VMamba's first version with four searched directions in each block, some through local windows, and a
gate of channels (Huang et al. 2024, arXiv 2403.09338).

Shapes: B images, H and W sides in pixels.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mambaeye.encoders.base import DenseEncoder
from mambaeye.geometry.directions import of_blocks
from mambaeye.ops.cross_scan import PATCH, CrossScan, CrossScanBlock, Pyramid
from mambaeye.ops.cross_scan_sizes import FIRST, sizes_in, widths_of
from mambaeye.ops.kernel_selection import Kernels
from mambaeye.ops.s6_block import scan_backend, undecayed
from mambaeye.ops.shapes import require_sizes
from mambaeye.ops.transformer import reset_linear

DEPTHS = (2, 2, 9, 2)
TOLD = ("num_classes", "dim", "depths", "expand", "d_state")
# found by the authors' search, for the tiny and the small model
TINY = (
    *("h h_flip w7 w7_flip", "h_flip v_flip w2 w2_flip", "h_flip v_flip w2_flip w7", "h_flip v v_flip w2"),
    *("h h_flip v_flip w2_flip", "h_flip v_flip w2 w2_flip", "h w2_flip w7 w7_flip", "h h_flip v v_flip"),
    *("h v_flip w7 w7_flip", "h_flip v w2 w7_flip", "v v_flip w2 w7_flip", "h h_flip v_flip w2_flip"),
    *("v_flip w2_flip w7 w7_flip", "h_flip v_flip w2_flip w7_flip", "h_flip v w7 w7_flip"),
)
SMALL = (
    *("h v v_flip w7_flip", "h h_flip v w7", "h_flip v v_flip w7", "h_flip v w2_flip w7", "h_flip v w2_flip w7"),
    *("h_flip v_flip w2 w7_flip", "h_flip v v_flip w7", "h v v_flip w7", "h v v_flip w7", "h v v_flip w7_flip"),
    *("h h_flip v v_flip", "h v v_flip w2", "v v_flip w2_flip w7", "h h_flip v w2", "h_flip v v_flip w7_flip"),
    *("h h_flip v v_flip", "h v v_flip w7_flip", "h v v_flip w7_flip", "h h_flip v_flip w7"),
    *("h_flip v_flip w2_flip w7", "h_flip v v_flip w7_flip", "v v_flip w7 w7_flip", "h v v_flip w7_flip"),
    *("h_flip v v_flip w2", "h v v_flip w2_flip", "h h_flip v w7", "h h_flip w7 w7_flip", "h v_flip w2 w2_flip"),
    *("h v_flip w2 w7", "h v v_flip w7_flip", "h_flip v w2_flip w7", "h_flip v_flip w7 w7_flip", "h v w7 w7_flip"),
)
SEARCHED = {len(TINY): TINY, len(SMALL): SMALL}


class LocalVMamba(DenseEncoder):
    """Stages of blocks without MLPs whose directions are gated channel by channel, added, normed and gated as Mamba's.

    The defaults are the tiny model's. Any canvas will do: there are no positions.

    Args:
        num_classes: Number of classes that the head tells apart.
        dim: Width of the first stage: values a token. Each has half the rows and columns, and twice the width.
        depths: Blocks of each stage; null for the tiny model's 2, 2, 9, 2.
        directions: Directions of each block, such as [h, v_flip, w7]: rows, columns from the end, windows of 7 tokens;
            a single list for all blocks alike; null for the published ones of 15 or 33 blocks.
        expand: Inner width of a mixer as a multiple of its stage's.
        d_state: State values a channel of the recurrence.
        kernels: Selective scan of mamba-ssm on a GPU: cuda, plain torch, or auto for the kernel where it can be had.
    """

    patch = stride = PATCH

    def __init__(
        self,
        num_classes: int = 1000,
        dim: int = 96,
        depths: list[int] | None = None,
        directions: list[list[str]] | None = None,
        expand: int = 2,
        d_state: int = 16,
        kernels: Kernels = "auto",
    ) -> None:
        super().__init__()
        counts = DEPTHS if depths is None else tuple(depths)
        require_sizes(num_classes=num_classes, dim=dim, expand=expand, d_state=d_state)
        widths = widths_of(dim, counts, overlapping=False)
        self.kernels = kernels
        self.directions = of_blocks(directions, sum(counts), SEARCHED)
        names = iter(self.directions)

        def block(width: int) -> CrossScanBlock:
            gates = {"gated": True, "conv_bias": True, "channel_gate": True}
            return CrossScanBlock(width, CrossScan(width, next(names), expand, d_state, **gates, kernels=kernels), 0)

        blocks = [[block(width) for _ in range(count)] for width, count in zip(widths, counts, strict=True)]
        self.pyramid = Pyramid(dim, blocks, overlapping=False)
        self.head = nn.Linear(widths[-1], num_classes)
        reset_linear(self)  # and not what leads into the recurrences, which keeps Mamba's own start

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
    def settings_in(cls, tensors: Mapping[str, Tensor]) -> dict[str, Any] | None:
        if f"{FIRST}mixer.gate.norm.weight" not in tensors:
            return None
        try:
            sizes = sizes_in(tensors)
        except (KeyError, ValueError, ZeroDivisionError):
            return None
        return {name: sizes[name] for name in TOLD}
