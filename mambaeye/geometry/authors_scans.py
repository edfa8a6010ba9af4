"""The scans of the authors' evaluation that are none of the project's by another name, exactly as their code has them.

Their code calls rows x and goes along x first, so these go down columns where the project's go along rows. By their
import paths: --data.scans "[mambaeye.geometry.authors_scans.spiral]". docs/scans.md has the map of all names.
"""

from functools import partial

import numpy as np

from mambaeye.geometry import orders
from mambaeye.geometry.box import Box, PatchSize
from mambaeye.geometry.orders import Order, column_raster, planar
from mambaeye.geometry.scans import Scan, grid, on_grid


def transposed(order: Order) -> Scan:
    """Make a scan that does along columns what an order does along rows, and the other way round."""

    def swapped(*sides: int) -> np.ndarray:
        visits: np.ndarray = column_raster(*sides)[order(*sides[:-2], *sides[:-3:-1])]
        return visits

    return partial(on_grid, swapped)


@planar
def clipped_hilbert(rows: int, cols: int) -> np.ndarray:
    """Order along Hilbert's curve on the smallest square of 2^k tiles around the grid, less what is beyond it."""
    side = 1 << (max(rows, cols) - 1).bit_length()
    row, col = np.divmod(orders.hilbert(side, side), side)
    inside = (row < rows) & (col < cols)
    numbers: np.ndarray = (row * cols + col)[inside]
    return numbers


def random_fixed_grid(box: Box, patch_size: PatchSize, num_glimpses: int, rng: np.random.Generator) -> np.ndarray:
    """Visit the grid in a random order, the same for every pass over an image."""
    return np.resize(rng.permutation(grid(box, patch_size).reshape(-1, box.axes)), (num_glimpses, box.axes))


diagonal = transposed(orders.diagonal)
spiral = transposed(orders.spiral)
golden = transposed(orders.golden_ratio)
hilbert = transposed(clipped_hilbert)
