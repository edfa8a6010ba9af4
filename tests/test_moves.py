import math

import torch

from mambaeye.geometry.moves import embed_moves, moves


def test_moves_are_differences_and_the_first_is_zero() -> None:
    positions = torch.tensor([[[5, 7], [9, 7], [0, 100]]])
    assert moves(positions).tolist() == [[[0, 0], [4, 0], [-9, 93]]]
    assert moves(positions, torch.tensor([[1, 2]]))[0, 0].tolist() == [4, 5]
    assert moves(positions.int(), torch.tensor([[1, 2]])).dtype == torch.int32


def test_embedding_is_the_formula() -> None:
    embedded = embed_moves(torch.tensor([[-37, 1000]]), 256, torch.float64)
    for axis, move in enumerate((-37, 1000)):
        for i in range(128):
            angle = move / 10000 ** (2 * i / 256)
            assert math.isclose(embedded[0, 256 * axis + i], math.sin(angle), abs_tol=1e-12)
            assert math.isclose(embedded[0, 256 * axis + 128 + i], math.cos(angle), abs_tol=1e-12)


def test_float32_embedding_of_far_moves() -> None:
    far = torch.tensor([[16384, -16384]])
    torch.testing.assert_close(embed_moves(far, 256).double(), embed_moves(far, 256, torch.float64), atol=2e-3, rtol=0)


def test_zero_move_is_zeros_and_ones() -> None:
    embedded = embed_moves(torch.zeros(1, 2, dtype=torch.long), 256)
    assert embedded.unflatten(-1, (2, 2, 128)).mean((0, 1, 3)).tolist() == [0.0, 1.0]
