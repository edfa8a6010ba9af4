"""Loader workers as processes: signals to the whole run are not for them, and the run does not wait forever."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_start_method, parent_process, resource_tracker
from threading import Thread
from types import TracebackType
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from datamodules.storage.commands import end_commands
from mambaeye.errors import InputError
from mambaeye.failures import lost_worker

TO_THE_RUN = {signal.SIGTERM, signal.SIGUSR1}
TIMED_OUT = "DataLoader timed out after"  # torch's words, as the next
NO_SHARED_MEMORY = "unable to allocate shared memory"
PATIENCE = 5  # seconds between two checks that the parent is there, or in it that the workers are


def load(dataset: Dataset[Any], num_workers: int, timeout: float, source: str, **settings: Any) -> Iterator[Any]:
    """Yield what one pass of a DataLoader gives.

    Args:
        dataset: what to load.
        num_workers: worker processes; 0 loads in this one.
        timeout: seconds without a batch after which worker processes count as stuck; 0 for never.
        source: names what is loaded in a message.
        settings: of the DataLoader.

    Raises:
        InputError: nothing came for too long; a worker is gone, and a batch with it; or shared memory is full.
    """
    loader = DataLoader(
        dataset,
        num_workers=num_workers,
        # what a fork server starts is not our child: no signal says that it is gone, torch looks when its time is up
        timeout=min(timeout, PATIENCE) if num_workers else 0,
        generator=torch.Generator(),  # its own, for it would draw from the global one
        worker_init_fn=begin,
        **settings,
    )
    with block_signals():
        batches = iter(loader)
    try:
        yield from _within(timeout, batches)
    except RuntimeError as error:
        if NO_SHARED_MEMORY in str(error):
            raise InputError(
                f"a batch of {source} finds no room in shared memory (/dev/shm): make that larger, or give fewer "
                f"--data.loader.num_workers, a smaller --data.loader.micro_batch_size or smaller canvases"
            ) from None
        if not str(error).startswith(TIMED_OUT):
            raise
        raise InputError(
            f"no batch of {source} came for {timeout:g} seconds: look after the storage, or set a longer "
            f"--data.loader.timeout"
        ) from None
    except (ConnectionError, EOFError, FileNotFoundError) as error:  # where a batch's memory was to be fetched
        if not num_workers or "in DataLoader worker process" in str(error):  # the data set's own
            raise
        raise InputError(lost_worker("", "")) from None


def _within(timeout: float, batches: Iterator[Any]) -> Iterator[Any]:
    """Yield batches, and ask again for one that did not come in the loader's own time until ours is up."""
    asked = time.monotonic()
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            if not str(error).startswith(TIMED_OUT) or time.monotonic() - asked >= timeout:
                raise
            continue
        yield batch
        asked = time.monotonic()


def begin(worker: int) -> None:
    """Set a worker process up."""
    cv2.setNumThreads(0)  # one core a worker, as for torch's own operations
    sys.excepthook = say_unless_alone
    exit_with_parent(worker)


def say_unless_alone(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print the traceback of what a worker's threads run into, unless it is that the run has ended meanwhile."""
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)


@contextmanager
def block_signals() -> Iterator[None]:
    """Keep what is sent to the run from processes that start meanwhile, from their first instruction on.

    Schedulers and torchrun signal every process of a group. The run goes on to its next optimizer step and saves; it
    needs its workers until then.
    """
    if get_start_method() != "fork":
        resource_tracker.ensure_running()  # it would let SIGTERM through again when it starts
    before = signal.pthread_sigmask(signal.SIG_BLOCK, TO_THE_RUN)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def exit_with_parent(worker: int) -> None:
    """End a worker, even one that is stuck, at its parent's SIGTERM and at its parent's end; a worker_init_fn."""
    Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    above, parent = os.getppid(), parent_process()  # above is the parent, or multiprocessing's fork server
    assert parent is not None, "a worker has a parent"
    while os.getppid() == above and parent.is_alive():
        received = signal.sigtimedwait(TO_THE_RUN, PATIENCE)
        if received and (received.si_signo, received.si_pid) == (signal.SIGTERM, parent.pid):
            break
    end_commands()
    os._exit(0)
