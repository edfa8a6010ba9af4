"""Scan patterns: in which order the glimpses fall on a box.

A pattern is a pure function (box, patch_size, length, rng) -> (length, 2) int32 positions, (row, col); length may be 0
or many times what it takes to see everything, and a shorter trajectory is the beginning of a longer one. Some draw any
start. The others visit a grid, the starts a patch apart with the last row and column moved back to end at the edge:
every cell once, and then again. Of those, all but random_grid are written as an order, (rows, cols) -> the numbers
0 .. rows * cols - 1 of the cells (row by row, from 0 at the top left) as they are visited, and need no rng.

Write a new one and name it in SCANS; docs/scans.md shows them all.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch.quasirandom import SobolEngine

from mambaeye.errors import InputError
from mambaeye.geometry.box import Box, start_range
from mambaeye.geometry.orders import (
    centre_out,
    coarse_to_fine,
    column_raster,
    column_snake,
    diagonal,
    golden_ratio,
    hilbert,
    row_raster,
    row_snake,
    spiral,
)

Scan = Callable[[Box, int, int, np.random.Generator], np.ndarray]
Order = Callable[[int, int], np.ndarray]


def random(box: Box, patch_size: int, length: int, rng: np.random.Generator) -> np.ndarray:
    """Independent positions, uniform over every valid start (the paper's training and main evaluation)."""
    first, last = start_range(box, patch_size)
    return rng.integers(first, last, (length, 2), np.int32, endpoint=True)


def sobol(box: Box, patch_size: int, length: int, rng: np.random.Generator) -> np.ndarray:
    """Any start, like random, but evenly spread at every length: a scrambled Sobol sequence, which rng seeds."""
    engine = SobolEngine(2, scramble=True, seed=int(rng.integers(2**31)))
    points = engine.draw(length + 1, dtype=torch.float64)[:length].numpy()  # in [0, 1); it cannot draw none
    first, last = start_range(box, patch_size)
    return first + (points * (last - first + 1)).astype(np.int32)


def random_grid(box: Box, patch_size: int, length: int, rng: np.random.Generator) -> np.ndarray:
    """The grid in a random order, drawn anew for every pass."""
    starts = grid(box, patch_size).reshape(-1, 2)
    passes = np.tile(np.arange(len(starts)), (-(-length // len(starts)), 1))
    return starts[rng.permuted(passes, axis=1).ravel()[:length]]


def on_grid(order: Order, box: Box, patch_size: int, length: int, rng: np.random.Generator) -> np.ndarray:
    """The grid in that order, begun again when it runs out."""
    starts = grid(box, patch_size)
    rows, cols, _ = starts.shape
    return starts.reshape(-1, 2)[np.resize(order(rows, cols), length)]


def grid(box: Box, patch_size: int) -> np.ndarray:
    """The starts of glimpses side by side that cover a box: (rows, cols, 2) int32."""
    ranges = zip(*start_range(box, patch_size), strict=True)
    rows, cols = (np.minimum(np.arange(first, last + patch_size, patch_size, np.int32), last) for first, last in ranges)
    return np.stack(np.meshgrid(rows, cols, indexing="ij"), axis=-1)


SCANS: dict[str, Scan] = {
    "random": random,
    "random_grid": random_grid,
    "row_raster": partial(on_grid, row_raster),
    "column_raster": partial(on_grid, column_raster),
    "row_snake": partial(on_grid, row_snake),
    "column_snake": partial(on_grid, column_snake),
    "diagonal": partial(on_grid, diagonal),
    "spiral": partial(on_grid, spiral),
    "hilbert": partial(on_grid, hilbert),
    "golden_ratio": partial(on_grid, golden_ratio),
    "sobol": sobol,
    "coarse_to_fine": partial(on_grid, coarse_to_fine),
    "centre_out": partial(on_grid, centre_out),
}


def scan_pattern(name: str) -> Scan:
    """The scan pattern of that name.

    Raises:
        InputError: there is none; the message lists those there are.
    """
    if name not in SCANS:
        raise InputError(f"no scan pattern is called {name!r}: choose one of {', '.join(SCANS)}")
    return SCANS[name]
