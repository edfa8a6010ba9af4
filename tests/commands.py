"""Runs of train.py on the digits with a model of a few thousand parameters: in this process or in one of their own."""

import atexit
import json
import multiprocessing
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from fork_server import ForkedRun, ForkServer

ROOT = Path(__file__).parents[1]
FORK_SERVER = multiprocessing.get_context("forkserver")  # new processes of functions, whose imports are made once
FORK_SERVER.set_forkserver_preload(["pytest", "commands", "datamodules.digits", "datamodules.pack"])

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


def start(arguments: list[str], **settings: Any) -> ForkedRun:
    """train.py, or the script that settings name, as a process group of its own, stdout and stderr together.

    It has made its imports already; settings are those of ForkServer.start, environment variables among them.
    """
    return server().run(arguments, **settings)


def ledger(run_dir: Path, rank: int = 0) -> list[dict]:
    return [json.loads(line) for line in (run_dir / f"ledger-{rank}.jsonl").read_text().splitlines()]
