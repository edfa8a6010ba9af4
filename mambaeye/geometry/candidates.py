"""Candidate places of a glimpse, drawn by key on the device of the images: batched, and the same whoever draws them.

Shapes: B images, n places, K axes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from mambaeye.geometry.box import PatchSize, patch_sides

GOLDEN = 0x9E3779B97F4A7C15
MIXERS = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))  # SplitMix64's (Steele, Lea and Flood 2014)
LAST_SHIFT = 31


def keyed_uniform(seeds: Tensor, key: Sequence[int], count: int) -> Tensor:
    """Return uniform draws that depend on an image's seed, the key and their place alone: (B, count) float64, [0, 1).

    Args:
        seeds: (B,) int64.
        key: of what is drawn, such as its purpose and the glimpse; another key gives independent draws.
        count: how many, of which fewer are the first of more.
    """
    mixed = seeds
    for part in key:
        mixed = _mixed(mixed + _signed((part + 1) * GOLDEN))
    places = torch.tensor([_signed((place + 1) * GOLDEN) for place in range(count)])
    places = places.to(seeds.device, non_blocking=True)
    bits = _mixed(mixed[:, None] + places)  # (B, count)
    return _shifted(bits, 11).double() * 2.0**-53


def start_ranges(boxes: Tensor, patch_size: PatchSize) -> tuple[Tensor, Tensor]:
    """Return the first and the last valid start of a glimpse on each box, as box.start_range: (B, K) int64 each.

    Args:
        boxes: (B, 2 K) integers.
        patch_size: sides of a glimpse in pixels.
    """
    edge, side = boxes.long().unflatten(1, (2, -1)).unbind(1)
    sides = torch.tensor(patch_sides(patch_size, edge.shape[1])).to(boxes.device, non_blocking=True)  # (K,)
    first = edge - (sides - side).clamp(min=0) // 2
    return first, first + (side - sides).clamp(min=0)


def uniform_starts(boxes: Tensor, patch_size: PatchSize, seeds: Tensor, key: Sequence[int], count: int) -> Tensor:
    """Draw places uniformly over the valid starts of each box: (B, count, K) int64.

    Args:
        boxes: (B, 2 K) integers.
        patch_size: sides of a glimpse in pixels.
        seeds, key: as for keyed_uniform.
        count: n.
    """
    first, last = start_ranges(boxes, patch_size)
    axes = first.shape[1]
    draws = keyed_uniform(seeds, key, count * axes).unflatten(1, (count, axes))
    return first[:, None] + (draws * (last - first + 1)[:, None]).long()


def _mixed(bits: Tensor) -> Tensor:
    """Return SplitMix64's finalizer of int64 bits, whose products wrap around."""
    for shift, factor in MIXERS:
        bits = (bits ^ _shifted(bits, shift)) * _signed(factor)
    return bits ^ _shifted(bits, LAST_SHIFT)


def _shifted(bits: Tensor, by: int) -> Tensor:
    """Return the bits shifted to the right, filled up with zeros as if they had no sign."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def _signed(number: int) -> int:
    """Return the int64 with the lowest 64 bits of a number."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)
