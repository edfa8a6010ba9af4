"""A disk that is full, whatever is being written: one sentence, exit code 1, and the last checkpoint as it was."""

import os
import re
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from commands import ROOT, TINY, flags, start

from train import main

SETTINGS = {
    **TINY,
    "run_dir": "run",
    "data.loader.batch_size": 200,
    "data.resolutions": "[32]",
    "data.scans": "[random]",
    "trainer.num_sanity_val_steps": 0,
    "trainer.limit_train_batches": 4,
    "trainer.log_every_n_steps": 1000,
}
LEDGER = "--trainer.callbacks+=callbacks.run.ledger.SampleLedger"
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="a file system of one's own is mounted as root")


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])


@pytest.fixture
def arguments(data_dir: Path) -> list[str]:
    return flags({**SETTINGS, "data.data_dir": data_dir})


@pytest.fixture(scope="module")
def checkpoint(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["train.py"])
        settings = {**SETTINGS, "data.data_dir": data_dir, "trainer.limit_val_batches": 0}
        main(["fit", *flags(settings | {"run_dir": run_dir})])
    return run_dir / "checkpoints" / "last.ckpt"


def refused(moment: str, size: int | None) -> list[str]:
    callback = {"trainer.callbacks.moment": moment} | ({} if size is None else {"trainer.callbacks.size": size})
    return ["--trainer.callbacks+=refusing.RefuseWrites", *flags(callback)]


def fails(arguments: list[str], capfd: pytest.CaptureFixture[str]) -> str:
    """Return the words of a command that must fail: one sentence, and no traceback of any thread."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(SystemExit) as stop:
            main(arguments)
    finally:  # before the test is over: pytest reports it to a file of its own then, which may be larger
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    said = str(stop.value)
    assert said.startswith("error: ")
    assert "\n" not in said
    assert "Traceback" not in "".join(capfd.readouterr())
    return said


# what is being written, by its size: the curves and the table of a validation are smaller than its figures
FITS = {
    "a ledger line": (LEDGER, "train_batch", 100, "cannot be written (File too large)"),
    "a line of curves": ("--trainer.log_every_n_steps=1", "train_batch", 100, "run/curves.jsonl cannot be written"),
    "a validation's numbers": (
        "--trainer.logger=false",
        "validation",
        100,
        "run/classes/accuracy.csv cannot be written",
    ),
    "a figure in the events": ("--figures.every=1", "validation", 20_000, "a file of the run cannot be written"),
    "a checkpoint": ("--trainer.limit_val_batches=0", "train_batch", 20_000, "last.ckpt of 0.3 MB cannot be written"),
}


@pytest.mark.parametrize(
    "what", [pytest.param(what, marks=() if what == "a checkpoint" else pytest.mark.long) for what in FITS]
)
def test_in_a_fit(what: str, arguments: list[str], checkpoint: Path, capfd: pytest.CaptureFixture[str]) -> None:
    flag, moment, size, expected = FITS[what]
    last = Path("run/checkpoints/last.ckpt")
    last.parent.mkdir(parents=True)
    last.write_bytes(checkpoint.read_bytes())
    before = last.read_bytes()
    go_on = ["--ckpt_path=last", "--trainer.max_epochs=2"]
    said = fails(["fit", *arguments, *go_on, flag, *refused(moment, size)], capfd)
    assert expected in said
    assert "(File too large): make room or repair the folder" in said
    assert last.read_bytes() == before
    assert not list(Path("run").rglob(".*.partial"))
    assert not Path("run/fit.lock").exists()


@pytest.mark.parametrize(
    ("command", "size", "expected"),
    [
        ("validate", 100, "validation/classes/accuracy.csv"),
        ("validate", 20_000, r"validation\S*\.png"),
        ("test", 100, "test/classes/accuracy.csv"),
        ("predict", 100, "predictions-0.jsonl"),
        ("predict --pictures", 5_000, r"predictions/0.png-\w{8}\.png"),
    ],
)
def test_in_other_commands(
    command: str, size: int, expected: str, arguments: list[str], checkpoint: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    images = []
    command, *pictures = command.split()
    if command == "predict":
        cv2.imwrite("0.png", np.zeros((32, 32), np.uint8))
        images = ["--data.images", "0.png", *pictures]
    moment = "validation" if command == "validate" else command
    arguments = [
        *arguments,
        "--report.plots=true",
        "--trainer.logger=false",
        f"--ckpt_path={checkpoint}",
        *refused(moment, size),
        *images,
    ]
    said = fails([command, *arguments], capfd)
    refusal = r"cannot be written \(File too large\): make room or repair the folder"
    assert re.fullmatch(f"error: run/{expected} {refusal}", said)
    assert not Path("run/predict.lock").exists()


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A file system of 3 MiB."""
    Path("disk").mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", "disk"], check=False).returncode:
        pytest.skip("nothing can be mounted here")
    yield Path("disk")
    subprocess.run(["umount", "--lazy", "disk"], check=True)


@pytest.mark.long
@ROOT_ONLY
@pytest.mark.parametrize("moment", [pytest.param("train_batch", marks=pytest.mark.long), "validation"])
def test_a_disk_without_a_byte_left(moment: str, arguments: list[str], small_disk: Path) -> None:
    """In a process of its own, to its very end; with all that a fit writes."""
    asked = {"run_dir": small_disk / "run", "trainer.max_epochs": 1, "figures.every": 1, "trainer.log_every_n_steps": 1}
    fit = ["fit", *arguments, *flags(asked), LEDGER]
    main(fit)
    last = small_disk / "run/checkpoints/last.ckpt"
    before = last.read_bytes()
    go_on = ["--ckpt_path=last", "--trainer.max_epochs=2", *refused(moment, None)]
    run = start([*fit, *go_on], PYTHONPATH=f"{ROOT}:{ROOT}/tests")
    said, _ = run.communicate(timeout=300)
    assert run.returncode == 1, said
    assert "Traceback" not in said
    *_, error, how_to_go_on = said.splitlines()
    assert [line for line in said.splitlines() if "No space left" in line] == [error]
    assert error.startswith("error: ")
    assert how_to_go_on.startswith("continue with: ")
    assert last.read_bytes() == before
    torch.load(last, weights_only=True)
    assert not list(small_disk.rglob(".*.partial"))
