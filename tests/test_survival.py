"""Runs that are killed, at any moment, go on as if nothing had been: real processes, real SIGKILLs."""

import os
import random
import shutil
import signal
import socket
import time
from pathlib import Path

import pytest
import torch
from commands import ROOT, TINY, flags, ledger, start
from fork_server import ForkedRun

STEPS = 14  # an epoch
SETTINGS = {
    **TINY,
    "run_dir": "run",
    "data.loader.batch_size": 100,
    "data.resolutions": "[32]",
    "data.scans": "[random]",
    "trainer.max_epochs": 25,
    "trainer.num_sanity_val_steps": 0,
    "last.every_n_train_steps": 2,
    "last.save_on_train_epoch_end": "false",
    "ckpt_path": "last",
}
LEDGER = "--trainer.callbacks+=callbacks.run.ledger.SampleLedger"
ONE_THREAD = {"OMP_NUM_THREADS": "1"}


@pytest.fixture
def arguments(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    return ["fit", *flags({**SETTINGS, "data.data_dir": data_dir}), LEDGER]


def finish(arguments: list[str]) -> None:
    run = start(arguments, **ONE_THREAD)
    said, _ = run.communicate(timeout=600)
    assert run.returncode == 0, said


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill_at(moment: str, run: ForkedRun, draw: random.Random) -> None:
    """Wait for a moment of a run after some steps of its own, and kill it with all its processes."""
    book, checkpoints = Path("run/ledger-0.jsonl"), Path("run/checkpoints")
    begun = lines(book)
    wanted = begun + draw.randint(1, 12)
    end = time.monotonic() + 120
    while lines(book) < wanted:
        assert run.poll() is None, run.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.001)
    if moment == "validation":  # its first step is the last of an epoch's
        while lines(book) == begun or ledger_batch(book) != STEPS - 1:
            assert run.poll() is None, run.communicate()[0]
            time.sleep(0.0005)
    elif moment == "write":
        while not list(checkpoints.glob(".last.ckpt.*.partial")):
            assert run.poll() is None, run.communicate()[0]
    time.sleep(draw.uniform(0, 0.03 if moment == "step" else 0.002))
    os.killpg(run.pid, signal.SIGKILL)
    run.communicate()


def ledger_batch(book: Path) -> int:
    """The place in its epoch of the last whole line."""
    whole = book.read_bytes().rpartition(b"\n")[0].rpartition(b"\n")[2]
    return int(whole.partition(b'"batch": ')[2].partition(b",")[0])


def by_place(rank: int = 0, run_dir: str = "run") -> dict[tuple[int, int], dict]:
    """The ledger's lines by (epoch, batch), each of which has one."""
    lines = ledger(Path(run_dir), rank)
    places = {(line["epoch"], line["batch"]): line for line in lines}
    assert len(places) == len(lines)
    return places


@pytest.mark.long
def test_twenty_kills_change_nothing(arguments: list[str]) -> None:
    finish([*arguments, "--run_dir=whole"])
    expected = by_place(run_dir="whole")
    draw = random.Random(0)
    for kill in range(20):
        kill_at(("step", "write", "validation", "step")[kill % 4], start(arguments, **ONE_THREAD), draw)
        checkpoint = Path("run/checkpoints/last.ckpt")
        if checkpoint.exists():  # whole, whenever it was
            torch.load(checkpoint, weights_only=True)
    finish(arguments)
    assert by_place() == expected  # the same keys and losses, bit for bit
    ends = [torch.load(f"{run}/checkpoints/last.ckpt", weights_only=True) for run in ("run", "whole")]
    for name, value in ends[0]["state_dict"].items():
        assert value.equal(ends[1]["state_dict"][name]), name


@pytest.mark.long
def test_kills_of_two_processes_change_nothing(arguments: list[str]) -> None:
    two = [*arguments, "--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.max_epochs=6"]
    finish([*two, "--run_dir=whole"])
    draw = random.Random(1)
    for moment in ("step", "write", "validation"):
        kill_at(moment, start(two, **ONE_THREAD), draw)
    finish(two)
    for rank in range(2):
        expected = by_place(rank, "whole")
        assert by_place(rank).keys() == expected.keys()
        for line in ledger(Path("run"), rank):
            same = expected[line["epoch"], line["batch"]]
            assert line["keys"] == same["keys"]
            assert line["loss"] == pytest.approx(same["loss"], abs=1e-6)


@pytest.mark.long
def test_one_process_or_two_the_loss_curve_is_the_same(arguments: list[str]) -> None:
    short = [*arguments, "--trainer.max_epochs=2", "--trainer.limit_val_batches=0"]
    finish([*short, "--run_dir=one"])
    finish([*short, "--run_dir=two", "--trainer.devices=2", "--trainer.strategy=ddp", "--data.loader.num_workers=1"])
    one, parts = by_place(run_dir="one"), [by_place(rank, "two") for rank in range(2)]
    assert len(one) == 2 * STEPS
    for place, line in one.items():
        halves = [part[place] for part in parts]
        assert sorted(line["keys"]) == sorted(key for half in halves for key in half["keys"])
        assert line["loss"] == pytest.approx(sum(half["loss"] for half in halves) / 2, rel=1e-5)


@pytest.mark.long
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("how", ["killed", "error"])
def test_the_end_of_one_process_ends_the_other_in_a_sentence(how: str, rank: int, arguments: list[str]) -> None:
    """Two processes as torchrun starts them, of which one ends in its second epoch; last.ckpt goes on."""
    two = [*arguments, "--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.max_epochs=3"]
    fail = ["--trainer.callbacks+=failing.Fail", *flags({"trainer.callbacks.rank": rank, "trainer.callbacks.how": how})]
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    shared = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "PYTHONPATH": paths, **ONE_THREAD}
    runs = [start([*two, *fail], LOCAL_RANK=str(local), **shared) for local in range(2)]
    ended, other = runs[rank], runs[1 - rank]
    ended.communicate(timeout=300)
    said, _ = other.communicate(timeout=120)
    assert ended.returncode == (-signal.SIGKILL if how == "killed" else 1)
    assert other.returncode == 1
    assert "Traceback" not in said
    lines = said.splitlines()
    assert lines[-1].startswith("continue with: ") == (rank == 1)  # which rank 0 says, where it is the one that is left
    error = lines[-2 if rank == 1 else -1]
    assert error.startswith("error: another process of this run has ended or cannot be reached")
    Path("small.yaml").write_text("data: {num_classes: 10}\n")  # without the callback, which the run's own config has
    finish([*two, "--config=small.yaml"])
    assert len(by_place()) == 3 * STEPS


@pytest.mark.long
def test_shards_that_one_rank_does_not_see_end_both(arguments: list[str], data_dir: Path) -> None:
    """Two processes as torchrun starts them, in folders of which one has no data."""
    shutil.copytree(data_dir, "sees/data")
    Path("blind/data").mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    shards = ["--data.train_shards=data/digits/train", "--data.val_shards=data/digits/val"]
    two = [*arguments, *shards, f"--run_dir={Path.cwd()}/run", "--trainer.devices=2", "--trainer.strategy=ddp"]
    shared = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, **ONE_THREAD}
    runs = [start(two, LOCAL_RANK=str(rank), cwd=folder, **shared) for rank, folder in enumerate(("sees", "blind"))]
    for run in runs:
        said, _ = run.communicate(timeout=120)
        assert run.returncode == 1
        assert said.endswith("(found by rank 1)\n")
        assert "error: data/digits/train does not exist: give a folder of shards" in said


@pytest.mark.long
def test_memory_stays_flat_over_two_thousand_steps(arguments: list[str]) -> None:
    """The smallest model and batch; of the process, after 200 steps and at the end."""
    settings = {
        "data.loader.batch_size": 4,
        "trainer.max_epochs": 6,
        "trainer.limit_val_batches": 0,
        "data.train.num_glimpses": 2,
    }
    settings |= {"last.every_n_train_steps": 500}
    run = start([*arguments, *flags(settings)], **ONE_THREAD)
    sizes: dict[int, int] = {}
    book, end = Path("run/ledger-0.jsonl"), time.monotonic() + 500
    while (done := lines(book)) < 2000:
        assert run.poll() is None, run.communicate()[0]
        assert time.monotonic() < end
        if done >= 200:
            resident = int(Path(f"/proc/{run.pid}/statm").read_text().split()[1])
            sizes[done] = resident
        time.sleep(0.05)
    os.killpg(run.pid, signal.SIGKILL)
    run.communicate()
    early, late = sizes[min(sizes)], sizes[max(sizes)]
    assert max(sizes) > 1900
    assert late <= 1.03 * early, sizes
