"""Steps that are not finite are as if they had never been, on every rank, and too many of them end the run."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import ROOT, start
from lightning.pytorch.plugins import MixedPrecision
from poisoned import POISONS, fit

from mambaeye.errors import InputError


def same(state: Any, other: Any) -> bool:
    """Whether two nested states are equal, bit for bit."""
    if isinstance(state, dict):
        return state.keys() == other.keys() and all(same(value, other[key]) for key, value in state.items())
    if isinstance(state, list):
        return len(state) == len(other) and all(map(same, state, other))
    return state.equal(other) if isinstance(state, torch.Tensor) else state == other


def state(folder: Path, rank: int = 0) -> dict[str, Any]:
    return torch.load(folder / f"{rank}.ckpt", weights_only=True)


@pytest.mark.parametrize("poison", POISONS)
def test_a_skipped_step_changes_neither_weights_nor_moments(
    poison: str, data_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = fit(data_dir, tmp_path / "poisoned", poison, batches=(4, 9))
    fit(data_dir, tmp_path / "left_out", left_out=(2, 4))
    fit(data_dir, tmp_path / "untouched")
    assert same(state(tmp_path / "poisoned"), state(tmp_path / "left_out"))
    assert not same(state(tmp_path / "poisoned"), state(tmp_path / "untouched"))
    first, second = (record.getMessage() for record in caplog.records if record.name == "callbacks.run.nonfinite")
    assert first.startswith("loss or gradient not finite: skipped optimizer step 2 (loss ")
    assert second.startswith("loss or gradient not finite: skipped optimizer step 4 (loss ")
    for said, batches in ((first, (4, 5)), (second, (8, 9))):
        for batch in range(12):
            assert (", ".join(module.keys[batch]) in said) == (batch in batches)
    assert poison == "gradient alone" or f"(loss {'nan' if poison == 'nan' else 'inf'} of {module.keys[4][0]}" in first


def test_too_many_in_a_row_end_the_run_after_saving(data_dir: Path, tmp_path: Path) -> None:
    """Two of steps 1, 3, 4 are in a row. A continued run remembers them until a step is finite again."""
    with pytest.raises(InputError) as stop:
        fit(data_dir, tmp_path, batches=(3, 7, 8, 10), patience=2)
    assert "not finite at 2 optimizer steps in a row (--nonfinite.patience 2): step 3 (loss " in str(stop.value)
    assert "step 4 (loss nan of digit-" in str(stop.value)
    last = tmp_path / "last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 5
    with pytest.raises(InputError, match="not finite at 3 optimizer steps in a row .* step 3 .* step 4 .* step 5 "):
        fit(data_dir, tmp_path, batches=(10,), patience=2, ckpt_path=last)
    module = fit(data_dir, tmp_path, patience=2, ckpt_path=last, max_epochs=2, limit_train_batches=12)
    assert module.trainer.callbacks[0].in_a_row == []


def test_a_gradient_scaler_goes_on_scaling(data_dir: Path, tmp_path: Path) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=64)
    fit(data_dir, tmp_path, batches=(4,), plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    assert all(value.isfinite().all() for value in state(tmp_path)["weights"].values())
    assert scaler.get_scale() == 32


@pytest.mark.long
@pytest.mark.parametrize("poison", POISONS)
def test_all_ranks_skip_what_is_not_finite_on_one(poison: str, data_dir: Path, tmp_path: Path) -> None:
    said = {}
    for name, what in (("poisoned", {"batches": [4], "rank": 1}), ("left_out", {"left_out": [2]})):
        asked = {"data_dir": str(data_dir), "folder": str(tmp_path / name), "poison": poison, "devices": 2, **what}
        run = start([json.dumps(asked)], ROOT / "tests" / "poisoned.py")
        said[name], _ = run.communicate(timeout=300)
        assert run.returncode == 0, said
    for rank in range(2):
        assert same(state(tmp_path / "poisoned", rank), state(tmp_path / "left_out", 0))
    assert said["poisoned"].count("skipped optimizer step 2 (loss ") == 2  # each rank its own samples
    assert "skipped" not in said["left_out"]


@pytest.mark.long
def test_all_ranks_stop_together(data_dir: Path, tmp_path: Path) -> None:
    asked = {"data_dir": str(data_dir), "folder": str(tmp_path), "batches": [4, 6], "rank": 1, "devices": 2}
    run = start([json.dumps(asked | {"patience": 2})], ROOT / "tests" / "poisoned.py")
    said, _ = run.communicate(timeout=300)
    assert run.returncode == 1
    assert said.count("InputError: loss or gradient were not finite at 2 optimizer steps in a row") == 2
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 4
