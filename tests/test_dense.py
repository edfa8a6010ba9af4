"""Canvases as grids of tokens, against loops and closed forms."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mambaeye.errors import InputError
from mambaeye.ops.dense import MEAN, STD, PatchEmbed, insert, normalise, pad_to_patches, resized


def test_normalised_pixels_are_what_image_networks_take() -> None:
    canvases = torch.randint(256, (2, 5, 7, 3), dtype=torch.uint8)
    images = normalise(canvases, torch.float64)
    assert images.shape == (2, 3, 5, 7)
    for channel in range(3):
        expected = (canvases[..., channel].double() / 255 - MEAN[channel]) / STD[channel]
        torch.testing.assert_close(images[:, channel], expected)


@given(height=st.integers(1, 40), width=st.integers(1, 40), patch=st.integers(1, 9), data=st.data())
def test_padding_is_black_and_the_least_that_covers(height: int, width: int, patch: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, patch))
    canvases = torch.full((1, height, width, 3), 9, dtype=torch.uint8)
    padded = pad_to_patches(canvases, patch, stride)
    assert padded[:, :height, :width].equal(canvases)
    assert padded.sum() == canvases.sum()
    for side, length in zip((height, width), padded.shape[1:3], strict=True):
        covered = next(n for n in range(patch, 100, stride) if n >= side)
        assert length == covered
    assert PatchEmbed(2, patch, stride)(normalise(padded, torch.float32)).shape[0] == 1


def test_every_patch_is_projected_by_itself() -> None:
    embed = PatchEmbed(5, 4, 2).double()
    images = torch.randn(2, 3, 8, 10, dtype=torch.float64)
    tokens = embed(images)
    assert tokens.shape == (2, 3, 4, 5)
    weight, bias = embed.proj.weight.flatten(1), embed.proj.bias
    patch = images[:, :, 2:6, 6:10].flatten(1)
    torch.testing.assert_close(tokens[:, 1, 3], patch @ weight.T + bias)
    with pytest.raises(InputError, match="do not cover 8 x 9"):
        embed(images[..., :9])


def test_patches_start_with_variance_of_one_over_fan_in() -> None:
    torch.manual_seed(0)
    weight = PatchEmbed(512, 16, 16).proj.weight.detach()
    assert float(weight.var()) == pytest.approx(1 / (3 * 16 * 16), rel=0.02)


def test_patches_leave_no_pixel_between_them() -> None:
    with pytest.raises(InputError, match="encoder.stride is 17"):
        PatchEmbed(2, 16, 17)


@given(rows=st.integers(1, 12), cols=st.integers(1, 12), side=st.integers(1, 8))
def test_a_resized_table_keeps_constants_and_its_own_size(rows: int, cols: int, side: int) -> None:
    table = torch.randn(side, side, 3)
    assert resized(table, side, side) is table
    constant = torch.ones(side, side, 3, dtype=torch.bfloat16)
    torch.testing.assert_close(resized(constant, rows, cols), torch.ones(rows, cols, 3))


def test_a_resized_table_is_interpolated_by_cubics_between_centres() -> None:
    torch.manual_seed(0)
    table = torch.randn(8, 8, 2, dtype=torch.float64)

    def cubic(t: float, a: float = -0.75) -> float:
        t = abs(t)
        return (a + 2) * t**3 - (a + 3) * t**2 + 1 if t <= 1 else a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a

    between = resized(table, 16, 12)
    row, col = (5 + 0.5) / 2 - 0.5, (7 + 0.5) * 8 / 12 - 0.5  # of tile (5, 7), in tiles of the table
    expected = torch.zeros(2, dtype=torch.float64)
    for i in range(int(row) - 1, int(row) + 3):
        for j in range(int(col) - 1, int(col) + 3):
            expected += cubic(row - i) * cubic(col - j) * table[i, j]
    torch.testing.assert_close(between[5, 7], expected)


def shrunk(line: Tensor, length: int) -> Tensor:
    """A line (L, D) that is interpolated by cubics as wide as the fields of the shorter one."""
    scale = len(line) / length

    def cubic(t: Tensor, a: float = -0.5) -> Tensor:
        t = t.abs()
        within = torch.where(t <= 1, (a + 2) * t**3 - (a + 3) * t**2 + 1, a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a)
        return within * (t < 2)

    centres = (torch.arange(length, dtype=torch.float64) + 0.5) * scale
    weights = cubic((torch.arange(len(line)) + 0.5 - centres[:, None]) / scale)
    return weights / weights.sum(1, keepdim=True) @ line


@given(side=st.integers(2, 12), data=st.data())
def test_a_table_shrinks_to_a_single_column_or_row(side: int, data: st.DataObject) -> None:
    length = data.draw(st.integers(1, side - 1))
    line = torch.randn(side, 3, dtype=torch.float64)
    torch.testing.assert_close(resized(line[:, None], length, 1)[:, 0], shrunk(line, length), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(resized(line[None], 1, length)[0], shrunk(line, length), atol=1e-6, rtol=1e-6)
    of_both = line[:, None] + torch.arange(5.0)[:, None]  # of rows and columns
    torch.testing.assert_close(resized(of_both, length, 1)[:, 0], shrunk(line, length) + 2, atol=1e-6, rtol=1e-6)


@given(tokens=st.integers(1, 9), data=st.data())
def test_extra_tokens_lie_where_they_are_put(tokens: int, data: st.DataObject) -> None:
    extra = data.draw(st.integers(1, 4))
    places = sorted(data.draw(st.permutations(range(tokens + extra)))[:extra])
    sequence = list(range(tokens))
    for number, place in enumerate(places):
        sequence.insert(place, 100 + number)
    given_tokens = torch.arange(tokens)[None, :, None].expand(2, -1, 3)
    inserted = insert(given_tokens, torch.arange(100, 100 + extra)[:, None].expand(-1, 3), places)
    assert inserted.equal(torch.tensor(sequence)[None, :, None].expand(2, -1, 3))
