"""Whole runs on a device that is not the CPU, with every callback: the CPU's results, and nothing of it in between."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import TINY, flags
from elsewhere import DEVICE, OnElsewhere
from exports import LEARNED
from lightning.pytorch.accelerators import CPUAccelerator
from PIL import Image

from train import main

LEDGER = "--trainer.callbacks+=callbacks.run.ledger.SampleLedger"
WITH_ALL_CALLBACKS = {
    **TINY,
    **LEARNED,
    "trainer.limit_train_batches": 3,
    "trainer.limit_val_batches": 1,
    "trainer.log_every_n_steps": 1,
    "data.train.num_glimpses": 5,
    "data.evaluate.num_glimpses": 6,
    "data.resolutions": "[32]",
    "figures.every": 1,
    "classes.every": 1,
    "film_strip.images": 1,
    "mistakes.images": 2,
    "diagnosis.images": 2,
    "answers.write": "true",
    "report.plots": "true",
    "page.write": "true",
}
OF_THE_MACHINE = ("seconds", "throughput", "date", "time", "memory")  # names of values that say nothing of the model


@contextmanager
def on_the_cpu() -> Iterator[None]:
    yield


@contextmanager
def elsewhere() -> Iterator[None]:
    with OnElsewhere() as device, pytest.MonkeyPatch.context() as patch:
        patch.setattr(CPUAccelerator, "get_parallel_devices", staticmethod(lambda devices: [DEVICE]))
        yield
    assert device.operations > 1000


def content(path: Path) -> Any:
    """Return what a result's file says of the model."""
    match path.suffix:
        case ".ckpt":
            return torch.load(path, weights_only=True)["state_dict"]
        case ".jsonl":
            return [without_times(json.loads(line)) for line in path.read_text().splitlines()]
        case ".json":
            return without_times(json.loads(path.read_text()))
    return path.read_bytes()


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if not any(word in k for word in OF_THE_MACHINE)}
    return [without_times(part) for part in value] if isinstance(value, list) else value


def results(folder: Path) -> dict[str, Any]:
    kinds = (".ckpt", ".csv", ".json", ".jsonl", ".png")
    return {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.suffix in kinds}


@pytest.mark.long
def test_runs_on_another_device_are_those_on_the_cpu(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fit with all callbacks and a learned scan, validation with the answers, and prediction with pictures."""
    monkeypatch.setattr("sys.argv", ["train.py"])
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 40, 3), np.uint8))
    (tmp_path / "pictures").mkdir()
    picture.save(tmp_path / "pictures/noise.png")
    for place in (on_the_cpu, elsewhere):
        run = tmp_path / place.__name__
        data, quiet = {"data.data_dir": data_dir}, {"trainer.enable_progress_bar": "false"}
        used = {"ckpt_path": run / "fit/checkpoints/last.ckpt", "trainer.accelerator": "cpu", **quiet}
        with place():
            main(["fit", *flags(WITH_ALL_CALLBACKS | data | {"run_dir": run / "fit"}), LEDGER])
            more = {"answers.write": "true", "diagnosis.images": 2, "trainer.limit_val_batches": 2}
            main(["validate", *flags(used | data | more | {"run_dir": run / "validate"})])
            main(
                [
                    "predict",
                    *flags(used | {"data.images": tmp_path / "pictures", "run_dir": run / "predict"}),
                    "--pictures",
                ]
            )
    here, there = (results(tmp_path / place) for place in ("on_the_cpu", "elsewhere"))
    assert here.keys() == there.keys()
    assert {"fit/film_strip.png", "validate/validation/diagnosis.json", "predict/predictions.jsonl"} <= here.keys()
    for name, path in here.items():
        one, other = content(path), content(there[name])
        if path.suffix == ".ckpt":
            assert one.keys() == other.keys()
            assert all(value.equal(other[key]) for key, value in one.items() if isinstance(value, torch.Tensor))
        else:
            assert one == other, name


def test_the_device_allows_no_more_than_a_gpu() -> None:
    with OnElsewhere():
        there, here = torch.arange(6, device=DEVICE).view(2, 3), torch.arange(6).view(2, 3)
        assert there.device == DEVICE
        assert (there + 1).cpu().equal(here + 1)
        assert (there * torch.tensor(2)).tolist() == [[0, 2, 4], [6, 8, 10]]
        assert here.to(DEVICE).equal(there)
        for mixed in (lambda: there + here, lambda: torch.minimum(there, here), lambda: torch.cat([here, there])):
            with pytest.raises(RuntimeError, match="takes tensors of two devices"):
                mixed()
        with pytest.raises(RuntimeError, match="numpy"):
            there.numpy()
