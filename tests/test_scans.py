"""Scan patterns against what they promise: which tiles they visit, in what order, and that the last pixels are seen."""

import itertools
from collections.abc import Callable
from functools import lru_cache
from hashlib import sha256
from math import gcd, isqrt, prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view
from scipy.stats import qmc
from torch.quasirandom import SobolEngine

from mambaeye.batch import CANVAS, POLICY
from mambaeye.errors import InputError
from mambaeye.geometry import lattice_paths
from mambaeye.geometry.box import Box, PatchSize
from mambaeye.geometry.scans import CLIP_SCANS, SCANS, SHARES, scan_pattern

ANY_START = ["random", "sobol"]
DRAWN = [*ANY_START, "random_grid", "varied"]
WITHOUT_GRID = {*ANY_START, "varied"}
PLANAR = ["diagonal", "spiral", "hilbert"]
PATCHES = {2: st.integers(1, 40), 1: st.integers(1, 40), 3: st.integers(1, 9)}
SIDES = {2: st.integers(1, 200), 1: st.integers(1, 200), 3: st.integers(1, 15)}
GRID_SIDES = st.integers(1, 40)
GRIDS = st.lists(st.integers(1, 9), min_size=1, max_size=3)  # sides of grids of one to three axes


@st.composite
def boxes(draw: st.DrawFn, axes: int) -> tuple[Box, PatchSize]:
    """A box, and a patch size that need not fit it: of one side, or of a side for every axis."""
    start = draw(st.tuples(*[st.integers(0, 50)] * axes))
    sides: st.SearchStrategy[PatchSize] = PATCHES[axes] | st.tuples(*[PATCHES[axes]] * axes)
    return Box(*start, *draw(st.tuples(*[SIDES[axes]] * axes))), draw(sides)


def sides_of(patch_size: PatchSize, axes: int) -> list[int]:
    return [patch_size] * axes if isinstance(patch_size, int) else [*patch_size]


def names_for(axes: int) -> list[str]:
    """The patterns for boxes of so many axes."""
    return [name for name in SCANS if axes == 2 or name not in PLANAR] + (["tube_raster"] if axes > 2 else [])


def scan(name: str, box: Box, patch_size: PatchSize, num_glimpses: int, seed: int = 0) -> np.ndarray:
    return scan_pattern(name)(box, patch_size, num_glimpses, np.random.default_rng(seed))


def tiles(name: str, *sides: int) -> np.ndarray:
    """One pass over a grid of these sides, as the tiles' places in it, (N, K): with glimpses of one pixel."""
    return scan(name, Box(*[0] * len(sides), *sides), 1, prod(sides))


def grid_starts(edge: int, side: int, patch_size: int) -> list[int]:
    """The grid's starts along an axis, one by one."""
    if side <= patch_size:
        return [edge - (patch_size - side) // 2]
    starts = [edge]
    while starts[-1] + patch_size < edge + side:
        starts.append(min(starts[-1] + patch_size, edge + side - patch_size))
    return starts


@pytest.mark.parametrize("axes", [1, 2, 3])
@given(data=st.data(), counts=st.tuples(st.integers(0, 600), st.integers(0, 600)))
def test_fewer_glimpses_are_the_first_of_more(axes: int, data: st.DataObject, counts: tuple[int, int]) -> None:
    box, patch_size = data.draw(boxes(axes))
    few, many = sorted(counts)
    for name in names_for(axes):
        assert np.array_equal(scan(name, box, patch_size, few), scan(name, box, patch_size, many)[:few]), name


@given(case=boxes(2), passes=st.floats(0, 3.5))
@example(case=(Box(0, 0, 40, 40), 16), passes=0)
@example(case=(Box(0, 0, 40, 40), 16), passes=1 / 9)  # one glimpse
def test_grid_patterns_visit_each_tile_once_before_they_repeat(case: tuple[Box, PatchSize], passes: float) -> None:
    check_passes(*case, passes)


@pytest.mark.parametrize("axes", [1, 3])
@given(data=st.data(), passes=st.floats(0, 3.5))
def test_grid_patterns_of_other_axes_visit_each_tile_once_before_they_repeat(
    axes: int, data: st.DataObject, passes: float
) -> None:
    check_passes(*data.draw(boxes(axes)), passes)


def check_passes(box: Box, patch_size: PatchSize, passes: float) -> None:
    starts = [grid_starts(*axis) for axis in zip(box.start, box.size, sides_of(patch_size, box.axes), strict=True)]
    one_number_a_tile = 1000 ** np.arange(box.axes)[::-1]
    expected = np.sort(np.array(list(itertools.product(*starts))) @ one_number_a_tile)
    num_glimpses = round(passes * len(expected))
    for name in set(names_for(box.axes)) - WITHOUT_GRID:
        positions = scan(name, box, patch_size, num_glimpses)
        assert positions.shape == (num_glimpses, box.axes), name
        assert positions.dtype == np.int32, name
        visits = positions @ one_number_a_tile
        for begin in range(0, num_glimpses, len(expected)):
            seen = np.sort(visits[begin : begin + len(expected)])
            assert np.isin(seen, expected).all(), name
            assert (np.diff(seen) > 0).all(), name  # none twice, so a whole pass has them all


@pytest.mark.parametrize("axes", [1, 2, 3])
@given(data=st.data())
def test_one_pass_shows_every_pixel(axes: int, data: st.DataObject) -> None:
    box, patch_size = data.draw(boxes(axes))
    for name in set(names_for(axes)) - WITHOUT_GRID:
        sides = np.array(sides_of(patch_size, axes))
        positions = scan(name, box, patch_size, prod((-(-np.array(box.size) // sides)).tolist()))
        seen = np.zeros(box.size + 2 * sides, dtype=bool)  # a margin around the box
        windows = sliding_window_view(seen, tuple(sides), writeable=True)
        windows[tuple((positions - box.start + sides).T)] = True
        assert seen[tuple(slice(side, -side) for side in sides)].all(), name


@pytest.mark.parametrize("axes", [1, 2, 3])
@given(data=st.data(), num_glimpses=st.integers(0, 300))
def test_any_start_lies_in_the_box(axes: int, data: st.DataObject, num_glimpses: int) -> None:
    box, patch_size = data.draw(boxes(axes))
    for name in WITHOUT_GRID:
        positions = scan(name, box, patch_size, num_glimpses)
        assert positions.shape == (num_glimpses, axes)
        assert positions.dtype == np.int32
        sides = sides_of(patch_size, axes)
        for starts, edge, side, length in zip(positions.T, box.start, box.size, sides, strict=True):
            if side >= length:
                assert ((starts >= edge) & (starts + length <= edge + side)).all()
            else:  # one start, with the box in the middle of the glimpse
                assert (starts == edge - (length - side) // 2).all()


@pytest.mark.parametrize("name", ANY_START)
def test_any_start_is_reached_evenly(name: str) -> None:
    positions = scan(name, Box(2, 3, 18, 17), 16, 60_000)
    starts, counts = np.unique(positions, axis=0, return_counts=True)
    assert starts.tolist() == [[row, col] for row in (2, 3, 4) for col in (3, 4)]  # the last shows the last row, column
    np.testing.assert_allclose(counts, 10_000, rtol=0.05)


@pytest.mark.parametrize("name", ANY_START)
def test_any_start_in_three_axes_is_reached_evenly(name: str) -> None:
    starts, counts = np.unique(scan(name, Box(1, 2, 3, 9, 10, 8), 8, 30_000), axis=0, return_counts=True)
    assert starts.tolist() == [[first, row, 3] for first in (1, 2) for row in (2, 3, 4)]
    np.testing.assert_allclose(counts, 5_000, rtol=0.06)


@pytest.mark.parametrize(("name", "axes"), [(name, axes) for axes in (2, 3) for name in names_for(axes)])
def test_only_the_generator_given_decides(name: str, axes: int) -> None:
    torchs = torch.get_rng_state()
    box = Box(*[0] * axes, *(100, 90, 80)[:axes])
    first, again, other = (scan(name, box, 16, 100, seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), torchs)
    assert (first == again).all()
    assert (first == other).all() == (name not in DRAWN)


@pytest.mark.parametrize(
    ("name", "steps"),
    {
        "row_raster": [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]],
        "column_raster": [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]],
        "row_snake": [[0, 1, 2, 3], [7, 6, 5, 4], [8, 9, 10, 11]],
        "column_snake": [[0, 5, 6, 11], [1, 4, 7, 10], [2, 3, 8, 9]],
        "diagonal": [[0, 2, 5, 8], [1, 4, 7, 10], [3, 6, 9, 11]],
        "spiral": [[0, 1, 2, 3], [9, 10, 11, 4], [8, 7, 6, 5]],
        "hilbert": [[0, 1, 10, 11], [3, 2, 9, 8], [4, 5, 6, 7]],
        "golden_ratio": [[0, 7, 2, 9], [4, 11, 6, 1], [8, 3, 10, 5]],  # every seventh
        "coarse_to_fine": [[2, 3, 4, 5], [1, 6, 0, 7], [8, 9, 10, 11]],
        "centre_out": [[10, 11, 2, 3], [9, 1, 0, 4], [8, 7, 6, 5]],
    }.items(),
)
def test_orders_as_drawn_by_hand(name: str, steps: list[list[int]]) -> None:
    found = np.empty((3, 4), dtype=int)
    found[tuple(tiles(name, 3, 4).T)] = range(12)
    assert found.tolist() == steps


@pytest.mark.parametrize(
    ("name", "frames"),
    {
        "row_raster": [[[0, 1, 2], [3, 4, 5]], [[6, 7, 8], [9, 10, 11]]],
        "tube_raster": [[[0, 2, 4], [6, 8, 10]], [[1, 3, 5], [7, 9, 11]]],
        "column_raster": [[[0, 2, 4], [1, 3, 5]], [[6, 8, 10], [7, 9, 11]]],
        "row_snake": [[[0, 1, 2], [5, 4, 3]], [[11, 10, 9], [6, 7, 8]]],
        "column_snake": [[[0, 3, 4], [1, 2, 5]], [[11, 8, 7], [10, 9, 6]]],
        "golden_ratio": [[[0, 7, 2], [9, 4, 11]], [[6, 1, 8], [3, 10, 5]]],
        "coarse_to_fine": [[[1, 2, 3], [4, 5, 6]], [[7, 8, 9], [10, 0, 11]]],
        "centre_out": [[[7, 0, 4], [6, 1, 5]], [[11, 2, 8], [10, 3, 9]]],
    }.items(),
)
def test_orders_of_two_frames_as_drawn_by_hand(name: str, frames: list[list[list[int]]]) -> None:
    found = np.empty((2, 2, 3), dtype=int)
    found[tuple(tiles(name, 2, 2, 3).T)] = range(12)
    assert found.tolist() == frames


@given(sides=GRIDS)
def test_a_raster_goes_frame_by_frame(sides: list[int]) -> None:
    assert tiles("row_raster", *sides).tolist() == [list(place) for place in np.ndindex(*sides)]
    rows_last = [*range(len(sides) - 2), -1, -2] if len(sides) > 1 else [0]
    swapped = tiles("row_raster", *np.array(sides)[rows_last].tolist())
    assert np.array_equal(tiles("column_raster", *sides), swapped[:, rows_last])


@given(sides=st.lists(st.integers(1, 9), min_size=3, max_size=4))
def test_a_raster_of_tubes_goes_tile_by_tile_and_forwards_in_time(sides: list[int]) -> None:
    expected = [(frame, *tile) for tile in np.ndindex(*sides[1:]) for frame in range(sides[0])]
    assert [tuple(place) for place in tiles("tube_raster", *sides).tolist()] == expected


@given(data=st.data(), num_glimpses=st.integers(0, 300), seed=st.integers(0, 9))
def test_arriving_never_looks_back_and_gives_every_tube_its_share(
    data: st.DataObject, num_glimpses: int, seed: int
) -> None:
    box, patch_size = data.draw(boxes(3))
    positions = scan("arriving", box, patch_size, num_glimpses, seed)
    assert positions.shape == (num_glimpses, 3)
    assert positions.dtype == np.int32
    tubes = grid_starts(box.start[0], box.size[0], sides_of(patch_size, 3)[0])
    frames = positions[:, 0].tolist()
    assert frames == sorted(frames)
    shares = [frames.count(tube) for tube in tubes]
    assert sum(shares) == num_glimpses
    assert max(shares) - min(shares) <= 1
    in_place = scan("sobol", box, patch_size, num_glimpses, seed)
    assert np.array_equal(positions[:, 1:], in_place[:, 1:])


@pytest.mark.parametrize("name", CLIP_SCANS)
@pytest.mark.parametrize("box", [Box(1, 9), Box(0, 0, 9, 9)])
def test_scans_through_time_refuse_what_has_no_frames(name: str, box: Box) -> None:
    with pytest.raises(InputError, match=f"the scan {name} takes boxes of 3 axes, and this one has {box.axes}"):
        scan(name, box, 4, 5)


@pytest.mark.parametrize("name", ["row_snake", "column_snake"])
@given(sides=GRIDS)
def test_a_snake_through_frames_only_steps_to_neighbours(name: str, sides: list[int]) -> None:
    path = tiles(name, *sides)
    assert (np.abs(np.diff(path, axis=0)).sum(axis=1) == 1).all()
    slowest = 1 if (name, len(sides)) == ("column_snake", 2) else 0
    assert (np.diff(path[:, slowest]) >= 0).all()


@pytest.mark.parametrize("name", ["row_snake", "column_snake", "spiral", "hilbert"])
@given(rows=GRID_SIDES, cols=GRID_SIDES)
def test_each_tile_is_next_to_the_last_one(name: str, rows: int, cols: int) -> None:
    assert (np.abs(np.diff(tiles(name, rows, cols), axis=0)).sum(axis=1) == 1).all()


@given(rows=GRID_SIDES, cols=GRID_SIDES)
def test_diagonals_one_after_another(rows: int, cols: int) -> None:
    row, col = tiles("diagonal", rows, cols).T
    along = np.diff(row + col)
    assert np.isin(along, (0, 1)).all()
    assert (np.diff(row)[along == 0] == -1).all()


@given(rows=GRID_SIDES, cols=GRID_SIDES)
def test_a_spiral_winds_inwards(rows: int, cols: int) -> None:
    row, col = tiles("spiral", rows, cols).T
    to_the_edge = np.min((row, col, rows - 1 - row, cols - 1 - col), axis=0)
    assert (np.diff(to_the_edge) >= 0).all()


@given(rows=GRID_SIDES, cols=GRID_SIDES)
def test_centre_out_goes_ring_by_ring_each_once_round(rows: int, cols: int) -> None:
    row, col = tiles("centre_out", rows, cols).T
    down, right = 2 * row - (rows - 1), 2 * col - (cols - 1)  # from the centre, in half tiles
    ring = np.array([isqrt(square) // 2 for square in (down**2 + right**2).tolist()])
    assert (np.diff(ring) >= 0).all()
    bearing = np.angle(-down + 1j * right)  # 0 at the top, clockwise
    for number in range(ring[-1] + 1):
        turns = np.diff(bearing[ring == number]) % (2 * np.pi)
        assert turns.sum() < 2 * np.pi


@given(sides=GRIDS)
def test_centre_out_goes_shell_by_shell_and_frame_by_frame(sides: list[int]) -> None:
    path = tiles("centre_out", *sides)
    doubled = 2 * path - (np.array(sides) - 1)  # from the centre, in half tiles
    shell = [isqrt(square) // 2 for square in (doubled**2).sum(axis=1).tolist()]
    frames = [tuple(frame) for frame in path[:, :-2].tolist()]
    assert sorted(shell) == shell
    visited = list(zip(shell, frames, strict=True))
    assert sorted(visited) == visited


@given(sides=GRIDS)
def test_coarse_to_fine_finishes_each_level_of_any_grid_before_the_next(sides: list[int]) -> None:
    visits = list(map(tuple, tiles("coarse_to_fine", *sides).tolist()))
    for stride in (1, 2, 4, 8, 16):
        level = set(itertools.product(*(range(side // 2 % stride, side, stride) for side in sides)))
        assert set(visits[: len(level)]) == level


@given(rows=GRID_SIDES, cols=GRID_SIDES)
def test_coarse_to_fine_finishes_each_level_before_the_next(rows: int, cols: int) -> None:
    visits = list(map(tuple, tiles("coarse_to_fine", rows, cols).tolist()))
    for stride in (1, 2, 4, 8, 16, 32, 64):
        level = {
            (row, col)
            for row in range(rows // 2 % stride, rows, stride)
            for col in range(cols // 2 % stride, cols, stride)
        }
        assert set(visits[: len(level)]) == level


@given(rows=GRID_SIDES, cols=GRID_SIDES)
def test_golden_ratio_has_one_stride(rows: int, cols: int) -> None:
    count = rows * cols
    numbers = tiles("golden_ratio", rows, cols) @ (cols, 1)
    strides = set((np.diff(numbers) % count).tolist())
    assert len(strides) == (count > 1)
    for stride in strides:
        golden = int(count * 0.6180339887)
        assert [meets_all for meets_all in range(golden, stride + 1) if gcd(meets_all, count) == 1] == [stride]


@pytest.mark.parametrize("side", [2, 4, 8, 16, 32])
def test_hilbert_on_a_power_of_two_fills_square_after_square(side: int) -> None:
    """With unit steps, that is what makes a curve Hilbert's: at every scale, a quarter after another."""
    path = tiles("hilbert", side, side)
    for scale in (2**level for level in range(1, side.bit_length())):
        squares = (path // scale).reshape(-1, scale * scale, 2)
        assert (squares == squares[:, :1]).all()


@given(rows=st.integers(12, 70), cols=st.integers(12, 70))
def test_hilbert_stays_near_on_any_rectangle(rows: int, cols: int) -> None:
    """16 tiles in a row fit a box whose longer side is 6 or so on average; on a true Hilbert curve it is 5.8."""
    windows = sliding_window_view(tiles("hilbert", rows, cols), 16, axis=0)  # (N - 15, 2, 16)
    longer = np.ptp(windows, axis=2).max(axis=1) + 1
    assert longer.mean() < 6.3
    assert longer.max() <= 10


def test_a_random_grid_is_drawn_anew_for_every_pass() -> None:
    passes = (scan("random_grid", Box(0, 0, 32, 48), 16, 6 * 6000) // 16 @ (3, 1)).reshape(6000, 6)
    for place in passes.T:  # every tile is as often the first, the second, ...
        np.testing.assert_allclose(np.bincount(place), 1000, rtol=0.15)
    assert abs((passes[1:, 0] == passes[:-1, 0]).mean() - 1 / 6) < 0.02  # whatever the pass before


class Drawing(np.random.Generator):
    """A generator whose integers are all one number."""

    def __init__(self, number: int) -> None:
        super().__init__(np.random.PCG64(0))
        self.number = number

    def integers(self, *_: object, **__: object) -> int:  # type: ignore[override]
        return self.number


def test_sobol_stays_in_the_box_where_torch_draws_a_one() -> None:
    seed = 441690916  # found in training: the first point's last number is 1.0
    assert SobolEngine(3, scramble=True, seed=seed).draw(1, dtype=torch.float64).max() == 1
    positions = SCANS["sobol"](Box(0, 0, 0, 10, 32, 32), (1, 16, 16), 4, Drawing(seed))
    assert positions.max(0).tolist() <= [9, 16, 16]
    assert positions[0, 2] == 16


@pytest.mark.parametrize("seed", range(5))
def test_sobol_puts_one_point_in_every_elementary_interval(seed: int) -> None:
    """The definition of a two-dimensional Sobol sequence: so it is for 2^m points and every 2^a x 2^(m-a) intervals."""
    positions = scan("sobol", Box(0, 0, 256, 256), 1, 256, seed)
    for a in range(9):
        intervals = positions // (256 >> a, 1 << a) @ (1 << (8 - a), 1)
        assert sorted(intervals.tolist()) == list(range(256))


@pytest.mark.parametrize("seed", range(3))
def test_sobol_in_three_axes_puts_one_point_in_every_interval_of_each(seed: int) -> None:
    for starts in scan("sobol", Box(0, 0, 0, 128, 128, 128), 1, 128, seed).T:
        assert sorted(starts.tolist()) == list(range(128))


@pytest.mark.parametrize("num_glimpses", [50, 300, 1000])
@pytest.mark.parametrize("sides", [(999, 700), (500, 999, 700)])
def test_sobol_is_spread_more_evenly_than_random(sides: tuple[int, ...], num_glimpses: int) -> None:
    box = Box(*[0] * len(sides), *sides)
    found = {
        name: [qmc.discrepancy((scan(name, box, 1, num_glimpses, seed) + 0.5) / sides) for seed in range(9)]
        for name in ANY_START
    }
    assert max(found["sobol"]) < min(found["random"]) / 3


def counterclockwise(row: int, col: int, rows: int, cols: int) -> tuple[int, int]:
    """A tile's ring, from the edge inwards, and its turn in it: down on the left first, back along the top last."""
    ring = min(row, col, rows - 1 - row, cols - 1 - col)
    from_corner = row + col - 2 * ring
    return ring, from_corner if col == ring or row == rows - 1 - ring else 2 * (rows + cols) - from_corner


def golden_turn(row: int, col: int, rows: int, cols: int) -> int:
    """When strides of the golden section meet a tile, with tiles numbered down the columns."""
    count = rows * cols
    stride = next(stride for stride in itertools.count(int(count * 0.6180339887)) if gcd(stride, count) == 1)
    return (col * rows + row) * pow(stride, -1, count) % count


@lru_cache
def hilbert_square(side: int) -> list[tuple[int, int]]:
    """Hilbert's curve from the top left to the bottom left of 2^k x 2^k tiles, a quarter after another."""
    if side == 1:
        return [(0, 0)]
    half = side // 2
    quarter = hilbert_square(half)
    return [
        *((col, row) for row, col in quarter),
        *((row, col + half) for row, col in quarter),
        *((row + half, col + half) for row, col in quarter),
        *((side - 1 - col, half - 1 - row) for row, col in quarter),
    ]


def clipped_hilbert_turn(row: int, col: int, rows: int, cols: int) -> int:
    """When the curve on the smallest square that holds the grid meets a tile."""
    side = min(2**level for level in range(8) if 2**level >= max(rows, cols))
    return hilbert_square(side).index((row, col))


AUTHORS = "mambaeye.geometry.authors_scans"
AUTHORS_ORDERS: dict[str, tuple[str, Callable[[int, int, int, int], Any]]] = {
    "column_major": ("row_raster", lambda row, col, *_: (row, col)),
    "horizontal_raster": ("column_raster", lambda row, col, *_: (col, row)),
    "horizontal_snake": ("column_snake", lambda row, col, *_: (col, -row if col % 2 else row)),
    "column_snake": ("row_snake", lambda row, col, *_: (row, -col if row % 2 else col)),
    "diagonal": (f"{AUTHORS}.diagonal", lambda row, col, *_: (row + col, row)),
    "spiral": (f"{AUTHORS}.spiral", counterclockwise),
    "golden": (f"{AUTHORS}.golden", golden_turn),
    "hilbert": (f"{AUTHORS}.hilbert", clipped_hilbert_turn),
}
"""The authors' name -> ours, and what their tiles are in order of: (row, col, rows, cols) -> key."""


@pytest.mark.parametrize("theirs", AUTHORS_ORDERS)
@given(rows=st.integers(1, 20), cols=st.integers(1, 20))
def test_the_authors_orders_have_these_names_here(theirs: str, rows: int, cols: int) -> None:
    ours, key = AUTHORS_ORDERS[theirs]
    expected = sorted(np.ndindex(rows, cols), key=lambda tile: key(*tile, rows, cols))
    assert list(map(tuple, tiles(ours, rows, cols).tolist())) == expected


@pytest.mark.parametrize(
    ("theirs", "ours"), {"diagonal": "diagonal", "spiral": "spiral", "golden": "golden_ratio"}.items()
)
@given(rows=GRID_SIDES, cols=GRID_SIDES)
def test_some_of_the_authors_orders_are_ours_transposed(theirs: str, ours: str, rows: int, cols: int) -> None:
    assert np.array_equal(tiles(f"{AUTHORS}.{theirs}", rows, cols), tiles(ours, cols, rows)[:, ::-1])


@pytest.mark.parametrize("side", [1, 2, 4, 8, 16, 32, 64])
def test_the_authors_hilbert_is_ours_transposed_where_nothing_is_clipped(side: int) -> None:
    assert np.array_equal(tiles(f"{AUTHORS}.hilbert", side, side), tiles("hilbert", side, side)[:, ::-1])


@given(rows=GRID_SIDES, cols=GRID_SIDES, seed=st.integers(0, 9))
def test_the_authors_random_grid_repeats_its_first_pass(rows: int, cols: int, seed: int) -> None:
    count = rows * cols
    passes = scan(f"{AUTHORS}.random_fixed_grid", Box(0, 0, rows, cols), 1, 2 * count, seed) @ (cols, 1)
    assert sorted(passes[:count].tolist()) == list(range(count))
    assert (passes[:count] == passes[count:]).all()


def test_unknown_pattern_lists_the_known() -> None:
    names = ", ".join([*SCANS, *CLIP_SCANS])
    message = f"^no scan pattern is called 'zigzag': choose one of {names}, or give an import path$"
    with pytest.raises(InputError, match=message):
        scan_pattern("zigzag")


@pytest.mark.parametrize("name", ["", ".", ".zigzag", "scans.", "a..b", "my-scans.zigzag"])
def test_what_is_no_import_path_is_an_unknown_pattern(name: str) -> None:
    with pytest.raises(InputError, match=f"no scan pattern is called {name!r}"):
        scan_pattern(name)


@pytest.mark.parametrize(("name", "meaning"), [(POLICY, "the model's own policy"), (CANVAS, "takes whole canvases")])
def test_the_names_that_stand_for_no_scan_say_what_they_stand_for(name: str, meaning: str) -> None:
    with pytest.raises(InputError, match=f"^'{name}' is no scan pattern but stands for .*{meaning}.*: choose one of"):
        scan_pattern(name)


@pytest.fixture
def own_scans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package of somebody's own, with a scan in it."""
    package = tmp_path / "own_scans"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "corners.py").write_text(
        "import numpy as np\n\nSIDE = 3\n\n\ndef first(box, patch_size, num_glimpses, rng):\n"
        "    return np.full((num_glimpses, box.axes), box.start, np.int32)\n"
    )
    (package / "broken.py").write_text("import a_module_that_is_missing\n")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("own_scans")
def test_a_scan_is_found_by_its_import_path() -> None:
    assert scan("own_scans.corners.first", Box(5, 6, 20, 20), 8, 2).tolist() == [[5, 6], [5, 6]]
    box = Box(2, 3, 30, 40)
    by_path, by_name = scan("mambaeye.geometry.scans.random", box, 8, 20), scan("random", box, 8, 20)
    assert np.array_equal(by_path, by_name)


@pytest.mark.usefixtures("own_scans")
@pytest.mark.parametrize("wrong", ["box.start + np.ones(2)", "np.add(box.start, [0, 13])", "np.subtract(box.start, 1)"])
def test_positions_that_a_scan_must_not_give_are_refused(wrong: str, tmp_path: Path) -> None:
    source = "import numpy as np\n\n\ndef wrong(box, patch_size, num_glimpses, rng):\n"
    module = f"wrong_{sha256(wrong.encode()).hexdigest()}"  # one of its own, for Python keeps what it has imported
    (tmp_path / f"{module}.py").write_text(f"{source}    return np.tile({wrong}, (num_glimpses, 1))\n")
    with pytest.raises(InputError, match=r"wrong gave .* positions of shape \(2, 2\), .*: return \(2, 2\) integers"):
        scan(f"{module}.wrong", Box(5, 6, 20, 20), 8, 2)


@pytest.mark.usefixtures("own_scans")
@pytest.mark.parametrize(
    ("name", "problem"),
    {
        "no_such_package.first": "cannot be imported: there is no module no_such_package",
        "own_scans.circles.first": "cannot be imported: there is no module own_scans.circles",
        "own_scans.corners.last": "cannot be imported: own_scans.corners has no last",
        "own_scans.corners.SIDE": "is of type int: give the path of a function",
    }.items(),
)
def test_an_import_path_that_leads_nowhere_says_where_it_ends(name: str, problem: str) -> None:
    with pytest.raises(InputError, match=f"^the scan pattern {name} {problem}"):
        scan_pattern(name)


@pytest.mark.usefixtures("own_scans")
def test_an_error_in_the_module_of_a_scan_is_not_hidden() -> None:
    with pytest.raises(ModuleNotFoundError, match="a_module_that_is_missing"):
        scan_pattern("own_scans.broken.first")


@pytest.mark.parametrize("name", PLANAR)
@pytest.mark.parametrize("sides", [(40,), (40, 40, 40)])
def test_a_pattern_of_rows_and_columns_refuses_other_boxes(name: str, sides: tuple[int, ...]) -> None:
    message = f"^the scan {name} takes boxes of 2 axes, and this one has {len(sides)}: choose another scan$"
    with pytest.raises(InputError, match=message):
        tiles(name, *sides)


def first_table(text: str) -> list[list[str]]:
    """The cells of its rows, without the header."""
    lines = [line for line in text.splitlines() if line.startswith("| ")][1:]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


PAGE, _, MAP = (Path(__file__).parents[1] / "docs" / "scans.md").read_text().partition("\n## The authors' scans")
PATTERNS, _, FAMILY = PAGE.partition("\n## Varied paths")


def test_the_docs_show_every_pattern() -> None:
    assert [name for name, _ in first_table(PATTERNS)] == list(SCANS)


def test_the_docs_have_the_shares_of_the_family() -> None:
    shares = sorted(int(share.removesuffix("%")) / 100 for share, *_ in first_table(FAMILY))
    assert shares == pytest.approx(sorted([*SHARES, *(lattice_paths.SHARES * (1 - sum(SHARES)))]))


def test_the_docs_map_the_authors_names() -> None:
    ours = {name: scan for names, _, scan, _ in first_table(MAP.partition("\n## ")[0]) for name in names.split(", ")}
    for name, (scan_here, _) in AUTHORS_ORDERS.items():
        assert ours[name] == scan_here.removeprefix("mambaeye.geometry.")
