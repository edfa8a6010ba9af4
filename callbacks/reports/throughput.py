"""Speed of training, and what it waits for."""

import resource
import sys
import time
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.fabric.utilities.throughput import get_available_flops

from callbacks.reports.due import logs_now
from mambaeye.batch import CanvasBatch, GlimpseBatch
from mambaeye.contracts import data_of, model_of


class Throughput(Callback):
    """Logs the means since the last logged step; validation and checkpoints between batches do not count.

    throughput/images_per_second and, where the data module cuts glimpses, glimpses_per_second, of all processes;
    data_wait, the share of time in which this process waited for its loader; memory_gib, the most that this process has
    had (on CUDA, of tensors); mfu, model FLOP utilisation: the FLOPs that training takes (mambaeye/flops.py) over what
    the device could do in that time. The clock is the host's and nothing is synchronised: on CUDA a window is right to
    the few steps that are queued.

    Args:
        peak_flops: FLOP/s of one device; null takes a GPU's from its data sheet and times a matrix product on a CPU.
    """

    def __init__(self, peak_flops: float | None = None) -> None:
        self.peak_flops = peak_flops
        self.peak: float | None = peak_flops

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.peak_flops is None:
            self.peak = peak_of(trainer.strategy.root_device, trainer.precision)
        self.images, self.seconds, self.waited = 0, 0.0, 0.0
        self.resumed = time.perf_counter()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.resumed = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.resumed = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: GlimpseBatch | CanvasBatch,
        batch_idx: int,
    ) -> None:
        now = time.perf_counter()
        self.seconds += now - self.resumed
        self.resumed = now
        self.images += len(batch.labels)
        self.waited += data_of(trainer).train_wait
        if not logs_now(trainer, batch_idx):
            return
        rate = self.images / self.seconds
        values = {
            "images_per_second": rate * trainer.world_size,
            "data_wait": self.waited / self.seconds,
            "memory_gib": memory(pl_module.device),
        }
        if isinstance(batch, GlimpseBatch):
            values["glimpses_per_second"] = values["images_per_second"] * batch.patches.shape[1]
        if self.peak:
            values["mfu"] = rate * model_of(pl_module).training_flops(batch) / self.peak
            self.resumed += time.perf_counter() - now  # measuring FLOPs is not training
        pl_module.log_dict({f"throughput/{name}": value for name, value in values.items()})
        bar = {"images/s": values["images_per_second"], "data wait": values["data_wait"]}
        pl_module.log_dict(bar, prog_bar=True, logger=False)
        self.images, self.seconds, self.waited = 0, 0.0, 0.0


def peak_of(device: torch.device, precision: str) -> float | None:
    """Return the FLOP/s a device can reach: a GPU's as its maker says, or None; a CPU's as a matrix product shows."""
    if device.type != "cpu":
        dtype = torch.bfloat16 if "bf16" in precision else torch.float16 if "16" in precision else torch.float32
        return get_available_flops(device, dtype)
    side, fastest = 512, float("inf")
    matrix = torch.ones(side, side)
    for _ in range(20):  # the best of them: other processes may disturb some
        start = time.perf_counter()
        matrix @ matrix
        fastest = min(fastest, time.perf_counter() - start)
    return 2 * side**3 / fastest


def memory(device: torch.device) -> float:
    """Return the most memory that this process has had so far, GiB: of tensors on a CUDA device, else all of it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss, bytes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
