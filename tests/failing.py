"""Callbacks that let something fail at a second batch: a loader worker is killed, or its process, or that raises."""

import multiprocessing
import os
import signal
from typing import Any, Literal

from lightning import Callback, LightningModule, Trainer

BATCH = 1


class KillWorker(Callback):
    """Kills a loader worker of this process, as the system does when memory runs out."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == BATCH:
            newest = max(worker.pid for worker in multiprocessing.active_children())
            os.kill(newest, signal.SIGKILL)

    def on_validation_batch_start(self, *arguments: Any) -> None:
        self.on_train_batch_start(*arguments[:4])

    on_predict_batch_start = on_validation_batch_start


class Fail(Callback):
    """Ends one of several processes, in its second epoch.

    Args:
        rank: Of the process.
        how: killed, or with an error.
    """

    def __init__(self, rank: int, how: Literal["killed", "error"]) -> None:
        self.rank, self.how = rank, how

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == 1 and batch_idx == BATCH and trainer.global_rank == self.rank:
            if self.how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ZeroDivisionError("a bug that one process runs into")
