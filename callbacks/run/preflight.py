"""One screen before the first step: what the run is about to do, and what would end it later."""

import shutil
from pathlib import Path

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from mambaeye.contracts import data_of, model_of
from mambaeye.errors import InputError, on_all_ranks

COPIES = 3  # checkpoints at a time: last, best, and the one being written
MOMENTS = 2  # that AdamW keeps for every parameter


class Preflight(Callback):
    """Says, before training begins, what runs where, on which data, for how long and onto which disk.

    Whatever is bound to fail ends the run here, on all ranks: too little disk for checkpoints, a precision that the
    device does not have, no batch in an epoch. What is merely odd is marked.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        with on_all_ranks():
            rows = [
                *self.processes(trainer, pl_module),
                *self.data(trainer),
                *self.schedule(trainer, pl_module),
                *self.disk(trainer, pl_module),
            ]
        self.show(rows)

    def processes(self, trainer: Trainer, pl_module: LightningModule) -> list[tuple[str, str]]:
        device = trainer.strategy.root_device
        if device.type == "cuda" and "bf16" in trainer.precision and not torch.cuda.is_bf16_supported(False):
            raise InputError(f"trainer.precision is {trainer.precision}, which {device} does not have: choose 32-true")
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        step = data_of(trainer).optimizer_step
        return [
            ("processes", f"{trainer.world_size} on {trainer.num_nodes} nodes, {name}, {trainer.precision}"),
            ("encoder", model_of(pl_module).backend),
            (
                "optimizer step",
                f"{step.images} images = {trainer.world_size} processes x {step.micro_batch} x {step.accumulation} "
                f"accumulated",
            ),
        ]

    def data(self, trainer: Trainer) -> list[tuple[str, str]]:
        data = data_of(trainer)
        train = data.train_split
        batches, samples = data.train_batches, train.samples
        used = batches * trainer.world_size * data.optimizer_step.micro_batch
        workers = trainer.world_size * max(1, data.num_workers)
        epoch = f"{batches} batches a process; {samples - used} samples of {samples} stay over, others every time"
        readers = f"{workers} in all"
        if train.streaming and train.shards < workers:
            readers += f" [yellow]for {train.shards} shards that stream: some read the same shard"
        elif batches < workers // trainer.world_size:
            readers += f" [yellow]for {batches} batches: some have nothing to do"
        splits = (("training", train), ("validation", data.val_split))
        return [
            *(
                (name, f"{split.samples} samples in {split.shards} shards, of the sizes in their index")
                for name, split in splits
            ),
            ("epoch", epoch),
            ("loader workers", readers),
        ]

    def schedule(self, trainer: Trainer, pl_module: LightningModule) -> list[tuple[str, str]]:
        warmup, total = model_of(pl_module).schedule_steps
        text = f"{total} optimizer steps, {warmup} of them warm-up"
        if warmup >= total:
            text += " [yellow]which does not end: set fewer model.optimizer.warmup_epochs"
        if trainer.ckpt_path:
            text += f"; from the place in {trainer.ckpt_path}"
        return [("schedule", text)]

    def disk(self, trainer: Trainer, pl_module: LightningModule) -> list[tuple[str, str]]:
        folder = Path(trainer.default_root_dir)
        free = shutil.disk_usage(folder).free
        size = sum(p.numel() * p.element_size() for p in pl_module.parameters()) * (1 + MOMENTS)
        if free < COPIES * size:
            raise InputError(
                f"{folder} has {free / 2**20:.0f} MiB free and {COPIES} checkpoints take {COPIES * size / 2**20:.0f}: "
                f"make room or choose another --run_dir"
            )
        return [("disk", f"{free / 2**30:.1f} GiB free in {folder}; a checkpoint takes {size / 2**20:.1f} MiB")]

    @rank_zero_only
    def show(self, rows: list[tuple[str, str]]) -> None:
        table = Table(box=SIMPLE_HEAD, show_header=False, title="before the first step", title_justify="left")
        for row in rows:
            table.add_row(*row)
        Console().print(table)
