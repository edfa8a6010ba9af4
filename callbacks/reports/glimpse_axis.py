"""Curves over glimpses in TensorBoard: a run beside the run, whose step is the glimpse count."""

from collections import defaultdict

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

from callbacks.reports.due import is_fitting, result_of
from callbacks.reports.tensorboard import tensorboards
from mambaeye.contracts import data_of

SIDE_BY_SIDE = ("top1", "confidence", "ece")


class GlimpseAxis(Callback):
    """Writes every validation of a fit as a run of its own, so that epochs overlay in TensorBoard's own charts.

    The run is by_glimpse/epoch_<n> below the run directory; its charts are <metric>_by_glimpse/<resolution>_<scan>. A
    layout for the custom scalars tab puts accuracy, confidence and ECE side by side, condition by condition, and by
    optimizer step.
    """

    @rank_zero_only
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        layout = {
            f"{condition.name} by glimpses seen": {
                metric: ["Multiline", [rf"^{metric}_by_glimpse/{condition.name}$"]] for metric in SIDE_BY_SIDE
            }
            for condition in data_of(trainer).conditions
        }
        layout["after the last glimpse"] = {metric: ["Multiline", [rf"^val/{metric}/"]] for metric in SIDE_BY_SIDE}
        for logger in tensorboards(trainer):
            logger.experiment.add_custom_scalars(layout)

    @rank_zero_only
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not is_fitting(trainer):
            return
        for logger in tensorboards(trainer):
            folder = f"{logger.log_dir}/by_glimpse/epoch_{trainer.current_epoch:03d}"
            at_step: dict[int, list[Summary.Value]] = defaultdict(list)
            for result in result_of(pl_module).conditions:
                for metric, values in result.metrics.items():
                    tag = f"{metric}_by_glimpse/{result.condition.name}"
                    for step, value in zip(result.steps, values.tolist(), strict=True):
                        if value == value:  # NaN where nothing was counted
                            at_step[step].append(Summary.Value(tag=tag, simple_value=value))
            # purge_step hides what an interrupted run wrote of the same epoch
            with SummaryWriter(folder, purge_step=0) as writer:
                for step, summaries in at_step.items():  # one event a step, not one a value: ten times faster
                    writer.file_writer.add_summary(Summary(value=summaries), step)
