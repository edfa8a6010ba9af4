"""Processes that were not started alike end before they begin, all of them, and say what differs."""

import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from commands import ROOT, TINY, flags, start
from lightning import Trainer
from lightning.pytorch.utilities import rank_zero_only

from callbacks.run.agreement import code_digest, require_agreement, require_free_port
from mambaeye.errors import InputError

ALIKE = {"--seed_everything": "0", "--model.optimizer.lr": "0.001", "torch": "2.9"}


def gathered(monkeypatch: pytest.MonkeyPatch, *of_others: dict[str, str]) -> None:
    def all_gather_object(of_all: list[Any], own: dict[str, str]) -> None:
        of_all[:] = [own, *of_others]

    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 1 + len(of_others))
    monkeypatch.setattr("torch.distributed.all_gather_object", all_gather_object)


def test_what_differs_is_named_with_both_values(monkeypatch: pytest.MonkeyPatch) -> None:
    gathered(monkeypatch, ALIKE, ALIKE | {"--seed_everything": "1"})
    with pytest.raises(InputError, match=r"^process 2 differs from process 0 in --seed_everything \(1, and 0 in "):
        require_agreement(ALIKE)
    gathered(monkeypatch, {"--seed_everything": "0"})
    with pytest.raises(InputError, match=r"lr \(not given, and 0.001 in process 0\), torch \(not given, and 2.9 in"):
        require_agreement(ALIKE)
    gathered(monkeypatch, {str(number): "" for number in range(10)})
    with pytest.raises(InputError, match=r" and 10 more: start all processes with the same command"):
        require_agreement(ALIKE)
    gathered(monkeypatch, ALIKE, ALIKE)
    require_agreement(dict(ALIKE))


def test_code_is_the_same_wherever_it_lies_and_another_if_a_line_is(tmp_path: Path) -> None:
    for name in ("here", "there"):
        for room in ("mambaeye", "callbacks"):
            shutil.copytree(ROOT / room, tmp_path / name / room, ignore=shutil.ignore_patterns("__pycache__"))
    here, there = (tmp_path / name for name in ("here", "there"))
    assert code_digest(here) == code_digest(there)
    with (there / "mambaeye/optim.py").open("a") as file:
        file.write("\n")
    assert code_digest(here) != code_digest(there)
    assert code_digest(ROOT) != code_digest(here)  # which lacks the other rooms


@pytest.mark.parametrize("port", ["taken", "99999", "http"])
def test_a_port_that_cannot_be_used_is_refused_before_other_processes_start(
    port: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 0)  # to be 0 again after a trainer has set it for all that follows
    with socket.create_server(("localhost", 0)) as taken:
        monkeypatch.setenv("MASTER_PORT", str(taken.getsockname()[1]) if port == "taken" else port)
        trainer = Trainer(accelerator="cpu", devices=2, logger=False, enable_progress_bar=False)
        with pytest.raises(InputError, match="set another MASTER_PORT"):
            require_free_port(trainer)
        require_free_port(Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False))
        monkeypatch.setenv("LOCAL_RANK", "1")  # a process that was started to meet the others there
        require_free_port(Trainer(accelerator="cpu", devices=2, logger=False, enable_progress_bar=False))


@pytest.mark.long
@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ("--seed_everything=3", "--seed_everything=4", "--seed_everything (4, and 3 in process 0)"),
        ("--data.loader.batch_size=40", "--data.loader.batch_size=80", "--data.loader.batch_size (80, and 40 in"),
        ("--model.encoder.dim=16", "--model.encoder.dim=32", "--model.encoder.init_args.dim (32, and 16 in"),
    ],
    ids=str,
)
def test_two_processes_that_are_not_told_the_same_both_end(
    one: str, other: str, said: str, data_dir: Path, tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    settings = {**TINY, "data.data_dir": data_dir, "run_dir": tmp_path / "run", "trainer.devices": 2}
    shared = {"MASTER_ADDR": "localhost", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    runs = [
        start(["fit", *flags(settings), given], LOCAL_RANK=str(rank), **shared)
        for rank, given in enumerate((one, other))
    ]
    for run in runs:
        text, _ = run.communicate(timeout=120)
        assert run.returncode == 1, text
        assert "Traceback" not in text
        assert "error: process 1 differs from process 0 in " in text
        assert said in text
    assert not list((tmp_path / "run").glob("checkpoints/*"))
