"""Preemption: all ranks save and leave together, between two optimizer steps, when the machine is wanted back."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn

from callbacks.run.lightning_internals import (
    as_at_batch_end,
    child_processes,
    disable_signal_handlers,
    has_batches_behind,
)
from callbacks.run.shutdown import detach_launcher, save_last, step_of
from callbacks.run.signals import SignalThread
from mambaeye.contracts import data_of
from mambaeye.errors import InputError

Handler = Callable[[int, FrameType | None], Any] | int | signal.Handlers | None
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
OUT_OF_TIME = 1  # not the number of a signal above
GRACE = 5.0  # seconds after a signal in which a batch may still come, or the main thread end by itself
MEETING = 3.0  # seconds in which all ranks must find that they wait for data


class StoppedWaiting(SystemExit):
    """Raised where a batch is waited for, when the run is to leave."""


class Preemption(Checkpoint):  # which runs after all other callbacks
    """Ends a fit on SIGTERM, SIGUSR1 or after some time: last.ckpt saved, exit code 75 on every rank.

    A signal is only remembered. After every optimizer step the ranks ask each other whether one of them has got one;
    then all save and leave. A validation is not cut short or left out: a run that got the signal there, or before an
    epoch's last step, leaves when the epoch has ended; the last epoch ends as usual. Before the first step nothing is
    saved.

    A batch that does not come is not waited for: the run leaves some seconds after the signal, and saves where all
    ranks are between two optimizer steps. Before the data are open, a signal ends all ranks at once.

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
        self.thread: SignalThread | None = None
        self.data_open = self.started = self.accumulating = False
        self.children: list[subprocess.Popen[bytes]] = []  # ranks that Lightning's launcher has started from here
        self.group: dist.ProcessGroup | None = None

    def watch(self, trainer: Trainer) -> None:
        """Take the signals from now on: before a fit, to end all ranks even while they meet or open their data."""
        self.trainer, self.data_open, self.started = trainer, False, False
        self.handlers = {number: signal.signal(number, self._remember) for number in SIGNALS}
        self.handlers[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._stop_waiting)
        self.thread = SignalThread(SIGNALS, self._at_once)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        if not self.handlers:
            self.watch(trainer)
        self.start = time.monotonic()
        self.data_open = True
        disable_signal_handlers(trainer)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        if not self.data_open:
            raise SystemExit(os.EX_TEMPFAIL)
        signal.setitimer(signal.ITIMER_REAL, GRACE, 1.0)

    def _at_once(self, number: int) -> None:
        """Pass a signal on to the ranks that were started from here, in a thread; before the data are open, end all."""
        children = list(child_processes(self.trainer))
        self.children += children
        detach_launcher(self.trainer)
        if self.data_open:
            for child in children:
                child.send_signal(number)
            return
        name = signal.Signals(number).name
        print(f"rank {self.trainer.global_rank}: {name} before the data were open: nothing to save", file=sys.stderr)
        self._end_children()
        if self.requeue:
            requeue()
        time.sleep(GRACE)  # in which the main thread ends this process, unless it waits for other ranks
        os._exit(os.EX_TEMPFAIL)

    def _stop_waiting(self, number: int, frame: FrameType | None) -> None:
        if data_of(self.trainer).waiting:
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise StoppedWaiting(os.EX_TEMPFAIL)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.step, self.started = trainer.global_step, True
        if trainer.world_size > 1:
            self.group = dist.new_group(backend="gloo")  # on the host, so that no rank waits for its device
        if reason := self._agree(self.received):
            rank_zero_info(f"{reason} before the first optimizer step: nothing to save")
            self._leave(trainer)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        self.accumulating = trainer.global_step == self.step
        if self.accumulating:
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

    def _save_while_waiting(self, trainer: Trainer) -> None:
        """Save if all ranks wait for data between two optimizer steps; else say what `last` holds."""
        for worker in multiprocessing.active_children():  # which wait, too
            worker.terminate()
        reason = f"{signal.Signals(self.received).name} while waiting for data"
        held = step_of(self.last_checkpoint)
        unsaved = held != trainer.global_step and trainer.training and not self.accumulating
        if self._all_ranks(self.started and unsaved and has_batches_behind(trainer)):
            with as_at_batch_end(trainer):
                save_last(trainer, self.last_checkpoint, reason)
            return
        holds = "nothing is saved yet" if held is None else f"{self.last_checkpoint} holds optimizer step {held}"
        print(f"rank {trainer.global_rank}: {reason}: {holds}", file=sys.stderr, flush=True)
        self._end_children()

    def _all_ranks(self, mine: bool) -> bool:
        """Tell whether something holds on every rank; a rank that does not come to say so is in a step."""
        if self.group is None:
            return mine and self.trainer.world_size == 1
        all_of_them = torch.tensor(int(mine))
        meeting = dist.all_reduce(all_of_them, dist.ReduceOp.MIN, self.group, async_op=True)
        assert meeting is not None
        end = time.monotonic() + MEETING
        while not meeting.is_completed() and time.monotonic() < end:
            time.sleep(0.05)
        if not meeting.is_completed():
            return False
        try:
            meeting.wait()
        except RuntimeError:  # a rank has ended meanwhile
            return False
        return bool(all_of_them)

    def _end_children(self) -> None:
        for child in self.children:
            child.kill()

    def _leave(self, trainer: Trainer) -> NoReturn:
        self._let_go(trainer)
        raise SystemExit(os.EX_TEMPFAIL)

    def _let_go(self, trainer: Trainer) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # until the process has ended
        signal.signal(signal.SIGALRM, self.handlers.pop(signal.SIGALRM))
        self.handlers.clear()
        self._stop_thread()
        detach_launcher(trainer)
        if self.requeue:
            requeue()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._restore_handlers()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, StoppedWaiting):
            self._save_while_waiting(trainer)
            self._let_go(trainer)
        self._restore_handlers()

    def _restore_handlers(self) -> None:
        if self.handlers:
            signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.handlers.clear()
        self._stop_thread()

    def _stop_thread(self) -> None:
        if self.thread:
            self.thread.stop()
        self.thread = None


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
