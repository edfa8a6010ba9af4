"""Cutting glimpses out of a canvas: the only place where pixels become patches."""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view


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
