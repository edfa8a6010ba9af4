"""Fits of a tiny model in which chosen micro-batches have a loss or a gradient that is not finite; main() on ranks."""

import json
import sys
from pathlib import Path
from unittest import mock

import torch
from lightning import Callback, Trainer
from torch import Tensor

from callbacks.run.nonfinite import NonFiniteGuard
from datamodules.datamodule import ShardDataModule
from datamodules.loading.config import LoaderConfig
from datamodules.views.train import TrainView
from mambaeye.batch import GlimpseBatch
from mambaeye.encoders.mambaeye import MambaEye
from mambaeye.module import ClassifierModule

POISONS = {
    "nan": lambda loss, parameter: loss * torch.nan,
    "inf with a finite gradient": lambda loss, parameter: loss + torch.inf,
    "gradient alone": lambda loss, parameter: loss + (parameter * 0).sum().sqrt(),
}


class Poisoned(ClassifierModule):
    """The module with poison in some micro-batches of one rank, or with some optimizer steps left out."""

    def __init__(self, poison: str, batches: list[int], rank: int, left_out: list[int]) -> None:
        super().__init__(MambaEye(num_classes=10, dim=16, depth=1, d_state=8, headdim=8))
        self.poison, self.batches, self.rank, self.left_out = POISONS[poison], batches, rank, left_out
        self.keys: list[list[str]] = []

    def training_step(self, batch: GlimpseBatch, batch_idx: int) -> Tensor:
        self.keys.append(batch.keys)
        loss = super().training_step(batch, batch_idx)
        if batch_idx in self.batches and self.global_rank == self.rank:
            return self.poison(loss, self.encoder.head.bias)
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.global_step in self.left_out:
            optimizer.zero_grad()


def fit(
    data_dir: Path,
    folder: Path,
    poison: str = "nan",
    batches: tuple[int, ...] = (),
    rank: int = 0,
    left_out: tuple[int, ...] = (),
    patience: int = 10,
    ckpt_path: Path | None = None,
    devices: int = 1,
    fused: bool = False,
    **arguments: object,
) -> Poisoned:
    """An epoch of 12 micro-batches, two an optimizer step; its state goes to <folder>/<rank>.ckpt.

    A fused optimizer is that of a GPU: it waits for nothing, and the guard reads a step late.
    """
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    shards = str(data_dir / "digits" / "val")
    batch = 33 // devices
    loader = LoaderConfig(batch_size=2 * devices * batch, micro_batch_size=batch, num_workers=0)
    data = ShardDataModule(shards, shards, train=TrainView(num_glimpses=3), loader=loader)
    module = Poisoned(poison, list(batches), rank, list(left_out))
    callbacks: list[Callback] = [] if left_out else [NonFiniteGuard(str(folder / "last.ckpt"), patience)]
    settings = {"accelerator": "cpu", "max_epochs": 1, "gradient_clip_val": 1.0}
    settings |= {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "limit_val_batches": 0}
    settings |= {"devices": devices, "strategy": "auto" if devices == 1 else "ddp", "callbacks": callbacks}
    trainer = Trainer(**settings | arguments)
    with mock.patch("mambaeye.optim.can_fuse", return_value=fused):
        trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
    state = {"weights": module.state_dict(), "optimizer": trainer.optimizers[0].state_dict()}
    torch.save(state, folder / f"{trainer.global_rank}.ckpt")
    return module


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    fit(Path(asked.pop("data_dir")), Path(asked.pop("folder")), **asked)
