"""Values that parse and cannot be: each is refused in one sentence that names its flag, or said."""

import os
from pathlib import Path

import pytest
from commands import TINY, flags

from datamodules.views.evaluate import evaluation_conditions
from mambaeye.command_line.values import refuse_devices
from mambaeye.errors import InputError
from train import main


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--model.optimizer.lr=-1", "model.optimizer.lr is -1.0: give zero or more"),
        ("--model.optimizer.lr=.nan", "model.optimizer.lr is nan: give zero or more"),
        ("--model.optimizer.weight_decay=-1", "model.optimizer.weight_decay is -1.0: give zero or more"),
        ("--model.optimizer.betas=[2,3]", "model.optimizer.betas is [2.0, 3.0]: give two numbers of at least 0 and be"),
        ("--model.optimizer.eps=0", "model.optimizer.eps is 0.0: give a number above 0"),
        ("--data.loader.num_workers=-1", "data.loader.num_workers is -1: give at least 0"),
        ("--seed_everything=-1", "seed_everything is -1: give an integer from 0 to 4294967295"),
        ("--data.train.augmentation.flip=3", "data.train.augmentation.flip is 3.0: give a number from 0 to 1"),
        ("--data.train.mixing.mixup=-1", "data.train.mixing.mixup and .cutmix are -1.0 and 0.0: give probabilities"),
        ("--trainer.gradient_clip_val=-1", "trainer.gradient_clip_val is -1: give a number above 0, or null"),
        ("--preemption.time_limit=-1", "preemption.time_limit is -1.0: give hours, 0 or more, or null for no limit"),
        ("--nonfinite.patience=0", "nonfinite.patience is 0: give at least 1 step"),
        ("--run_dir=", "run_dir is empty: give --run_dir a folder, or leave it out"),
        ("--model.encoder.axes=3", "MambaEye looks at clips, and these data are images: give --model.encoder.axes 2"),
        ("--trainer.devices=100", "trainer.devices is 100 processes, and there are"),
        ("--trainer.accelerator=gpu", "trainer.accelerator is gpu, and there is no GPU here: give --trainer.ac"),
    ],
    ids=str,
)
def test_values_that_cannot_be_are_refused(
    words: str, said: str, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    with pytest.raises(SystemExit) as stop:
        main(["fit", *flags(TINY), f"--data.data_dir={data_dir}", words])
    assert str(stop.value).startswith(f"error: {said}")
    assert "\n" not in str(stop.value)


def test_devices_that_are_there_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    for accelerator, devices in (("gpu", 2), ("gpu", -1), ("auto", "auto"), ("cuda", [0, 1]), ("cpu", os.cpu_count())):
        refuse_devices(accelerator, devices)
    for accelerator, devices in (("gpu", 3), ("auto", "3")):
        with pytest.raises(InputError, match="trainer.devices is 3, and there are 2 GPUs here"):
            refuse_devices(accelerator, devices)


def test_what_is_odd_is_said(data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = {"model.optimizer.lr": 0, "data.resolutions": "[32,32]", "data.scans": "[random,random]"}
    short = {"trainer.limit_train_batches": 1, "trainer.limit_val_batches": 1, "data.data_dir": data_dir}
    with pytest.warns(UserWarning, match="data.resolutions has 32 more than once: it is measured once"):
        main(["fit", *flags({**TINY, **odd, **short})])
    said = " ".join(capsys.readouterr().out.split())
    assert "at model.optimizer.lr 0: nothing is learnt" in said


def test_a_condition_that_is_repeated_is_measured_once() -> None:
    conditions = evaluation_conditions((32, 48, 32), ("random", "random"), "glimpses", False)
    assert [condition[:2] for condition in conditions] == [(32, "random"), (48, "random")]
