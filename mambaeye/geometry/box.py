"""Boxes of pixels, and where glimpses may start on them.

A position is the (row, col) of a glimpse's top-left pixel, at single-pixel granularity. Along each axis it runs from
the image's edge to edge + side - patch, inclusive, so that the last row and column are seen. An image narrower than a
glimpse has one start on that axis: the one that centres the glimpse on it, and keeps it on the canvas.
"""

from typing import NamedTuple

import numpy as np


class Box(NamedTuple):
    """A rectangle of pixels: the image's place on its canvas, or the canvas itself."""

    row: int
    col: int
    height: int
    width: int


def start_range(box: Box, patch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """First and last valid start of a glimpse, both inclusive: (2,) int32 each, row and col."""
    edge, side = np.array(box, dtype=np.int32).reshape(2, 2)
    first = edge - np.maximum(patch_size - side, 0) // 2
    return first, first + np.maximum(side - patch_size, 0)
