"""Paths over lattices, drawn from a wide family: all of the scan varied that is neither random nor Sobol.

A lattice goes from edge to edge, along each axis with a pitch of its own of half a glimpse to one and a half, and is
never the grid that other scans visit. One path over it is drawn: sweeps, a walk, rings, a stride, interlaced or any
order; it begins again when it runs out.
"""

from collections.abc import Callable
from math import gcd, pi, prod

import numpy as np

from mambaeye.geometry.box import Box, PatchSize, start_range
from mambaeye.geometry.orders import back_and_forth, numbered

PITCH = (0.5, 1.5)  # in glimpses
STRIDES = (2, 4)  # of interlaced orders, in points

Path = Callable[[tuple[int, ...], np.random.Generator], np.ndarray]
"""A lattice's sides -> a drawn order of its points, numbered with the last axis fastest: (prod(sides),) integers."""


def lattice_path(box: Box, patch_size: PatchSize, num_glimpses: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a lattice and a path over it, and return the first positions: (num_glimpses, K) int32.

    Args:
        box: K axes.
        patch_size: sides of a glimpse in pixels.
        num_glimpses: at least 0.
        rng: decides everything.
    """
    path = PATHS[rng.choice(len(PATHS), p=SHARES)]
    starts = lattice(box, patch_size, path is walk, rng)
    order = path(starts.shape[:-1], rng)
    positions: np.ndarray = starts.reshape(-1, box.axes)[np.resize(order, num_glimpses)]
    return positions


def lattice(box: Box, patch_size: PatchSize, even: bool, rng: np.random.Generator) -> np.ndarray:
    """Draw evenly spaced starts: (points along every axis..., K) int32.

    They go from edge to edge at the drawn pitch, or the nearest that divides the axis. Should they be the grid of side
    by side glimpses, along some axis they are denser. An axis without room has one.

    Args:
        box: K axes.
        patch_size: sides of a glimpse in pixels.
        even: take an even number of points along every axis that has room.
        rng: decides the pitches.
    """
    first, last = start_range(box, patch_size)
    room, sides = last - first, np.array(patch_size)
    steps = np.maximum(np.rint(room / (sides * rng.uniform(*PITCH, box.axes))), np.minimum(room, 1)).astype(int)
    steps += (even & (room > 0)) * (1 - steps % 2)
    if room.any() and (steps == -(-room // sides)).all():
        steps[rng.choice(np.flatnonzero(room))] += 1 + even
    ranges = zip(first.tolist(), last.tolist(), steps.tolist(), strict=True)
    axes = [np.rint(np.linspace(low, high, count + 1)).astype(np.int32) for low, high, count in ranges]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1)


def shuffled(sides: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Draw any order."""
    return rng.permutation(prod(sides))


def strides(sides: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Draw a first point and a stride, the next that meets every point, and go on by number around and around."""
    points = prod(sides)
    first, stride = rng.integers(points, size=2).tolist()
    while gcd(stride, points) != 1:
        stride += 1
    return (first + stride * np.arange(points)) % points


def sweeps(sides: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Order line by line: along an axis, either way, or at any angle, with or without turning back at a line's end."""
    axes = len(sides)
    directions = np.linalg.qr(rng.standard_normal((axes, axes))).Q  # any orthonormal ones
    if rng.random() < 0.5:  # axes instead
        directions = np.eye(axes)[rng.permutation(axes)] * rng.choice((-1, 1), (axes, 1))
    turns = rng.random() < 0.5
    *across, along = directions @ centred(sides)  # (points,) each
    lines = [np.rint(distance).astype(np.int64) for distance in across]
    if turns:
        along = np.where(sum(lines, np.int64(0)) % 2, -along, along)
    return np.lexsort((along, *lines[::-1]))  # the last key counts most


def rings(sides: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Order in rings one pitch wide around a drawn centre, inwards or outwards, each from a drawn angle on.

    In more axes than two these are shells.
    """
    axes = len(sides)
    offset = centred(sides) - (rng.random((axes, 1)) - 0.5) * np.reshape(sides, (axes, 1))
    turn, (outwards, clockwise) = rng.uniform(0, 2 * pi), rng.choice((-1, 1), 2)
    shell = np.floor(np.sqrt(np.square(offset).sum(axis=0)))
    angle = (clockwise * np.arctan2(offset[-1], offset[-min(axes, 2)]) + turn) % (2 * pi)
    return np.lexsort((angle, outwards * shell))


def interlaced(sides: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Order by number one sublattice after another: every second to fourth point along each axis, drawn for each."""
    strides = rng.integers(*STRIDES, len(sides), endpoint=True)
    points = np.indices(sides).reshape(len(sides), -1)
    turn = rng.permutation(prod(strides.tolist()))[np.ravel_multi_index(points % strides[:, None], tuple(strides))]
    return np.argsort(turn, kind="stable")


def walk(sides: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Draw a walk over every point, each step to a neighbour, with few turns or many, from any point on.

    In rows and columns, of even numbers, it goes around a random tree (see around_tree) and ends beside its first
    point; in more axes every second frame goes the same way back. Of a single line there is only the way along it.
    """
    *frames, rows, cols = (1, *sides)
    if min(rows, cols) == 1:
        return back_and_forth(numbered(*sides))
    plane = around_tree(rows // 2, cols // 2, rng.random(), rng)
    plane = numbered(rows, cols)[:: rng.choice((-1, 1)), :: rng.choice((-1, 1))].ravel()[plane]
    plane = np.roll(plane, rng.integers(len(plane)))[:: rng.choice((-1, 1))]
    return back_and_forth(numbered(prod(frames), rows * cols)[:, plane])


def around_tree(rows: int, cols: int, upwards: float, rng: np.random.Generator) -> np.ndarray:
    """Draw a tree of blocks of 2 x 2 points, and go once around it: (4 * rows * cols,) integers, a closed walk.

    Every block but the first hangs on the one above it or on its left, so that the blocks form a tree whatever is
    drawn. A walk that keeps the tree at its right hand meets each point once: it enters the next block where the two
    hang together, and otherwise goes on to its own next point, clockwise.

    Args:
        rows: of blocks.
        cols: of blocks.
        upwards: probability that a block hangs on the one above it, where there are both; 0 and 1 give straight lines.
        rng: decides the tree.
    """
    above = rng.random((rows, cols)) < upwards
    above[:, 0], above[0] = True, False  # the first row hangs on its left, the first column on what is above
    left = ~above
    left[0, 0] = False
    below, right = np.zeros_like(above), np.zeros_like(above)
    below[:-1], right[:, :-1] = above[1:], left[:, 1:]
    width = 2 * cols
    following = numbered(2 * rows, width)
    following[::2, ::2] += np.where(above, -width, 1)
    following[::2, 1::2] += np.where(right, 1, width)
    following[1::2, 1::2] += np.where(below, width, -1)
    following[1::2, ::2] += np.where(left, -1, -width)
    after, point = following.ravel().tolist(), 0
    return np.array([point := after[point] for _ in after])


def centred(sides: tuple[int, ...]) -> np.ndarray:
    """Return the points' places, in pitches from the middle: (K, points) float64."""
    return np.indices(sides).reshape(len(sides), -1) - (np.reshape(sides, (-1, 1)) - 1) / 2


PATHS: tuple[Path, ...] = (sweeps, walk, shuffled, rings, strides, interlaced)
SHARES = np.array([22, 22, 8, 7, 6, 10]) / 75
