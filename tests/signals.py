"""A callback that sends its own process a signal at a chosen moment."""

import os
from typing import Any

from lightning import Callback, LightningModule, Trainer

MOMENTS = ("fit_start", "train_batch_start", "validation_batch_start", "save_checkpoint")


class SendSignal(Callback):
    """Sends signals to this process.

    Args:
        moment: One of MOMENTS.
        count: At which occurrence, counted from 0.
        numbers: Signals to send.
        rank: Of the process that does so.
    """

    def __init__(self, moment: str, count: int, numbers: tuple[int, ...], rank: int) -> None:
        assert moment in MOMENTS
        self.moment, self.count, self.numbers, self.rank = moment, count, numbers, rank

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._at("fit_start", trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._at("train_batch_start", trainer)

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self._at("validation_batch_start", trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self._at("save_checkpoint", trainer)

    def _at(self, moment: str, trainer: Trainer) -> None:
        if moment == self.moment and trainer.global_rank == self.rank:
            if self.count == 0:
                for number in self.numbers:
                    os.kill(os.getpid(), number)
                print(f"sent {len(self.numbers)} at {moment}")
            self.count -= 1
