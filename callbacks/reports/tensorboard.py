"""TensorBoard's loggers of a run: where its commands log, and figures there."""

import threading
from typing import Any, Literal

from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure

EVENTS = {"fit": "", "validate": "validation", "test": "test"}
"""Folders below the run directory that commands write events into, each a run of its own in TensorBoard."""


def logger_of(command: str, run_dir: str) -> TensorBoardLogger | Literal[False]:
    """Return what logs a command's events; False for none.

    Validate and test have a run of their own, for they log at step 0, and TensorBoard would drop a fit's curves there.
    """
    if command not in EVENTS:
        return False
    again: dict[str, Any] = {} if command == "fit" else {"purge_step": 0}  # hides an earlier validation's
    return TensorBoardLogger(run_dir, name=EVENTS[command], version="", default_hp_metric=False, **again)


def tensorboards(trainer: Trainer) -> list[TensorBoardLogger]:
    """Return the TensorBoard loggers of a run."""
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def add_figure(trainer: Trainer, name: str, figure: Figure) -> None:
    """Put a figure into the TensorBoard logs at the present optimizer step."""
    for logger in tensorboards(trainer):
        logger.experiment.add_figure(f"figures/{name}", figure, trainer.global_step)


SHOW = threading.excepthook


def raise_refusals_once() -> None:
    """Print no traceback of a thread that the system refuses to write to the disk.

    TensorBoard writes in threads of its own. What one runs into is raised again where the run next writes an event, or
    closes the file, and ends the run there.
    """
    threading.excepthook = show_others


def show_others(error: threading.ExceptHookArgs) -> None:
    """Print the traceback of a thread's exception, unless the system has refused something."""
    if not isinstance(error.exc_value, OSError):
        SHOW(error)
