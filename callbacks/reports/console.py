"""The console of a fit: a line an epoch and a validation where there is no progress bar, and a summary in the end."""

import os
import shlex
import time
from typing import Any, NamedTuple

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from callbacks.reports.due import is_fitting, result_of
from mambaeye.batch import CanvasBatch, GlimpseBatch
from mambaeye.contracts import data_of, model_of

MONITOR = "val/top1"


class Best(NamedTuple):
    """The best validation of this process."""

    top1: float
    epoch: int
    conditions: str
    """Top-1 of every condition, in words."""


class ConsoleLines(Callback):
    """Prints a line after every epoch and validation where Lightning shows no progress bar, and how the fit ended.

    An epoch's line has the optimizer steps, this process's mean loss, images a second of all processes, the share of
    time in which this process waited for data, and the time that is left at this pace, validations included.
    """

    def __init__(self) -> None:
        self.best: Best | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.began = time.monotonic()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.train_began, self.first_step = time.monotonic(), trainer.global_step
        self._begin_epoch()  # Lightning does not say that one has begun which goes on

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self.losses: list[Tensor] = []
        self.images, self.waited, self.validated = 0, 0.0, 0.0
        self.epoch_began = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: GlimpseBatch | CanvasBatch,
        batch_idx: int,
    ) -> None:
        self.losses.append(outputs["loss"].detach())  # read once an epoch: every reading waits for the device
        self.images += len(batch.labels)
        self.waited += data_of(trainer).train_wait

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validation_began = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not is_fitting(trainer):
            return
        seconds = time.monotonic() - self.validation_began
        self.validated += seconds
        conditions = [
            (result.condition.resolution, result.condition.series, float(result["top1"][-1]))
            for result in result_of(pl_module).conditions
        ]
        top1 = sum(condition[-1] for condition in conditions) / len(conditions)
        words = ", ".join(f"{side} {scan} {100 * share:.1f}%" for side, scan, share in conditions)
        if self.best is None or top1 > self.best.top1:
            self.best = Best(top1, trainer.current_epoch + 1, words)
        if trainer.progress_bar_callback is None:
            say(f"validation in epoch {trainer.current_epoch + 1}: top-1 {words}; {duration(seconds)}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.progress_bar_callback is not None or not self.losses:
            return
        seconds = max(time.monotonic() - self.epoch_began - self.validated, 1e-9)
        loss = sum(loss.item() for loss in self.losses) / len(self.losses) * trainer.accumulate_grad_batches
        total = model_of(pl_module).schedule_steps[1]
        of = f" of {trainer.max_epochs}" if trainer.max_epochs and trainer.max_epochs > 0 else ""
        parts = [
            f"epoch {trainer.current_epoch + 1}{of}: {trainer.global_step} steps",
            f"loss {loss:.4g}",
            f"{self.images * trainer.world_size / seconds:.0f} images/s",
            f"{100 * self.waited / seconds:.0f}% waiting for data",
        ]
        pace = (time.monotonic() - self.train_began) / max(1, trainer.global_step - self.first_step)
        if trainer.global_step < total < float("inf"):
            parts.append(f"{duration(pace * (total - trainer.global_step))} left")
        say(", ".join(parts))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for line in self.summary(trainer):
            say(line)

    def summary(self, trainer: Trainer) -> list[str]:
        """Return how a fit ended, and what can be done next."""
        run_dir = trainer.default_root_dir
        lines = [f"done: {trainer.global_step} steps, {duration(time.monotonic() - self.began)} in this process"]
        checkpoint = f"{run_dir}/checkpoints/last.ckpt"
        if self.best is not None:
            lines.append(f"best top-1: {100 * self.best.top1:.1f}% in epoch {self.best.epoch} ({self.best.conditions})")
        for kept in trainer.checkpoint_callbacks:
            if isinstance(kept, ModelCheckpoint) and kept.monitor == MONITOR and kept.best_model_score is not None:
                checkpoint = kept.best_model_path
                score = float(kept.best_model_score)
                if self.best is None or score > self.best.top1 + 1e-6:  # the run was continued
                    lines[1:] = [f"best top-1: {100 * score:.1f}%, before this process"]
        checkpoint, run_dir = (shlex.quote(nearest(path)) for path in (checkpoint, run_dir))
        return [
            *lines,
            f"next: python train.py validate --ckpt_path {checkpoint}",
            f"      python train.py predict --ckpt_path {checkpoint} --data.images FOLDER",
            f"      tensorboard --logdir {run_dir}",
        ]


@rank_zero_only
def say(line: str) -> None:
    """Print a line once a run."""
    print(line, flush=True)


def nearest(path: str) -> str:
    """Return a path as seen from here, if it lies below."""
    relative = os.path.relpath(path)
    return path if relative.startswith(os.pardir) else relative


def duration(seconds: float) -> str:
    """Return a time as one says it."""
    if seconds < 100:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
