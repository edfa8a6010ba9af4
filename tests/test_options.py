"""Options that a config can switch on: each is seen to do what it says, and a continued run keeps it."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import TINY, flags
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from train import main

STEPS = 4
SHORT = {
    "data.resolutions": "[32]",
    "data.scans": "[random]",
    "model.optimizer.warmup_epochs": 0,
    "trainer.limit_train_batches": STEPS,
    "trainer.limit_val_batches": 0,
}
WITNESS = "--trainer.callbacks+=test_options.Witness"
EMA = {"trainer.callbacks+": "lightning.pytorch.callbacks.EMAWeightAveraging", "trainer.callbacks.decay": 0.5}


class Witness(Callback):
    """Keeps the weights after, and the gradients of, every optimizer step, and a checkpoint of the middle."""

    seen: list["Witness"] = []  # noqa: RUF012, those that runs made

    def __init__(self) -> None:
        self.weights: list[dict[str, Tensor]] = []
        self.norms: list[float] = []
        self.losses: list[float] = []
        self.dtypes: set[torch.dtype] = set()
        Witness.seen.append(self)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.encoder.blocks[0].mixer.in_proj.register_forward_hook(
            lambda module, inputs, output: self.dtypes.add(output.dtype)
        )

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: object) -> None:
        self.losses.append(outputs["loss"].item())
        if trainer.global_step == len(self.weights):  # in the middle of an accumulation
            return
        gradients = [p.grad.flatten() for p in pl_module.parameters() if p.grad is not None]
        self.norms.append(torch.cat(gradients).norm().item())
        self.weights.append({name: p.detach().clone() for name, p in pl_module.named_parameters()})
        if trainer.global_step == STEPS // 2:
            trainer.save_checkpoint("middle.ckpt")


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])
    yield
    torch.use_deterministic_algorithms(False)


def fit(data_dir: Path, run_dir: str, *more: str, **settings: object) -> tuple[Witness, dict[str, Any]]:
    """A fit of a few steps: what was witnessed, and the checkpoint that it left."""
    asked = {**TINY, **SHORT, "run_dir": run_dir, "data.data_dir": data_dir, **settings}
    main(["fit", *flags(asked), *more, WITNESS])  # last, so that it sees what the others did
    return Witness.seen[-1], torch.load(f"{run_dir}/checkpoints/last.ckpt", weights_only=True)


def same(one: Any, other: Any) -> bool:
    """Tell whether two checkpoints, or parts of them, are equal bit for bit."""
    if isinstance(one, Tensor):
        return one.dtype == other.dtype and one.equal(other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


LEARNED = ("state_dict", "optimizer_states", "lr_schedulers")


def learned(checkpoint: dict[str, Any]) -> dict[str, Any]:
    return {key: checkpoint[key] for key in (*LEARNED, "current_model_state", "averaging_state") if key in checkpoint}


@pytest.mark.parametrize("ema", [pytest.param(False, marks=pytest.mark.long), True])
def test_a_run_continued_in_the_middle_ends_as_if_it_had_not_been(ema: bool, data_dir: Path) -> None:
    more = flags(EMA) if ema else []
    straight, expected = fit(data_dir, "straight", *more)
    assert len(straight.weights) == STEPS
    continued, got = fit(data_dir, "continued", "--ckpt_path=middle.ckpt", *more)
    assert len(continued.weights) == STEPS // 2
    assert same(learned(got), learned(expected))
    assert straight.losses[STEPS // 2 :] == continued.losses


def test_the_average_is_that_of_the_weights_after_every_step(data_dir: Path) -> None:
    witness, checkpoint = fit(data_dir, "run", *flags(EMA))
    for name, average in witness.weights[0].items():
        for weights in witness.weights[1:]:
            average = 0.5 * average + 0.5 * weights[name]
        torch.testing.assert_close(checkpoint["state_dict"][name], average)
        assert checkpoint["current_model_state"][name].equal(witness.weights[-1][name])
        if name == "encoder.head.weight":
            assert not average.allclose(witness.weights[-1][name])


def test_gradients_are_clipped(data_dir: Path) -> None:
    free, _ = fit(data_dir, "free")
    clipped, _ = fit(data_dir, "clipped", **{"trainer.gradient_clip_val": 1e-3})
    assert min(free.norms) > 2e-3
    assert clipped.norms == pytest.approx([1e-3] * STEPS, rel=1e-3)


def test_bf16_mixed_multiplies_in_bf16_and_keeps_weights_in_float32(data_dir: Path) -> None:
    wide, _ = fit(data_dir, "wide")
    mixed, checkpoint = fit(data_dir, "mixed", **{"trainer.precision": "bf16-mixed"})
    assert wide.dtypes == {torch.float32}
    assert mixed.dtypes == {torch.bfloat16}
    assert mixed.losses != wide.losses
    assert mixed.losses == pytest.approx(wide.losses, rel=0.02)
    assert {tensor.dtype for tensor in checkpoint["state_dict"].values()} == {torch.float32}


def test_accumulated_or_at_once_the_steps_are_the_same(data_dir: Path) -> None:
    whole, _ = fit(data_dir, "whole")
    parts, checkpoint = fit(
        data_dir, "parts", **{"data.loader.micro_batch_size": 16, "trainer.limit_train_batches": 4 * STEPS}
    )
    assert checkpoint["global_step"] == STEPS
    assert len(parts.losses) == 4 * STEPS
    means = [sum(parts.losses[4 * step : 4 * step + 4]) for step in range(STEPS)]  # Lightning has divided by 4
    assert means == pytest.approx(whole.losses, rel=1e-5)
    for one, other in zip(whole.weights, parts.weights, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_deterministic_mode_gives_identical_checkpoints(data_dir: Path) -> None:
    checkpoints = [fit(data_dir, name, **{"trainer.deterministic": "true"})[1] for name in ("one", "other")]
    for checkpoint in checkpoints:
        checkpoint.pop("callbacks")  # paths of the run directory
    assert same(*checkpoints)


def test_flags_win_over_the_optimizer_of_a_checkpoint(data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fit(data_dir, "run")
    changes = {"model.optimizer.lr": 1e-5, "model.optimizer.betas": "[0.5,0.6]", "model.optimizer.weight_decay": 0.3}
    _, checkpoint = fit(data_dir, "again", "--ckpt_path=middle.ckpt", **changes)
    said = capsys.readouterr().out
    assert "fit takes middle.ckpt, saved after 2 optimizer steps" in said
    assert "  model.optimizer.lr: 0.001 -> 1e-05\n" in said
    assert "  model.optimizer.weight_decay: 0.05 -> 0.3\n" in said
    assert "model.encoder" not in said
    decayed, exempt = checkpoint["optimizer_states"][0]["param_groups"]
    assert (decayed["weight_decay"], exempt["weight_decay"]) == (0.3, 0.0)
    assert decayed["betas"] == exempt["betas"] == (0.5, 0.6)
    assert checkpoint["lr_schedulers"][0]["base_lrs"] == [1e-5, 1e-5]
    assert checkpoint["lr_schedulers"][0]["_last_lr"] == pytest.approx([0.0, 0.0], abs=1e-12)
    before, middle = Witness.seen[-2].weights, Witness.seen[-1].weights
    moved = (middle[0]["encoder.head.weight"] - before[1]["encoder.head.weight"]).abs().max().item()
    share = 0.5 * (1 + math.cos(math.pi * 2 / STEPS))
    assert 0 < moved < 20 * 1e-5 * share
