"""The report on a learned scan: where it looks, what it expects there, and what comes of it."""

from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse.typing import NonNegativeInt
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from callbacks.plots.gaze import Gaze, gaze_figure
from callbacks.plots.panels import garbage_kept_young, save
from callbacks.reports.due import is_fitting, report_folder, result_of
from callbacks.reports.tensorboard import add_figure
from mambaeye.batch import POLICY, CanvasBatch
from mambaeye.contracts import data_of, model_of


class LearnedScanReport(Callback):
    """Draws where a policy that estimates values looks, after every validation with the scan called learned.

    learned_scan.png, in the run directory or after `validate` in its folder validation/, and in TensorBoard: a row a
    resolution, with the accuracy of all scans, the places of some glimpses, and what was expected of places, the
    policy's choices and random ones, against what a glimpse there brought. The walks are model.policy_learning's, but
    without anything random, and never handed over to the plan.

    Args:
        images: Of how many images at each resolution, the first of the first process; 0 for no report.
    """

    def __init__(self, images: NonNegativeInt = 64) -> None:
        self.images = images
        self.gazes: dict[int, list[Gaze]] = {}  # by condition, one a batch

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.gazes = {}

    @rank_zero_only
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: CanvasBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        data = data_of(trainer)
        if trainer.sanity_checking or data.axes != 2 or data.conditions[batch.condition].scan != POLICY:
            return
        gazes = self.gazes.setdefault(batch.condition, [])
        wanted = self.images - sum(len(gaze.boxes) for gaze in gazes)
        valid = batch.valid[:wanted]
        if wanted < 1 or not valid.any():
            return
        with trainer.precision_plugin.forward_context():
            lesson = model_of(pl_module).lesson(batch.first(wanted))
        if lesson is not None:
            walked = lesson.positions[:, : 1 + lesson.actual.shape[1]]
            rows = (walked, batch.scene.boxes[:wanted], lesson.predicted, lesson.actual)
            positions, boxes, expected, actual = (np.asarray(row[valid].detach().cpu()) for row in rows)
            gazes.append(Gaze(positions, boxes, data.patch_size, expected.ravel(), actual.ravel()))

    @rank_zero_only
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        results = result_of(pl_module).conditions if any(self.gazes.values()) else []
        rows = []
        for place, gazes in self.gazes.items():
            if gazes and not trainer.sanity_checking:
                side = results[place].condition.resolution
                beside = [result for result in results if result.condition.resolution == side]
                rows.append((together(gazes), beside))
        if not rows:
            return
        with garbage_kept_young():
            figure = gaze_figure(rows)
            add_figure(trainer, "learned_scan", figure)
            folder = Path(trainer.default_root_dir) if is_fitting(trainer) else report_folder(trainer)
            save(figure, folder / "learned_scan.png")
            del figure


def together(gazes: list[Gaze]) -> Gaze:
    """Return the glimpses of several batches as one."""
    positions, boxes, expected, actual = (
        np.concatenate([getattr(gaze, name) for gaze in gazes]) for name in ("positions", "boxes", "expected", "actual")
    )
    return Gaze(positions, boxes, gazes[0].patch_size, expected, actual)
