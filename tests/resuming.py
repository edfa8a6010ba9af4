"""A run that learns nothing and keeps what it was given, to be interrupted and continued; main() runs it on ranks."""

import json
import os
import sys
from contextlib import suppress
from pathlib import Path

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from datamodules.datamodule import ShardDataModule
from datamodules.loading.config import LoaderConfig
from datamodules.views.evaluate import EvaluateView
from datamodules.views.train import TrainView
from mambaeye.batch import CanvasBatch, GlimpseBatch

EPOCHS, BATCH = 3, 50


class Interrupted(Exception):  # noqa: N818, it is no error
    pass


class Recorder(LightningModule):
    """Learns nothing; keeps what it was given: (epoch, keys, a digest of pixels and positions) a batch.

    Of canvases also (optimizer steps before, side) a batch.
    """

    takes, has_policy = "glimpses", True

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, tuple[str, ...], int]] = []
        self.sides: list[tuple[int, int]] = []

    def training_step(self, batch: GlimpseBatch | CanvasBatch, batch_idx: int) -> Tensor:
        if isinstance(batch, CanvasBatch):  # a side of its own for every optimizer step
            pixels, positions = batch.scene.canvases, batch.scene.positions
            self.sides.append((self.global_step, pixels.shape[1]))
        else:
            pixels, positions = batch.patches, batch.positions
        digest = int(pixels.long().sum()) * 1_000_003 + int((positions.long() ** 2).sum())
        self.seen.append((self.current_epoch, tuple(batch.keys), digest))
        return self.weight * 0

    def validation_step(self, batch: CanvasBatch, batch_idx: int) -> None:
        pass

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


class InterruptAfter(Callback):
    """Saves a checkpoint after so many batches of the run, and ends it as a kill would."""

    def __init__(self, batches: int, path: Path) -> None:
        self.batches, self.path = batches, path

    def on_train_batch_end(self, trainer: Trainer, pl_module: Recorder, *_: object) -> None:
        if len(pl_module.seen) == self.batches:
            trainer.save_checkpoint(self.path)
            raise Interrupted


class StopAfter(Callback):
    """Lets a run stop within an epoch, after so many optimizer steps."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        trainer.should_stop |= trainer.global_step == self.steps


def run(data_dir: Path, *callbacks: Callback, **settings: object) -> list[tuple[int, tuple[str, ...], int]]:
    """Return what a run over 397 digits sees, up to its end or its interruption."""
    return record(data_dir, *callbacks, **settings).seen


def record(
    data_dir: Path,
    *callbacks: Callback,
    ckpt_path: Path | None = None,
    validate: bool = True,
    devices: int = 1,
    epochs: int = EPOCHS,
    train_scan: str = "random",
    stream: bool = False,
    **loader: int,
) -> Recorder:
    """The recorder of such a run."""
    folder = data_dir / "digits" / "val"
    data = ShardDataModule(
        f"pipe:cat {folder}/val-{{000000..000001}}.tar" if stream else str(folder),
        str(folder),
        f"{folder}/index.json" if stream else None,
        resolutions=(32,),
        train_scan=train_scan,
        train=TrainView(num_glimpses=3),
        evaluate=EvaluateView(num_glimpses=2),
        loader=LoaderConfig(**{"batch_size": BATCH, "num_workers": 0} | loader),
    )
    recorder = Recorder()
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="auto" if devices == 1 else "ddp",
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        limit_val_batches=1 if validate else 0,
        callbacks=list(callbacks),
    )
    with suppress(Interrupted):
        trainer.fit(recorder, data, ckpt_path=ckpt_path, weights_only=True)
    return recorder


def main(arguments: str) -> None:
    """One run on several ranks, as JSON says; each rank leaves what it saw in <seen>-<rank>.json."""
    asked = json.loads(arguments)

    class KeepAndDie(Callback):
        """Writes down what was seen and, once there is a checkpoint to go on from, ends like a kill."""

        def on_train_batch_end(self, trainer: Trainer, pl_module: Recorder, *_: object) -> None:
            Path(f"{asked['seen']}-{trainer.global_rank}.json").write_text(json.dumps(pl_module.seen))
            if len(pl_module.seen) == asked["batches"]:
                trainer.save_checkpoint(asked["save"])
                os._exit(0)

    run(
        Path(asked["data_dir"]),
        KeepAndDie(),
        ckpt_path=asked["ckpt_path"],
        devices=asked["ranks"],
        num_workers=asked["workers"],
        batch_size=asked["batch_size"],
    )


if __name__ == "__main__":
    main(sys.argv[1])
