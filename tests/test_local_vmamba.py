"""LocalVMamba against its published sizes, and against loops over pixels in float64, for no logits of its authors' are
at hand.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from test_cross_scan import jittered, normed, pixel_by_pixel
from torch import Tensor

from mambaeye.encoders.local_vmamba import SEARCHED, LocalVMamba
from mambaeye.encoders.vmamba import VMamba
from mambaeye.errors import InputError

ROOT = Path(__file__).parents[1]
SMALL: dict[str, Any] = {"num_classes": 5, "dim": 8, "depths": [1, 2], "d_state": 2, "expand": 1}
DIRECTIONS = [["h", "w2_flip"], ["v", "w7", "w2"], ["h_flip", "v_flip", "w3"]]


@pytest.mark.parametrize(("size", "parameters"), [("tiny", 25_527_160), ("small", 49_748_536)], ids=str)
def test_the_published_sizes(size: str, parameters: int) -> None:
    overlay = yaml.safe_load((ROOT / f"configs/encoders/localvmamba_{size}.yaml").read_text())["model"]["encoder"]
    assert overlay["class_path"] == "LocalVMamba"
    with torch.device("meta"):
        model = LocalVMamba(**overlay["init_args"])
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_the_search_left_four_directions_a_block() -> None:
    assert SEARCHED.keys() == {2 + 2 + 9 + 2, 2 + 2 + 27 + 2}
    for entries in SEARCHED.values():
        for entry in entries:
            names = entry.split()
            assert len(set(names)) == len(names) == 4
            assert {name.removesuffix("_flip") for name in names} <= {"h", "v", "w2", "w7"}


def network_by_loops(model: LocalVMamba, image: Tensor) -> Tensor:
    """The logits of one image (3, H, W): patches, blocks, neighbours and mean one token at a time."""
    stem, norm = model.pyramid.stem
    rows, cols = (side // 4 for side in image.shape[1:])
    weight = stem.proj.weight.flatten(1)

    def patch(row: int, col: int) -> Tensor:
        return weight @ image[:, 4 * row : 4 * row + 4, 4 * col : 4 * col + 4].flatten() + stem.proj.bias

    x = normed(torch.stack([torch.stack([patch(row, col) for col in range(cols)]) for row in range(rows)]), norm)
    for stage in model.pyramid.stages:
        for block in stage.blocks:
            x = x + pixel_by_pixel(block.mixer, normed(x, block.norm))
        if stage.merge is not None:
            _, norm, linear = stage.merge
            merged = torch.zeros(-(-rows // 2), -(-cols // 2), linear.out_features, dtype=x.dtype)
            for row, col in ((row, col) for row in range(merged.shape[0]) for col in range(merged.shape[1])):
                four = [
                    x[r, c] if r < rows and c < cols else torch.zeros_like(x[0, 0])
                    for r, c in (
                        *((2 * row, 2 * col), (2 * row + 1, 2 * col)),
                        *((2 * row, 2 * col + 1), (2 * row + 1, 2 * col + 1)),
                    )
                ]
                merged[row, col] = linear.weight @ normed(torch.cat(four), norm)
            x, (rows, cols) = merged, merged.shape[:2]
    mean = normed(x, model.pyramid.norm).mean((0, 1))
    return model.head.weight @ mean + model.head.bias


@pytest.mark.parametrize(("rows", "cols"), [(4, 4), (5, 3), (2, 7)])
@torch.no_grad()
def test_the_network_is_loops_over_pixels(rows: int, cols: int) -> None:
    """Windows leave every one of these grids, and of two of them the next stage's, too."""
    torch.manual_seed(0)
    model = LocalVMamba(**SMALL, directions=DIRECTIONS).double().eval()
    jittered(model)
    images = torch.randn(2, 3, 4 * rows, 4 * cols, dtype=torch.float64)
    logits = model.network(images)
    for image in range(2):
        torch.testing.assert_close(logits[image], network_by_loops(model, images[image]), atol=1e-9, rtol=1e-7)


@torch.no_grad()
def test_windows_matter_and_the_order_of_directions_does_not() -> None:
    torch.manual_seed(0)
    model = LocalVMamba(**SMALL | {"depths": [1]}, directions=[["h", "w2"]]).double().eval()
    jittered(model)
    images = torch.randn(1, 3, 24, 20, dtype=torch.float64)
    state = model.state_dict()
    rows = LocalVMamba(**SMALL | {"depths": [1]}, directions=[["h", "h"]]).double().eval()
    rows.load_state_dict(state)
    assert not rows.network(images).allclose(model.network(images))
    swapped = LocalVMamba(**SMALL | {"depths": [1]}, directions=[["w2", "h"]]).double().eval()
    stacked = ("A_log", ".D", "x_proj", "dt_weight", "dt_bias")
    swapped.load_state_dict(
        {name: tensor.flip(0) if name.endswith(stacked) else tensor for name, tensor in state.items()}
    )
    torch.testing.assert_close(swapped.network(images), model.network(images))


@torch.no_grad()
def test_linear_maps_start_alike_and_what_leads_into_the_recurrence_as_mamba_does() -> None:
    torch.manual_seed(0)
    model = LocalVMamba(dim=64, depths=[1], directions=[["h", "w2"]])
    mixer = model.pyramid.stages[0].blocks[0].mixer
    for weight in (mixer.in_proj.weight, mixer.out_proj.weight, mixer.gate.select.weight, model.head.weight):
        assert float(weight.std()) == pytest.approx(0.02, rel=0.1)
    assert float(mixer.x_proj.abs().max()) == pytest.approx(128**-0.5, rel=0.02)  # one over the root of the fan-in
    assert float(torch.nn.functional.softplus(mixer.dt_bias).max()) <= 0.1 * 1.01


def test_its_weights_tell_its_sizes_but_for_directions() -> None:
    state = LocalVMamba(**SMALL, directions=DIRECTIONS).state_dict()
    assert LocalVMamba.settings_in(state) == SMALL
    assert VMamba.settings_in(state) is None
    assert LocalVMamba.settings_in(VMamba(dim=8, depths=[1]).state_dict()) is None


def test_weight_decay_leaves_the_recurrence_norms_and_biases_alone() -> None:
    model = LocalVMamba(**SMALL, directions=DIRECTIONS)
    decayed = {name for name, _ in model.named_parameters()} - model.no_weight_decay()
    parts = {name.rpartition("mixer.")[2] for name in decayed}
    assert parts == {
        "in_proj.weight", "conv.weight", "x_proj", "dt_weight", "out_proj.weight", "gate.reduce.weight",
        "gate.select.weight", "pyramid.stem.0.proj.weight", "pyramid.stages.0.merge.2.weight", "head.weight",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"directions": None}, "encoder.directions is null, and those published are of 15 or 33 blocks, not 3"),
        ({"directions": [["h"], ["v"]]}, "encoder.directions has 2 lists for 3 blocks: give one for each"),
        ({"directions": [["g7"]]}, "no direction is called 'g7'"),
        ({"depths": [3, 0]}, "encoder.depths.1 is 0: give at least 1"),
        ({"expand": 0}, "encoder.expand is 0: give at least 1"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message), torch.device("meta"):
        LocalVMamba(**SMALL | {"directions": DIRECTIONS} | settings)
