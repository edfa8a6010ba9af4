"""Moves against differences, and their embedding against the formula."""

import math

import pytest
import torch

from mambaeye.geometry.moves import embed_moves, moves


def test_moves_are_differences_and_the_first_is_zero() -> None:
    positions = torch.tensor([[[5, 7], [9, 7], [0, 100]]])
    assert moves(positions).tolist() == [[[0, 0], [4, 0], [-9, 93]]]
    assert moves(positions, torch.tensor([[1, 2]]))[0, 0].tolist() == [4, 5]
    assert moves(positions.int(), torch.tensor([[1, 2]])).dtype == torch.int32


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_moves_of_any_number_of_axes_lead_from_one_position_to_the_next(axes: int) -> None:
    positions = torch.randint(0, 100, (2, 9, axes), generator=torch.Generator().manual_seed(0))
    from_the_first = positions[:, :1] + moves(positions).cumsum(1)
    assert from_the_first.equal(positions)
    in_two = torch.cat((moves(positions[:, :4]), moves(positions[:, 4:], positions[:, 3])), dim=1)
    assert in_two.equal(moves(positions))


@pytest.mark.parametrize("move", [(-37,), (-37, 1000), (3, -37, 1000)])
def test_embedding_is_the_formula(move: tuple[int, ...]) -> None:
    embedded = embed_moves(torch.tensor([move]), 256, torch.float64)
    assert embedded.shape == (1, 256 * len(move))
    for axis, pixels in enumerate(move):
        for i in range(128):
            angle = pixels / 10000 ** (2 * i / 256)
            assert math.isclose(embedded[0, 256 * axis + i], math.sin(angle), abs_tol=1e-12)
            assert math.isclose(embedded[0, 256 * axis + 128 + i], math.cos(angle), abs_tol=1e-12)


def test_float32_embedding_of_far_moves() -> None:
    far = torch.tensor([[16384, -16384]])
    torch.testing.assert_close(embed_moves(far, 256).double(), embed_moves(far, 256, torch.float64), atol=2e-3, rtol=0)


def test_zero_move_is_zeros_and_ones() -> None:
    embedded = embed_moves(torch.zeros(1, 2, dtype=torch.long), 256)
    assert embedded.unflatten(-1, (2, 2, 128)).mean((0, 1, 3)).tolist() == [0.0, 1.0]
