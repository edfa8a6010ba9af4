"""The screen before the first step, and what ends a run there."""

import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from commands import TINY, flags
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_digits
from test_train import fails

from callbacks.run import preflight
from callbacks.run.preflight import left_out
from datamodules.digits import pack_split
from datamodules.shards.order import divide
from mambaeye.contracts import OptimizerStep
from train import main

SHORT = {
    "trainer.limit_train_batches": 4,
    "trainer.limit_val_batches": 0,
}  # not 1: typing may know int | float as float | int


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])
    monkeypatch.setenv("COLUMNS", "200")


def fit(data_dir: Path, **changes: object) -> list[str]:
    return ["fit", f"--data.data_dir={data_dir}", *flags({**TINY, **SHORT, **changes})]


def test_it_says_what_is_about_to_happen(data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(fit(data_dir, run_dir="run", **{"data.loader.micro_batch_size": 16, "trainer.max_epochs": 1}))
    said = " ".join(capsys.readouterr().out.split())
    for part in (
        "processes 1 on 1 nodes, cpu, 32-true",
        "encoder plain torch on cpu",
        "optimizer step 64 images = 1 processes x 16 x 4 accumulated",
        "training 1400 samples in",
        "validation 397 samples in 2 shards, of the sizes in their index",
        "epoch 84 batches a process; 56 of 1400 samples are left out, others every time",
        "loader workers 1 in all",
        "GiB free in run; a checkpoint takes",
    ):
        assert part in said, said
    assert "schedule 1 optimizer steps, 0 of them warm-up" in said


def test_what_is_odd_is_marked(data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(
        fit(
            data_dir,
            **{"model.optimizer.warmup_epochs": 2, "data.loader.batch_size": 700, "data.loader.num_workers": 3},
        )
    )
    said = " ".join(capsys.readouterr().out.split())
    assert "2 optimizer steps, 2 of them warm-up which does not end: set fewer model.optimizer.warmup_epochs" in said
    assert "3 in all for 2 batches: some have nothing to do" in said


def test_shards_that_are_sorted_by_class_are_marked_unless_all_are_shuffled(
    data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    digits = load_digits()
    pack_split(Path("train"), np.argsort(digits.target, kind="stable"), digits.images, digits.target)
    shards = {"data.train_shards": "train", "data.val_shards": data_dir / "digits" / "val"}
    said = []
    for span in (4, "null"):
        main(fit(data_dir, run_dir=f"run-{span}", **shards, **{"data.loader.shuffle_span": span}))
        said.append(" ".join(capsys.readouterr().out.split()))
    marked = (
        "9 of 9 are sorted by class (train-000000.tar, train-000001.tar, train-000002.tar, ...), and so will batches"
    )
    assert f"shards {marked}" in said[0]
    assert "by class" not in said[1]


def test_a_disk_too_small_for_checkpoints_ends_the_run(
    data_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100_000))
    said = fails(fit(data_dir, run_dir="run"), capsys)
    assert said.startswith("error: run has 0 MiB free and 3 checkpoints take 1: make room")
    assert not Path("run/checkpoints").exists()


@pytest.mark.parametrize("encoder", ["MambaEye", "Adventurer"])
def test_a_step_that_a_gpu_has_no_memory_for_is_marked(
    encoder: str, data_dir: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The count itself is held to what is kept in test_blocks.py."""
    said = []
    for room in (2**40, 2**16):
        monkeypatch.setattr(preflight, "device_memory", lambda trainer, room=room: room)
        main(fit(data_dir, run_dir=f"run-{room}", **{"model.encoder": encoder}))
        said.append(" ".join(capsys.readouterr().out.split()))
    assert re.search(r"memory of a step \d\.\d of 1024\.0 GiB, \d\.\d of them activations disk", said[0])
    assert "which is more than there is: set a smaller data.loader.micro_batch_size" in said[1]


def test_blocks_are_computed_again_on_request_to_the_same_weights(data_dir: Path) -> None:
    weights = []
    for again in ("false", "true"):
        main(fit(data_dir, run_dir=f"again-{again}", **{"model.checkpoint_activations": again}))
        checkpoint = torch.load(f"again-{again}/checkpoints/last.ckpt", weights_only=True)
        assert "checkpoint_activations" not in checkpoint["hyper_parameters"]
        weights.append(checkpoint["state_dict"])
    assert weights[0].keys() == weights[1].keys()
    assert all(tensor.equal(weights[1][name]) for name, tensor in weights[0].items())


def test_a_run_directory_that_cannot_be(data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("file").touch()
    said = fails(fit(data_dir, run_dir="file/run"), capsys)
    assert said == "error: file/run cannot be made (Not a directory): choose another --run_dir"


@given(st.integers(1, 2000), st.integers(1, 100), st.integers(1, 4))
def test_a_batch_size_that_leaves_out_fewer_samples_is_named_where_many_are(
    samples: int, micro_batch: int, ranks: int
) -> None:
    step = OptimizerStep(micro_batch * ranks, micro_batch, 1)
    rest = samples % step.images
    said = left_out(samples, samples - rest, ranks, step)
    assert said.startswith(f"{rest} of {samples} samples are left out, others every time")
    better = re.search(r"batch_size (\d+) would leave out (\d+)$", said)
    if better is None:
        possible = [per_rank * ranks for per_rank in range(1, micro_batch + 1) if per_rank * 2 > micro_batch]
        assert rest <= 0.05 * samples or min(samples % size for size in possible) == rest
    else:
        size, fewer = map(int, better.groups())
        assert samples % size == fewer < rest
        assert divide(size, ranks, None) == (size // ranks, 1)


def test_the_batch_size_for_171_samples() -> None:
    assert left_out(171, 128, 1, OptimizerStep(64, 64, 1)) == (
        "43 of 171 samples are left out, others every time; [yellow]data.loader.batch_size 57 would leave out 0"
    )
