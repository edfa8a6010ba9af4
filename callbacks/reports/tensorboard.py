"""TensorBoard's loggers of a run, if it has any."""

import threading

from lightning import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure


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
