"""Checkpoints that are whole, between two optimizer steps, or not there."""

import io
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from mambaeye.errors import InputError


class StepCheckpoint(ModelCheckpoint):
    """Lightning's ModelCheckpoint, but never within an optimizer step, nor between an epoch's last and its validation.

    Gradients are in no checkpoint; and a run that continued from an epoch's last batch would leave out the validation
    and count its batches wrong from then on. What is due there is saved when the epoch has ended.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.step = trainer.global_step
        self.last_batch: tuple[Any, ...] | None = None

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *arguments: Any) -> None:
        if trainer.global_step == self.step:
            return
        self.step = trainer.global_step
        if trainer.is_last_batch:
            self.last_batch = arguments
        else:
            super().on_train_batch_end(trainer, pl_module, *arguments)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.last_batch is not None:
            super().on_train_batch_end(trainer, pl_module, *self.last_batch)
            self.last_batch = None
        super().on_train_epoch_end(trainer, pl_module)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside the one that it replaces, to the disk itself, and then renames it.

    A kill at any moment leaves the old file or the new one, whole. What it leaves besides is one
    checkpoint.partial, which the next checkpoint overwrites.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint to a local path.

        Raises:
            InputError: the disk is full, or refuses for another reason; an older checkpoint of that name is untouched.
        """
        if storage_options is not None:
            raise TypeError("checkpoints are local files, which have no storage_options")
        data = io.BytesIO()  # a writer of torch's that runs into a full disk would not say why
        torch.save(checkpoint, data)
        path = Path(path)
        partial = path.with_name("checkpoint.partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("wb") as file:
                file.write(data.getbuffer())
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except OSError as error:
            with suppress(OSError):
                partial.unlink()
            raise InputError(
                f"the checkpoint {path} of {data.getbuffer().nbytes / 1e6:.1f} MB cannot be written "
                f"({error.strerror}): make room or mend the folder, and continue with --ckpt_path last"
            ) from None
        with suppress(OSError):  # some network file systems cannot
            sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Bring a folder's entries to the disk, so that a rename outlasts a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
