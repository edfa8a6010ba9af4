"""Boxes of pixels, and where glimpses may start on them.

A position is the (row, col) of a glimpse's top-left pixel, at single-pixel granularity. Along each axis it runs from
the image's edge to edge + side - patch, inclusive, so that the last row and column are seen. An image narrower than a
glimpse has one start on that axis: the one that centres the glimpse on it, and keeps it on the canvas.
"""

import numpy as np

PatchSize = int | tuple[int, ...]
"""Sides of a glimpse in pixels, one for every axis; a single number is the side along all of them."""


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
    def parts(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the first pixel and the sides along every axis, to calculate with: (K,) int64 each."""
        return np.array(self.start), np.array(self.size)

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


def patch_sides(patch_size: PatchSize, axes: int) -> tuple[int, ...]:
    """Return a glimpse's sides along every one of K axes, in pixels."""
    if isinstance(patch_size, int):
        return (patch_size,) * axes
    assert len(patch_size) == axes, f"a glimpse of sides {patch_size} has not {axes} axes"
    return patch_size


def glimpse_sides(patch_size: int, tube: int, axes: int) -> tuple[int, ...]:
    """Return the sides of a glimpse in pixels, along every one of K axes: (P, P), or of a clip (tube, P, P).

    Args:
        patch_size: P, its side along rows and columns, in pixels.
        tube: its frames, where there is an axis of frames.
        axes: K.
    """
    return (tube,) * (axes > 2) + (patch_size,) * (axes - (axes > 2))


def start_range(box: Box, patch_size: PatchSize) -> tuple[np.ndarray, np.ndarray]:
    """Return the first and the last valid start of a glimpse, both inclusive: (K,) int32 each."""
    edge, side = np.array(box, dtype=np.int32).reshape(2, -1)
    room = side - np.array(patch_size, dtype=np.int32)
    first = edge - np.maximum(-room, 0) // 2
    return first, first + np.maximum(room, 0)


def overhung(box: Box, canvas: Box, patch_size: PatchSize) -> Box:
    """Return the box of what glimpses show that start on any pixel of a box, moved back where they leave the canvas.

    Its start_range is the box's first to last pixel, as far as a glimpse that starts there stays on the canvas.

    Args:
        box: on the canvas.
        canvas: with sides of at least a glimpse's.
        patch_size: sides of a glimpse in pixels.
    """
    sides = patch_sides(patch_size, box.axes)
    limits = [first + whole - side for first, whole, side in zip(canvas.start, canvas.size, sides, strict=True)]
    first = [min(edge, limit) for edge, limit in zip(box.start, limits, strict=True)]
    last = [min(edge + side - 1, limit) for edge, side, limit in zip(box.start, box.size, limits, strict=True)]
    return Box(*first, *(high - low + side for low, high, side in zip(first, last, sides, strict=True)))
