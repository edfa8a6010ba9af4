"""Training of a learned scan through Lightning: which part learns when, exact resume, and back from its checkpoint."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from learning import fit
from lightning import Callback, Trainer
from resuming import Interrupted
from torch import Tensor, nn

from mambaeye.errors import InputError
from mambaeye.module import ClassifierModule
from mambaeye.policies.learned import LearnedScan

ROOT = Path(__file__).parents[1]


class Watch(Callback):
    """Notes after every backward pass which parts had a gradient, before and after those that idle were left alone.

    Saves and dies, as a kill would, after so many optimizer steps.
    """

    def __init__(self, die_after: int = 0, path: Path | None = None) -> None:
        self.die_after, self.path = die_after, path
        self.all_had_one: list[bool] = []
        self.learning: list[set[str]] = []
        self.losses: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: ClassifierModule, *_: object) -> None:
        self.steps = trainer.global_step
        self.weights = [parameter.detach().clone() for parameter in pl_module.parameters()]
        self.with_gradient: set[nn.Parameter] = set()
        self.handles = [
            parameter.register_post_accumulate_grad_hook(self.with_gradient.add) for parameter in pl_module.parameters()
        ]

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: ClassifierModule, *_: object) -> None:
        self.all_had_one.append(self.with_gradient == set(pl_module.parameters()))
        names = {name.split(".")[0] for name, each in pl_module.named_parameters() if each.grad is not None}
        self.learning.append(names)

    def on_train_batch_end(self, trainer: Trainer, pl_module: ClassifierModule, outputs: dict, *_: object) -> None:
        for handle in self.handles:
            handle.remove()
        self.losses.append(float(outputs["loss"]))
        changed = {
            name.split(".")[0]
            for (name, parameter), before in zip(pl_module.named_parameters(), self.weights, strict=True)
            if not parameter.equal(before)
        }
        stepped = trainer.global_step > self.steps
        assert changed == (self.learning[-1] if stepped else set())
        if stepped and trainer.global_step == self.die_after:
            trainer.save_checkpoint(self.path)
            raise Interrupted


def state_of(module: ClassifierModule) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


@pytest.fixture(scope="module")
def whole(data_dir: Path) -> tuple[Watch, ClassifierModule]:
    watch = Watch()
    return watch, fit(data_dir, watch)


def test_the_policy_learns_alone_and_then_both(whole: tuple[Watch, ClassifierModule]) -> None:
    """Weight decay too leaves a frozen part alone; and DDP, which waits for every gradient, gets them all."""
    watch, module = whole
    assert watch.learning == [{"policy"}] * 2 + [{"policy", "encoder"}] * 2
    assert all(watch.all_had_one)
    assert {condition.condition.scan for condition in module.result.conditions} == {"random", "learned"}


def test_without_its_scan_the_encoder_learns_alone(data_dir: Path) -> None:
    watch = Watch()
    fit(data_dir, watch, "random")
    assert watch.learning == [{"encoder"}] * 4
    assert all(watch.all_had_one)


def test_a_training_without_end_has_no_shares(data_dir: Path) -> None:
    with pytest.raises(InputError, match="^a policy learns by shares of all steps, and there is no last one: give"):
        fit(data_dir, Watch(), max_epochs=-1)


@pytest.mark.parametrize("after", [1, 3])
def test_a_resumed_run_takes_the_same_walks(
    after: int, whole: tuple[Watch, ClassifierModule], data_dir: Path, tmp_path: Path
) -> None:
    """To the bit: the losses and weights are those of the run that nothing interrupted, in either phase."""
    first, second, path = Watch(after, tmp_path / "at.ckpt"), Watch(), tmp_path / "at.ckpt"
    fit(data_dir, first)
    module = fit(data_dir, second, ckpt=path)
    assert first.losses + second.losses == whole[0].losses
    for name, tensor in state_of(whole[1]).items():
        assert tensor.equal(module.state_dict()[name]), name


def test_a_checkpoint_brings_the_policy_back(
    whole: tuple[Watch, ClassifierModule], data_dir: Path, tmp_path: Path
) -> None:
    path = tmp_path / "at.ckpt"
    fit(data_dir, Watch(4, path))
    loaded = ClassifierModule.load_from_checkpoint(path, weights_only=True, map_location="cpu")
    assert isinstance(loaded.policy, LearnedScan)
    sizes = {"feature_dim": 8, "num_classes": 10, "axes": 2}
    assert loaded.policy.settings.items() >= {"candidates": 4, "dim": 8, **sizes}.items()
    for name, tensor in state_of(whole[1]).items():
        assert tensor.equal(loaded.state_dict()[name]), name


@pytest.mark.long
def test_two_processes_learn_what_one_does(data_dir: Path, tmp_path: Path) -> None:
    """Over both phases, and with micro-batches after which DDP does not synchronise yet."""
    for devices in (1, 2):
        folder = tmp_path / str(devices)
        folder.mkdir()
        asked = {"data_dir": str(data_dir), "folder": str(folder), "micro_batch": 5, "devices": devices}
        paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
        command = [sys.executable, str(ROOT / "tests" / "learning.py"), json.dumps(asked)]
        environment = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
        subprocess.run(command, env=environment, check=True, timeout=300)
    one, *both = (torch.load(tmp_path / name, weights_only=True) for name in ("1/0.pt", "2/0.pt", "2/1.pt"))
    for name, weights in both[0]["weights"].items():
        assert weights.equal(both[1]["weights"][name]), name
        torch.testing.assert_close(weights, one["weights"][name], rtol=1e-3, atol=1e-4)
    alone = torch.tensor(one["losses"]).view(4, 4).sum(1)  # each is a share of its step's
    together = torch.tensor([each["losses"] for each in both]).view(2, 4, 2).sum(2).mean(0)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
