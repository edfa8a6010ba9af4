"""Curves over glimpses in TensorBoard: a run beside the run, whose step is the glimpse count."""

from collections import defaultdict
from collections.abc import Mapping

import numpy as np
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

from callbacks.reports.due import is_fitting, result_of
from callbacks.reports.tensorboard import tensorboards
from mambaeye.contracts import data_of

# what they are grouped under with all conditions in one chart: TensorBoard sorts groups by name, and shows this first
GROUPS = {"top1": "accuracy", "confidence": "calibration", "ece": "calibration"}


class GlimpseAxis(Callback):
    """Writes validations as runs of their own whose step is the glimpse count, for TensorBoard's own charts.

    Of a fit, by_glimpse/epoch_<n> below the run directory lays epochs over each other, in charts <metric>_by_glimpse/
    <resolution>_<scan>; and by_condition/<resolution>_<scan>, of the last validation alone, resolutions and scans, in
    charts accuracy/top1_by_glimpse and calibration/<metric>_by_glimpse. What validate and test write is below their
    own run.

    A layout for the custom scalars tab puts accuracy, confidence and ECE side by side: of all conditions, of each over
    epochs, and by optimizer step.
    """

    @rank_zero_only
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        layout = {"all resolutions and scans by glimpses seen": lines(r"^(accuracy|calibration)/{}_by_glimpse$")}
        for condition in data_of(trainer).conditions:
            layout[f"{condition.name} by glimpses seen"] = lines(rf"^{{}}_by_glimpse/{condition.name}$")
        layout["after the last glimpse"] = lines("^val/{}/")
        for logger in tensorboards(trainer):
            logger.experiment.add_custom_scalars(layout)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._write(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer, pl_module)

    @rank_zero_only
    def _write(self, trainer: Trainer, pl_module: LightningModule) -> None:
        result = result_of(pl_module)
        name = f"epoch_{trainer.current_epoch:03d}" if is_fitting(trainer) else "all"
        for logger in tensorboards(trainer):
            logger.experiment.add_scalar("accuracy/top1_after_last_glimpse", result.top1, trainer.global_step)
            curves = {
                f"{metric}_by_glimpse/{one.condition.name}": (one.steps, values)
                for one in result.conditions
                for metric, values in one.metrics.items()
            }
            write_run(f"{logger.log_dir}/by_glimpse/{name}", curves)
            for one in result.conditions:
                side_by_side = {
                    f"{group}/{metric}_by_glimpse": (one.steps, one[metric]) for metric, group in GROUPS.items()
                }
                write_run(f"{logger.log_dir}/by_condition/{one.condition.name}", side_by_side)


def lines(pattern: str) -> dict[str, tuple[str, list[str]]]:
    """Return a chart of the custom scalars tab for each quantity: of the tags that match a pattern with its name."""
    return {metric: ("Multiline", [pattern.format(metric)]) for metric in GROUPS}


def write_run(folder: str, curves: Mapping[str, tuple[list[int], np.ndarray]]) -> None:
    """Write curves as a run, in place of what was written there before.

    Args:
        folder: of the run.
        curves: glimpse counts, and a value for each, by tag.
    """
    at_step: dict[int, list[Summary.Value]] = defaultdict(list)
    for tag, (steps, values) in curves.items():
        for step, value in zip(steps, values.tolist(), strict=True):
            if value == value:  # NaN where nothing was counted
                at_step[step].append(Summary.Value(tag=tag, simple_value=value))
    # purge_step hides what was written there before: by an interrupted run, or of an earlier validation
    with SummaryWriter(folder, purge_step=0) as writer:
        for step, summaries in at_step.items():  # one event a step, not one a value: ten times faster
            writer.file_writer.add_summary(Summary(value=summaries), step)
