"""Features for dense work: recorded behind an encoder's stages, and those of glimpses laid on a map.

Shapes: B images, A answers, T glimpses, K axes of a position, P patch side, E extra tokens, D width, F times, R rows
and C columns of a map.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mambaeye.ops.block import Block


class Features(NamedTuple):
    """Features of an encoder before the head, by where they are."""

    pooled: Tensor
    """Input of the head: (B, A, D) of glimpses, (B, D) of canvases."""
    last: Tensor
    """Behind the final norm: (B, T, D) of glimpses, a map (B, D, R, C) of canvases, (B, D, F, R, C) of clips."""
    extra: Tensor | None
    """(B, E, D): class tokens and registers behind the final norm; None if there are none."""
    stages: tuple[Tensor, ...]
    """Before that norm, behind the last stage or every one: shaped as last, each of its own D, R and C."""
    positions: Tensor | None = None
    """(B, T, K): first pixels of the glimpses; None of canvases."""


@contextmanager
def recorded(stages: Iterable[nn.Module]) -> Iterator[list[Tensor]]:
    """Yield a list that grows by what each of these modules returns, whenever it runs.

    Of a Block, which leaves its sum to the next norm, that is the sum; of others that return a tuple, what comes first.
    """
    outputs: list[Tensor] = []

    def record(stage: nn.Module, inputs: Any, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        outputs.append(first + output[1] if isinstance(stage, Block) else first)

    hooks = [stage.register_forward_hook(record) for stage in stages]
    try:
        yield outputs
    finally:
        for hook in hooks:
            hook.remove()


def on_canvas(
    values: Tensor, positions: Tensor, patch_size: int, canvas: tuple[int, int], stride: int = 1
) -> tuple[Tensor, Tensor]:
    """Lay values of glimpses on a map of their canvas, where glimpses overlap as their mean.

    Args:
        values: (B, T, D) floating.
        positions: (B, T, 2) integers, the first pixel of each glimpse.
        patch_size: P, pixels.
        canvas: its height and width, pixels.
        stride: side of a field of the map, pixels; a glimpse weighs as many pixels of the field as it shows.

    Returns:
        (B, D, R, C), zero where no glimpse is; and the weights' sums (B, R, C): glimpses a pixel, times stride squared.
    """
    rows, cols = (
        shown(positions[..., axis], patch_size, side, stride).to(values.dtype) for axis, side in enumerate(canvas)
    )
    weights = rows.mT @ cols  # (B, R, C)
    by_row = values.unsqueeze(-1) * rows.unsqueeze(2)  # (B, T, D, R)
    total = (by_row.flatten(2).mT @ cols).unflatten(1, by_row.shape[2:])  # (B, D, R, C)
    return total / weights.clamp_min(1).unsqueeze(1), weights


def shown(first: Tensor, patch_size: int, side: int, stride: int) -> Tensor:
    """Return how many pixels of each field along an axis glimpses show that start at first (B, T): (B, T, fields)."""
    start = torch.arange(0, side, stride, device=first.device)
    low, high = first.unsqueeze(-1), first.unsqueeze(-1) + patch_size
    return (high.minimum(start + stride) - low.maximum(start)).clamp_min(0)
