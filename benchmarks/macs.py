"""Multiply-adds of inference, of dense layers and of what mixes tokens apart, without computing anything.

Dense layers are products with weights: linear maps, convolutions, and the projections of scans. Mixing is what a
recurrence or attention does besides. A recurrence is counted step by step, whatever computes it: for every channel and
state value of a step of S6, dt A, decay times h, dt x times B, and C times h, with the skip and dt x for the channel;
for Mamba-2 the same without dt A, whose decay is a head's. Norms, activations and sums over axes are left out.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mambaeye.encoders.base import CanvasEncoder, Encoder, GlimpseEncoder

OF_S6, OF_SSD = 4, 3  # a state value and step
OF_CHANNEL = 2  # dt x, and the skip
WEIGHTED = ("mm", "addmm", "convolution")
S6 = ("mambaeye.ops.s6_directions.selective_scan", "mambaeye.encoders.spatial_mamba.selective_scan")
SSD = ("mambaeye.ops.mamba2.ssd", "mambaeye.ops.mamba2.ssd_step")


class MultiplyAdds(NamedTuple):
    """Multiply-adds of one image."""

    dense: int
    """Products with weights."""
    mixing: int
    """Work of recurrences and attention besides."""


class _Recurrences:
    """Stand-ins for recurrences, which note their multiply-adds and run nothing, for only shapes count."""

    def __init__(self) -> None:
        self.multiply_adds = 0

    def of_s6(self, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, *rest: Any) -> Tensor:
        """Note what s6.selective_scan would do, and return a tensor like what it returns."""
        self.multiply_adds += x.numel() * (OF_S6 * B.shape[-1] + OF_CHANNEL)
        return torch.empty_like(x)

    def of_ssd(
        self, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Note what ssd or ssd_step would do, and return tensors like what they return."""
        self.multiply_adds += x.numel() * (OF_SSD * B.shape[-1] + OF_CHANNEL)
        return torch.empty_like(x), state


@contextmanager
def recurrences() -> Iterator[_Recurrences]:
    """Note what recurrences would do in here."""
    seen = _Recurrences()
    with ExitStack() as stack:
        for place in S6:
            stack.enter_context(patch(place, seen.of_s6))
        for place in SSD:
            stack.enter_context(patch(place, seen.of_ssd))
        yield seen


@torch.no_grad()
def multiply_adds(encoder: Encoder, size: int) -> MultiplyAdds:
    """Count one image's inference: on a canvas of a side, or of so many glimpses.

    Args:
        encoder: on the meta device.
        size: side in pixels, or glimpses.
    """
    with recurrences() as seen, FlopCounterMode(display=False) as counter:
        encoder.logits(features_of(encoder, size))
    by_kind: dict[str, int] = {}
    for operation, count in counter.get_flop_counts()["Global"].items():
        kind = str(operation).rpartition(".")[2]
        by_kind[kind] = by_kind.get(kind, 0) + count
    total = sum(by_kind.values())
    if seen.multiply_adds:  # then batched products that are left are projections, of each direction its own
        return MultiplyAdds(total // 2, seen.multiply_adds)
    dense = sum(by_kind.get(kind, 0) for kind in WEIGHTED)
    return MultiplyAdds(dense // 2, (total - dense) // 2)


def features_of(encoder: Encoder, size: int) -> Tensor:
    """Return the features of one image without values: on a canvas of a side, or of so many glimpses.

    Args:
        encoder: on the meta device.
        size: side in pixels, or glimpses.
    """
    if isinstance(encoder, CanvasEncoder):
        return encoder.features(torch.empty(1, size, size, 3, dtype=torch.uint8, device="meta"))
    assert isinstance(encoder, GlimpseEncoder)
    side = encoder.patch_size
    patches = torch.empty(1, size, 3, side, side, dtype=torch.uint8, device="meta")
    return encoder.features(patches, torch.empty(1, size, 2, dtype=torch.int32, device="meta"))
