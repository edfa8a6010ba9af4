"""Boxes of pixels, and where glimpses may start on them.

A position is the (row, col) of a glimpse's top-left pixel, at single-pixel granularity. Along each axis it runs from
the image's edge to edge + side - patch, inclusive, so that the last row and column are seen. An image narrower than a
glimpse has one start on that axis: the one that centres the glimpse on it, and keeps it on the canvas.
"""

import numpy as np


class Box(tuple[int, ...]):
    """A block of pixels with K axes: the image's place on its canvas, or the canvas itself.

    A flat tuple of 2 K numbers, the first pixel along every axis and then the sides: Box(row, col, height, width), or
    Box(frame, row, col, frames, height, width). The last two axes are always rows and columns.
    """

    __slots__ = ()

    def __new__(cls, *numbers: int) -> "Box":
        assert numbers, "a box has at least one axis"
        assert len(numbers) % 2 == 0, f"{numbers} are not a start and a side for every axis"
        return super().__new__(cls, map(int, numbers))

    def __getnewargs__(self) -> tuple[int, ...]:
        return tuple(self)

    @property
    def axes(self) -> int:
        """Return K."""
        return len(self) // 2

    @property
    def start(self) -> tuple[int, ...]:
        """Return the first pixel along every axis."""
        return self[: self.axes]

    @property
    def size(self) -> tuple[int, ...]:
        """Return the sides, in pixels."""
        return self[self.axes :]

    @property
    def slices(self) -> tuple[slice, ...]:
        """Return what cuts the box out of an array: one slice an axis."""
        return tuple(slice(first, first + side) for first, side in zip(self.start, self.size, strict=True))

    @property
    def row(self) -> int:
        """Return the first row."""
        return self.start[-2]

    @property
    def col(self) -> int:
        """Return the first column."""
        return self.start[-1]

    @property
    def height(self) -> int:
        """Return the number of rows."""
        return self.size[-2]

    @property
    def width(self) -> int:
        """Return the number of columns."""
        return self.size[-1]


def start_range(box: Box, patch_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first and the last valid start of a glimpse, both inclusive: (K,) int32 each."""
    edge, side = np.array(box, dtype=np.int32).reshape(2, -1)
    first = edge - np.maximum(patch_size - side, 0) // 2
    return first, first + np.maximum(side - patch_size, 0)


def overhung(box: Box, canvas: Box, patch_size: int) -> Box:
    """Return the box of what glimpses show that start on any pixel of a box, moved back where they leave the canvas.

    Its start_range is the box's first to last pixel, as far as a glimpse that starts there stays on the canvas.

    Args:
        box: on the canvas.
        canvas: with sides of at least a glimpse's.
        patch_size: side of a glimpse in pixels.
    """
    limits = [first + side - patch_size for first, side in zip(canvas.start, canvas.size, strict=True)]
    first = [min(edge, limit) for edge, limit in zip(box.start, limits, strict=True)]
    last = [min(edge + side - 1, limit) for edge, side, limit in zip(box.start, box.size, limits, strict=True)]
    return Box(*first, *(high - low + patch_size for low, high in zip(first, last, strict=True)))
