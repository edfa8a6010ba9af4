"""Multiply-adds of inference, of dense layers and of what mixes tokens apart, without computing anything.

Dense layers are products with weights: linear maps, convolutions, and the projections of scans. Mixing is what a
recurrence or attention does besides. A recurrence is counted step by step, whatever computes it: for every channel and
state value of a step of S6, dt A, decay times h, dt x times B, and C times h, with the skip and dt x for the channel;
for Mamba-2 the same without dt A, whose decay is a head's. Norms, activations and sums over axes are left out.
"""

from collections.abc import Callable, Iterator
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
RECURRENCES = {
    "mambaeye.ops.s6_directions.selective_scan": OF_S6,
    "mambaeye.encoders.spatial_mamba.selective_scan": OF_S6,
    "mambaeye.ops.mamba2.ssd": OF_SSD,
    "mambaeye.ops.mamba2.ssd_step": OF_SSD,
}


class MultiplyAdds(NamedTuple):
    """Multiply-adds of one image."""

    dense: int
    """Products with weights."""
    mixing: int
    """What recurrences and attention do besides."""


class _Recurrences:
    """What ran in recurrences: their multiply-adds, and the operations that torch has counted there."""

    def __init__(self) -> None:
        self.multiply_adds = self.counted = 0

    def watching(self, place: str, of_state: int) -> Callable[..., Any]:
        """Return the function at a place, which notes what it is called with."""
        module, _, name = place.rpartition(".")
        function = getattr(__import__(module, fromlist=[name]), name)

        def watched(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, *rest: Any) -> Any:
            self.multiply_adds += x.numel() * (of_state * B.shape[-1] + OF_CHANNEL)
            with FlopCounterMode(display=False) as inside:
                result = function(x, dt, A, B, *rest)
            self.counted += inside.get_total_flops()
            return result

        return watched


@contextmanager
def recurrences() -> Iterator[_Recurrences]:
    """Note what recurrences do in here."""
    seen = _Recurrences()
    with ExitStack() as stack:
        for place, of_state in RECURRENCES.items():
            stack.enter_context(patch(place, seen.watching(place, of_state)))
        yield seen


@torch.no_grad()
def multiply_adds(encoder: Encoder, size: int) -> MultiplyAdds:
    """Count one image's inference: on a canvas of a side, or of so many glimpses.

    Args:
        encoder: on the meta device.
        size: side in pixels, or glimpses.
    """
    with recurrences() as seen, FlopCounterMode(display=False) as counter:
        encoder.logits(encoder.features(*inputs_of(encoder, size)))  # type: ignore[operator]
    by_kind: dict[str, int] = {}
    for operation, count in counter.get_flop_counts()["Global"].items():
        kind = str(operation).rpartition(".")[2]
        by_kind[kind] = by_kind.get(kind, 0) + count
    total = sum(by_kind.values()) - seen.counted
    if seen.multiply_adds:  # then batched products that are left are projections, of each direction its own
        return MultiplyAdds(total // 2, seen.multiply_adds)
    dense = sum(by_kind.get(kind, 0) for kind in WEIGHTED)
    return MultiplyAdds(dense // 2, (total - dense) // 2)


def inputs_of(encoder: Encoder, size: int) -> tuple[Tensor, ...]:
    """Return what an encoder takes of one image, without values: on the meta device."""
    if isinstance(encoder, CanvasEncoder):
        return (torch.empty(1, size, size, 3, dtype=torch.uint8, device="meta"),)
    assert isinstance(encoder, GlimpseEncoder)
    side = encoder.patch_size
    patches = torch.empty(1, size, 3, side, side, dtype=torch.uint8, device="meta")
    return patches, torch.empty(1, size, 2, dtype=torch.int32, device="meta")
