"""Steps that are not finite are as if they had never been, on every rank, and too many of them end the run."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import ROOT, start
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision
from poisoned import POISONS, fit

from callbacks.run.nonfinite import NonFiniteGuard
from mambaeye.errors import InputError


def same(state: Any, other: Any) -> bool:
    """Tell whether two nested states are equal, bit for bit."""
    if isinstance(state, dict):
        return state.keys() == other.keys() and all(same(value, other[key]) for key, value in state.items())
    if isinstance(state, list):
        return len(state) == len(other) and all(map(same, state, other))
    return state.equal(other) if isinstance(state, torch.Tensor) else state == other


def state(folder: Path, rank: int = 0) -> dict[str, Any]:
    return torch.load(folder / f"{rank}.ckpt", weights_only=True)


@pytest.mark.long
@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("poison", POISONS)
def test_a_skipped_step_changes_neither_weights_nor_moments(
    poison: str, fused: bool, data_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = fit(data_dir, tmp_path / "poisoned", poison, batches=(4, 9), fused=fused)
    fit(data_dir, tmp_path / "left_out", left_out=(2, 4), fused=fused)
    fit(data_dir, tmp_path / "untouched", fused=fused)
    assert same(state(tmp_path / "poisoned"), state(tmp_path / "left_out"))
    assert not same(state(tmp_path / "poisoned"), state(tmp_path / "untouched"))
    first, second = (record.getMessage() for record in caplog.records if record.name == "callbacks.run.nonfinite")
    assert first.startswith("loss or gradient not finite: skipped optimizer step 2 (loss ")
    assert second.startswith("loss or gradient not finite: skipped optimizer step 4 (loss ")
    for said, batches in ((first, (4, 5)), (second, (8, 9))):
        for batch in range(12):
            assert (", ".join(module.keys[batch]) in said) == (batch in batches)
    assert poison == "gradient alone" or f"(loss {'nan' if poison == 'nan' else 'inf'} of {module.keys[4][0]}" in first


@pytest.mark.parametrize("fused", [False, True])
def test_too_many_in_a_row_end_the_run_after_saving(fused: bool, data_dir: Path, tmp_path: Path) -> None:
    """Two of steps 1, 3, 4 are in a row. A continued run remembers them until a step is finite again.

    With a fused optimizer step 5 is taken before step 4 is read.
    """
    with pytest.raises(InputError) as stop:
        fit(data_dir, tmp_path, batches=(3, 7, 8, 10), patience=2, fused=fused)
    assert "not finite at 2 optimizer steps in a row (--nonfinite.patience 2): step 3 (loss " in str(stop.value)
    assert "step 4 (loss nan of digit-" in str(stop.value)
    last = tmp_path / "last.ckpt"
    if fused:
        assert torch.load(last, weights_only=True)["global_step"] == 6
        return
    assert torch.load(last, weights_only=True)["global_step"] == 5
    with pytest.raises(InputError, match="not finite at 3 optimizer steps in a row .* step 3 .* step 4 .* step 5 "):
        fit(data_dir, tmp_path, batches=(10,), patience=2, ckpt_path=last)
    module = fit(data_dir, tmp_path, patience=2, ckpt_path=last, max_epochs=2, limit_train_batches=12)
    assert module.trainer.callbacks[0].in_a_row == []


class Overflowing(Callback):
    """Makes a weight overflow after optimizer step 1, and saves every step from then on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        if trainer.global_step == 2:
            with torch.no_grad():
                pl_module.encoder.head.bias.fill_(torch.inf)
        elif trainer.global_step > 2:
            trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


@pytest.mark.parametrize("fused", [False, True])
def test_weights_that_have_overflowed_are_not_saved_though_a_step_is_read_late(
    fused: bool, data_dir: Path, tmp_path: Path
) -> None:
    """Lightning calls checkpoints last, and this callback before the guard: step 2 is not read when it is saved."""
    guard = NonFiniteGuard(str(tmp_path / "last.ckpt"))
    with pytest.raises(InputError, match="the weights have overflowed by optimizer step 3 "):
        fit(data_dir, tmp_path, fused=fused, left_out=(99,), callbacks=[guard, Overflowing(tmp_path)])
    assert not list(tmp_path.glob("*.ckpt"))


def test_a_step_is_not_waited_for_until_the_next_is_over(data_dir: Path, tmp_path: Path) -> None:
    """Where an optimizer waits for nothing; but with checkpoints of weights alone, of which callbacks hear nothing."""
    seen: dict[str, list[int]] = {}
    for name, fused, weights in (("late", True, False), ("weights", True, True), ("plain", False, False)):
        (tmp_path / name).mkdir()
        saver = ModelCheckpoint(tmp_path / name, save_weights_only=weights)
        unread = Unread()
        callbacks = [NonFiniteGuard(str(tmp_path / "last.ckpt")), unread, saver]
        fit(data_dir, tmp_path, fused=fused, left_out=(99,), callbacks=callbacks, enable_checkpointing=True)
        seen[name] = unread.steps
    assert seen == {"late": [0, 1, 2, 3, 4, 5], "weights": [], "plain": []}


class Unread(Callback):
    """Notes the steps that the guard has not read when they are over."""

    def __init__(self) -> None:
        self.steps: list[int] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        (guard,) = (one for one in trainer.callbacks if isinstance(one, NonFiniteGuard))
        if trainer.fit_loop.epoch_loop.batch_idx % 2:
            self.steps += [taken.step for taken in guard.taken]


@pytest.mark.parametrize("fused", [False, True])
def test_a_gradient_scaler_goes_on_scaling(fused: bool, data_dir: Path, tmp_path: Path) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=64)
    precision = MixedPrecision("16-mixed", "cpu", scaler)
    fit(data_dir, tmp_path, batches=(4,), fused=fused, plugins=[precision])
    assert all(value.isfinite().all() for value in state(tmp_path)["weights"].values())
    assert scaler.get_scale() == 32


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
def test_steps_that_a_scaler_skips_to_find_its_scale_are_no_failures(
    data_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The gradient overflows at any scale here. So the search ends at 1, and what is skipped from there on counts."""
    every = tuple(range(12))
    precision = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=4))
    with pytest.raises(InputError, match="at 3 optimizer steps in a row .* 3.: step 2 .*, step 3 .*, step 4 "):
        fit(data_dir, tmp_path, "gradient alone", every, patience=3, plugins=[precision])
    said = [record.getMessage() for record in caplog.records if record.name == "callbacks.run.nonfinite"]
    assert [line.startswith("loss or gradient not finite: skipped optimizer step ") for line in said] == [True] * 3
    precision = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=4))
    with pytest.raises(InputError, match="at 3 optimizer steps in a row .* 3.: step 0 .*, step 1 .*, step 2 "):
        fit(data_dir, tmp_path, "nan", every, patience=3, plugins=[precision])


@pytest.mark.long
@pytest.mark.parametrize("poison", POISONS)
def test_all_ranks_skip_what_is_not_finite_on_one(poison: str, data_dir: Path, tmp_path: Path) -> None:
    said = {}
    for name, what in (("poisoned", {"batches": [4], "rank": 1}), ("left_out", {"left_out": [2]})):
        asked = {"data_dir": str(data_dir), "folder": str(tmp_path / name), "poison": poison, "devices": 2, **what}
        run = start([json.dumps(asked)], script=ROOT / "tests" / "poisoned.py")
        said[name], _ = run.communicate(timeout=300)
        assert run.returncode == 0, said
    for rank in range(2):
        assert same(state(tmp_path / "poisoned", rank), state(tmp_path / "left_out", 0))
    assert said["poisoned"].count("skipped optimizer step 2 (loss ") == 2  # each rank its own samples
    assert "skipped" not in said["left_out"]


@pytest.mark.long
def test_all_ranks_stop_together(data_dir: Path, tmp_path: Path) -> None:
    asked = {"data_dir": str(data_dir), "folder": str(tmp_path), "batches": [4, 6], "rank": 1, "devices": 2}
    run = start([json.dumps(asked | {"patience": 2})], script=ROOT / "tests" / "poisoned.py")
    said, _ = run.communicate(timeout=300)
    assert run.returncode == 1
    assert said.count("InputError: loss or gradient were not finite at 2 optimizer steps in a row") == 2
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 4
