"""The ledger says what was trained on, through accumulation, resumption and kills."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from commands import TINY, flags, ledger

from callbacks.run.ledger import BLOCK, end_of_last_line
from datamodules.shards.index import ShardIndex
from train import main

ACCUMULATE, BATCH = 3, 100
SETTINGS = {
    **TINY,
    "data.loader.batch_size": ACCUMULATE * BATCH,
    "data.loader.micro_batch_size": BATCH,
    "data.resolutions": "[32]",
    "trainer.limit_val_batches": 0,
    "trainer.log_every_n_steps": 1,
}


@pytest.fixture
def fit(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs fit in an empty directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])
    return lambda *arguments: main(["fit", *flags({**SETTINGS, "data.data_dir": data_dir}), *arguments])


LEDGER = ["--trainer.callbacks+=callbacks.run.ledger.SampleLedger"]


def test_every_sample_once_an_epoch_under_the_step_that_it_was_part_of(
    fit: Callable[..., None], data_dir: Path
) -> None:
    fit("--run_dir=run", "--trainer.max_epochs=2", *LEDGER)
    lines = ledger(Path("run"))
    index = ShardIndex.read(data_dir / "digits" / "train")
    everything = {index.key(number) for number in range(len(index))}
    steps = 1400 // (ACCUMULATE * BATCH)
    batches = steps * ACCUMULATE
    assert [(line["epoch"], line["batch"]) for line in lines] == [(e, b) for e in range(2) for b in range(batches)]
    for epoch in range(2):
        keys = [key for line in lines if line["epoch"] == epoch for key in line["keys"]]
        assert set(keys) < everything
        assert len(keys) == len(set(keys)) == batches * BATCH
    assert [line["step"] for line in lines] == [e * steps + b // ACCUMULATE for e in range(2) for b in range(batches)]
    assert torch.load("run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 2 * steps


def test_off_unless_asked_for(fit: Callable[..., None]) -> None:
    fit("--run_dir=run", "--trainer.limit_train_batches=1")
    assert not list(Path("run").glob("ledger*"))


def test_a_continued_run_goes_on_behind_the_last_whole_line(fit: Callable[..., None]) -> None:
    kept = ["--trainer.callbacks+=callbacks.run.checkpointing.StepCheckpoint", "--trainer.callbacks.filename={step}"]
    fit(
        "--run_dir=run",
        *LEDGER,
        *kept,
        "--trainer.callbacks.every_n_train_steps=2",
        "--trainer.callbacks.save_top_k=-1",
    )
    path = Path("run/ledger-0.jsonl")
    whole, lines = ledger(Path("run")), path.read_bytes().splitlines(keepends=True)
    resumed = 2 * ACCUMULATE
    path.write_bytes(b"".join(lines[: resumed + 1]) + lines[resumed + 1][:-5])  # as a kill in the next batch leaves it
    fit("--run_dir=run", "--ckpt_path=run/checkpoints/step=2.ckpt", *LEDGER)
    assert ledger(Path("run")) == whole[: resumed + 1] + whole[resumed:]  # losses are exact


@pytest.mark.parametrize("torn", [b"", b"x", b"x" * (BLOCK - 3), b"x" * BLOCK, b"x" * (3 * BLOCK + 1)])
def test_end_of_last_line(torn: bytes) -> None:
    assert end_of_last_line(io.BytesIO(torn)) == 0
    assert end_of_last_line(io.BytesIO(b"a\nb\n" + torn)) == 4
