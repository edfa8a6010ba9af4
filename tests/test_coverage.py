import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mambaeye.errors import InputError
from mambaeye.geometry.box import Box
from mambaeye.geometry.coverage import information_ratio
from mambaeye.geometry.scans import SCANS

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
