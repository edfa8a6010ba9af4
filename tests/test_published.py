"""Weights as authors published them: golden logits, which system's they are, and starting from them."""

from argparse import Namespace
from pathlib import Path

import pytest
import torch
from commands import TINY, flags
from safetensors.torch import save_file
from torch import Tensor

import mambaeye
from mambaeye.encoders.base import DenseEncoder, Encoder
from mambaeye.encoders.mambaeye import MambaEye
from mambaeye.encoders.vit import ViT
from mambaeye.errors import InputError
from mambaeye.weights import init_from, load_published
from mambaeye.weights.inspection import inspect
from train import main

GOLDEN = Path(__file__).with_name("golden")
SYSTEMS = {
    "deit": "deit", "adventurer": "adventurer", "vim": "vim", "mambar": "mambar", "mambar_reduce": "mambar",
    "localvim": "localvim", "localvim_mid_cls": "localvim",
    "vmamba_v05_noz": "vmamba", "vmamba_v05_gated_statesize4": "vmamba",
    "efficientvim": "efficientvim", "spatialmamba": "spatialmamba", "videomamba": "videomamba",
}  # fmt: skip
AUTHORS_EYE = torch.load(Path(__file__).with_name("authors_model_small.pt"), weights_only=True)


def golden(name: str) -> dict[str, Tensor]:
    """The state dict of a tiny model of the authors'."""
    return torch.load(GOLDEN / f"{name}.pt", weights_only=True)["state_dict"]


def untold(name: str) -> dict[str, object]:
    """The numbers of a golden model that no shape tells."""
    config = torch.load(GOLDEN / f"{name}.pt", weights_only=True)["config"]
    if name == "deit":
        return {"heads": config["num_heads"]}
    return {"directions": [[*names] for names in config["directions"]]} if "directions" in config else {}


@pytest.mark.parametrize("name", SYSTEMS)
@torch.no_grad()
def test_the_authors_logits_straight_from_their_file(name: str) -> None:
    expected = torch.load(GOLDEN / f"{name}.pt", weights_only=True)
    encoder = load_published(GOLDEN / f"{name}.pt", system=SYSTEMS[name], **untold(name))
    assert isinstance(encoder, DenseEncoder)
    assert not encoder.training
    torch.testing.assert_close(encoder.network(expected["images"]), expected["logits"], atol=1e-4, rtol=0)


def test_every_golden_file_is_tested() -> None:
    assert {path.stem for path in GOLDEN.glob("*.pt")} == SYSTEMS.keys()
    known = {system.published_as for system in Encoder.defined_subclasses() if system.published_as}
    assert known == {*SYSTEMS.values(), "mambaeye"}


@pytest.mark.parametrize("kind", ["bare", "model", "state_dict", "safetensors", "mapping"])
def test_a_file_may_have_the_weights_in_several_ways(kind: str, tmp_path: Path) -> None:
    state, path = golden("deit"), tmp_path / ("w.safetensors" if kind == "safetensors" else "w.pth")
    if kind == "safetensors":
        save_file(state, path)
    else:
        torch.save(state if kind == "bare" else {kind: state, "epoch": 3, "args": Namespace(lr=0.1, name="it")}, path)
    encoder = load_published(state if kind == "mapping" else path, heads=3)
    assert isinstance(encoder, ViT)
    for name, tensor in encoder.state_dict().items():
        assert tensor.equal(state[name])


@pytest.mark.parametrize("name", SYSTEMS)
def test_each_file_is_of_one_system_alone(name: str) -> None:
    state = golden(name)
    knowing = [system for system in Encoder.defined_subclasses() if system.from_published(state, "it") is not None]
    assert [system.published_as for system in knowing] == [SYSTEMS[name]]
    alike = {"videomamba"} if name == "vim" else set()  # VideoMamba's models for images have Vim's layout
    for other in {*SYSTEMS.values(), "mambaeye"} - {SYSTEMS[name]} - alike:
        with pytest.raises(InputError, match=f"^the state dict is laid out as {SYSTEMS[name]}, not {other}$"):
            load_published(state, other, **untold(name))


def test_mambaeye_is_a_published_system_too() -> None:
    encoder = load_published(AUTHORS_EYE["state_dict"], "mambaeye")
    assert isinstance(encoder, MambaEye)
    assert not encoder.training
    with pytest.raises(InputError, match="is laid out as mambaeye, not deit"):
        load_published(AUTHORS_EYE["state_dict"], "deit")


def test_what_cannot_be_loaded_is_said_in_a_sentence(tmp_path: Path) -> None:
    state = golden("deit")
    with pytest.raises(InputError, match="no published system is called 'resnet': choose one of adventurer, deit, "):
        load_published(state, "resnet")
    with pytest.raises(InputError, match="the layout of no published system that is known here: adventurer, deit, "):
        load_published({"conv1.weight": torch.zeros(3)})
    with pytest.raises(InputError, match="encoder.dim is 48, no multiple of 64: give encoder.heads"):
        load_published(state)
    with pytest.raises(InputError, match="the state dict has dim 48, and 64 is asked for: leave dim out"):
        load_published(state, heads=3, dim=64)
    with pytest.raises(InputError, match="ViT has no setting directions: leave it out"):
        load_published(state, heads=3, directions=4)
    with pytest.raises(InputError, match="does not fit this encoder: blocks.0.ls1.gamma is unknown$"):
        load_published(state | {"blocks.0.ls1.gamma": torch.zeros(48)}, heads=3)
    with pytest.raises(InputError, match=r"does not fit this encoder: norm.weight is \(3,\), not \(48,\)$"):
        load_published(state | {"norm.weight": torch.zeros(3)}, heads=3)


def test_shapes_that_tell_of_more_than_a_file_holds_take_no_memory() -> None:
    """A block of a million values a token, of which the file has but a name."""
    wide = {"patch_embed.proj.weight": torch.zeros(2**20, 3, 1, 1), "blocks.0.mlp.fc1.weight": torch.zeros(2**20, 1)}
    with pytest.raises(InputError, match="does not fit this encoder"):
        load_published(golden("deit") | wide, heads=1)


def test_a_new_head_on_published_weights() -> None:
    found = ViT.from_published(golden("deit"), "it")
    assert found is not None
    encoder = ViT(**found.settings | {"num_classes": 3, "heads": 3})
    head = encoder.head.weight.clone()
    assert init_from(encoder, GOLDEN / "deit.pt", new_head=None)
    assert encoder.head.weight.equal(head)
    assert encoder.norm.weight.equal(golden("deit")["norm.weight"])


def test_weights_of_another_system_are_named() -> None:
    with pytest.raises(InputError, match="laid out as deit, and the encoder is MambaEye: .* --model.encoder ViT$"):
        init_from(MambaEye(num_classes=7, dim=16, depth=1, headdim=8), GOLDEN / "deit.pt")
    with pytest.raises(InputError, match="as adventurer, and the encoder is ViT: .* --model.encoder Adventurer$"):
        init_from(ViT(num_classes=7, dim=64, depth=1), GOLDEN / "adventurer.pt")


def test_inspection_knows_them() -> None:
    found = inspect(GOLDEN / "adventurer.pt")
    assert found.kind == "weights of Adventurer in its authors' layout"
    assert found.fits
    assert found.others == ["config", "images", "logits"]


def test_a_run_starts_from_them_by_the_flag_alone(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sizes come from the shapes; the data have 10 classes and the file 7, so the head is new."""
    monkeypatch.chdir(tmp_path)
    settings = {name: value for name, value in TINY.items() if not name.startswith("model.encoder")}
    settings |= {"model.encoder": "Adventurer", "model.init_from": GOLDEN / "adventurer.pt", "data.data_dir": data_dir}
    settings |= {"trainer.max_steps": 2, "trainer.limit_val_batches": 1, "run_dir": "run"}
    main(["fit", *flags(settings), "--model.optimizer.lr=1e-6"])
    encoder = mambaeye.load("run/checkpoints/last.ckpt")
    assert encoder.num_classes == 10
    theirs, ours = golden("adventurer"), encoder.state_dict()
    assert ours.keys() == theirs.keys()
    for name in ours.keys() - {"head.weight", "head.bias"}:
        torch.testing.assert_close(ours[name], theirs[name], atol=1e-4, rtol=0)
