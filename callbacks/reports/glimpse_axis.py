"""Curves over glimpses in TensorBoard: a run beside the run, whose step is the glimpse count."""

from collections import defaultdict

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

from callbacks.reports.records import of_fit, validation_records
from mambaeye.contracts import data_of

CURVES = ("top1", "top5", "confidence", "true_class_probability", "nll", "brier", "ece", "mce", "adaptive_ece")
SIDE_BY_SIDE = ("top1", "confidence", "ece")


class GlimpseAxis(Callback):
    """Writes every validation of a fit as a run of its own, so that epochs overlay in TensorBoard's own charts.

    The run is by_glimpse/epoch_<n> below the run directory; its charts are <what>_by_glimpse/<resolution>_<scan>. A
    layout for the custom scalars tab puts accuracy, confidence and ECE side by side, cell by cell, and by optimizer
    step.
    """

    @rank_zero_only
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        names = [condition.name for condition in data_of(trainer).conditions]
        layout = {
            f"{cell} by glimpses seen": {name: ["Multiline", [rf"^{name}_by_glimpse/{cell}$"]] for name in SIDE_BY_SIDE}
            for cell in names
        }
        layout["after the last glimpse"] = {name: ["Multiline", [rf"^val/{name}/"]] for name in SIDE_BY_SIDE}
        for logger in tensorboards(trainer):
            logger.experiment.add_custom_scalars(layout)

    @rank_zero_only
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not of_fit(trainer):
            return
        for logger in tensorboards(trainer):
            folder = f"{logger.log_dir}/by_glimpse/epoch_{trainer.current_epoch:03d}"
            at_step: dict[int, list[Summary.Value]] = defaultdict(list)
            for record in validation_records(trainer):
                cell = f"{record['resolution']}_{record['scan']}"
                for name in CURVES:
                    for step, value in zip(record["steps"], record[name], strict=True):
                        if value is not None:
                            at_step[step].append(Summary.Value(tag=f"{name}_by_glimpse/{cell}", simple_value=value))
            # purge_step hides what an interrupted run wrote of the same epoch
            with SummaryWriter(folder, purge_step=0) as writer:
                for step, values in at_step.items():  # one event a step, not one a value: ten times faster
                    writer.file_writer.add_summary(Summary(value=values), step)


def tensorboards(trainer: Trainer) -> list[TensorBoardLogger]:
    """The TensorBoard loggers of a run."""
    return [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]
