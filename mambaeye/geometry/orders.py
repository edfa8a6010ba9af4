"""Orders of the cells of a grid: (rows, cols) -> the numbers 0 .. rows * cols - 1, as they are visited.

Cells are numbered row by row, from 0 at the top left.
"""

from functools import lru_cache
from itertools import count
from math import gcd

import numpy as np

GOLDEN_SECTION = (5**0.5 - 1) / 2


def numbered(rows: int, cols: int) -> np.ndarray:
    """The cells' numbers where they lie: (rows, cols)."""
    return np.arange(rows * cols).reshape(rows, cols)


def row_raster(rows: int, cols: int) -> np.ndarray:
    """Left to right, top to bottom, as one reads."""
    return numbered(rows, cols).ravel()


def column_raster(rows: int, cols: int) -> np.ndarray:
    """Top to bottom, left to right."""
    return numbered(rows, cols).T.ravel()


def row_snake(rows: int, cols: int) -> np.ndarray:
    """Rows from the top, every second one from right to left."""
    return back_and_forth(numbered(rows, cols))


def column_snake(rows: int, cols: int) -> np.ndarray:
    """Columns from the left, every second one from the bottom up."""
    return back_and_forth(numbered(rows, cols).T)


def back_and_forth(lines: np.ndarray) -> np.ndarray:
    """Line by line, every second one backwards: (N, M) -> (N * M,)."""
    lines = lines.copy()
    lines[1::2] = lines[1::2, ::-1]
    return lines.ravel()


def diagonal(rows: int, cols: int) -> np.ndarray:
    """Diagonals from the top left to the bottom right, each from its lower left end up."""
    row, col = np.indices((rows, cols)).reshape(2, -1)
    return np.lexsort((col, row + col))


def spiral(rows: int, cols: int) -> np.ndarray:
    """From the top left clockwise along the edge and on inwards."""
    turn = np.arange(min(rows, cols))
    runs = np.stack((cols - turn, rows - 1 - turn), axis=1).ravel()  # across, down, back, up, ever shorter
    moves = np.resize((1, cols, -1, -cols), len(runs))
    return np.repeat(moves, runs).cumsum() - 1


def centre_out(rows: int, cols: int) -> np.ndarray:
    """Rings a cell wide around the centre, the innermost first, each clockwise from the top."""
    row, col = np.indices((rows, cols)).reshape(2, -1) - np.array([[rows - 1], [cols - 1]]) / 2
    ring = np.hypot(row, col).astype(int)
    clockwise = np.arctan2(col, -row) % (2 * np.pi)
    return np.lexsort((clockwise, ring))


def coarse_to_fine(rows: int, cols: int) -> np.ndarray:
    """Every 2^k-th row and column from the centre, then every 2^(k-1)-th, ...: each level what is not seen yet."""
    row, col = np.ogrid[:rows, :cols]
    offset = ((row - rows // 2) | (col - cols // 2) | 2**30).ravel()  # the centre's is 0, which every stride divides
    stride = offset & -offset  # the lowest set bit: the largest power of two that divides row and column
    return np.argsort(-stride, stable=True)


def golden_ratio(rows: int, cols: int) -> np.ndarray:
    """Row by row with strides of the golden section of all cells, or the next stride that meets every cell."""
    cells = rows * cols
    stride = next(stride for stride in count(int(cells * GOLDEN_SECTION)) if gcd(stride, cells) == 1)
    return np.arange(cells) * stride % cells


def hilbert(rows: int, cols: int) -> np.ndarray:
    """Hilbert's curve, for any rectangle: neighbour to neighbour, one part of the box after another."""
    if (cols % 2, -cols) <= (rows % 2, -rows):  # along the even side if one is, else along the longer
        return hilbert_curve(rows, cols)
    return numbered(rows, cols).T.ravel()[hilbert_curve(cols, rows)]


@lru_cache(maxsize=256)
def hilbert_curve(rows: int, cols: int) -> np.ndarray:
    """The curve from the top left to the top right; the few shapes that its parts have are worked out once.

    There is one in unit steps if cols is even or rows odd (on a chessboard, it changes colour with every step), unless
    it is a single column. The parts are cut so that they are of that kind again: a wide box in two side by side; any
    other in an upper left part (down), all of the lower part (across) and an upper right part (up). Where both sides
    are the same power of two this is Hilbert's own.
    """
    assert cols % 2 == 0 or rows % 2 == 1, f"{rows} x {cols}"
    assert cols > 1 or rows == 1, f"{rows} x {cols}"
    cells = numbered(rows, cols)
    if rows == 1 or cols == 2:  # across; or down, and up again
        return np.concatenate((cells[:, 0], cells[::-1, 1:].ravel()))
    if cols >= 2 * rows:
        middle = cols // 4 * 2
        parts = cells[:, :middle], cells[:, middle:]
    else:
        upper, middle = (rows + 1) // 4 * 2, cols // 2
        parts = cells[:upper, :middle].T, cells[upper:], cells[:upper, middle:][::-1, ::-1].T
    return np.concatenate([part.ravel()[hilbert_curve(*part.shape)] for part in parts])
