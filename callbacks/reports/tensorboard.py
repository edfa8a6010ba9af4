"""TensorBoard's loggers of a run, if it has any."""

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
