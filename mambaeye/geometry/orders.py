"""Orders in which to visit the tiles of a grid: its sides -> a permutation of 0 .. prod(sides) - 1.

Tiles are numbered with the last axis fastest: row by row, from 0 at the top left. The last two axes are rows and
columns; frames, or the slices of a volume, come before. Hilbert's curve, the spiral and the diagonals are of two axes,
the raster of tubes of three or more; all others are of any number from 1 up.
"""

from collections.abc import Callable
from functools import lru_cache, reduce, wraps
from itertools import count
from math import gcd, prod
from operator import or_
from typing import Protocol

import numpy as np

from mambaeye.errors import InputError

GOLDEN_SECTION = (5**0.5 - 1) / 2


class Order(Protocol):
    """A pure function of a grid's sides, at least 1 each, that says in which order its tiles are visited."""

    def __call__(self, *sides: int) -> np.ndarray:
        """Return the tiles' numbers, (prod(sides),) integers, each of them once."""


def numbered(*sides: int) -> np.ndarray:
    """Return the tiles' numbers where they lie: an array of these sides."""
    return np.arange(prod(sides)).reshape(sides)


def transposed(tiles: np.ndarray) -> np.ndarray:
    """Swap rows and columns; a single axis stays as it is."""
    return tiles.swapaxes(-1, max(-2, -tiles.ndim))


def row_raster(*sides: int) -> np.ndarray:
    """Order left to right, top to bottom, as one reads, and frame by frame."""
    return numbered(*sides).ravel()


def column_raster(*sides: int) -> np.ndarray:
    """Order top to bottom, left to right, and frame by frame."""
    return transposed(numbered(*sides)).ravel()


def row_snake(*sides: int) -> np.ndarray:
    """Order rows from the top, every second one from right to left, and every second frame from its last tile back."""
    return back_and_forth(numbered(*sides))


def column_snake(*sides: int) -> np.ndarray:
    """Order columns from the left, every second one from the bottom up, and every second frame back."""
    return back_and_forth(transposed(numbered(*sides)))


def back_and_forth(tiles: np.ndarray) -> np.ndarray:
    """Flatten line by line, every second one backwards, and so axis after axis: each step is to a neighbour."""
    while tiles.ndim > 1:
        tiles = tiles.copy()
        tiles[1::2] = tiles[1::2, ::-1]
        tiles = tiles.reshape(-1, *tiles.shape[2:])
    return tiles


def tube_raster(*sides: int) -> np.ndarray:
    """Order left to right, top to bottom, and at each tile all frames from the first to the last.

    Raises:
        InputError: there are less than 3 sides.
    """
    require_frames(len(sides), "tube_raster")
    return np.moveaxis(numbered(*sides), 0, -1).ravel()


def require_frames(axes: int, scan: str) -> None:
    """Refuse grids and boxes without an axis of frames before rows and columns.

    Args:
        axes: K.
        scan: for the message.

    Raises:
        InputError: they have less than 3 axes.
    """
    if axes < 3:
        raise InputError(f"the scan {scan} takes boxes of 3 axes, and this one has {axes}: choose another scan")


def centre_out(*sides: int) -> np.ndarray:
    """Order in shells a tile thick around the centre, the innermost first.

    In two axes these are rings, each clockwise from the top; with more axes a shell is visited frame by frame.
    """
    centre = np.reshape(sides, (-1, 1)) - 1  # in half tiles
    offset = np.indices(sides).reshape(len(sides), -1) - centre / 2  # (K, tiles)
    shell = np.sqrt(np.square(offset).sum(axis=0)).astype(int)
    row, col = offset[max(-2, -len(sides))], offset[-1]
    clockwise = np.arctan2(col, -row) % (2 * np.pi)
    return np.lexsort((clockwise, *offset[-3::-1], shell))  # the last key counts most


def coarse_to_fine(*sides: int) -> np.ndarray:
    """Order every 2^k-th tile along every axis from the centre, then every 2^(k-1)-th, ...: what is not visited yet."""
    offsets: tuple[np.ndarray, ...] = np.ogrid[tuple(slice(-(side // 2), side - side // 2) for side in sides)]
    bits = reduce(or_, offsets, np.array(2**30)).ravel()  # the centre's is 2^30, which every stride divides
    stride = bits & -bits  # the lowest set bit: the largest power of two that divides the offset along every axis
    return np.argsort(-stride, stable=True)


def golden_ratio(*sides: int) -> np.ndarray:
    """Order by number, with strides of the golden section of all tiles, or the next stride that meets every tile."""
    tiles = prod(sides)
    stride = next(stride for stride in count(int(tiles * GOLDEN_SECTION)) if gcd(stride, tiles) == 1)
    return np.arange(tiles) * stride % tiles


def planar(order: Callable[[int, int], np.ndarray]) -> Order:
    """Make an order of rows and columns refuse grids with other axes.

    Raises:
        InputError: when the order is called with other than two sides.
    """

    @wraps(order)
    def of_two_axes(*sides: int) -> np.ndarray:
        if len(sides) != 2:
            raise InputError(
                f"the scan {order.__name__} takes boxes of 2 axes, and this one has {len(sides)}: choose another scan"
            )
        return order(*sides)

    return of_two_axes


@planar
def diagonal(rows: int, cols: int) -> np.ndarray:
    """Order diagonals from the top left to the bottom right, each from its lower left end up."""
    row, col = np.indices((rows, cols)).reshape(2, -1)
    return np.lexsort((col, row + col))


def windows(side: int) -> Order:
    """Return the order by square windows of a side, row by row, and row by row within; the last may be narrower."""

    @planar
    def in_windows(rows: int, cols: int) -> np.ndarray:
        row, col = np.indices((rows, cols)).reshape(2, -1)
        return np.lexsort((col, row, col // side, row // side))  # the last key counts most

    return in_windows


@planar
def spiral(rows: int, cols: int) -> np.ndarray:
    """Order from the top left clockwise along the edge and on inwards."""
    turn = np.arange(min(rows, cols))
    runs = np.stack((cols - turn, rows - 1 - turn), axis=1).ravel()  # across, down, back, up, ever shorter
    moves = np.resize((1, cols, -1, -cols), len(runs))
    return np.repeat(moves, runs).cumsum() - 1


@planar
def hilbert(rows: int, cols: int) -> np.ndarray:
    """Order along Hilbert's curve, for any rectangle: neighbour to neighbour, one part of the box after another."""
    if (cols % 2, -cols) <= (rows % 2, -rows):  # along the even side if one is, else along the longer
        return hilbert_curve(rows, cols)
    curve: np.ndarray = column_raster(rows, cols)[hilbert_curve(cols, rows)]
    return curve


@lru_cache(maxsize=256)
def hilbert_curve(rows: int, cols: int) -> np.ndarray:
    """Return the curve from the top left to the top right; the few shapes that its parts have are worked out once.

    There is one in unit steps if cols is even or rows odd (on a chessboard, it changes colour with every step), unless
    it is a single column. The parts are cut so that they are of that kind again: a wide box in two side by side; any
    other in an upper left part (down), all of the lower part (across) and an upper right part (up). Where both sides
    are the same power of two this is Hilbert's own.
    """
    assert cols % 2 == 0 or rows % 2 == 1, f"{rows} x {cols}"
    assert cols > 1 or rows == 1, f"{rows} x {cols}"
    tiles = numbered(rows, cols)
    if rows == 1 or cols == 2:  # across; or down, and up again
        return np.concatenate((tiles[:, 0], tiles[::-1, 1:].ravel()))
    if cols >= 2 * rows:
        middle = cols // 4 * 2
        parts = [tiles[:, :middle], tiles[:, middle:]]
    else:
        upper, middle = (rows + 1) // 4 * 2, cols // 2
        parts = [tiles[:upper, :middle].T, tiles[upper:], tiles[:upper, middle:][::-1, ::-1].T]
    return np.concatenate([part.ravel()[hilbert_curve(*part.shape)] for part in parts])
