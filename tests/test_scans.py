"""Scan patterns against what they promise: which cells they visit, in what order, and that the last pixels are seen."""

from math import gcd, isqrt
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.lib.stride_tricks import sliding_window_view
from scipy.stats import qmc

from mambaeye.errors import InputError
from mambaeye.geometry.box import Box
from mambaeye.geometry.scans import SCANS, scan_pattern

ANY_START = ["random", "sobol"]
GRID = [name for name in SCANS if name not in ANY_START]
DRAWN = [*ANY_START, "random_grid"]
SIDES = st.integers(1, 200)
BOXES = st.builds(Box, st.integers(0, 50), st.integers(0, 50), SIDES, SIDES)
PATCHES = st.integers(1, 40)
GRID_SIDES = st.integers(1, 40)


def scan(name: str, box: Box, patch_size: int, length: int, seed: int = 0) -> np.ndarray:
    return scan_pattern(name)(box, patch_size, length, np.random.default_rng(seed))


def cells(name: str, rows: int, cols: int) -> np.ndarray:
    """One pass over so many cells, as (row, col) of the cells: with glimpses of one pixel."""
    return scan(name, Box(0, 0, rows, cols), 1, rows * cols)


def grid_starts(edge: int, side: int, patch_size: int) -> list[int]:
    """The grid's starts along an axis, one by one."""
    if side <= patch_size:
        return [edge - (patch_size - side) // 2]
    starts = [edge]
    while starts[-1] + patch_size < edge + side:
        starts.append(min(starts[-1] + patch_size, edge + side - patch_size))
    return starts


@pytest.mark.parametrize("name", SCANS)
@given(box=BOXES, patch_size=PATCHES, lengths=st.tuples(st.integers(0, 600), st.integers(0, 600)))
def test_fewer_glimpses_are_the_first_of_more(name: str, box: Box, patch_size: int, lengths: tuple[int, int]) -> None:
    short, long = sorted(lengths)
    assert np.array_equal(scan(name, box, patch_size, short), scan(name, box, patch_size, long)[:short])


@pytest.mark.parametrize("name", GRID)
@given(box=BOXES, patch_size=PATCHES, passes=st.floats(0, 3.5))
@example(box=Box(0, 0, 40, 40), patch_size=16, passes=0)
@example(box=Box(0, 0, 40, 40), patch_size=16, passes=1 / 9)  # one glimpse
def test_grid_patterns_visit_each_cell_once_before_they_repeat(
    name: str, box: Box, patch_size: int, passes: float
) -> None:
    rows, cols = (grid_starts(box[axis], box[axis + 2], patch_size) for axis in (0, 1))
    expected = np.sort(np.add.outer(1000 * np.array(rows), cols).ravel())  # one number a cell
    length = round(passes * len(expected))
    positions = scan(name, box, patch_size, length)
    assert positions.shape == (length, 2)
    assert positions.dtype == np.int32
    visits = positions @ (1000, 1)
    for begin in range(0, length, len(expected)):
        seen = np.sort(visits[begin : begin + len(expected)])
        assert np.isin(seen, expected).all()
        assert (np.diff(seen) > 0).all()  # none twice, so a whole pass has them all


@pytest.mark.parametrize("name", GRID)
@given(box=BOXES, patch_size=PATCHES)
def test_one_pass_shows_every_pixel(name: str, box: Box, patch_size: int) -> None:
    margin = 40
    seen = np.zeros((330, 330), dtype=bool)
    for row, col in scan(name, box, patch_size, -(-box.height // patch_size) * -(-box.width // patch_size)) + margin:
        seen[row : row + patch_size, col : col + patch_size] = True
    top, left = box.row + margin, box.col + margin
    assert seen[top : top + box.height, left : left + box.width].all()


@pytest.mark.parametrize("name", ANY_START)
@given(box=BOXES, patch_size=PATCHES, length=st.integers(0, 300))
def test_any_start_lies_in_the_box(name: str, box: Box, patch_size: int, length: int) -> None:
    positions = scan(name, box, patch_size, length)
    assert positions.shape == (length, 2)
    assert positions.dtype == np.int32
    for starts, edge, side in zip(positions.T, box[:2], box[2:], strict=True):
        if side >= patch_size:
            assert ((starts >= edge) & (starts + patch_size <= edge + side)).all()
        else:  # one start, with the box in the middle of the glimpse
            assert (starts == edge - (patch_size - side) // 2).all()


@pytest.mark.parametrize("name", ANY_START)
def test_any_start_is_reached_evenly(name: str) -> None:
    positions = scan(name, Box(2, 3, 18, 17), 16, 60_000)
    starts, counts = np.unique(positions, axis=0, return_counts=True)
    assert starts.tolist() == [[row, col] for row in (2, 3, 4) for col in (3, 4)]  # the last shows the last row, column
    np.testing.assert_allclose(counts, 10_000, rtol=0.05)


@pytest.mark.parametrize("name", SCANS)
def test_only_the_generator_given_decides(name: str) -> None:
    torchs = torch.get_rng_state()
    first, again, other = (scan(name, Box(0, 0, 100, 90), 16, 100, seed) for seed in (1, 1, 2))
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
    found[tuple(cells(name, 3, 4).T)] = range(12)
    assert found.tolist() == steps


@pytest.mark.parametrize("name", ["row_snake", "column_snake", "spiral", "hilbert"])
@given(rows=GRID_SIDES, cols=GRID_SIDES)
def test_each_cell_is_next_to_the_last_one(name: str, rows: int, cols: int) -> None:
    assert (np.abs(np.diff(cells(name, rows, cols), axis=0)).sum(axis=1) == 1).all()


@given(rows=GRID_SIDES, cols=GRID_SIDES)
def test_diagonals_one_after_another(rows: int, cols: int) -> None:
    row, col = cells("diagonal", rows, cols).T
    along = np.diff(row + col)
    assert np.isin(along, (0, 1)).all()
    assert (np.diff(row)[along == 0] == -1).all()


@given(rows=GRID_SIDES, cols=GRID_SIDES)
def test_a_spiral_winds_inwards(rows: int, cols: int) -> None:
    row, col = cells("spiral", rows, cols).T
    to_the_edge = np.min((row, col, rows - 1 - row, cols - 1 - col), axis=0)
    assert (np.diff(to_the_edge) >= 0).all()


@given(rows=GRID_SIDES, cols=GRID_SIDES)
def test_centre_out_goes_ring_by_ring_each_once_round(rows: int, cols: int) -> None:
    row, col = cells("centre_out", rows, cols).T
    down, right = 2 * row - (rows - 1), 2 * col - (cols - 1)  # from the centre, in half cells
    ring = np.array([isqrt(square) // 2 for square in (down**2 + right**2).tolist()])
    assert (np.diff(ring) >= 0).all()
    bearing = np.angle(-down + 1j * right)  # 0 at the top, clockwise
    for number in range(ring[-1] + 1):
        turns = np.diff(bearing[ring == number]) % (2 * np.pi)
        assert turns.sum() < 2 * np.pi


@given(rows=GRID_SIDES, cols=GRID_SIDES)
def test_coarse_to_fine_finishes_each_level_before_the_next(rows: int, cols: int) -> None:
    visits = list(map(tuple, cells("coarse_to_fine", rows, cols).tolist()))
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
    numbers = cells("golden_ratio", rows, cols) @ (cols, 1)
    strides = set((np.diff(numbers) % count).tolist())
    assert len(strides) == (count > 1)
    for stride in strides:
        golden = int(count * 0.6180339887)
        assert [meets_all for meets_all in range(golden, stride + 1) if gcd(meets_all, count) == 1] == [stride]


@pytest.mark.parametrize("side", [2, 4, 8, 16, 32])
def test_hilbert_on_a_power_of_two_fills_square_after_square(side: int) -> None:
    """With unit steps, that is what makes a curve Hilbert's: at every scale, a quarter after another."""
    path = cells("hilbert", side, side)
    for scale in (2**level for level in range(1, side.bit_length())):
        squares = (path // scale).reshape(-1, scale * scale, 2)
        assert (squares == squares[:, :1]).all()


@given(rows=st.integers(12, 70), cols=st.integers(12, 70))
def test_hilbert_stays_near_on_any_rectangle(rows: int, cols: int) -> None:
    """16 cells in a row fit a box whose longer side is 6 or so on average; on a true Hilbert curve it is 5.8."""
    windows = sliding_window_view(cells("hilbert", rows, cols), 16, axis=0)  # (N - 15, 2, 16)
    longer = np.ptp(windows, axis=2).max(axis=1) + 1
    assert longer.mean() < 6.3
    assert longer.max() <= 10


def test_a_random_grid_is_drawn_anew_for_every_pass() -> None:
    passes = (scan("random_grid", Box(0, 0, 32, 48), 16, 6 * 6000) // 16 @ (3, 1)).reshape(6000, 6)
    for place in passes.T:  # every cell is as often the first, the second, ...
        np.testing.assert_allclose(np.bincount(place), 1000, rtol=0.15)
    assert abs((passes[1:, 0] == passes[:-1, 0]).mean() - 1 / 6) < 0.02  # whatever the pass before


@pytest.mark.parametrize("seed", range(5))
def test_sobol_puts_one_point_in_every_elementary_interval(seed: int) -> None:
    """What defines a two-dimensional Sobol sequence: so it is for 2^m points and every 2^a x 2^(m-a) intervals."""
    positions = scan("sobol", Box(0, 0, 256, 256), 1, 256, seed)
    for a in range(9):
        intervals = positions // (256 >> a, 1 << a) @ (1 << (8 - a), 1)
        assert sorted(intervals.tolist()) == list(range(256))


@pytest.mark.parametrize("length", [50, 300, 1000])
def test_sobol_is_spread_more_evenly_than_random(length: int) -> None:
    found = {
        name: [
            qmc.discrepancy((scan(name, Box(0, 0, 999, 700), 1, length, seed) + 0.5) / (999, 700)) for seed in range(9)
        ]
        for name in ANY_START
    }
    assert max(found["sobol"]) < min(found["random"]) / 3


def test_unknown_pattern_lists_the_known() -> None:
    with pytest.raises(InputError, match=f"^no scan pattern is called 'zigzag': choose one of {', '.join(SCANS)}$"):
        scan_pattern("zigzag")


def test_the_docs_show_every_pattern() -> None:
    page = (Path(__file__).parents[1] / "docs" / "scans.md").read_text().partition("\n## ")[0]
    assert [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")][1:] == list(SCANS)
