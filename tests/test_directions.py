"""Directions of whole grids, against loops over rows, columns and windows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mambaeye.errors import InputError
from mambaeye.geometry.directions import EMPTY, direction, with_token
from mambaeye.geometry.orders import windows

SIDES = st.integers(1, 9)
NAMES = ("h", "v", "w1", "w2", "w3", "w7", "hilbert", "hilbert_v")


@given(rows=SIDES, cols=SIDES, name=st.sampled_from(NAMES))
def test_every_direction_visits_every_tile_once(rows: int, cols: int, name: str) -> None:
    order = direction(name, rows, cols)
    assert sorted(order[order != EMPTY]) == list(range(rows * cols))
    assert direction(f"{name}_flip", rows, cols).tolist() == order[::-1].tolist()


@given(rows=SIDES, cols=SIDES, side=st.integers(1, 4))
def test_windows_are_filled_up_on_the_right_and_at_the_bottom(rows: int, cols: int, side: int) -> None:
    expected = [
        row * cols + col if row < rows and col < cols else EMPTY
        for top in range(0, rows, side)
        for left in range(0, cols, side)
        for row in range(top, top + side)
        for col in range(left, left + side)
    ]
    assert direction(f"w{side}", rows, cols).tolist() == expected
    assert windows(side)(rows, cols).tolist() == [tile for tile in expected if tile != EMPTY]


@given(rows=SIDES, cols=SIDES)
def test_columns_and_the_transposed_curve_are_those_of_the_transposed_grid(rows: int, cols: int) -> None:
    tiles = np.arange(rows * cols).reshape(rows, cols).T.ravel()
    assert direction("v", rows, cols).tolist() == tiles.tolist()
    assert direction("hilbert_v", rows, cols).tolist() == tiles[direction("hilbert", cols, rows)].tolist()


def test_a_token_is_put_where_its_place_is() -> None:
    assert with_token(np.array([3, 0, EMPTY, 2, 1]), 2).tolist() == [4, 0, 2, EMPTY, 3, 1]


@pytest.mark.parametrize("name", ["", "w", "w0", "x", "h_flip_flip", "w99999"])
def test_another_name_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="choose h, v, w2"):
        direction(name, 2, 2)
