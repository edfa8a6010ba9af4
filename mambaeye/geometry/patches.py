"""Cutting glimpses out of canvases: the only place where pixels become patches."""

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor


def cut_patches(canvas: np.ndarray, positions: np.ndarray, patch_size: int) -> np.ndarray:
    """The glimpses at the given positions.

    Args:
        canvas: (H, W, 3) uint8.
        positions: (T, 2) integers, (row, col) of each top-left pixel, every glimpse wholly on the canvas.
        patch_size: side of a glimpse in pixels, P.

    Returns:
        (T, 3, P, P) uint8, a copy.
    """
    windows = sliding_window_view(canvas, (patch_size, patch_size), axis=(0, 1))  # (H-P+1, W-P+1, 3, P, P)
    assert positions.size == 0 or positions.min() >= 0, "a glimpse starts outside the canvas"
    return windows[positions[:, 0], positions[:, 1]]


def cut_from_canvases(canvases: Tensor, positions: Tensor, patch_size: int) -> Tensor:
    """The same from a batch of canvases, on their device.

    Args:
        canvases: (B, H, W, 3) uint8.
        positions: (B, T, 2) integers, every glimpse wholly on its canvas.
        patch_size: side of a glimpse in pixels, P.

    Returns:
        (B, T, 3, P, P) uint8, a copy.
    """
    windows = canvases.unfold(1, patch_size, 1).unfold(2, patch_size, 1)  # (B, H-P+1, W-P+1, 3, P, P)
    image = torch.arange(len(canvases), device=canvases.device)[:, None]
    return windows[image, positions[..., 0], positions[..., 1]]
