"""A run that is told to go saves and leaves with exit code 75, and goes on as if nothing had been."""

import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from commands import TINY, flags, ledger, start

from callbacks.run.preemption import SIGNALS
from train import main

BATCHES, STEPS = 12, 4  # an epoch
SETTINGS = {
    **TINY,
    "run_dir": "run",
    "data.loader.batch_size": 300,
    "data.loader.micro_batch_size": 100,
    "data.resolutions": "[32]",
    "data.scans": "[random]",
    "trainer.max_epochs": 2,
    "trainer.num_sanity_val_steps": 0,
    "trainer.limit_val_batches": 0,
}
VALIDATE = ["--trainer.limit_val_batches=1.0"]
LEDGER = "--trainer.callbacks+=callbacks.run.ledger.SampleLedger"


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty directory, and handlers that are put back: signals that reach them were not caught by the run."""

    def unexpected(number: int, frame: object) -> None:
        raise AssertionError(f"signal {number} reached the tests")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])
    before = {number: signal.signal(number, unexpected) for number in SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def arguments(data_dir: Path) -> list[str]:
    Path("own.yaml").write_text("seed_everything: 3\n")  # else the run goes on with the signals that its config has
    return ["fit", "--config=own.yaml", *flags({**SETTINGS, "data.data_dir": data_dir}), LEDGER]


def sent(moment: str, count: int = 0, numbers: tuple[int, ...] = (signal.SIGTERM,), rank: int = 0) -> list[str]:
    settings = {"moment": moment, "count": count, "numbers": list(map(int, numbers)), "rank": rank}
    return [
        "--trainer.callbacks+=signals.SendSignal",
        *flags({f"trainer.callbacks.{k}": v for k, v in settings.items()}),
    ]


def leaves(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 75


def place(run_dir: Path = Path("run")) -> tuple[int, int]:
    """Optimizer steps and batches that last.ckpt has seen."""
    checkpoint = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    return checkpoint["global_step"], checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"]


@pytest.mark.parametrize(
    "numbers", [pytest.param((signal.SIGTERM,), marks=pytest.mark.long), (signal.SIGUSR1, signal.SIGTERM)]
)
def test_saves_after_the_optimizer_step_and_goes_on_bit_for_bit(
    numbers: tuple[int, ...], arguments: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    main([*arguments, "--run_dir=whole"])
    leaves([*arguments, *sent("train_batch_start", 3, numbers)])
    assert place() == (2, 6)
    assert not set(map(signal.getsignal, SIGNALS)) - {signal.SIG_IGN}  # until the process has ended
    main([*arguments, "--ckpt_path=last"])
    assert ledger(Path("run")) == ledger(Path("whole"))
    weights = [torch.load(f"{run}/checkpoints/last.ckpt", weights_only=True)["state_dict"] for run in ("run", "whole")]
    assert all(value.equal(weights[1][name]) for name, value in weights[0].items())
    assert ": saved run/checkpoints/last.ckpt at optimizer step 2" in caplog.text


def test_signals_while_a_checkpoint_is_made_change_nothing(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    during = sent("save_checkpoint", 0, (signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM))
    leaves([*arguments, *sent("train_batch_start", 3), *during])
    assert place() == (2, 6)
    assert capsys.readouterr().out.endswith("sent 1 at train_batch_start\nsent 3 at save_checkpoint\n")


@pytest.mark.parametrize(("moment", "sanity"), [("fit_start", 0), ("validation_batch_start", 2)])
def test_before_the_first_step_nothing_is_saved(moment: str, sanity: int, arguments: list[str]) -> None:
    leaves([*arguments, f"--trainer.num_sanity_val_steps={sanity}", *VALIDATE, *sent(moment)])
    assert not list(Path("run").glob("checkpoints/*"))
    assert ledger(Path("run")) == []


@pytest.mark.parametrize("moment", [("validation_batch_start", 1), ("train_batch_start", BATCHES - 1)], ids=str)
def test_a_validation_is_neither_cut_short_nor_left_out(moment: tuple[str, int], arguments: list[str]) -> None:
    leaves([*arguments, *VALIDATE, *sent(*moment)])
    assert {row["samples"] for row in json.loads(Path("run/validation.json").read_text())["rows"]} == {397}
    assert place() == (STEPS, BATCHES)


def test_a_run_that_ends_before_its_next_step_ends_as_usual(arguments: list[str]) -> None:
    main([*arguments, "--trainer.max_epochs=1", *VALIDATE, *sent("validation_batch_start", 1)])
    assert place() == (STEPS, BATCHES)
    with pytest.raises(AssertionError, match="reached the tests"):  # handlers are as they were
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_time_limit_is_like_a_signal(arguments: list[str], caplog: pytest.LogCaptureFixture) -> None:
    leaves([*arguments, "--preemption.time_limit=0"])
    assert place() == (1, 3)
    assert "time limit: saved" in caplog.text


def test_under_slurm_the_job_goes_back_into_the_queue_after_saving(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    scontrol = Path("bin/scontrol")
    scontrol.parent.mkdir()
    scontrol.write_text('#!/bin/sh\necho "$@" $(ls run/checkpoints) >> requeued\nexit $REFUSED\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent.absolute()}:{os.environ['PATH']}")
    variables = {"JOB_ID": 4711, "JOB_NAME": "train", "NTASKS": 1, "PROCID": 0, "LOCALID": 0, "NODEID": 0}
    for name, value in variables.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    monkeypatch.setenv("REFUSED", "0")
    once = sent("train_batch_start", 0, (signal.SIGUSR1,))
    leaves([*arguments, *once])
    assert Path("requeued").read_text() == "requeue 4711 last.ckpt\n"
    assert {path.name for path in Path("run").rglob("*.ckpt")} == {"last.ckpt"}  # none of Lightning's own
    leaves([*arguments, "--run_dir=other", "--preemption.requeue=false", *once])
    assert Path("requeued").read_text() == "requeue 4711 last.ckpt\n"
    monkeypatch.setenv("REFUSED", "1")
    with pytest.warns(UserWarning, match="scontrol requeue 4711 failed"):
        leaves([*arguments, "--run_dir=third", *once])


def wait_for(path: Path, lines: int) -> None:
    """Until a ledger has so many lines."""
    end = time.monotonic() + 120
    while not path.exists() or path.read_bytes().count(b"\n") < lines:
        assert time.monotonic() < end, f"{path} does not grow"
        time.sleep(0.05)


@pytest.mark.long
def test_a_signal_to_every_process_of_the_group(arguments: list[str]) -> None:
    """As torchrun and schedulers send it: loader workers must not die of it before the step is done."""
    run = start([*arguments, "--trainer.max_epochs=1000", "--data.loader.num_workers=2"])
    wait_for(Path("run/ledger-0.jsonl"), 2)
    for _ in range(3):
        os.killpg(run.pid, signal.SIGTERM)
        time.sleep(0.01)
    said, _ = run.communicate(timeout=120)
    assert run.returncode == 75, said
    assert "Traceback" not in said
    steps, batches = place()
    assert f"SIGTERM: saved run/checkpoints/last.ckpt at optimizer step {steps}\n" in said
    assert said.endswith("train.py fit --run_dir run --ckpt_path last\n")
    assert batches == len(ledger(Path("run")))
    with pytest.raises(ProcessLookupError):  # nobody is left
        os.killpg(run.pid, 0)


@pytest.mark.long
@pytest.mark.parametrize("launcher", [True, False])
@pytest.mark.parametrize("rank", [0, 1])
def test_two_processes_leave_together_whichever_got_the_signal(rank: int, launcher: bool, arguments: list[str]) -> None:
    path = f"{Path(__file__).parents[1]}:{Path(__file__).parent}"
    two = [*arguments, "--trainer.devices=2", "--data.loader.num_workers=1", "--data.loader.micro_batch_size=50"]
    two += sent("train_batch_start", 3, rank=rank)
    if launcher:
        runs = [start(two, PYTHONPATH=path)]
    else:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = str(free.getsockname()[1])
        shared = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "PYTHONPATH": path}
        runs = [start(two, LOCAL_RANK=str(local), **shared) for local in range(2)]
    said = [run.communicate(timeout=300)[0] for run in runs]
    assert [run.returncode for run in runs] == [75] * len(runs), said
    assert "Traceback" not in "".join(said)
    assert place() == (2, 6)
    assert len(ledger(Path("run"), 0)) == len(ledger(Path("run"), 1)) == 6
