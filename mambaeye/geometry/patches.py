"""Cutting glimpses out of canvases: the only place where pixels become patches.

Shapes: B canvases, S... their sides, C channels, K axes (as many as sides), T glimpses, P... the sides of a glimpse.
"""

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from mambaeye.batch import Regions
from mambaeye.geometry.box import PatchSize, patch_sides


def cut_patches(canvas: np.ndarray, positions: np.ndarray, patch_size: PatchSize) -> np.ndarray:
    """Cut the glimpses at these positions out of a canvas.

    Args:
        canvas: (S..., C) uint8 or uint16.
        positions: (T, K) integers, each glimpse's first pixel, every glimpse wholly on the canvas.
        patch_size: sides of a glimpse in pixels, P...

    Returns:
        (T, C, P...) of that dtype, a copy.
    """
    axes = positions.shape[-1]
    assert canvas.ndim == axes + 1, f"a canvas of shape {canvas.shape} has not {axes} axes"
    assert positions.size == 0 or positions.min() >= 0, "a glimpse starts outside the canvas"
    sides = patch_sides(patch_size, axes)
    windows = sliding_window_view(canvas, sides, axis=tuple(range(axes)))  # (S-P+1..., C, P...)
    patches: np.ndarray = windows[tuple(positions.T)]
    return patches


def cut_from_canvases(canvases: Tensor | Regions, positions: Tensor, patch_size: PatchSize) -> Tensor:
    """Cut the glimpses at these positions out of a batch of canvases, on their device.

    Args:
        canvases: (B, S..., C) uint8 or uint16; or regions, which are read.
        positions: (B, T, K) integers, each glimpse's first pixel, every glimpse wholly on its canvas.
        patch_size: sides of a glimpse in pixels, P...

    Returns:
        (B, T, C, P...) of that dtype, a copy.
    """
    if not isinstance(canvases, Tensor):
        return canvases.cut(positions, patch_sides(patch_size, positions.shape[-1]))
    windows = canvases
    for axis, side in enumerate(patch_sides(patch_size, canvases.ndim - 2), start=1):
        windows = windows.unfold(axis, side, 1)  # in the end (B, S-P+1..., C, P...)
    image = torch.arange(len(canvases), device=canvases.device)[:, None]
    return windows[(image, *positions.unbind(-1))]
