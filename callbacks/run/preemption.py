"""Preemption: all ranks save and leave together, between two optimizer steps, when the machine is wanted back."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn

from callbacks.run.lightning_internals import disable_signal_handlers
from callbacks.run.shutdown import detach_launcher, save_last
from mambaeye.errors import InputError

Handler = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
OUT_OF_TIME = 1  # not the number of a signal above


class Preemption(Checkpoint):  # which runs after all other callbacks
    """Ends a fit on SIGTERM, SIGUSR1 or after some time: last.ckpt saved, exit code 75 on every rank.

    A signal is only remembered. After every optimizer step the ranks ask each other whether one of them has got one;
    then all save and leave. A validation is not cut short or left out: a run that got the signal there, or before an
    epoch's last step, leaves when the epoch has ended; the last epoch ends as usual. Before the first step nothing is
    saved.

    Args:
        last_checkpoint: Path of the checkpoint that is saved.
        time_limit: Hours after which the run saves and leaves as on a signal; null for no limit.
        requeue: Whether a SLURM job is put back into its queue (scontrol requeue) when it leaves.
    """

    def __init__(self, last_checkpoint: str, time_limit: float | None = None, requeue: bool = True) -> None:
        if time_limit is not None and not time_limit >= 0:
            raise InputError(f"preemption.time_limit is {time_limit}: give hours, 0 or more, or null for no limit")
        self.last_checkpoint, self.requeue = last_checkpoint, requeue
        self.seconds = float("inf") if time_limit is None else time_limit * 3600
        self.received = 0
        self.handlers: dict[int, Handler] = {}  # as they were before the fit
        self.group: dist.ProcessGroup | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self.start = time.monotonic()
        self.handlers = {number: signal.signal(number, self._remember) for number in SIGNALS}
        disable_signal_handlers(trainer)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = number

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.step = trainer.global_step
        if trainer.world_size > 1:
            self.group = dist.new_group(backend="gloo")  # on the host, so that no rank waits for its device
        if reason := self._agree(self.received):
            rank_zero_info(f"{reason} before the first optimizer step: nothing to save")
            self._leave(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.global_step == self.step:  # gradients are being accumulated
            return
        self.step = trainer.global_step
        if not trainer.is_last_batch:  # else a validation comes now, which a continued run would not make up for
            self._save_and_leave(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch + 1 != trainer.max_epochs and trainer.global_step != trainer.max_steps:
            self._save_and_leave(trainer)

    def _save_and_leave(self, trainer: Trainer) -> None:
        out_of_time = time.monotonic() - self.start > self.seconds
        if reason := self._agree(self.received or OUT_OF_TIME * out_of_time):
            save_last(trainer, self.last_checkpoint, reason)
            self._leave(trainer)

    def _agree(self, number: int) -> str | None:
        """Return why to leave, if any rank has a reason; the same on every rank."""
        if self.group:
            highest = torch.tensor(number)
            dist.all_reduce(highest, dist.ReduceOp.MAX, self.group)
            number = int(highest)
        if number == OUT_OF_TIME:
            return "time limit"
        return signal.Signals(number).name if number else None

    def _leave(self, trainer: Trainer) -> NoReturn:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # until the process has ended
        self.handlers.clear()
        detach_launcher(trainer)
        if self.requeue:
            requeue()
        raise SystemExit(os.EX_TEMPFAIL)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._restore_handlers()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._restore_handlers()

    def _restore_handlers(self) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.handlers.clear()


@rank_zero_only
def requeue() -> None:
    """Put this process's SLURM job, if it is part of one, back into the queue."""
    job, scontrol = os.environ.get("SLURM_JOB_ID"), shutil.which("scontrol")
    if job and scontrol:
        done = subprocess.run([scontrol, "requeue", job], capture_output=True, text=True, check=False)
        if done.returncode:
            rank_zero_warn(f"scontrol requeue {job} failed: {done.stderr.strip()}")
        else:
            rank_zero_info(f"SLURM job {job} is back in the queue")
