"""Patches against slices of the canvas."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mambaeye.geometry.patches import cut_from_canvases, cut_patches


def test_patches_are_slices_channel_first() -> None:
    rng = np.random.default_rng(0)
    canvas = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    positions = np.array([[0, 0], [24, 34], [7, 11], [7, 11]])  # both far corners, and one twice
    patches = cut_patches(canvas, positions, 16)
    assert patches.dtype == np.uint8
    assert patches.shape == (4, 3, 16, 16)
    for patch, (row, col) in zip(patches, positions, strict=True):
        np.testing.assert_array_equal(patch, canvas[row : row + 16, col : col + 16].transpose(2, 0, 1))


@given(
    room=st.lists(st.integers(0, 6), min_size=1, max_size=3),  # canvas sides beyond a patch
    channels=st.integers(1, 4),
    num_glimpses=st.integers(0, 5),
    seed=st.integers(0, 99),
)
def test_patches_are_slices_of_any_number_of_axes(room: list[int], channels: int, num_glimpses: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    patch_size = tuple(rng.integers(1, 6, len(room)).tolist())
    sides = np.array(room) + patch_size
    canvases = rng.integers(0, 256, (2, *sides, channels), dtype=np.uint8)
    positions = rng.integers(0, np.array(room) + 1, (2, num_glimpses, len(room)), dtype=np.int32)
    batch = cut_from_canvases(torch.from_numpy(canvases), torch.from_numpy(positions), patch_size)
    assert batch.shape == (2, num_glimpses, channels, *patch_size)
    assert batch.dtype == torch.uint8
    for image in range(2):
        patches = cut_patches(canvases[image], positions[image], patch_size)
        assert np.array_equal(batch[image], patches)
        for patch, position in zip(patches, positions[image], strict=True):
            for channel, pixel in itertools.product(range(channels), np.ndindex(patch.shape[1:])):
                assert patch[channel, *pixel] == canvases[image, *(position + pixel), channel]


def test_patches_do_not_share_the_canvas() -> None:
    canvas = np.zeros((16, 16, 3), dtype=np.uint8)
    patches = cut_patches(canvas, np.array([[0, 0]]), 16)
    batch = cut_from_canvases(torch.from_numpy(canvas[None]), torch.tensor([[[0, 0]]]), 16)
    canvas[:] = 1
    assert patches.max() == 0
    assert batch.max() == 0


@pytest.mark.parametrize("position", [(0, 35), (25, 0)])
def test_a_glimpse_over_the_edge_is_a_bug(position: tuple[int, int]) -> None:
    with pytest.raises(IndexError):
        cut_patches(np.zeros((40, 50, 3), dtype=np.uint8), np.array([position]), 16)


def test_a_negative_position_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        cut_patches(np.zeros((40, 50, 3), dtype=np.uint8), np.array([[-1, 0]]), 16)


def test_positions_of_other_axes_than_the_canvas_are_a_bug() -> None:
    with pytest.raises(AssertionError):
        cut_patches(np.zeros((40, 50, 3), dtype=np.uint8), np.array([[1, 0, 0]]), 16)
