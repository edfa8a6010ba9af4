"""Features for dense work: maps of canvases, of every glimpse, and glimpses laid on a map."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from mean_colour import MeanColour
from test_conformance import IMAGES, VARIANTS, build, named
from torch import Tensor, nn

from mambaeye.blocks import checkpoint_blocks
from mambaeye.encoders.adventurer import Adventurer
from mambaeye.encoders.base import CanvasEncoder, DenseEncoder
from mambaeye.encoders.local_vim import LocalVim
from mambaeye.encoders.mamba_r import MambaR
from mambaeye.encoders.vim import Vim
from mambaeye.encoders.vit import ViT
from mambaeye.errors import InputError
from mambaeye.ops.dense import insert, normalise, take_out
from mambaeye.ops.features import on_canvas

OF_PATCHES = [variant for variant in VARIANTS if variant[0] in (ViT, Adventurer, Vim, MambaR, LocalVim)]


class Pass(nn.Module):
    """A block that does nothing."""

    def forward(self, x: Tensor, *rest: object) -> Tensor:
        return x


@pytest.mark.parametrize("variant", OF_PATCHES, ids=named)
@torch.no_grad()
def test_fields_of_a_map_lie_where_their_patches_do(variant: tuple[type, dict[str, object]]) -> None:
    """Without its blocks an encoder's map is the patches' linear map, which a convolution lays out, and tables."""
    changes = {"middle_class_token": True} if variant[0] is LocalVim else {}  # without it tokens are rotated
    encoder = build(variant[0], **variant[1] | changes).eval()
    assert isinstance(encoder, DenseEncoder)
    stages, _ = encoder.feature_modules()
    blocks = next(part for part in encoder.children() if isinstance(part, nn.ModuleList))
    assert [*blocks] == [*stages]
    for place in range(len(blocks)):
        blocks[place] = Pass()
    canvases = torch.randint(256, (2, 48, 80, 3), dtype=torch.uint8)
    maps, black = (encoder.forward_features(images).stages[0] for images in (canvases, torch.zeros_like(canvases)))
    difference = normalise(canvases, torch.float32) - normalise(torch.zeros_like(canvases), torch.float32)
    expected = F.conv2d(difference, encoder.patch_embed.proj.weight, stride=encoder.stride)
    assert expected.shape[2:] == (3, 5)
    torch.testing.assert_close(maps - black, expected, atol=1e-5, rtol=1e-4)


def test_maps_cover_canvases_that_are_padded() -> None:
    overlapping = Vim(num_classes=3, dim=16, depth=1, d_state=4, patch=16, stride=8, grid=2)
    for height, width in ((16, 24), (17, 25), (5, 40), (33, 16)):
        canvases = torch.zeros(1, height, width, 3, dtype=torch.uint8)
        with torch.no_grad():
            found = overlapping.forward_features(canvases)
            patches = overlapping.patch_embed(padded_by_hand(canvases, 16, 8))
        assert found.last.shape[2:] == patches.shape[1:3]


def padded_by_hand(canvases: Tensor, patch: int, stride: int) -> Tensor:
    sides = [next(s for s in range(side, 100) if s >= patch and (s - patch) % stride == 0) for side in
             canvases.shape[1:3]]  # fmt: skip
    return torch.zeros(len(canvases), 3, *sides)


def test_gradients_flow_through_maps_and_computing_again_changes_none() -> None:
    encoder = build(Vim)
    assert isinstance(encoder, CanvasEncoder)
    canvases = torch.randint(256, (IMAGES, 32, 32, 3), dtype=torch.uint8)
    found = []
    for _ in range(2):
        features = encoder.forward_features(canvases, every_stage=True)
        loss = sum(part.sin().sum() for part in (features.last, *features.stages))
        found.append(torch.autograd.grad(loss, encoder.patch_embed.proj.weight)[0])
        checkpoint_blocks(encoder)
    assert found[0].abs().sum() > 0
    torch.testing.assert_close(found[1], found[0])


def test_an_encoder_that_tells_no_stages_says_so() -> None:
    with pytest.raises(InputError, match="^MeanColour gives no features by stages: it defines no feature_modules$"):
        MeanColour(num_classes=2).forward_features(torch.zeros(1, 4, 4, 3, dtype=torch.uint8))


@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_what_was_inserted_is_taken_out(is_extra: list[bool]) -> None:
    places = [place for place, extra in enumerate(is_extra) if extra]
    tokens = len(is_extra) - len(places)
    own, extra = torch.randn(2, tokens, 3), torch.randn(len(places), 3)
    before, taken = take_out(insert(own, extra, places), places)
    assert before.equal(own)
    assert (taken is None) if not places else taken.equal(extra.expand(2, -1, -1))


@given(
    st.integers(1, 5),
    st.integers(1, 6),
    st.tuples(st.integers(4, 13), st.integers(4, 13)),
    st.integers(1, 5),
    st.data(),
)
def test_glimpses_on_a_map_are_the_mean_of_what_shows_each_pixel(
    patch: int, glimpses: int, canvas: tuple[int, int], stride: int, data: st.DataObject
) -> None:
    """Pixel by pixel, some glimpses hanging over the canvas; fields are the mean of their pixels' glimpses."""
    places = st.tuples(*(st.integers(-3, side - 1) for side in canvas))
    positions = np.array([data.draw(st.lists(places, min_size=glimpses, max_size=glimpses)) for _ in range(2)])
    values = np.random.default_rng(0).normal(size=(2, glimpses, 3))
    found, weights = on_canvas(torch.from_numpy(values), torch.from_numpy(positions), patch, canvas, stride)
    rows, cols = (-(-side // stride) for side in canvas)
    assert found.shape == (2, 3, rows, cols)
    for image in range(2):
        total, count = np.zeros((rows, cols, 3)), np.zeros((rows, cols))
        for value, (top, left) in zip(values[image], positions[image], strict=True):
            for row in range(max(top, 0), min(top + patch, rows * stride)):
                for col in range(max(left, 0), min(left + patch, cols * stride)):
                    total[row // stride, col // stride] += value
                    count[row // stride, col // stride] += 1
        expected = total / np.maximum(count, 1)[..., None]
        np.testing.assert_allclose(found[image].permute(1, 2, 0), expected, atol=1e-12)
        np.testing.assert_array_equal(weights[image], count)
