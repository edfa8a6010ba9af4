"""The Hi-Mamba-style encoder against a loop over patches and regions in float64, and what its directions imply."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mambaeye.encoders.hi_mamba_style import HierarchicalMixer, HiMambaStyle, Scan, orders_of
from mambaeye.errors import InputError

ROOT = Path(__file__).parents[1]
SMALL: dict[str, Any] = {"num_classes": 5, "dim": 8, "depth": 2, "d_state": 3, "patch": 4, "grid": 3}


def visited(name: str, rows: int, cols: int) -> list[tuple[int, int]]:
    """Places in the order of a direction, by loops."""
    if name.startswith("h"):
        places = [(row, col) for row in range(rows) for col in range(cols)]
    else:
        places = [(row, col) for col in range(cols) for row in range(rows)]
    return places[::-1] if name.endswith("_flip") else places


def looped(scan: Scan, x: Tensor, name: str) -> Tensor:
    """One scan of a map (R, C, E), place after place: taps, step size, state, answer."""
    rows, cols, inner = x.shape
    places, y = visited(name, rows, cols), torch.zeros_like(x)
    state = torch.zeros(inner, scan.A_log.shape[-1], dtype=x.dtype)
    taps = scan.conv1d.weight.shape[-1]
    for step, place in enumerate(places):
        u = scan.conv1d.bias.clone()
        for tap in range(taps):
            before = step - (taps - 1) + tap
            if before >= 0:
                u += scan.conv1d.weight[:, 0, tap] * x[places[before]]
        u = F.silu(u)
        low, B, C = (scan.x_proj[0] @ u).split(scan.sizes)
        dt = F.softplus(scan.dt_weight[0] @ low + scan.dt_bias[0])
        state = torch.exp(-dt[:, None] * scan.A_log[0].exp()) * state + (dt * u)[:, None] * B
        y[place] = state @ C + scan.D[0] * u
    return y


@settings(max_examples=15, deadline=None)
@given(
    rows=st.integers(1, 5),
    cols=st.integers(1, 5),
    region=st.integers(1, 3),
    name=st.sampled_from(["h", "v", "h_flip", "v_flip"]),
)
@torch.no_grad()
def test_a_mixer_is_a_loop_over_patches_and_regions(rows: int, cols: int, region: int, name: str) -> None:
    torch.manual_seed(0)
    mixer = HierarchicalMixer(6, 1, region, 3, 4, 2, "torch").double()
    u = torch.randn(2, rows, cols, 6, dtype=torch.float64)
    mixed = mixer(u, orders_of(name, rows, cols, region))
    for image in range(2):
        x, z = (u[image] @ mixer.in_proj.weight.T).chunk(2, dim=-1)
        tops, lefts = range(0, rows, region), range(0, cols, region)
        means = torch.stack([
            torch.stack([x[top : top + region, left : left + region].flatten(0, 1).mean(0) for left in lefts])
            for top in tops
        ])  # fmt: skip
        near, far = looped(mixer.of_patches, x, name), looped(mixer.of_regions, means, name)
        for row in range(rows):
            for col in range(cols):
                y = near[row, col] + far[row // region, col // region]
                expected = mixer.out_proj.weight @ (y * F.silu(z[row, col]))
                torch.testing.assert_close(mixed[image, row, col], expected)


@torch.no_grad()
def test_directions_take_turns() -> None:
    """Turning the canvas over its diagonal is the same as rows for columns; and one direction is not four."""
    torch.manual_seed(0)
    state = HiMambaStyle(**SMALL).state_dict()

    def logits(canvases: Tensor, *directions: str) -> Tensor:
        model = HiMambaStyle(**SMALL, directions=directions).eval()
        model.load_state_dict(state)
        model.positions.zero_()
        weight = model.patch_embed.proj.weight
        weight.copy_((weight + weight.transpose(2, 3)) / 2)  # patches that are turned over look the same
        return model(canvases)

    canvases = torch.randint(256, (2, 12, 20, 3), dtype=torch.uint8)
    turned = canvases.transpose(1, 2)
    torch.testing.assert_close(logits(canvases, "h", "v_flip"), logits(turned, "v", "h_flip"))
    assert not logits(canvases, "h", "v_flip").allclose(logits(canvases, "v_flip", "h"))
    assert logits(canvases, "h").equal(logits(canvases, "h", "h"))
    assert not logits(canvases, "h").allclose(logits(canvases, "h", "v"))


@torch.no_grad()
def test_what_a_block_sees_is_what_comes_before_and_the_rest_of_the_region() -> None:
    torch.manual_seed(0)
    mixer, u = HierarchicalMixer(6, 1, 2, 3, 4, 2, "torch").double(), torch.randn(1, 4, 4, 6, dtype=torch.float64)
    orders = orders_of("h", 4, 4, 2)
    changed = u.clone()
    changed[0, 1, 1] = -1.0
    moved = (mixer(changed, orders) - mixer(u, orders)).abs().sum(-1)[0] > 1e-12
    assert moved.tolist() == [[True] * 4, [True] * 4, [True] * 4, [True] * 4]  # its region is the first of all
    changed = u.clone()
    changed[0, 3, 2] = -1.0
    moved = (mixer(changed, orders) - mixer(u, orders)).abs().sum(-1)[0] > 1e-12
    assert moved.tolist() == [[False] * 4, [False] * 4, [False, False, True, True], [False, False, True, True]]


def test_it_costs_the_parameters_of_vim_within_a_twentieth() -> None:
    with torch.device("meta"):
        model = HiMambaStyle()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert parameters == 7_147_624
    assert parameters == pytest.approx(7_148_008, rel=0.05)  # of Vim-tiny
    overlay = yaml.safe_load((ROOT / "configs/encoders/himamba_style_tiny.yaml").read_text())["model"]["encoder"]
    defaults = {"dim": 192, "depth": 24, "d_state": 16, "patch": 16, "grid": 14, "region": 2}
    assert overlay == {"class_path": "HiMambaStyle", "init_args": defaults}


@torch.no_grad()
def test_any_canvas_is_taken() -> None:
    torch.manual_seed(0)
    model = HiMambaStyle(**SMALL, directions=("w2", "hilbert_flip")).eval()
    for height, width in ((1, 1), (17, 48), (12, 12), (33, 100)):
        assert model(torch.zeros(2, height, width, 3, dtype=torch.uint8)).isfinite().all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"directions": ()}, "encoder.directions is empty: give at least one direction"),
        ({"directions": ("h", "g7")}, "no direction is called 'g7'"),
        ({"region": 0}, "encoder.region is 0: give at least 1"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        HiMambaStyle(**SMALL, **changes)
