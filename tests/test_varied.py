"""Varied trajectories: what the paths of their family promise, and that no scan to be tested on is among them."""

from itertools import groupby, product
from math import prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mambaeye.geometry.box import Box, start_range
from mambaeye.geometry.lattice_paths import (
    PATHS,
    SHARES,
    Path,
    around_tree,
    interlaced,
    lattice,
    rings,
    strides,
    sweeps,
    walk,
)
from mambaeye.geometry.scans import SCANS, grid, varied

SEEDS = st.integers(0, 2**32)
SIDES = st.lists(st.integers(1, 8).map(lambda half: 2 * half), min_size=1, max_size=3).map(tuple)  # even, for walks
BOXES = st.lists(st.integers(1, 200), min_size=1, max_size=3)


def places(order: np.ndarray, sides: tuple[int, ...]) -> np.ndarray:
    """Points by number -> where they lie, (points, K)."""
    return np.stack(np.unravel_index(order, sides), axis=1)


@pytest.mark.parametrize("path", PATHS)
@given(sides=SIDES, seed=SEEDS)
def test_every_path_visits_each_point_once(path: Path, sides: tuple[int, ...], seed: int) -> None:
    order = path(sides, np.random.default_rng(seed))
    assert sorted(order.tolist()) == list(range(prod(sides)))


@pytest.mark.parametrize("path", PATHS)
@given(sides=SIDES, seed=SEEDS)
def test_an_axis_without_room_changes_no_promise(path: Path, sides: tuple[int, ...], seed: int) -> None:
    order = path((1, *sides[1:]), np.random.default_rng(seed))
    assert sorted(order.tolist()) == list(range(prod(sides[1:])))


@given(sides=SIDES, seed=SEEDS)
def test_a_walk_only_steps_to_neighbours(sides: tuple[int, ...], seed: int) -> None:
    steps = np.diff(places(walk(sides, np.random.default_rng(seed)), sides), axis=0)
    assert (np.abs(steps).sum(axis=1) == 1).all()


@given(rows=st.integers(1, 9), cols=st.integers(1, 9), upwards=st.floats(0, 1), seed=SEEDS)
def test_the_way_around_a_tree_is_closed_and_goes_to_neighbours(
    rows: int, cols: int, upwards: float, seed: int
) -> None:
    sides = (2 * rows, 2 * cols)
    order = around_tree(rows, cols, upwards, np.random.default_rng(seed))
    assert sorted(order.tolist()) == list(range(4 * rows * cols))
    steps = np.diff(places(np.append(order, order[0]), sides), axis=0)
    assert (np.abs(steps).sum(axis=1) == 1).all()


def test_walks_have_few_turns_and_many() -> None:
    turns = []
    for seed in range(200):
        steps = np.diff(places(walk((16, 16), np.random.default_rng(seed)), (16, 16)), axis=0)
        turns.append((steps[1:] != steps[:-1]).any(axis=1).mean())
    assert min(turns) < 0.2
    assert max(turns) > 0.4


@given(rows=st.integers(2, 12), cols=st.integers(2, 12), seed=SEEDS)
def test_strides_are_equal_all_around(rows: int, cols: int, seed: int) -> None:
    order = strides((rows, cols), np.random.default_rng(seed))
    assert len(set((np.diff(order) % (rows * cols)).tolist())) == 1


@given(sides=SIDES, seed=SEEDS)
def test_interlaced_takes_one_sublattice_after_another(sides: tuple[int, ...], seed: int) -> None:
    """Whichever the strides were, some of those that can be cut the order into runs, each all of a sublattice."""
    path = places(interlaced(sides, np.random.default_rng(seed)), sides)
    runs = []
    for steps in product(range(2, 5), repeat=len(sides)):
        turns = [tuple(phase) for phase in (path % steps).tolist()]
        runs.append(len(list(groupby(turns))) == len(set(turns)))
    assert any(runs)


def test_sweeps_go_at_any_angle_and_along_axes_with_and_without_turning_back() -> None:
    angles, turned = [], 0
    for seed in range(400):
        path = places(sweeps((15, 15), np.random.default_rng(seed)), (15, 15))
        middle = path[len(path) // 2 - 7 : len(path) // 2 + 8]  # a line, or the halves of two
        direction = np.linalg.svd(middle - middle.mean(axis=0)).Vh[0]
        angles.append(np.arctan2(*direction) % np.pi)
        turned += (np.abs(np.diff(path, axis=0)).max(axis=1) <= 2).all()  # never back to a line's beginning
    assert np.histogram(angles, bins=6, range=(0, np.pi))[0].min() > 20
    along = np.isclose(np.sin(2 * np.array(angles)), 0, atol=1e-6).mean()
    assert 0.3 < along < 0.7
    assert 120 < turned < 280


@given(sides=st.tuples(st.integers(4, 12), st.integers(4, 12)), seed=SEEDS)
def test_rings_grow_or_shrink_around_one_centre(sides: tuple[int, int], seed: int) -> None:
    """Whichever the centre was, some point of a fine mesh is within a pitch of every ring's order."""
    path = places(rings(sides, np.random.default_rng(seed)), sides)
    mesh = np.stack(np.meshgrid(*(np.arange(-0.5, side, 0.25) for side in sides)), axis=-1).reshape(-1, 1, 2)
    distance = np.linalg.norm(path - mesh, axis=-1)  # (centres, points)
    outwards = (np.maximum.accumulate(distance, axis=1) - distance).max(axis=1)
    inwards = (distance - np.minimum.accumulate(distance, axis=1)).max(axis=1)
    assert min(outwards.min(), inwards.min()) < 1.5


@given(box=BOXES, patch_size=st.integers(1, 40), even=st.booleans(), seed=SEEDS)
def test_a_lattice_lies_in_its_box_at_its_pitch(box: list[int], patch_size: int, even: bool, seed: int) -> None:
    starts = lattice(Box(*[3] * len(box), *box), patch_size, even, np.random.default_rng(seed))
    first, last = start_range(Box(*[3] * len(box), *box), patch_size)
    assert starts.dtype == np.int32
    assert starts.shape[-1] == len(box)
    assert ((first <= starts) & (starts <= last)).all()
    for axis, points in enumerate(starts.shape[:-1]):
        room = int(last[axis] - first[axis])
        assert (points == 1) == (room == 0)
        assert not (even and points > 1 and points % 2)
        along = np.unique(starts[..., axis])
        assert (along[0], along[-1]) == (first[axis], last[axis])
        if room > patch_size:  # the nearest pitch that divides the axis, and 1 or 2 points more in place of the grid
            assert np.diff(along).max() <= 3 * patch_size


@given(rows=st.integers(21, 200), cols=st.integers(21, 200), even=st.booleans(), seed=SEEDS)
def test_a_lattice_is_never_the_grid_of_the_other_scans(rows: int, cols: int, even: bool, seed: int) -> None:
    box = Box(0, 0, rows, cols)
    drawn, tiles = lattice(box, 16, even, np.random.default_rng(seed)), grid(box, 16)
    assert {tuple(start) for start in drawn.reshape(-1, 2).tolist()} != {
        tuple(start) for start in tiles.reshape(-1, 2).tolist()
    }


def test_none_of_the_fixed_scans_is_drawn() -> None:
    box, length = Box(0, 0, 48, 48), 9
    fixed = {
        scan(box, 16, length, np.random.default_rng(0)).tobytes()
        for name, scan in SCANS.items()
        if name not in ("random", "sobol", "random_grid", "varied")
    }
    assert not fixed & {varied(box, 16, length, np.random.default_rng(seed)).tobytes() for seed in range(3000)}


def test_the_shares_of_the_family_are_those_documented() -> None:
    """Lattice paths repeat after a pass; random and Sobol positions all but never do."""
    box = Box(0, 0, 64, 64)
    repeats = 0
    for seed in range(2000):
        path = varied(box, 16, 256, np.random.default_rng(seed))
        repeats += len(np.unique(path, axis=0)) < 100
    assert abs(repeats / 2000 - 0.75) < 0.04
    assert SHARES.sum() == pytest.approx(1)
