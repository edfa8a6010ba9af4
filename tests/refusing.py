"""A callback after which the operating system refuses to write: a real failure, at a chosen moment."""

import resource
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer

MOMENTS = ("train_batch", "validation", "test", "predict")


class RefuseWrites(Callback):
    """Lets no file grow beyond a size (EFBIG), or leaves no room on the file system of the run directory (ENOSPC).

    Args:
        moment: One of MOMENTS: the third training batch, the start of a validation that is no sanity check, ...
        size: The largest that a file may be, in bytes; null fills the file system.
    """

    def __init__(self, moment: str, size: int | None = None) -> None:
        assert moment in MOMENTS
        self.moment, self.size = moment, size

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == 2:
            self._at("train_batch", trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._at("validation", trainer)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._at("test", trainer)

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._at("predict", trainer)

    def _at(self, moment: str, trainer: Trainer) -> None:
        if moment != self.moment:
            return
        if self.size is None:
            fill(Path(trainer.default_root_dir))
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def fill(folder: Path) -> None:
    """Write a file until there is no room left."""
    with (folder / "filler").open("wb", buffering=0) as file:
        for size in (1 << 16, 1):
            while True:
                try:
                    file.write(bytes(size))
                except OSError:
                    break
