"""ledger-<rank>.jsonl: what was trained on, provable afterwards."""

import json
import os
from pathlib import Path
from typing import Any, BinaryIO

from lightning import Callback, LightningModule, Trainer

from mambaeye.batch import CanvasBatch, GlimpseBatch

BLOCK = 1 << 16  # bytes read at once when looking for the last line's end


class SampleLedger(Callback):
    """Appends one JSON line a micro-batch to <run directory>/ledger-<rank>.jsonl, a file for each rank.

    A line is {"epoch", "step", "batch", "keys", "loss"}: `step` counts the optimizer steps before the one that the
    micro-batch is part of, `batch` its place in the epoch, `keys` are the samples that were trained on (rows that only
    fill a batch up are not among them), `loss` is the exact float, NaN and Infinity as Python's json writes them.

    Every line is handed to the operating system before the next batch begins. A run that continues another goes on in
    its files: a line that a kill left unfinished is cut off, and what was trained on after the last checkpoint is
    listed a second time, where it was done again: of lines with the same epoch and batch, the later one counts.

    Reading the loss waits for the device, every micro-batch.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        path = Path(trainer.default_root_dir) / f"ledger-{trainer.global_rank}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self.file = path.open("r+b")
        self.file.truncate(end_of_last_line(self.file))
        self.file.seek(0, os.SEEK_END)

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
        line = {
            "epoch": trainer.current_epoch,
            "step": self.step,
            "batch": batch_idx,
            "keys": [key for key, valid in zip(batch.keys, batch.valid.tolist(), strict=True) if valid],
            "loss": outputs["loss"].item() * trainer.accumulate_grad_batches,  # Lightning has divided it
        }
        self.file.write(json.dumps(line).encode() + b"\n")
        self.file.flush()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.file.close()


def end_of_last_line(file: BinaryIO) -> int:
    """Return the number of bytes up to and with the last line break of a file; 0 if there is none."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - BLOCK)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0
