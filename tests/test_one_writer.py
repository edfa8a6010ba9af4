"""One fit in a run directory at a time: real processes, real kills."""

import json
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import cv2
import numpy as np
import pytest
from commands import TINY, flags, start
from fork_server import ForkedRun
from lightning import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel

from callbacks.run.one_writer import OneWriter
from mambaeye.errors import InputError
from mambaeye.locks import Holder, WriterLock, names
from train import main

BUSY = "another one writes there", "wait"
SETTINGS = {
    **TINY,
    "run_dir": "run",
    "data.loader.batch_size": 100,
    "data.resolutions": "[32]",
    "data.scans": "[random]",
    "trainer.num_sanity_val_steps": 0,
    "trainer.limit_val_batches": 0,
    "trainer.max_epochs": 1000,
}
FORK = multiprocessing.get_context("fork")  # a lock is a process's own, and this one imports nothing anew
ELSEWHERE = replace(Holder.this_process(), host="node7", kernel="another", since="2026-01-02 03:04:05 UTC")


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])
    for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def arguments(data_dir: Path) -> list[str]:
    return ["fit", *flags({**SETTINGS, "data.data_dir": data_dir})]


def hold(path: Path, pipe: Connection) -> None:
    """Have a lock until the pipe says something."""
    lock = WriterLock(path, ("another one writes there", "wait"))
    lock.acquire()
    pipe.send("held")
    pipe.recv()
    lock.release()


def held_by_another(path: Path) -> tuple[BaseProcess, Connection]:
    """Return a process that has a lock, and the pipe at whose word it gives it back."""
    ours, its = FORK.Pipe()
    holder = FORK.Process(target=hold, args=(path, its))
    holder.start()
    assert ours.recv() == "held"
    return holder, ours


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as refused:
        WriterLock(path, BUSY).acquire()
    assert "\n" not in str(refused.value)
    return str(refused.value)


def taken(path: Path) -> None:
    lock = WriterLock(path, BUSY)
    lock.acquire()
    assert json.loads(path.read_text())["pid"] == os.getpid()
    lock.release()
    assert not path.exists()


def test_who_holds_it_is_said(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    holder, pipe = held_by_another(path)
    since = json.loads(path.read_text())["since"]
    expected = f"another one writes there (process {holder.pid} on {socket.gethostname()} since {since}): wait"
    assert refusal(path) == expected
    pipe.send("give it back")
    holder.join()
    taken(path)


def test_a_dead_process_of_this_machine_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    holder, _ = held_by_another(path)
    holder.kill()
    holder.join()
    assert path.exists()
    taken(path)


@pytest.mark.parametrize("own", [True, False])
def test_neither_a_number_that_is_in_use_again_nor_a_clock_that_was_wrong_holds_it(own: bool, tmp_path: Path) -> None:
    """After a restart of the machine another process may have that number; the lock is of 2097."""
    path, pid = tmp_path / "lock", os.getpid() if own else 1
    path.write_text(json.dumps(asdict(replace(Holder.this_process(), pid=pid, since="2097-01-01 00:00:00 UTC"))))
    os.utime(path, (4e9, 4e9))
    taken(path)


@pytest.mark.parametrize("same", ["host", "kernel"])
def test_a_container_on_the_same_machine_and_a_machine_that_was_started_again(same: str, tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text(json.dumps(asdict(replace(ELSEWHERE, **{same: getattr(Holder.this_process(), same)}))))
    taken(path)


def test_on_another_machine_it_is_said_with_its_time_and_how_to_remove_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text(json.dumps(asdict(ELSEWHERE)))
    assert refusal(path) == (
        f"another one writes there (process {os.getpid()} on node7 since 2026-01-02 03:04:05 UTC): wait; "
        f"if it has ended, delete {path}"
    )
    path.unlink()
    taken(path)


def test_a_requeued_job_takes_its_own_lock_on_another_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lock"
    path.write_text(json.dumps(asdict(replace(ELSEWHERE, job="17", restarts=0))))
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert "on node7" in refusal(path)  # two steps of one job are two runs
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    taken(path)
    path.write_text(json.dumps(asdict(replace(ELSEWHERE, job="16", restarts=0))))
    assert "on node7" in refusal(path)


@pytest.mark.long
@pytest.mark.parametrize("content", ["", '{"pid": 1', "[1]", '{"pid": "1"}', "\0" * 9000])
def test_a_record_that_was_never_finished_holds_nothing(content: str, tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.write_text(content)
    taken(path)


@pytest.mark.parametrize("alive", [True, False])
def test_without_locks_of_the_file_system_the_process_decides(
    alive: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    path = tmp_path / "lock"
    holder, _ = held_by_another(path)
    monkeypatch.setattr("fcntl.flock", unsupported)
    if alive:
        assert f"process {holder.pid}" in refusal(path)
    holder.kill()
    holder.join()
    taken(path)


def test_a_fork_neither_holds_nor_releases_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    lock = WriterLock(path, BUSY)
    lock.acquire()
    child = os.fork()
    if not child:
        lock.release()
        (tmp_path / "forked").touch()
        time.sleep(60)
        os._exit(0)
    try:
        while not (tmp_path / "forked").exists():
            time.sleep(0.01)
        assert "another one writes there" in refusal(path)
        os.close(lock.descriptor)  # as the parent's end does
        lock.descriptor = None  # else every later fork closes what has that number then
        taken(path)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_file_that_was_deleted_by_hand_is_not_deleted_again(tmp_path: Path) -> None:
    first, second = (WriterLock(tmp_path / "lock", BUSY) for _ in range(2))
    first.acquire()
    first.path.unlink()
    second.acquire()
    first.release()
    assert names(second.path, second.descriptor)
    assert "another one" in refusal(second.path)
    second.release()


def race(folder: Path, pipe: Connection) -> None:
    """Take a lock again and again for a second, and say how often that went well."""
    lock, won = WriterLock(folder / "lock", ("", "")), 0
    mark = folder / "inside"
    end = time.monotonic() + 1
    while time.monotonic() < end:
        try:
            lock.acquire()
        except InputError:
            continue
        mark.touch(exist_ok=False)  # raises if another process is inside
        mark.unlink()
        lock.release()
        won += 1
    pipe.send(won)


def test_of_many_at_once_one_has_it(tmp_path: Path) -> None:
    ours, its = FORK.Pipe()
    racers = [FORK.Process(target=race, args=(tmp_path, its)) for _ in range(2)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert [racer.exitcode for racer in racers] == [0, 0]
    assert ours.recv() + ours.recv() > 0  # however busy the machine is; each time, none was inside besides
    assert not list(tmp_path.iterdir())


def wait_for(condition: Callable[[], object], run: ForkedRun) -> None:
    end = time.monotonic() + 180
    while not condition():
        assert run.poll() is None, run.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.05)


def content(folder: Path) -> dict[str, bytes]:
    """Of all that a fit writes but the curves, which go on."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "curves.jsonl")
    return {str(path): b"" if "tfevents" in path.name else path.read_bytes() for path in files}


@pytest.mark.long
@pytest.mark.parametrize("devices", [1, 2])
def test_a_second_fit_in_one_folder_ends_before_it_has_written_anything(devices: int, arguments: list[str]) -> None:
    """Both begin a new one with --ckpt_path last; other flags would show in config.yaml."""
    rank = ["--last.every_n_epochs=1000"]  # nothing there that a continued run would load
    first = start([*arguments, *rank, "--ckpt_path=last"])
    wait_for(Path("run/curves.jsonl").exists, first)
    before = content(Path("run"))
    second = ["--seed_everything=4", f"--trainer.devices={devices}", "--trainer.strategy=auto", "--ckpt_path=last"]
    run = start([*arguments, *rank, *second])
    said, _ = run.communicate(timeout=180)
    assert run.returncode == 1
    assert f"error: another fit is writing to run (process {first.pid} on {socket.gethostname()} since 20" in said
    assert "): wait for it to end, or choose another --run_dir" in said
    assert said.count("error:") == devices  # every process learns of it
    assert "Traceback" not in said
    assert first.poll() is None
    assert content(Path("run")) == before
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()


def test_a_fit_that_has_ended_between_the_second_ones_start_and_its_lock_is_not_overwritten(
    tmp_path: Path,
) -> None:
    trainer = Trainer(accelerator="cpu", default_root_dir="run", logger=False, enable_checkpointing=False)
    writer = OneWriter(trainer, "fit", None)
    last = Path("run/checkpoints/last.ckpt")
    last.parent.mkdir(parents=True)
    last.touch()
    with pytest.raises(InputError, match="run already holds a run: continue it with --ckpt_path last"):
        trainer.strategy.setup_environment()
    writer.on_exception(trainer, BoringModel(), InputError())
    assert not Path("run/fit.lock").exists()


@pytest.mark.parametrize("ends", ["by itself", "preempted", "in an error"])
def test_a_fit_gives_its_lock_back_however_it_ends(ends: str, arguments: list[str]) -> None:
    arguments += ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2"]
    left = Path("run/checkpoints/.last.ckpt.0123abcd.partial")  # by a fit that was killed
    if ends == "preempted":
        with pytest.raises(SystemExit) as stop:
            main([*arguments, "--preemption.time_limit=0"])
        assert stop.value.code == os.EX_TEMPFAIL
    elif ends == "in an error":
        Path("run").mkdir()
        Path("run/checkpoints").write_text("a file")
        with pytest.raises(SystemExit, match="cannot be written"):
            main(arguments)
    else:
        left.parent.mkdir(parents=True)
        left.touch()
        main(arguments)
        assert [path.name for path in left.parent.iterdir()] == ["last.ckpt"]
    assert Path("run").exists()
    assert not Path("run/fit.lock").exists()


def test_validate_beside_a_fit_and_no_second_predict(arguments: list[str]) -> None:
    settings = arguments[1:]
    main(["fit", *settings, "--trainer.max_epochs=1", "--trainer.limit_train_batches=2"])
    locks = [WriterLock(Path("run") / f"{name}.lock", BUSY) for name in ("fit", "predict")]
    for lock in locks:
        lock.acquire()
    main(["validate", *settings, "--ckpt_path=last", "--trainer.limit_val_batches=1.0"])
    assert Path("run/validation.json").exists()
    cv2.imwrite("0.png", np.zeros((32, 32), np.uint8))
    predict = ["predict", *settings, "--ckpt_path=last", "--data.images", "0.png"]
    with pytest.raises(SystemExit, match="error: another predict is writing to run .process "):
        main(predict)
    assert not list(Path("run").glob("predict*.*l"))
    for lock in locks:
        lock.release()
    main(predict)
    assert Path("run/predictions.jsonl").exists()
