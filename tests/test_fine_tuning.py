"""Fits from weights: which sizes they bring, which head is new, what learns and how fast; and what is refused."""

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from commands import NO_PICTURES, ROOT, TINY, flags
from safetensors.torch import save_file
from torch import Tensor, nn

from mambaeye import weights
from mambaeye.encoders.base import CanvasEncoder
from mambaeye.encoders.mambaeye import MambaEye
from mambaeye.errors import InputError
from mambaeye.module import ClassifierModule
from mambaeye.optim import OptimizerConfig, build_optimizer, build_schedule, override_hparams
from mambaeye.weights.starting import arguments_of_weights
from train import main

SIZES = {"dim": 16, "depth": 3, "d_state": 8, "headdim": 8}
SMALL = {name: value for name, value in TINY.items() if ".encoder." not in name}
SMALL |= {"trainer.limit_train_batches": 2, "trainer.limit_val_batches": 2, "data.resolutions": "[32]"}
AUTHORS = torch.load(Path(__file__).with_name("authors_model_small.pt"), weights_only=True)


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data_dir: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])
    Path("data").symlink_to(data_dir)


@pytest.fixture
def seven() -> dict[str, torch.Tensor]:
    """Weights of seven classes in the folder called seven."""
    torch.manual_seed(0)
    encoder = MambaEye(num_classes=7, **SIZES)
    weights.save(encoder, "seven")
    return encoder.state_dict()


class Dropping(CanvasEncoder):
    """Has what differs between training and evaluation: a batch norm's statistics, and dropout."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 8, 8)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, num_classes)

    def features(self, canvases: Tensor) -> Tensor:
        normed = self.norm(self.convolution(canvases.permute(0, 3, 1, 2).float() / 255))
        return F.dropout(normed, 0.5, self.training).mean((2, 3))


def encoder_in(path: str) -> MambaEye:
    encoder = weights.load(path)
    assert isinstance(encoder, MambaEye)
    return encoder


def fit(*more: str, **settings: object) -> None:
    main(["fit", "--run_dir=run", *flags(SMALL | settings), *more])


def refused(arguments: list[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert "\n" not in str(stop.value)
    return str(stop.value)


def test_weights_bring_their_sizes_and_other_classes_a_new_head(
    seven: dict[str, torch.Tensor], caplog: pytest.LogCaptureFixture
) -> None:
    """By no other flag than init_from; the digits have ten classes. With a rate of zero nothing else changes."""
    fit("--model.init_from=seven/model.safetensors", **{"model.optimizer.lr": 0})
    assert "the encoder starts from seven/model.safetensors; the head of 10 classes is new" in caplog.messages
    tuned = encoder_in("run/checkpoints/last.ckpt")
    assert (tuned.config.depth, tuned.config.dim, tuned.num_classes) == (3, 16, 10)
    for name, tensor in tuned.state_dict().items():
        assert name.startswith("head.") or tensor.equal(seven[name]), name


@pytest.mark.parametrize("kind", ["folder", "alone", "published", "checkpoint"])
def test_which_sizes_each_kind_of_file_brings(kind: str) -> None:
    encoder = weights.load_published(AUTHORS["state_dict"])
    assert isinstance(encoder, MambaEye)
    path = "file.safetensors" if kind == "alone" else "file.pt"
    if kind == "folder":
        weights.save(encoder, "folder")
        path = "folder/model.safetensors"
    elif kind == "alone":
        save_file(encoder.state_dict(), path)
    elif kind == "published":
        torch.save(AUTHORS["state_dict"], path)
    else:
        torch.save({"state_dict": {f"encoder.{name}": value for name, value in encoder.state_dict().items()}}, path)
    expected = dict(encoder.settings)
    if kind in ("alone", "checkpoint"):
        del expected["coordinates"]  # which shapes do not tell
    shared = {f"data.{name}": expected.pop(name) for name in ("num_classes", "patch_size", "tube", "channels")}
    found = arguments_of_weights(path, "mambaeye.MambaEye")
    assert found == shared | {"model.encoder": {"class_path": "mambaeye.MambaEye", "init_args": expected}}
    assert arguments_of_weights(path, "pooled.Pooled") == {}


def test_sizes_that_a_config_states_otherwise_are_named(seven: dict[str, torch.Tensor]) -> None:
    start = ["fit", "--run_dir=run", *flags(SMALL), "--model.init_from=seven/model.safetensors"]
    assert refused([*start, "--model.encoder.depth=12"]) == (
        "error: seven/model.safetensors has depth 3, the config depth 12: leave that out, for weights bring their sizes"
    )
    said = refused([*start, "--model.encoder.depth=12", "--model.encoder.dim=32"])
    assert "has dim 16 and depth 3, the config dim 32 and depth 12: " in said


def test_other_classes_are_no_reason_for_a_new_head_where_nothing_learns(seven: dict[str, torch.Tensor]) -> None:
    cv2.imwrite("image.png", np.zeros((48, 48, 3), np.uint8))
    start = [*flags(SMALL), "--model.init_from=seven/model.safetensors"]
    said = refused(["validate", "--run_dir=run", *start, "--data.num_classes=10"])
    assert said.endswith(
        "has 7 classes and the model 10: set --data.num_classes 7, or train a new head with --model.new_head true"
    )
    said = refused(["fit", "--run_dir=run", *start, "--model.new_head=false"])
    assert "has 7 classes and the model 10" in said
    main(["predict", "--run_dir=of", "--model.init_from=seven/model.safetensors", "--data.images=image.png"])
    assert '"top5"' in Path("of/predictions.jsonl").read_text()


@pytest.mark.long
def test_head_only_trains_the_head_and_goes_on_so(seven: dict[str, torch.Tensor]) -> None:
    fit("--model.init_from=seven/model.safetensors", "--model.head_only=true")
    last = "run/checkpoints/last.ckpt"
    head = encoder_in(last).head.weight.clone()
    start = ["fit", "--run_dir=run", *flags(SMALL | {"trainer.max_epochs": 2}), "--ckpt_path=last"]
    main(start)  # head_only is the checkpoint's
    tuned = encoder_in(last)
    assert not tuned.head.weight.equal(head)
    for name, tensor in tuned.state_dict().items():
        assert name.startswith("head.") or tensor.equal(seven[name]), name
    (optimizer,) = torch.load(last, weights_only=True)["optimizer_states"]
    assert [len(group["params"]) for group in optimizer["param_groups"]] == [1, 1]
    more = refused([*start, "--trainer.max_epochs=3", "--model.head_only=false"])
    assert "the checkpoint's run began with model.head_only True, and its optimizer cannot go on with False" in more
    more = refused([*start, "--trainer.max_epochs=3", "--model.optimizer.backbone_lr=0.5"])
    assert "began with model.optimizer.backbone_lr 1.0, and its optimizer cannot go on with 0.5: start anew" in more


@pytest.mark.long
def test_what_is_frozen_is_as_in_evaluation_and_costs_the_optimizer_nothing(
    recwarn: pytest.WarningsRecorder,
) -> None:
    """Nothing is dropped, statistics stay, and a run that is stopped and continued comes to the same head."""
    torch.manual_seed(0)
    start = Dropping()
    start.norm.running_mean = torch.rand(8)
    weights.save(start, "start")
    settings = {name: value for name, value in SMALL.items() if not name.startswith("model.")}
    settings |= {"model.encoder": "test_fine_tuning.Dropping", "model.init_from": "start/model.safetensors"}
    settings |= {"model.head_only": "true", "trainer.max_epochs": 2}
    main(["fit", "--run_dir=whole", *flags(settings)])
    stop = "--trainer.callbacks=[{class_path: resuming.StopAfter, init_args: {steps: 3}}]"
    main(["fit", "--run_dir=stopped", *flags(settings), stop])
    main(["fit", "--run_dir=stopped", *flags(settings), "--ckpt_path=last"])
    whole, stopped = (torch.load(f"{run}/checkpoints/last.ckpt", weights_only=True) for run in ("whole", "stopped"))
    assert whole["global_step"] == stopped["global_step"] == 4
    for name, tensor in start.state_dict().items():
        tuned = whole["state_dict"][f"encoder.{name}"]
        assert tuned.equal(tensor) is not name.startswith("head."), name
        assert stopped["state_dict"][f"encoder.{name}"].equal(tuned), name
    (optimizer,) = whole["optimizer_states"]
    assert {tuple(state["exp_avg"].shape) for state in optimizer["state"].values()} == {(10, 8), (10,)}
    assert not [str(warning.message) for warning in recwarn if "eval mode" in str(warning.message)]


def test_a_frozen_encoder_stays_in_evaluation_whatever_the_module_is_set_to() -> None:
    modules = [ClassifierModule(Dropping(), head_only=head_only) for head_only in (True, False)]
    assert [module.encoder.training for module in modules] == [False, True]
    assert [module.train().encoder.training for module in modules] == [False, True]
    frozen = modules[0]
    canvases = torch.randint(256, (4, 16, 16, 3), dtype=torch.uint8)
    frozen.encoder(canvases).sum().backward()
    assert {name for name, parameter in frozen.named_parameters() if parameter.grad is not None} == {
        "encoder.head.weight",
        "encoder.head.bias",
    }
    assert not frozen.encoder.features(canvases).requires_grad  # so nothing is kept for a backward pass


def test_the_backbone_learns_at_its_share_of_the_rate() -> None:
    """Adam's first step is the rate in size, whatever the gradient; and so from step to step along the schedule."""
    torch.manual_seed(0)
    model = MambaEye(num_classes=3, **SIZES)
    config = OptimizerConfig(lr=0.1, backbone_lr=0.25, weight_decay=0.0)
    backbone = [parameter for name, parameter in model.named_parameters() if not name.startswith("head.")]
    optimizer = build_optimizer([model], config, backbone)
    schedule = build_schedule(optimizer, 2, 4)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()  # at half of the peak: the first of two steps of warm-up
    for name, parameter in model.named_parameters():
        step = (before[name] - parameter.detach()).mean().item()
        assert step == pytest.approx(0.1 * 0.5 * (1 if name.startswith("head.") else 0.25), rel=1e-4), name
    schedule.step()
    override_hparams(optimizer, schedule, OptimizerConfig(lr=0.2, backbone_lr=0.5, weight_decay=0.3))
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.2, 0.2, 0.1, 0.1])
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0, 0.3, 0.0]
    with pytest.raises(InputError, match="optimizer.backbone_lr is 0: .* or --model.head_only true"):
        OptimizerConfig(backbone_lr=0)


def test_flags_without_weights_that_need_them_are_said(caplog: pytest.LogCaptureFixture) -> None:
    tiny = [f"--model.encoder.{name}={value}" for name, value in SIZES.items()]
    fit("--model.new_head=true", "--model.head_only=true", *tiny)
    assert "model.new_head does nothing without --model.init_from: all of the encoder is new" in caplog.messages
    assert "model.head_only without --model.init_from: the rest of the encoder stays random" in caplog.messages


def test_weights_of_another_program_are_said_to_be_that(seven: dict[str, torch.Tensor]) -> None:
    Path("notes.txt").write_text("the weights are elsewhere\n")
    torch.save({"conv1.weight": torch.zeros(3), "fc.bias": torch.zeros(2)}, "other.pt")
    torch.save({"model": {"conv1.weight": torch.zeros(3)}, "optimizer": None}, "in_model.pt")
    torch.save({"network": {"conv1.weight": torch.zeros(3)}, "optimizer": None}, "nested.pt")
    shutil.copy("seven/model.safetensors", "seven.pt")
    start = ["fit", "--run_dir=run", *flags(SMALL)]
    expected = {
        "notes.txt": "notes.txt is not a file of plain tensors (damaged, or not weights): it is text",
        "other.pt": "other.pt holds weights of another program: of its 2 tensors none is the encoder's, the first is "
        "conv1.weight",
        "in_model.pt": "in_model.pt holds weights of another program: of its 1 tensors none is the encoder's, the "
        "first is conv1.weight",
        "nested.pt": "nested.pt is not a plain state dict of tensors: give weights as they were published",
        "seven.pt": "seven.pt is not a file of plain tensors (damaged, or not weights): it is a safetensors file: its "
        "name must end in .safetensors",
    }
    for name, sentence in expected.items():
        assert refused([*start, f"--model.init_from={name}"]) == f"error: {sentence}"


def test_the_recipe_for_small_machines_runs(seven: dict[str, torch.Tensor]) -> None:
    config = [f"--config={ROOT}/configs/finetune_cpu.yaml", "--model.init_from=seven/model.safetensors"]
    short = {name: SMALL[name] for name in SMALL if name.startswith("trainer.") or name in NO_PICTURES}
    main(["fit", *config, *flags(short | {"data.train.num_glimpses": 4, "data.evaluate.num_glimpses": 4})])
    checkpoint = torch.load("runs/finetune_cpu/checkpoints/last.ckpt", weights_only=True)
    rates = [group["initial_lr"] for group in checkpoint["optimizer_states"][0]["param_groups"]]
    assert rates == pytest.approx([2e-3, 2e-3, 2e-4, 2e-4])
