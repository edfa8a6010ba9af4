import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mambaeye.errors import InputError
from mambaeye.trajectory import SCANS, Box, information_ratio, random, scan_pattern

SIDES = st.integers(1, 23)
PATCHES = st.integers(1, 9)


def union_of_pixels(positions: np.ndarray, box: Box, patch_size: int) -> list[float]:
    """The definition, pixel by pixel, with sets."""
    row, col, height, width = box
    image = set(itertools.product(range(row, row + height), range(col, col + width)))
    seen, ratios = set(), []
    for r, c in positions:
        seen |= set(itertools.product(range(r, r + patch_size), range(c, c + patch_size)))
        ratios.append(len(seen & image) / len(image))
    return ratios


@given(
    positions=st.lists(st.tuples(st.integers(-15, 30), st.integers(-15, 30)), max_size=12),
    box=st.builds(Box, st.integers(-5, 9), st.integers(-5, 9), SIDES, SIDES),
    patch_size=PATCHES,
)
def test_information_ratio_is_the_union_of_pixels(positions: list, box: Box, patch_size: int) -> None:
    positions = np.array(positions, dtype=np.int64).reshape(-1, 2)
    ratio = information_ratio(positions, box, patch_size)
    assert ratio.tolist() == union_of_pixels(positions, box, patch_size)


def test_information_ratio_of_batches() -> None:
    rng = np.random.default_rng(0)
    positions = torch.from_numpy(rng.integers(0, 30, (2, 3, 7, 2)))
    boxes = torch.from_numpy(rng.integers(8, 20, (2, 3, 4)))
    ratio = information_ratio(positions, boxes, 8)
    assert ratio.shape == (2, 3, 7)
    for i, j in itertools.product(range(2), range(3)):
        expected = union_of_pixels(positions[i, j].numpy(), Box(*boxes[i, j].tolist()), 8)
        assert ratio[i, j].tolist() == expected
    one_box = information_ratio(positions, (8, 8, 20, 20), 8)
    assert one_box[1, 2].tolist() == union_of_pixels(positions[1, 2].numpy(), Box(8, 8, 20, 20), 8)


def test_information_ratio_of_a_full_scan_is_one() -> None:
    positions = SCANS["row_raster"](Box(3, 5, 1000, 777), 16, 63 * 49, np.random.default_rng(0))
    assert information_ratio(positions, (3, 5, 1000, 777), 16)[-1] == 1


def test_information_ratio_refuses_an_empty_box() -> None:
    with pytest.raises(InputError, match="0 x 5 pixels"):
        information_ratio(torch.zeros(3, 2, dtype=torch.long), (0, 0, 0, 5), 16)


def test_random_reaches_every_valid_start_evenly() -> None:
    box, patch_size = Box(2, 3, 18, 17), 16
    positions = random(box, patch_size, 60_000, np.random.default_rng(0))
    starts, counts = np.unique(positions, axis=0, return_counts=True)
    expected = [[row, col] for row in (2, 3, 4) for col in (3, 4)]  # the last start shows the last row and column
    assert starts.tolist() == expected
    np.testing.assert_allclose(counts, 10_000, rtol=0.05)


@pytest.mark.parametrize("name", SCANS)
@given(box=st.builds(Box, st.integers(0, 5), st.integers(0, 5), SIDES, SIDES), patch_size=PATCHES)
def test_patterns_stay_inside_and_cover_every_box(name: str, box: Box, patch_size: int) -> None:
    positions = scan_pattern(name)(box, patch_size, 4000, np.random.default_rng(0))
    assert positions.shape == (4000, 2)
    for axis in (0, 1):
        edge, side = box[axis], box[axis + 2]
        low, high = positions[:, axis].min(), positions[:, axis].max()
        if side >= patch_size:
            assert edge <= low <= high <= edge + side - patch_size
        else:  # one start, and it shows the whole axis
            assert low == high <= edge
            assert edge + side <= low + patch_size
    assert information_ratio(positions, box, patch_size)[-1] == 1


@pytest.mark.parametrize("name", SCANS)
@pytest.mark.parametrize("length", [0, 1, 5])
def test_patterns_have_the_length_asked_for(name: str, length: int) -> None:
    assert SCANS[name](Box(0, 0, 40, 40), 16, length, np.random.default_rng(0)).shape == (length, 2)


def test_row_raster_goes_on_from_the_start() -> None:
    positions = SCANS["row_raster"](Box(0, 0, 20, 32), 16, 6, np.random.default_rng(0))
    assert positions.tolist() == [[0, 0], [0, 16], [4, 0], [4, 16], [0, 0], [0, 16]]


def test_unknown_pattern_lists_the_known() -> None:
    with pytest.raises(InputError, match="'zigzag': choose one of random, row_raster"):
        scan_pattern("zigzag")
