"""VMamba against its published sizes, its authors' older names, and what its structure implies."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from commands import TINY, flags
from torch import Tensor

import mambaeye
from mambaeye.encoders.vmamba import VMamba
from mambaeye.errors import InputError
from mambaeye.ops.dense import normalise
from mambaeye.weights import init_from, load_published
from train import main

ROOT = Path(__file__).parents[1]
CURRENT, OLD = (
    torch.load(ROOT / f"tests/golden/vmamba_v05_{name}.pt", weights_only=True) for name in ("noz", "gated_statesize4")
)
FIRST: dict[str, Any] = {
    "expand": 2, "d_state": 16, "mlp_ratio": 0, "gated": True, "conv_bias": True, "overlapping": False,
}  # fmt: skip
SMALL: dict[str, Any] = {"num_classes": 5, "dim": 8, "depths": [1, 2]}


def count(**settings: Any) -> int:
    with torch.device("meta"):
        model = VMamba(**settings)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("size", "parameters"), [("tiny", 30_249_064), ("small", 50_147_752), ("base", 88_557_800)], ids=str
)
def test_the_published_sizes(size: str, parameters: int) -> None:
    overlay = yaml.safe_load((ROOT / f"configs/encoders/vmamba_{size}.yaml").read_text())["model"]["encoder"]
    assert overlay["class_path"] == "VMamba"
    assert count(**overlay["init_args"]) == parameters


@pytest.mark.parametrize(
    ("settings", "parameters"),
    [
        ({}, 30_249_064),
        ({"depths": [2, 2, 5, 2], "expand": 2}, 30_705_832),
        ({"depths": [2, 2, 20, 2]}, 49_012_840),
        ({"depths": [2, 2, 9, 2], **FIRST}, 22_893_448),
    ],
    ids=["tiny s1l8", "tiny s2l5", "small s1l20", "tiny, first version"],
)
def test_the_other_published_sizes(settings: dict[str, Any], parameters: int) -> None:
    assert count(**settings) == parameters


def older(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict by the names of the first releases: tensors of the four directions stacked."""
    renamed = {}
    for name, tensor in state.items():
        if ".op.x_proj." in name or ".op.dt_projs." in name:
            name, tensor = name.replace(".weight", "_weight"), tensor.unflatten(0, (4, -1))
        for later, before in (
            ("patch_embed.0.", "patch_embed.proj."),
            ("patch_embed.2.", "patch_embed.norm."),
            (".norm.", ".ln_1.") if ".blocks." in name and ".op." not in name else ("", ""),
            (".op.", ".self_attention."),
            (".downsample.1.", ".downsample.norm."),
            (".downsample.2.", ".downsample.reduction."),
            ("classifier.", ""),
        ):
            name = name.replace(later, before) if later else name
        renamed[name] = tensor
    return renamed


@torch.no_grad()
def test_older_names_are_read() -> None:
    state = older(OLD["state_dict"])
    assert {"layers.1.blocks.0.ln_1.weight", "layers.2.blocks.1.self_attention.x_proj_weight", "head.bias"} <= {*state}
    assert not state.keys() & OLD["state_dict"].keys()
    model = load_published(state, "vmamba")
    torch.testing.assert_close(model.network(OLD["images"]), OLD["logits"], atol=1e-4, rtol=0)


@torch.no_grad()
def test_linear_maps_may_be_convolutions_of_one_by_one() -> None:
    """As in the files of channel-first networks."""
    linear = ("in_proj.weight", "out_proj.weight", "x_proj.weight", "dt_projs.weight", "fc1.weight", "fc2.weight")
    state = {
        name: tensor[..., None, None] if name.endswith(linear) else tensor
        for name, tensor in CURRENT["state_dict"].items()
    }
    model = load_published(state, "vmamba")
    torch.testing.assert_close(model.network(CURRENT["images"]), CURRENT["logits"], atol=1e-4, rtol=0)


@pytest.mark.parametrize("file", [CURRENT, OLD], ids=["current", "old"])
def test_a_model_tells_its_sizes_by_its_own_names_too(file: dict[str, Any]) -> None:
    found = VMamba.from_published(file["state_dict"], "the file")
    assert found is not None
    assert VMamba.settings_in(found.tensors) == found.settings
    config = file["config"]
    assert found.settings["depths"] == config["depths"]
    assert found.settings["d_state"] == config["ssm_d_state"]
    assert found.settings["mlp_ratio"] == config["mlp_ratio"]
    assert found.settings["gated"] == (config["forward_type"] == "v05")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers.1.blocks.0.op.Ds": torch.zeros(6)}, "stages.1.blocks.0.mixer.D is not of 4 directions"),
        ({"layers.0.blocks.0.op.in_proj.weight": torch.zeros(16)}, "its shapes do not belong together"),
        ({"layers.3.blocks.0.op.in_proj.weight": None}, "does not fit this encoder: .* is missing"),
        ({"classifier.head.weight": None}, "the file is laid out as vmamba, and 'head.weight' is missing"),
        ({"layers.0.blocks.0.op.x": torch.zeros(2)}, "does not fit this encoder: .*mixer.x is unknown"),
    ],
)
def test_damaged_weights_are_refused_in_a_sentence(
    change: dict[str, Tensor | None], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    state = {name: tensor for name, tensor in (CURRENT["state_dict"] | change).items() if tensor is not None}
    torch.save(state, "the file")
    with pytest.raises(InputError, match=message):
        load_published("the file", "vmamba")


def test_weights_of_local_vmamba_are_not_taken_for_its_own() -> None:
    state = OLD["state_dict"] | {"layers.0.blocks.0.op.multi_scan.attn.norm.weight": torch.ones(32)}
    assert VMamba.from_published(state, "the file") is None


@pytest.mark.parametrize("settings", [{}, FIRST], ids=["current", "first version"])
@torch.no_grad()
def test_any_canvas_goes_and_normalising_is_the_encoders_own(settings: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = VMamba(**SMALL, **settings).eval()
    for height, width in ((16, 16), (8, 28), (5, 3), (1, 1), (17, 30)):
        canvases = torch.randint(256, (2, height, width, 3), dtype=torch.uint8)
        padded = F.pad(canvases, (0, 0, 0, -width % 4, 0, -height % 4))
        torch.testing.assert_close(model(canvases), model.network(normalise(padded, torch.float32)))
    images = torch.zeros(1, 3, 16, 17)
    if settings:
        with pytest.raises(InputError, match="do not cover 16 x 17: pad images"):
            model.network(images)
    else:
        assert model.network(images).isfinite().all()


@torch.no_grad()
def test_columns_are_the_rows_of_the_transposed_canvas() -> None:
    """With directions that change places, and convolutions turned over their diagonals."""
    torch.manual_seed(0)
    one, other = VMamba(**SMALL).eval(), VMamba(**SMALL).eval()
    swapped = {}
    for name, tensor in one.state_dict().items():
        if tensor.ndim == 4:
            tensor = tensor.transpose(2, 3)
        elif ".mixer." in name and name.endswith(("A_log", "D", "x_proj", "dt_weight", "dt_bias")):
            tensor = tensor[[1, 0, 3, 2]]
        swapped[name] = tensor
    other.load_state_dict(swapped)
    canvases = torch.randint(256, (2, 20, 36, 3), dtype=torch.uint8)
    torch.testing.assert_close(other(canvases.transpose(1, 2)), one(canvases))
    assert not one(canvases.transpose(1, 2)).allclose(one(canvases))


def test_weight_decay_leaves_the_recurrence_norms_and_biases_alone() -> None:
    model = VMamba(**SMALL, **FIRST | {"mlp_ratio": 2})
    decayed = {name for name, _ in model.named_parameters()} - model.no_weight_decay()
    parts = {name.rpartition("blocks.")[2].split(".", 1)[-1] for name in decayed}
    linear = {"in_proj.weight", "conv.weight", "x_proj", "dt_weight", "out_proj.weight"}
    assert parts == {
        *(f"mixer.{name}" for name in linear), "mlp.fc1.weight", "mlp.fc2.weight", "stem.0.proj.weight",
        "stages.0.merge.2.weight", "weight",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depths": []}, "encoder.depths is empty: give the number of blocks of each stage"),
        ({"depths": [2, 0]}, "encoder.depths.1 is 0: give at least 1"),
        ({"depths": [1] * 30}, "encoder.depths has 30 stages, which double dim 8 too often: give fewer"),
        ({"dim": 9}, "encoder.dim is 9, and the first convolution has half of it: give an even number"),
        ({"mlp_ratio": -1}, "encoder.mlp_ratio is -1: give 0 or more"),
        ({"d_state": 0}, "encoder.d_state is 0: give at least 1"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message), torch.device("meta"):
        VMamba(**SMALL | settings)


def test_a_run_starts_from_published_weights_and_another_from_that_ones_folder(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sizes come from the shapes; the data have 10 classes and the file 7, so the head is new."""
    monkeypatch.chdir(tmp_path)
    settings = {name: value for name, value in TINY.items() if not name.startswith("model.encoder")}
    settings |= {"model.encoder": "VMamba", "data.data_dir": data_dir, "run_dir": "run"}
    settings |= {"trainer.max_steps": 1, "trainer.limit_val_batches": 1, "model.optimizer.lr": 1e-6}
    main(["fit", *flags(settings), f"--model.init_from={ROOT / 'tests/golden/vmamba_v05_noz.pt'}"])
    encoder = mambaeye.load("run/checkpoints/last.ckpt")
    assert isinstance(encoder, VMamba)
    found = VMamba.from_published(CURRENT["state_dict"], "the file")
    assert found is not None
    for name, tensor in encoder.state_dict().items():
        if not name.startswith("head."):
            torch.testing.assert_close(tensor, found.tensors[name], atol=1e-4, rtol=0)
    mambaeye.save(encoder, "folder")
    again = VMamba(**encoder.settings)
    assert not init_from(again, "folder/model.safetensors")
    assert all(tensor.equal(again.state_dict()[name]) for name, tensor in encoder.state_dict().items())
    with pytest.raises(InputError, match="has d_state 1, the config d_state 2: leave that out"):
        init_from(VMamba(**encoder.settings | {"d_state": 2}), "folder/model.safetensors")
