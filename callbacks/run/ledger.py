"""ledger-<rank>.jsonl: what was trained on, provable afterwards."""

import json
import os
from io import FileIO
from typing import Any

from lightning import Callback, LightningModule, Trainer

from callbacks.run.ledger_files import cut, ledger_path, ledger_paths
from mambaeye.batch import CanvasBatch, GlimpseBatch
from mambaeye.contracts import data_of, limited
from mambaeye.errors import InputError


class SampleLedger(Callback):
    """Appends one JSON line a micro-batch to <run directory>/ledger-<rank>.jsonl, a file for each rank.

    A line is {"epoch", "step", "batch", "batches", "samples", "images", "limited", "keys", "unreadable", "loss"}:
    `step` counts the optimizer steps before the one that the micro-batch is part of, `batch` is its place among the
    `batches` that the epoch has for a rank, `samples` are all there are and `images` those of an optimizer step of all
    ranks, `limited` says that trainer.limit_train_batches cuts the epoch short. `keys` are the samples that were
    trained on, `unreadable` those that were left out, `loss` is the exact float, NaN and Infinity as Python's json
    writes them.

    Every line is handed to the operating system before the next batch begins, and those of all ranks to the disk before
    a checkpoint is. A run that continues from a checkpoint first cuts all ranks' files to what the checkpoint has seen:
    what was trained on after it is in no weights, and is done again. So every line counts, whoever shared the epoch
    before and after; `python -m callbacks.ledger` counts them.

    Reading the loss waits for the device, every micro-batch.
    """

    def __init__(self) -> None:
        self.file: FileIO | None = None  # while training

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.path = ledger_path(trainer.default_root_dir, trainer.global_rank)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.touch()
        cut(self.path, trainer.global_step)
        if trainer.is_global_zero:  # also those of ranks that are no more
            for rank, path in ledger_paths(trainer.default_root_dir).items():
                if rank >= trainer.world_size:
                    cut(path, trainer.global_step)
        self.file = FileIO(self.path, "a")  # without a buffer, which would be written again after a full disk
        data = data_of(trainer)
        self.samples, self.images = data.train_split.samples, data.optimizer_step.images
        self.limited = limited(data.train_batches, trainer.limit_train_batches) < data.train_batches

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: GlimpseBatch | CanvasBatch, batch_idx: int
    ) -> None:
        self.step = trainer.global_step

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: GlimpseBatch | CanvasBatch,
        batch_idx: int,
    ) -> None:
        rows = list(zip(batch.keys, batch.valid.tolist(), strict=True))
        line = {
            "epoch": trainer.current_epoch,
            "step": self.step,
            "batch": batch_idx,
            "batches": trainer.num_training_batches,
            "samples": self.samples,
            "images": self.images,
            "limited": self.limited,
            "keys": [key for key, valid in rows if valid],
            "unreadable": [key for key, valid in rows if not valid],
            "loss": outputs["loss"].item() * trainer.accumulate_grad_batches,  # Lightning has divided it
        }
        self._append(json.dumps(line).encode() + b"\n")

    def _append(self, line: bytes) -> None:
        assert self.file is not None, "there is no ledger outside training"
        try:
            while line:
                line = line[self.file.write(line) :]
        except OSError as error:
            raise InputError(
                f"the ledger {self.path} cannot be written ({error.strerror}): make room or repair the folder, and "
                f"continue with --ckpt_path last"
            ) from None

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self.file is not None:
            os.fsync(self.file.fileno())
            trainer.strategy.barrier("ledger")  # no rank saves what another one, killed now, would have no line of

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None
