"""Runs of train.py on the digits with a model of a few thousand parameters: in this process or in one of their own."""

import atexit
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from fork_server import ForkedRun, ForkServer

ROOT = Path(__file__).parents[1]

NO_PICTURES = {  # they are most of a small run's time
    "figures.every": 0,
    "classes.every": 0,
    "film_strip.images": 0,
    "report.plots": "false",
    "mistakes.images": 0,
    "page.write": "false",
}
TINY = {
    **NO_PICTURES,
    "model.encoder.dim": 16,
    "model.encoder.depth": 1,
    "model.encoder.d_state": 8,
    "model.encoder.headdim": 8,
    "model.optimizer.warmup_epochs": 0.5,
    "data.train.num_glimpses": 9,
    "data.evaluate.num_glimpses": 9,
    "data.resolutions": "[32,40]",
    "data.scans": "[random,row_raster]",
    "data.loader.num_workers": 0,
    "seed_everything": 3,
    "trainer.max_epochs": 1,
    "trainer.log_every_n_steps": 10,
    "trainer.num_sanity_val_steps": 0,
    "trainer.accelerator": "cpu",
    "trainer.enable_progress_bar": "false",
    "trainer.enable_model_summary": "false",
}


def flags(settings: dict[str, object]) -> list[str]:
    return [f"--{key}={value}" for key, value in settings.items()]


@contextmanager
def no_signal_ignored() -> Iterator[None]:
    """Let children begin with every signal at its default, whatever this process, or who started it, ignores."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    ignored = [number for number in numbers if signal.getsignal(number) == signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


@cache
def server() -> ForkServer:
    """The process that forks all runs of these tests."""
    with no_signal_ignored():
        server = ForkServer()
    atexit.register(server.close)
    return server


def start(arguments: list[str], cwd: str = ".", **environment: str) -> ForkedRun:
    """train.py as a process group of its own, whose stdout and stderr come together; its imports are made already."""
    return server().run(arguments, cwd, **environment)


def start_script(script: Path, arguments: list[str]) -> subprocess.Popen[str]:
    """Any script as such a process group, with an interpreter of its own."""
    with no_signal_ignored():
        return subprocess.Popen(
            [sys.executable, str(script), *arguments],
            env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )


def ledger(run_dir: Path, rank: int = 0) -> list[dict]:
    return [json.loads(line) for line in (run_dir / f"ledger-{rank}.jsonl").read_text().splitlines()]
