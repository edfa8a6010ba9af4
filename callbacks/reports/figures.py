"""The pictures of a validation, in TensorBoard."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from jsonargparse.typing import NonNegativeInt
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from matplotlib.figure import Figure

from callbacks.plots.curves import accuracy_and_confidence, against_information_ratio, ece_by_epoch, reliability
from callbacks.reports.records import of_fit, read_records, records_path, validation_records


class ValidationFigures(Callback):
    """Draws every validation of a fit: accuracy and confidence, reliability, information ratio, and ECE by epoch.

    Goes before CurveRecords, whose file has the epochs before.

    Args:
        every: Draw every so many validations, and the first and the last epoch's; 0 for none.
    """

    def __init__(self, every: NonNegativeInt = 1) -> None:
        self.every = every
        self.validations = 0

    @rank_zero_only
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not of_fit(trainer):
            return
        last = trainer.current_epoch + 1 == trainer.max_epochs
        if self.every and (last or self.validations % self.every == 0):
            records = [{"epoch": trainer.current_epoch, **record} for record in validation_records(trainer)]
            history = read_records(records_path(trainer), "validation") + records
            with garbage_kept_young():
                add_figure(trainer, "accuracy_and_confidence", accuracy_and_confidence(records))
                add_figure(trainer, "reliability", reliability(records))
                add_figure(trainer, "information_ratio", against_information_ratio(records))
                add_figure(trainer, "ece_by_epoch", ece_by_epoch(history))
        self.validations += 1


@contextmanager
def garbage_kept_young() -> Iterator[None]:
    """Drawing without garbage collection, and a quick one afterwards.

    A figure's objects refer to each other. Those that a collection meets while they live wait for a collection of
    everything that Python holds, torch included, which takes a third of a second and comes every dozen figures.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
            gc.collect(0)


def add_figure(trainer: Trainer, name: str, figure: Figure) -> None:
    """Put a figure into the TensorBoard logs, if there are any, at the present optimizer step."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_figure(f"figures/{name}", figure, trainer.global_step)
