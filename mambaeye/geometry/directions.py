"""Directions in which an encoder of whole grids scans them: every one an order of all tiles, some with empty steps.

A direction is named as in LocalMamba: h row by row, v column by column, w2, w7, ... in windows of that side, and by the
same name with _flip from the end; besides, hilbert along Hilbert's curve and hilbert_v along the transposed one. An
order here has the tiles' numbers, and EMPTY where a step shows nothing: windows of which the grid is no multiple are
filled up on the right and at the bottom.
"""

import re
from collections.abc import Mapping, Sequence

import numpy as np

from mambaeye.errors import InputError
from mambaeye.geometry.orders import column_raster, hilbert, row_raster, windows

EMPTY = -1
FLIP = "_flip"
WINDOW = re.compile(r"w([1-9]\d{0,3})")


def direction(name: str, rows: int, cols: int) -> np.ndarray:
    """Return the order of a grid's tiles in a direction: (rows * cols + empty steps,) int64.

    Raises:
        InputError: there is no direction of that name.
    """
    plain = name.removesuffix(FLIP)
    if window := WINDOW.fullmatch(plain):
        order = filled_windows(rows, cols, int(window[1]))
    elif plain == "h":
        order = row_raster(rows, cols)
    elif plain == "v":
        order = column_raster(rows, cols)
    elif plain == "hilbert":
        order = hilbert(rows, cols)
    elif plain == "hilbert_v":
        order = column_raster(rows, cols)[hilbert(cols, rows)]
    else:
        raise InputError(
            f"no direction is called {name!r}: choose h, v, w2, w7, hilbert or hilbert_v, or one with {FLIP}"
        )
    return order[::-1].copy() if name.endswith(FLIP) else order


def filled_windows(rows: int, cols: int, side: int) -> np.ndarray:
    """Return the order by square windows, with empty steps where the last ones leave the grid."""
    order = windows(side)(-(-rows // side) * side, -(-cols // side) * side)
    row, col = np.divmod(order, -(-cols // side) * side)
    return np.where((row < rows) & (col < cols), row * cols + col, EMPTY)


def with_token(order: np.ndarray, place: int) -> np.ndarray:
    """Return an order of a grid's tiles and a further token, whose number among all tokens is the step that sees it.

    Args:
        order: of the tiles alone.
        place: the token's number; tiles from this number on are numbered one higher.
    """
    moved = np.where(order >= place, order + 1, order)
    return np.insert(moved, place, place)


def of_blocks(
    directions: Sequence[Sequence[str]] | None, depth: int, published: Mapping[int, Sequence[str]]
) -> list[tuple[str, ...]]:
    """Return the names of the directions of each block of an encoder.

    Args:
        directions: a list of names for each block, or a single one for all; None for published ones.
        depth: number of blocks.
        published: what a search found, by the number of blocks: the names of each, with spaces between.

    Raises:
        InputError: there are not as many lists as blocks, or a list is empty, or names what is no direction.
    """
    if directions is None:
        if depth not in published:
            of = " or ".join(map(str, published))
            raise InputError(
                f"encoder.directions is null, and those published are of {of} blocks, not {depth}: give a list for all "
                "blocks or one for each"
            )
        directions = [entry.split() for entry in published[depth]]
    names = [tuple(some) for some in directions]
    if len(names) == 1:
        names *= depth
    if len(names) != depth:
        raise InputError(
            f"encoder.directions has {len(names)} lists for {depth} blocks: give one for each, or a single one for all"
        )
    if not all(names):
        raise InputError("encoder.directions has an empty list: give at least one direction, such as h")
    for name in {name for entry in names for name in entry}:
        direction(name, 1, 1)
    return names
