"""A small training of a learned scan, to be watched and interrupted; main() runs it on ranks."""

import json
import sys
from contextlib import suppress
from pathlib import Path

import torch
from lightning import Callback, Trainer
from resuming import Interrupted

from datamodules.datamodule import ShardDataModule
from datamodules.loading.config import LoaderConfig
from datamodules.views.evaluate import EvaluateView
from datamodules.views.train import TrainView
from mambaeye.encoders.mambaeye import MambaEye
from mambaeye.module import ClassifierModule
from mambaeye.optim import OptimizerConfig
from mambaeye.policies.learned import LearnedScan
from mambaeye.policy_learning import PolicyLearning

BATCH = 20
SIZES = {"dim": 8, "depth": 1, "d_state": 4, "headdim": 4, "move_embedding_dim": 4}
SHARES = {"random": 2.0, "learned": 1.0}


def fit(
    data_dir: Path,
    watch: Callback,
    train_scan: str | dict[str, float] = SHARES,
    ckpt: Path | None = None,
    max_epochs: int = 2,
    micro_batch: int = 10,
    devices: int = 1,
) -> ClassifierModule:
    """Four optimizer steps in two epochs, of 20 images each; the encoder is frozen for half of them."""
    torch.manual_seed(0)
    folder = str(data_dir / "digits" / "val")
    data = ShardDataModule(
        folder,
        folder,
        resolutions=(32,),
        scans=("random", "learned"),
        train_scan=train_scan,
        train=TrainView(num_glimpses=5),
        evaluate=EvaluateView(num_glimpses=4),
        loader=LoaderConfig(batch_size=BATCH, micro_batch_size=micro_batch, num_workers=0),
    )
    learning = PolicyLearning(frozen=0.5, glimpses=4, candidates=2)
    optimizer = OptimizerConfig(lr=1e-2, weight_decay=0.5, warmup_epochs=0)
    module = ClassifierModule(
        MambaEye(num_classes=10, **SIZES), LearnedScan(candidates=4, dim=8), learning, optimizer=optimizer
    )
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="auto" if devices == 1 else "ddp",
        max_epochs=max_epochs,
        limit_train_batches=2 * BATCH // (devices * micro_batch),
        limit_val_batches=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        callbacks=[watch],
    )
    with suppress(Interrupted):
        trainer.fit(module, data, ckpt_path=ckpt, weights_only=True)
    return module


class Losses(Callback):
    """Keeps the loss of every micro-batch."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: ClassifierModule, outputs: dict, *_: object) -> None:
        self.losses.append(float(outputs["loss"]))


def main(arguments: str) -> None:
    """Run it on several ranks, as JSON says; each leaves its losses and weights in <folder>/<rank>.pt."""
    asked = json.loads(arguments)
    folder, losses = Path(asked.pop("folder")), Losses()
    module = fit(Path(asked.pop("data_dir")), losses, **asked)
    state = {"losses": losses.losses, "weights": module.state_dict()}
    torch.save(state, folder / f"{module.global_rank}.pt")


if __name__ == "__main__":
    main(sys.argv[1])
