"""Loader workers as processes: signals to the whole run are not for them."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import get_start_method, parent_process, resource_tracker
from threading import Thread

TO_THE_RUN = {signal.SIGTERM, signal.SIGUSR1}
PATIENCE = 5  # seconds between two looks after the parent


@contextmanager
def deaf_children() -> Iterator[None]:
    """Processes that start meanwhile do not receive what is sent to the run, from their first instruction on.

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


def obey_the_parent(worker: int) -> None:
    """A worker_init_fn: the parent's SIGTERM and the parent's end still end a worker, even one that is stuck."""
    Thread(target=_end_with_the_parent, daemon=True).start()


def _end_with_the_parent() -> None:
    above = os.getppid()  # the parent, or multiprocessing's fork server
    while os.getppid() == above and parent_process().is_alive():
        received = signal.sigtimedwait(TO_THE_RUN, PATIENCE)
        if received and (received.si_signo, received.si_pid) == (signal.SIGTERM, parent_process().pid):
            break
    os._exit(0)
