"""Mixers that scan a grid in several directions, against loops over pixels in float64; and the layers around them."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mambaeye.ops.cross_scan import CrossScan, CrossScanBlock, Pyramid, reset_cross_scans
from mambaeye.ops.grid_layers import Neighbours, overlapping_merge, overlapping_stem, patch_merge, patch_stem
from mambaeye.ops.s6_block import sequences_of

FOUR = ("h", "v", "h_flip", "v_flip")


def visited(name: str, rows: int, cols: int) -> list[tuple[int, int]]:
    """Pixels in the order of a direction, by loops; some lie outside, where windows leave the grid."""
    if name.endswith("_flip"):
        return visited(name.removesuffix("_flip"), rows, cols)[::-1]
    if name == "h":
        return [(row, col) for row in range(rows) for col in range(cols)]
    if name == "v":
        return [(row, col) for col in range(cols) for row in range(rows)]
    side = int(name[1:])
    return [
        (top + row, left + col)
        for top in range(0, rows, side)
        for left in range(0, cols, side)
        for row in range(side)
        for col in range(side)
    ]


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def normed(x: Tensor, norm: nn.LayerNorm) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * norm.weight + norm.bias


def pixel_by_pixel(mixer: CrossScan, u: Tensor) -> Tensor:
    """The mixer's equations for one image (R, C, D), one pixel and one step at a time."""
    rows, cols, _ = u.shape
    inner = mixer.D.shape[1]
    projected = u @ mixer.in_proj.weight.T
    x = torch.zeros(rows, cols, inner, dtype=u.dtype)
    for row in range(rows):
        for col in range(cols):
            for down in (-1, 0, 1):
                for across in (-1, 0, 1):
                    if 0 <= row + down < rows and 0 <= col + across < cols:
                        tap = mixer.conv.weight[:, 0, down + 1, across + 1]
                        x[row, col] += tap * projected[row + down, col + across, :inner]
            x[row, col] = silu(x[row, col] + (0 if mixer.conv.bias is None else mixer.conv.bias))
    total = torch.zeros_like(x)
    states = mixer.A_log.shape[-1]
    for k, name in enumerate(mixer.directions):
        h = torch.zeros(inner, states, dtype=u.dtype)
        y = torch.zeros_like(x)
        for row, col in visited(name, rows, cols):
            inside = row < rows and col < cols
            seen = x[row, col] if inside else torch.zeros(inner, dtype=u.dtype)
            low, B, C = (mixer.x_proj[k] @ seen).split(mixer.sizes)
            dt = torch.log1p(torch.exp(mixer.dt_weight[k] @ low + mixer.dt_bias[k]))
            h = torch.exp(-dt[:, None] * mixer.A_log[k].exp()) * h + (dt * seen)[:, None] * B
            if inside:
                y[row, col] = h @ C + mixer.D[k] * seen
        if mixer.gate is not None:
            mean = normed(y, mixer.gate.norm).mean((0, 1))
            reduced = mixer.gate.reduce.weight @ mean + mixer.gate.reduce.bias
            gelu = reduced * (1 + torch.erf(reduced / math.sqrt(2))) / 2
            y = y / (1 + torch.exp(-(mixer.gate.select.weight @ gelu + mixer.gate.select.bias)))
        total += y
    total = normed(total, mixer.out_norm)
    if mixer.gated:
        total = total * silu(projected[..., inner:])
    return total @ mixer.out_proj.weight.T


def jittered(network: nn.Module) -> None:
    """Leave nothing at zero or one."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)


@settings(deadline=None, max_examples=25)
@given(
    rows=st.integers(1, 6),
    cols=st.integers(1, 6),
    directions=st.sampled_from([FOUR, ("h", "w2", "w3_flip"), ("w2", "v_flip"), ("w7", "w2_flip", "h", "v"), ("h",)]),
    d_state=st.integers(1, 3),
    gates=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
@torch.no_grad()
def test_a_mixer_is_its_equations_pixel_by_pixel(
    rows: int, cols: int, directions: tuple[str, ...], d_state: int, gates: tuple[bool, bool, bool]
) -> None:
    """On grids of any sides, with windows that leave them, and whatever gate and bias there is."""
    torch.manual_seed(rows * 7 + cols)
    gated, conv_bias, channel_gate = gates
    mixer = CrossScan(8, directions, 1, d_state, gated, conv_bias, channel_gate).double()
    jittered(mixer)
    u = torch.randn(2, rows, cols, 8, dtype=torch.float64)
    mixed = mixer(u, sequences_of(directions, rows, cols))
    for image in range(2):
        torch.testing.assert_close(mixed[image], pixel_by_pixel(mixer, u[image]), atol=1e-10, rtol=1e-8)


def test_gradients_are_numerical_ones() -> None:
    torch.manual_seed(0)
    block = CrossScanBlock(4, CrossScan(4, ("v", "w2_flip"), 1, 2, True, True, True), 6).double()
    u = torch.randn(1, 3, 2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda u: block(u, sequences_of(("v", "w2_flip"), 3, 2)), u)


@given(rows=st.integers(1, 7), cols=st.integers(1, 7))
@settings(deadline=None, max_examples=20)
def test_neighbours_are_four_tokens_side_by_side_with_zeros_behind_the_edge(rows: int, cols: int) -> None:
    x = torch.arange(1, rows * cols * 2 + 1).view(1, rows, cols, 2)
    merged = Neighbours()(x)
    assert merged.shape == (1, -(-rows // 2), -(-cols // 2), 8)
    for row in range(merged.shape[1]):
        for col in range(merged.shape[2]):
            for place, (down, across) in enumerate(((0, 0), (1, 0), (0, 1), (1, 1))):
                inside = 2 * row + down < rows and 2 * col + across < cols
                expected = x[0, 2 * row + down, 2 * col + across].tolist() if inside else [0, 0]
                assert merged[0, row, col, 2 * place : 2 * place + 2].tolist() == expected


@pytest.mark.parametrize(("height", "width"), [(32, 48), (33, 47), (5, 4)])
def test_stems_quarter_sides_and_merges_halve_them(height: int, width: int) -> None:
    """Sides are rounded up; patches must cover the image, convolutions need not."""
    images = torch.randn(2, 3, height, width)
    rows, cols = -(-height // 4), -(-width // 4)
    assert overlapping_stem(8)(images).shape == (2, rows, cols, 8)
    covered = torch.nn.functional.pad(images, (0, -width % 4, 0, -height % 4))
    x = patch_stem(8, 4)(covered)
    assert x.shape == (2, rows, cols, 8)
    for merge in (overlapping_merge, patch_merge):
        assert merge(8)(x).shape == (2, -(-rows // 2), -(-cols // 2), 16)


@torch.no_grad()
def test_linear_maps_start_alike_and_the_recurrence_as_mamba_does() -> None:
    torch.manual_seed(0)
    mixer = CrossScan(64, FOUR, 2, 16, True, True)
    pyramid = Pyramid(64, [[CrossScanBlock(64, mixer, 256)]], False)
    reset_cross_scans(pyramid)
    for weight in (mixer.in_proj.weight, mixer.x_proj, mixer.dt_weight, mixer.out_proj.weight):
        assert float(weight.std()) == pytest.approx(0.02, rel=0.1)
    dt = torch.nn.functional.softplus(mixer.dt_bias)
    assert 1e-3 * 0.99 <= float(dt.min()) < 2e-3
    assert 0.05 < float(dt.max()) <= 0.1 * 1.01
    torch.testing.assert_close(mixer.A_log[3, 5].exp(), torch.arange(1.0, 17))
    assert mixer.D.eq(1).all()
    bound = float(mixer.conv.weight.abs().max())
    assert bound == pytest.approx(1 / 3, rel=0.02)  # of torch's convolutions: one over the root of 9 taps
    stem = pyramid.stem[0].proj.weight
    assert float(stem.abs().max()) == pytest.approx(48**-0.5, rel=0.02)


@torch.no_grad()
def test_autocast_leaves_the_residual_stream_wide() -> None:
    torch.manual_seed(0)
    blocks = [[CrossScanBlock(8 * width, CrossScan(8 * width, FOUR, 1, 1, False, False), 16)] for width in (1, 2)]
    pyramid = Pyramid(8, blocks, True).eval()
    seen = []
    for block, *_ in blocks:
        block.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0].dtype, output.dtype)))
    images = torch.randn(2, 3, 32, 24)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = pyramid(images)
    assert seen == [(torch.float32, torch.float32)] * 2
    torch.testing.assert_close(narrow.float(), pyramid(images), atol=0.1, rtol=0.1)
    narrow = pyramid.bfloat16()(images.bfloat16())
    assert narrow.dtype == torch.bfloat16
    assert narrow.isfinite().all()
