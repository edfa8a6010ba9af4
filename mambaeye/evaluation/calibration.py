"""Calibration from bins: is an answer given with confidence p right in a share p of all cases?

Pure functions of sums by bin, which add up over batches and processes. Letters: M coarse bins of equal width, F fine
bins (FINE to each coarse one), and one bin more for a confidence of exactly 1. A bin holds its lower edge and not its
upper one: torchmetrics' bins, to the last bit.
"""

from functools import lru_cache

import torch
from torch import Tensor

FINE = 8


@lru_cache
def fine_edges(bins: int, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
    """Return the lower edges of the fine bins, the last one 1: (F + 1,), where F = FINE * bins.

    Every eighth is a coarse edge, computed in the dtype of the confidences, as torchmetrics does. They are computed on
    the CPU, for all devices to agree to the last bit, and copied to a device once.
    """
    edges = torch.linspace(0, 1, bins + 1, dtype=dtype)  # (M + 1,)
    shares = torch.arange(FINE, dtype=dtype) / FINE
    fine = torch.lerp(edges[:-1, None], edges[1:, None], shares)  # (M, FINE)
    return torch.cat((fine.flatten(), edges[-1:])).to(device, non_blocking=True)


def coarse(sums: Tensor) -> Tensor:
    """Add up fine bins to coarse ones: (..., F + 1) -> (..., M + 1); the bin of exactly 1 stays by itself."""
    return torch.cat((sums[..., :-1].unflatten(-1, (-1, FINE)).sum(-1), sums[..., -1:]), dim=-1)


def equal_mass(count: Tensor, confidence: Tensor, correct: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Merge neighbouring fine bins into M groups of as nearly equal counts as they allow.

    A fine bin goes whole into the group that the middle of its count falls into, so a group's share is off from 1 / M
    by at most one fine bin: where many answers have nearly the same confidence, groups are fewer and larger.

    Args:
        count, confidence, correct: (..., F + 1), sums by fine bin.

    Returns:
        The same three by group, (..., M).
    """
    groups = (count.shape[-1] - 1) // FINE
    through = count.cumsum(-1)
    total = through[..., -1:].clamp(min=1)
    group = (groups * (through - count / 2) / total).long().clamp(max=groups - 1)  # (..., F + 1)

    def merged(sums: Tensor) -> Tensor:
        return torch.zeros_like(sums[..., :groups]).scatter_add_(-1, group, sums)

    return merged(count), merged(confidence), merged(correct)


def expected_error(count: Tensor, confidence: Tensor, correct: Tensor) -> Tensor:
    """Return the expected calibration error: the mean over answers of |accuracy - confidence| of their bin: (...)."""
    return (correct - confidence).abs().sum(-1) / count.sum(-1)


def maximum_error(count: Tensor, confidence: Tensor, correct: Tensor) -> Tensor:
    """Return the maximum calibration error: the worst bin's |accuracy - confidence|, of however few answers."""
    return ((correct - confidence).abs() / count.clamp(min=1)).amax(-1)
