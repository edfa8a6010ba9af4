"""A stop within an epoch, by max_steps, max_time, early stopping or a limit, is no end of that epoch."""

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from callbacks.run.lightning_internals import (
    close_epoch,
    count_epochs_with_max_steps,
    epoch_had_last_batch,
    epoch_has_begun,
    epoch_has_ended,
    reopen_epoch,
)
from mambaeye.contracts import data_of


class StopWithinEpoch(Checkpoint):  # which runs after all other callbacks
    """Stops a run between two optimizer steps only, and continues one in the epoch in which it was stopped.

    Lightning ends the epoch in which it stops, and would continue with the next one. Here an epoch that the
    checkpoint says has ended goes on as long as it has batches: those that the data module has left of it, within the
    limit_train_batches of the run that continues; one that has none left within it is over. A stop that is asked for
    while gradients are being accumulated, which are in no checkpoint, waits for the end of the optimizer step.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.asked_for = self.accumulating = False
        self.fitting = stage == "fit"
        if self.fitting:
            count_epochs_with_max_steps(trainer)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if not self.fitting or not epoch_has_begun(checkpoint):
            return
        left, ended = data_of(trainer).batches_left, epoch_has_ended(checkpoint)
        if left > 0 and (ended or epoch_had_last_batch(checkpoint)):
            reopen_epoch(trainer, checkpoint)
        elif not ended and (left < 0 or (left == 0 and not epoch_had_last_batch(checkpoint))):
            close_epoch(trainer, checkpoint)  # else Lightning would train on one batch more, or another epoch's

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.step = trainer.global_step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.accumulating = trainer.global_step == self.step
        self.step = trainer.global_step
        self._hold_back(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._hold_back(trainer)

    def _hold_back(self, trainer: Trainer) -> None:
        self.asked_for |= trainer.should_stop
        trainer.should_stop = self.asked_for and not self.accumulating
