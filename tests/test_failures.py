"""A failure around a run, and not in it, ends it in one sentence that says what helps."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import ROOT, TINY, flags, start
from PIL import Image

from mambaeye.failures import explained
from train import main

LONG = pytest.mark.long
SMALL = {**TINY, "data.loader.batch_size": 20, "data.loader.num_workers": 2, "trainer.num_sanity_val_steps": 0}


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])


@pytest.fixture(scope="module")
def checkpoint(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    short = {"trainer.limit_train_batches": 1, "trainer.limit_val_batches": 0, "run_dir": run_dir}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["train.py"])
        main(["fit", f"--data.data_dir={data_dir}", *flags(TINY | short)])
    return run_dir / "checkpoints" / "last.ckpt"


def fails(*arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert isinstance(stop.value.code, str), "exit code 1, and a sentence on standard error"
    assert "\n" not in stop.value.code
    return stop.value.code


@pytest.mark.long
@pytest.mark.parametrize("command", ["fit", "validate", "predict"])
def test_a_loader_worker_that_the_system_kills(command: str, data_dir: Path, checkpoint: Path) -> None:
    given = [command, *flags({**SMALL, "run_dir": "run", "data.data_dir": data_dir})]
    if command == "predict":
        Path("images").mkdir()
        for name in range(40):
            Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(f"images/{name}.png")
        given = [words for words in given if not words.startswith(("--figures", "--film_strip", "--report"))]
        given += ["--data.images", "images"]
    if command != "fit":
        given = [f"--ckpt_path={checkpoint}" if words.startswith("--model.encoder.dim") else words for words in given]
    run = start([*given, "--trainer.callbacks+=failing.KillWorker"], PYTHONPATH=f"{ROOT}:{ROOT / 'tests'}")
    said, _ = run.communicate(timeout=120)
    assert run.returncode == 1, said
    assert "Traceback" not in said
    assert re.search(
        r"^error: loader worker.* was ended by the system.*memory ran out: give fewer --data.loader", said, re.M
    )


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"),
            "loader worker 7, 8 was ended by the system, most likely because memory ran out",
        ),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's"),
            "(Bus error), most likely because shared memory (/dev/shm) is full: make that larger, or give fewer",
        ),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nsee"), "(CUDA out of memory. Tried to"),
        (MemoryError(), "memory ran out: give a smaller --data.loader.micro_batch_size"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), None),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_said_of_a_failure(error: BaseException, said: str | None) -> None:
    sentence = explained(error)
    assert (sentence is None) if said is None else (sentence is not None and said in sentence)


def test_memory_that_nobody_has(data_dir: Path) -> None:
    said = fails(
        "fit",
        *flags(TINY),
        f"--data.data_dir={data_dir}",
        *["--model.encoder.dim=1048576", "--model.encoder.move_embedding_dim=1048576"],
    )
    assert said.startswith("error: memory ran out: give ")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            {"lr": 1e38, "warmup_epochs": 0},
            "model.optimizer.lr is 1e+38 (weight_decay 0.05), whose steps are too large",
        ),
        ({"lr": 1e300}, "model.optimizer.lr is 1e+300"),
        ({"lr": 1, "weight_decay": 1e300}, "model.optimizer.lr is 1 (weight_decay 1e+300), whose steps are too large"),
        ({"lr": 1e30}, "the weights have overflowed by optimizer step 2 ("),
        ({"lr": 1, "weight_decay": 1e30}, "the weights have overflowed by optimizer step 2 ("),
    ],
    ids=str,
)
def test_a_learning_rate_that_no_weight_survives(settings: dict[str, float], said: str, data_dir: Path) -> None:
    given = {**TINY, "run_dir": "run", "data.data_dir": data_dir, "trainer.limit_val_batches": 0}
    given |= {f"model.optimizer.{name}": value for name, value in settings.items()}
    sentence = fails("fit", *flags(given))
    assert said in sentence
    assert len(sentence) < 400
    assert not Path("run/checkpoints/last.ckpt").exists()  # one that was there is still of good weights
