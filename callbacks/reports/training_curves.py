"""Training from the inside: loss by glimpse position, confidence by information ratio, gradients."""

from typing import Any

import torch
from jsonargparse.typing import NonNegativeInt
from lightning import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from callbacks.reports.due import logs_at, logs_now
from mambaeye.batch import CanvasBatch, GlimpseBatch
from mambaeye.contracts import model_of

POSITIONS = ("early", "middle", "late")
RATIO_BINS = 5


class TrainingCurves(Callback):
    """Logs, on steps that Lightning logs anyway, what costs a little: nothing is computed on the others.

    train_loss_by_glimpse/{early,middle,late}: the loss over each third of the trajectory, if the encoder answers more
    than once, and train_confidence_by_information_ratio/{0.0,...,0.8}: mean confidence where r_t is in that fifth, NaN
    if it is nowhere, both of the batch's first few images, after the optimizer step; train/lr; train/gradient_norm,
    before clipping.

    Args:
        images: How many images of a batch to take; one costs about a third of its part of a training step.
    """

    def __init__(self, images: NonNegativeInt = 4) -> None:
        self.images = images

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if logs_at(trainer, trainer.global_step + 1):
            gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
            pl_module.log("train/gradient_norm", torch.nn.utils.get_total_norm(gradients))
            # not LearningRateMonitor, which refuses a Trainer without a logger and draws a curve for each decay group
            pl_module.log("train/lr", optimizer.param_groups[0]["lr"])

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: GlimpseBatch | CanvasBatch,
        batch_idx: int,
    ) -> None:
        if not self.images or not logs_now(trainer, batch_idx):
            return
        with trainer.precision_plugin.forward_context():
            losses, confidence, ratio = model_of(pl_module).per_step_loss(batch, self.images)  # (images, A) each
        if losses.shape[1] > 1:
            thirds = losses.mean(0).tensor_split(len(POSITIONS))
            for name, third in zip(POSITIONS, thirds, strict=True):
                if len(third):
                    pl_module.log(f"train_loss_by_glimpse/{name}", third.mean())
        fifth = (ratio * RATIO_BINS).long().clamp(max=RATIO_BINS - 1)  # (images, A)
        for place in range(RATIO_BINS):
            name = f"train_confidence_by_information_ratio/{place / RATIO_BINS:.1f}"
            there = fifth == place
            mean = confidence.where(there, 0).sum() / there.sum()  # NaN of none: Lightning would repeat the last one
            pl_module.log(name, mean)
