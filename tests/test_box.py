"""Boxes, and where glimpses may start on them."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mambaeye.geometry.box import Box, overhung, patch_sides, start_range


def test_a_box_is_its_numbers_with_rows_and_columns_last() -> None:
    image, clip = Box(1, 2, 30, 40), Box(5, 1, 2, 8, 30, 40)
    assert image == (1, 2, 30, 40)
    assert clip == (5, 1, 2, 8, 30, 40)
    assert (image.axes, clip.axes, Box(3, 9).axes) == (2, 3, 1)
    assert (image.start, image.size) == ((1, 2), (30, 40))
    assert (clip.start, clip.size) == ((5, 1, 2), (8, 30, 40))
    for box in (image, clip):
        assert (box.row, box.col, box.height, box.width) == (1, 2, 30, 40)
    assert torch.tensor(clip).tolist() == list(clip)


def test_a_box_cuts_itself_out_of_an_array() -> None:
    for axes in (1, 2, 3):
        pixels = np.arange(9**axes).reshape((9,) * axes)
        box = Box(*[2] * axes, *range(3, 3 + axes))
        inside = pixels[box.slices]
        assert inside.shape == box.size
        assert inside.flat[0] == pixels[(2,) * axes]


def test_a_box_has_plain_integers_and_survives_pickling() -> None:
    box = Box(*np.array([1, 2, 3, 4], dtype=np.int32))
    assert [type(number) for number in box] == [int] * 4
    again = pickle.loads(pickle.dumps(box))
    assert again == box
    assert type(again) is Box


@pytest.mark.parametrize("numbers", [(), (1, 2, 3)])
def test_a_box_without_a_side_for_every_axis_is_a_bug(numbers: tuple[int, ...]) -> None:
    with pytest.raises(AssertionError):
        Box(*numbers)


@given(
    axes=st.lists(st.tuples(st.integers(-5, 50), st.integers(1, 50), st.integers(1, 40)), min_size=1, max_size=3),
)
def test_starts_are_those_of_glimpses_within_the_box(axes: list[tuple[int, int, int]]) -> None:
    edges, sides, patch_size = zip(*axes, strict=True)
    first, last = start_range(Box(*edges, *sides), patch_size)
    assert first.dtype == last.dtype == np.int32
    for (edge, side, length), low, high in zip(axes, first.tolist(), last.tolist(), strict=True):
        within = [start for start in range(-60, 160) if edge <= start and start + length <= edge + side]
        if within:
            assert (low, high) == (within[0], within[-1])
        else:  # the box is in the middle of the glimpse
            before, after = edge - low, low + length - (edge + side)
            assert low == high
            assert after - before in (0, 1)


@given(box=st.tuples(*[st.integers(1, 50)] * 6), patch_size=st.integers(1, 40))
def test_one_side_is_that_side_along_every_axis(box: tuple[int, ...], patch_size: int) -> None:
    assert patch_sides(patch_size, 3) == (patch_size,) * 3
    found = zip(start_range(Box(*box), patch_size), start_range(Box(*box), (patch_size,) * 3), strict=True)
    assert all(np.array_equal(*pair) for pair in found)


def test_sides_for_other_axes_are_a_bug() -> None:
    with pytest.raises(AssertionError):
        patch_sides((1, 16, 16), 2)


@given(canvas=st.integers(1, 60), side=st.integers(1, 60), patch_size=st.integers(1, 60))
def test_a_glimpse_at_a_narrow_image_stays_on_the_canvas_that_the_image_is_centred_on(
    canvas: int, side: int, patch_size: int
) -> None:
    side, patch_size = min(side, canvas), min(patch_size, canvas)
    first, last = start_range(Box((canvas - side) // 2, side), patch_size)
    assert first[0] >= 0
    assert last[0] + patch_size <= canvas


@given(
    axes=st.lists(st.tuples(*[st.integers(0, 40), st.integers(1, 40)] * 2), min_size=1, max_size=3),
    corner=st.integers(-3, 3),
)
def test_starts_on_an_overhung_box_are_its_pixels_as_far_as_glimpses_stay_on_the_canvas(
    axes: list[tuple[int, int, int, int]], corner: int
) -> None:
    patch_size = tuple(length for *_, length in axes)
    sides = [max(length, before + side + after) for before, side, after, length in axes]
    canvas = Box(*[corner] * len(axes), *sides)
    box = Box(*(corner + before for before, *_ in axes), *(side for _, side, *_ in axes))
    first, last = start_range(overhung(box, canvas, patch_size), patch_size)
    limits = [corner + whole - length for whole, length in zip(sides, patch_size, strict=True)]
    for edge, side, limit, low, high in zip(box.start, box.size, limits, first.tolist(), last.tolist(), strict=True):
        pixels = range(edge, edge + side)
        assert (low, high) == (min(pixels[0], limit), max(min(start, limit) for start in pixels))
        assert corner <= low <= high <= limit
