import numpy as np
import pytest

from mambaeye.geometry.patches import cut_patches


def test_patches_are_slices_channel_first() -> None:
    rng = np.random.default_rng(0)
    canvas = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
    positions = np.array([[0, 0], [24, 34], [7, 11], [7, 11]])  # both far corners, and one twice
    patches = cut_patches(canvas, positions, 16)
    assert patches.dtype == np.uint8
    assert patches.shape == (4, 3, 16, 16)
    for patch, (row, col) in zip(patches, positions, strict=True):
        np.testing.assert_array_equal(patch, canvas[row : row + 16, col : col + 16].transpose(2, 0, 1))


def test_patches_do_not_share_the_canvas() -> None:
    canvas = np.zeros((16, 16, 3), dtype=np.uint8)
    patches = cut_patches(canvas, np.array([[0, 0]]), 16)
    canvas[:] = 1
    assert patches.max() == 0


@pytest.mark.parametrize("position", [(0, 35), (25, 0)])
def test_a_glimpse_over_the_edge_is_a_bug(position: tuple[int, int]) -> None:
    with pytest.raises(IndexError):
        cut_patches(np.zeros((40, 50, 3), dtype=np.uint8), np.array([position]), 16)


def test_a_negative_position_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        cut_patches(np.zeros((40, 50, 3), dtype=np.uint8), np.array([[-1, 0]]), 16)
