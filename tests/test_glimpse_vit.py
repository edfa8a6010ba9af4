"""The control of a ViT over glimpses: what it knows of them, and what it does not."""

import pytest
import torch

from mambaeye.encoders.glimpse_vit import GlimpseViT
from mambaeye.errors import InputError
from mambaeye.geometry.moves import embed_moves

SMALL = {"num_classes": 5, "patch_size": 8, "dim": 24, "depth": 2, "heads": 3}


def glimpses(*sides: int) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    patches = torch.randint(256, (2, 7, 3, *sides), dtype=torch.uint8, generator=draw)
    return patches, torch.randint(90, (2, 7, len(sides)), generator=draw)


@torch.no_grad()
def test_tokens_are_projected_glimpses_and_their_absolute_positions() -> None:
    torch.manual_seed(0)
    model = GlimpseViT(**SMALL | {"depth": 1}).double().eval()
    patches, positions = glimpses(8, 8)
    tokens = model.projection(patches.flatten(2).double() / 255) + embed_moves(positions, 12, torch.float64)
    expected = model.head(model.norm(model.blocks[0](tokens)).mean(1))
    torch.testing.assert_close(model(patches, positions)[:, 0], expected)
    torch.testing.assert_close(model(patches.double() / 255, positions)[:, 0], expected)


@torch.no_grad()
def test_the_order_of_glimpses_says_nothing_and_their_place_does() -> None:
    torch.manual_seed(0)
    model = GlimpseViT(**SMALL).double().eval()
    patches, positions = glimpses(8, 8)
    before = model(patches, positions)
    order = torch.randperm(7)
    torch.testing.assert_close(model(patches[:, order], positions[:, order]), before)
    assert not model(patches, positions + 5).allclose(before)  # moves would be the same
    assert not model(patches, positions[:, order]).allclose(before)


@torch.no_grad()
@pytest.mark.parametrize("sides", [(8,), (8, 8), (1, 8, 8), (3, 8, 8)])
def test_positions_may_have_any_number_of_axes(sides: tuple[int, ...]) -> None:
    model = GlimpseViT(**SMALL, axes=len(sides), tube=sides[0] if len(sides) == 3 else 1)
    assert model(*glimpses(*sides)).shape == (2, 1, 5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 194}, "encoder.dim is 194: sines and cosines of 2 axes need a multiple of 4"),
        ({"dim": 100}, "give encoder.heads"),
        ({"depth": 0}, "encoder.depth is 0: give at least 1"),
    ],
)
def test_sizes_that_cannot_be(settings: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        GlimpseViT(**settings)
