"""A run that is told to go while it waits for data goes: with a checkpoint if it is between two optimizer steps."""

import io
import os
import signal
import tarfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from commands import ROOT, TINY, flags, ledger, start
from fork_server import ForkedRun
from hosts import Handler, Host, serving
from test_reading import by_tar

from datamodules.shards.index import ShardIndex, write_index
from datamodules.shards.scan import scan_shard
from train import main

SHARDS, SIZE = 8, 40
TIMEOUT, GENEROUS = 900, 300  # seconds that a read waits for by itself; and in which a run must be gone
SETTINGS = {
    **TINY,
    "run_dir": "run",
    "data.loader.batch_size": SIZE,
    "data.loader.shuffle_span": 1,
    "data.loader.read_timeout": TIMEOUT,
    "data.resolutions": "[32]",
    "data.scans": "[random]",
    "trainer.max_epochs": 2,
    "trainer.num_sanity_val_steps": 0,
    "trainer.limit_val_batches": 0,
}
LEDGER = "--trainer.callbacks+=callbacks.run.ledger.SampleLedger"


@pytest.fixture(scope="module")
def shards(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits in small shards."""
    val = data_dir / "digits" / "val"
    index, images = ShardIndex.read(val), by_tar(val)
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(SHARDS):
        with tarfile.open(folder / f"s-{shard}.tar", "w") as tar:
            for number in range(shard * SIZE, (shard + 1) * SIZE):
                key = index.key(number)
                for name, data in ((f"{key}.png", images[key]), (f"{key}.cls", str(index.labels[number]).encode())):
                    member = tarfile.TarInfo(name)
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    write_index(folder, index.classes, [scan_shard(path) for path in sorted(folder.glob("*.tar"))])
    return folder


@pytest.fixture
def host(shards: Path) -> Iterator[Host]:
    with serving(shards) as host:
        yield host


runs: list[ForkedRun] = []


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty folder; no run outlives its test."""
    monkeypatch.chdir(tmp_path)
    yield
    while runs:
        with suppress(ProcessLookupError):
            os.killpg(runs.pop().pid, signal.SIGKILL)


def stall_from(host: Host, first: int) -> list[str]:
    """Let all shards stall from one request for a shard on; return those that do."""
    asked: list[str] = []
    stalled: list[str] = []

    def fault(handler: Handler, place: int) -> bool:
        with host.lock:
            asked.append(handler.path)
            stalls = len([path for path in asked if path.endswith(".tar")]) > first
        if not stalls or not handler.path.endswith(".tar"):
            return False
        stalled.append(handler.path)
        return handler.stall(100)

    host.fault = fault
    return stalled


def fit(host: Host, data_dir: Path, *more: str) -> ForkedRun:
    places = {"data.train_shards": host.url, "data.val_shards": host.url, "data.data_dir": data_dir}
    settings = flags({**SETTINGS, **places})
    path = f"{ROOT}:{Path(__file__).parent}"
    runs.append(start(["fit", *settings, LEDGER, *more], PYTHONPATH=path, OMP_NUM_THREADS="1"))
    return runs[-1]


def until(there: list[str], count: int, run: ForkedRun) -> None:
    """Wait until so many requests stall, and those who do not read have come to where they wait for the others."""
    end = time.monotonic() + GENEROUS
    while len(there) < count:
        assert run.poll() is None, run.communicate()[0]
        assert time.monotonic() < end, "nothing stalls"
        time.sleep(0.05)
    time.sleep(2)


def told(run: ForkedRun, everybody: bool) -> str:
    """Send SIGTERM, to all processes or to the first, and return what was said; nobody is left."""
    (os.killpg if everybody else os.kill)(run.pid, signal.SIGTERM)
    said, _ = run.communicate(timeout=GENEROUS)
    end = time.monotonic() + GENEROUS
    while True:
        try:
            os.killpg(run.pid, 0)
        except ProcessLookupError:
            break
        assert time.monotonic() < end, f"some go on\n{said}"
        time.sleep(0.1)
    assert "Traceback" not in said
    return said


@pytest.mark.long
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_waits_between_two_steps_saves_and_goes_on_bit_for_bit(
    workers: int, host: Host, data_dir: Path
) -> None:
    more = [f"--data.loader.num_workers={workers}"]
    said = (run := fit(host, data_dir, *more, "--run_dir=whole")).communicate(timeout=GENEROUS)[0]
    assert run.returncode == 0, said
    run = fit(host, data_dir, *more)
    until(stall_from(host, 5), 1 if workers == 0 else workers, run)
    said = told(run, everybody=workers == 0)
    assert run.returncode == 75, said
    steps = len(ledger(Path("run")))
    assert f"SIGTERM while waiting for data: saved run/checkpoints/last.ckpt at optimizer step {steps}\n" in said
    assert 0 < steps < SHARDS
    host.fault = lambda handler, place: False
    said = (run := fit(host, data_dir, *more, "--ckpt_path=last")).communicate(timeout=GENEROUS)[0]
    assert run.returncode == 0, said
    assert ledger(Path("run")) == ledger(Path("whole"))
    one, other = (torch.load(f"{name}/checkpoints/last.ckpt", weights_only=True) for name in ("run", "whole"))
    assert all(value.equal(other["state_dict"][name]) for name, value in one["state_dict"].items())
    assert one["loops"]["fit_loop"] == other["loops"]["fit_loop"]


@pytest.mark.long
def test_before_the_first_step_nothing_is_saved(host: Host, data_dir: Path) -> None:
    stalled = stall_from(host, 0)
    run = fit(host, data_dir)
    until(stalled, 1, run)
    said = told(run, everybody=False)
    assert run.returncode == 75, said
    assert "rank 0: SIGTERM while waiting for data: nothing is saved yet\n" in said
    assert not list(Path("run").glob("checkpoints/*"))


@pytest.mark.long
@pytest.mark.parametrize("everybody", [True, False])
@pytest.mark.parametrize("first", [4, 5])
def test_two_processes_end_whoever_waits(first: int, everybody: bool, host: Host, data_dir: Path) -> None:
    """Both wait for their third shard, or one has it and waits for the other in the step."""
    stalled = stall_from(host, first)
    run = fit(host, data_dir, "--trainer.devices=2")
    until(stalled, 6 - first, run)
    said = told(run, everybody)
    if first == 4:
        assert run.returncode == 75, said
        assert "SIGTERM while waiting for data: saved run/checkpoints/last.ckpt at optimizer step 4\n" in said
    else:
        assert run.returncode in (75, 1), said
        assert "SIGTERM while waiting for data: nothing is saved yet" in said


@pytest.mark.long
@pytest.mark.parametrize("devices", [1, 2])
def test_before_the_data_are_open_all_end_with_a_message(devices: int, host: Host, data_dir: Path) -> None:
    asked: list[str] = []

    def mute(handler: Handler, place: int) -> bool:
        asked.append(handler.path)
        return host.over.wait()

    host.fault = mute
    run = fit(host, data_dir, f"--trainer.devices={devices}")
    until(asked, devices, run)
    said = told(run, everybody=False)
    assert run.returncode == 75, said
    assert "SIGTERM before the data were open: nothing to save" in said


@pytest.mark.long
def test_a_validation_that_waits_is_ended_by_a_signal(host: Host, data_dir: Path) -> None:
    """There is nothing to save; that it is gone long before a read is given up is seen by its exit."""
    places = {"data.train_shards": host.url, "data.val_shards": host.url, "data.data_dir": data_dir}
    main(["fit", *flags({**SETTINGS, **places}), "--trainer.max_steps=1"])
    stalled = stall_from(host, 0)
    given = [f"--data.val_shards={host.url}", f"--data.loader.read_timeout={TIMEOUT}", "--data.loader.num_workers=1"]
    runs.append(start(["validate", "--ckpt_path=run/checkpoints/last.ckpt", *given], OMP_NUM_THREADS="1"))
    until(stalled, 1, runs[-1])
    told(runs[-1], everybody=False)
    assert runs[-1].returncode == -signal.SIGTERM
