"""Scan patterns: in which order the glimpses fall on a box.

Some draw any start. The others visit a grid, the starts a patch apart with the last one along an axis moved back to end
at the edge: every start once, and then again. Of those, all but random_grid follow an order (see orders) and need no
rng.

A new one is a function like these: name it in SCANS, or give its import path for a scan's name, as in
--data.scans "[random,my_scans.zigzag]". docs/scans.md shows all that have names.
"""

from functools import partial
from importlib import import_module
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

from mambaeye.batch import CANVAS, POLICY
from mambaeye.errors import InputError
from mambaeye.geometry.box import Box, PatchSize, patch_sides, start_range
from mambaeye.geometry.lattice_paths import lattice_path
from mambaeye.geometry.orders import (
    Order,
    centre_out,
    coarse_to_fine,
    column_raster,
    column_snake,
    diagonal,
    golden_ratio,
    hilbert,
    require_frames,
    row_raster,
    row_snake,
    spiral,
    tube_raster,
)

SHARES = (0.15, 0.10)  # of random and Sobol trajectories among varied ones


class Scan(Protocol):
    """A pure function that says where glimpses fall on a box of K axes."""

    def __call__(self, box: Box, patch_size: PatchSize, num_glimpses: int, rng: np.random.Generator, /) -> np.ndarray:
        """Return the positions: (num_glimpses, K) int32, each within the box's start_range.

        Fewer glimpses are the first of more, drawn alike; but of arriving, which deals them to all frames.

        Args:
            box: K axes, 2 of an image, with sides of at least one pixel.
            patch_size: sides of a glimpse in pixels.
            num_glimpses: 0, or many times what it takes to see everything.
            rng: decides everything random.

        Raises:
            InputError: the scan is not for boxes with so many axes.
        """


def random(box: Box, patch_size: PatchSize, num_glimpses: int, rng: np.random.Generator) -> np.ndarray:
    """Draw independent positions, uniform over every valid start (the paper's training and main evaluation)."""
    first, last = start_range(box, patch_size)
    return rng.integers(first, last, (num_glimpses, box.axes), np.int32, endpoint=True)


def sobol(box: Box, patch_size: PatchSize, num_glimpses: int, rng: np.random.Generator) -> np.ndarray:
    """Draw any start, like random, but evenly spread at any count: a scrambled Sobol sequence, which rng seeds."""
    points = scrambled(box.axes, rng).draw(num_glimpses + 1, dtype=torch.float64)[:num_glimpses]  # it cannot draw none
    return starts_at(points, box, patch_size)


def scrambled(axes: int, rng: np.random.Generator) -> SobolEngine:
    """Return a Sobol sequence in [0, 1) along so many axes, scrambled as rng says."""
    return SobolEngine(axes, scramble=True, seed=int(rng.integers(2**31)))


def starts_at(points: Tensor, box: Box, patch_size: PatchSize) -> np.ndarray:
    """Return the starts of glimpses at points of [0, 1)^K, every valid start alike: (T, K) float64 -> (T, K) int32."""
    first, last = start_range(box, patch_size)
    positions: np.ndarray = first + (points.numpy() * (last - first + 1)).astype(np.int32)
    return np.minimum(positions, last)  # torch rounds the first point in float32, and so, of millions, one to 1.0


def random_grid(box: Box, patch_size: PatchSize, num_glimpses: int, rng: np.random.Generator) -> np.ndarray:
    """Visit the grid in a random order, drawn anew for every pass."""
    starts = grid(box, patch_size).reshape(-1, box.axes)
    passes = np.tile(np.arange(len(starts)), (-(-num_glimpses // len(starts)), 1))
    positions: np.ndarray = starts[rng.permuted(passes, axis=1).ravel()[:num_glimpses]]
    return positions


def varied(box: Box, patch_size: PatchSize, num_glimpses: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a path from a wide family, a new one every time: what to train on for any scan to work.

    15% are random, 10% Sobol, and the others paths over lattices; see lattice_paths.
    """
    kind = rng.random()
    if kind < SHARES[0]:
        return random(box, patch_size, num_glimpses, rng)
    if kind < sum(SHARES):
        return sobol(box, patch_size, num_glimpses, rng)
    return lattice_path(box, patch_size, num_glimpses, rng)


def arriving(box: Box, patch_size: PatchSize, num_glimpses: int, rng: np.random.Generator) -> np.ndarray:
    """Look at frames as they arrive: all glimpses of a tube before those of the next, and never back.

    The tubes, side by side along the first axis, have even shares of the glimpses, to one; where there are fewer
    glimpses than tubes, these are evenly spaced. In place they are a Sobol sequence over all of them.

    Raises:
        InputError: the box has less than 3 axes.
    """
    require_frames(box.axes, "arriving")
    positions = sobol(box, patch_size, num_glimpses, rng)
    times = grid(Box(box.start[0], box.size[0]), patch_sides(patch_size, box.axes)[:1]).ravel()  # (tubes,)
    positions[:, 0] = times[np.arange(num_glimpses) * len(times) // max(1, num_glimpses)]
    return positions


def on_grid(order: Order, box: Box, patch_size: PatchSize, num_glimpses: int, rng: np.random.Generator) -> np.ndarray:
    """Visit the grid in that order, begun again when it runs out."""
    starts = grid(box, patch_size)
    visits = np.resize(order(*starts.shape[:-1]), num_glimpses)
    return starts.reshape(-1, box.axes)[visits]


def grid(box: Box, patch_size: PatchSize) -> np.ndarray:
    """Return the starts of glimpses side by side that cover a box: (tiles along every axis..., K) int32."""
    first, last = start_range(box, patch_size)
    ranges = zip(first.tolist(), last.tolist(), patch_sides(patch_size, box.axes), strict=True)
    starts = [np.minimum(np.arange(low, high + side, side, dtype=np.int32), high) for low, high, side in ranges]
    return np.stack(np.meshgrid(*starts, indexing="ij"), axis=-1)


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
    "varied": varied,
}
CLIP_SCANS: dict[str, Scan] = {  # of boxes with an axis of frames
    "tube_raster": partial(on_grid, tube_raster),
    "arriving": arriving,
}


def scan_pattern(name: str) -> Scan:
    """Return the scan pattern of that name in SCANS or CLIP_SCANS, or import it by its path, package.module.function.

    Raises:
        InputError: there is none; the message says what there is.
    """
    known = SCANS | CLIP_SCANS
    if name in known:
        return known[name]
    if name in (POLICY, CANVAS):
        leads = "the model's own policy" if name == POLICY else "an encoder that takes whole canvases"
        raise InputError(f"{name!r} is no scan pattern but stands for {leads}: choose one of {', '.join(known)}")
    module, _, function = name.rpartition(".")
    if not module or not all(part.isidentifier() for part in name.split(".")):
        raise InputError(
            f"no scan pattern is called {name!r}: choose one of {', '.join(known)}, or give an import path"
        )
    return _imported(module, function)


def _imported(module: str, function: str) -> Scan:
    path = f"{module}.{function}"
    try:
        found: Scan | None = getattr(import_module(module), function, None)
    except ModuleNotFoundError as error:
        if not f"{module}.".startswith(f"{error.name}."):  # something that the module itself imports
            raise
        raise InputError(f"the scan pattern {path} cannot be imported: there is no module {error.name}") from None
    if found is None:
        raise InputError(f"the scan pattern {path} cannot be imported: {module} has no {function}")
    if not callable(found):
        raise InputError(f"the scan pattern {path} is of type {type(found).__name__}: give the path of a function")
    return _checked(found, path)


def _checked(scan: Scan, path: str) -> Scan:
    """Return the scan, made to refuse positions that it must not give."""

    def checked(box: Box, patch_size: PatchSize, num_glimpses: int, rng: np.random.Generator, /) -> np.ndarray:
        positions = scan(box, patch_size, num_glimpses, rng)
        first, last = start_range(box, patch_size)
        fits = positions.shape == (num_glimpses, box.axes) and np.issubdtype(positions.dtype, np.integer)
        if not fits or (positions < first).any() or (positions > last).any():
            raise InputError(
                f"the scan {path} gave {positions.dtype} positions of shape {positions.shape}, not all of them within "
                f"the box: return ({num_glimpses}, {box.axes}) integers between its start_range"
            )
        return positions.astype(np.int32, copy=False)

    return checked
