"""Checkpoints: complete or not there, and always of a moment between two optimizer steps."""

import io
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from mambaeye.atomic import GO_ON, atomic_write
from mambaeye.checkpoints import migrate, require_undamaged


class StepCheckpoint(ModelCheckpoint):
    """Saves as Lightning's ModelCheckpoint does, but not within an optimizer step or before an epoch's validation.

    Gradients are in no checkpoint; and a run that continued from an epoch's last optimizer step would leave out the
    validation and count its batches wrong from then on. What is due there is saved when the epoch has ended.
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

    A kill at any moment leaves the old file or the new one. What it may leave besides, such as
    .last.ckpt.1f0c9a3e.partial, the next fit in that run directory removes; see atomic_write.
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
        what = f"the checkpoint {path} of {data.getbuffer().nbytes / 1e6:.1f} MB"
        with atomic_write(path, what, GO_ON) as partial:
            partial.write_bytes(data.getbuffer())

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint that another one has replaced, and nothing else.

        Which one that was, a run that is continued has from a file: Lightning sees to it that it is below the folder of
        checkpoints, but for paths with .. and those of remote storage.
        """
        path = Path(path)
        if path.suffix == ModelCheckpoint.FILE_EXTENSION and ".." not in path.parts:
            path.unlink(missing_ok=True)

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a checkpoint, one of version 0.1 in today's terms.

        Raises:
            InputError: it is damaged.
        """
        require_undamaged(path)
        return migrate(super().load_checkpoint(path, *args, **kwargs))
