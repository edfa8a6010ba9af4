"""Failures around a run and not in it: processes that are gone, a port that is taken, memory or a disk that is full."""

import errno
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.distributed import DistError

from mambaeye.atomic import refusal

# torch's words: of a worker's death that a signal tells of, and of one that is noticed when no batch comes
WORKER = re.compile(
    r"DataLoader worker \(pids?(?:\(s\))? (?P<pids>[\d, ]+)\) (?:is killed by signal: (?P<signal>\w+ ?\w*)|exited)"
)
NO_MEMORY = ("can't allocate memory", "not enough memory", "Cannot allocate memory")
SHARED_MEMORY = "Bus error"
NOT_WRITTEN = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}


@contextmanager
def in_one_sentence() -> Iterator[None]:
    """End the program in one sentence and with exit code 1 if what fails is explained; let anything else through."""
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        sentence = explained(error)
        if sentence is None:
            raise
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise again at any worker's end
        sys.exit(f"error: {sentence}")


def explained(error: BaseException) -> str | None:
    """Return the one sentence that says what a failure was and what helps; None of any other error, a bug perhaps."""
    text = str(error)
    if isinstance(error, OSError):
        # of writers that are not ours, TensorBoard's among them
        return refusal("a file of the run", error) if error.errno in NOT_WRITTEN else None
    if worker := WORKER.search(text):
        return lost_worker(f" {worker['pids']}", f" ({worker['signal']})" if worker["signal"] else "")
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in text for words in NO_MEMORY):
        return (
            "memory ran out: give a smaller --data.loader.micro_batch_size, fewer --data.loader.num_workers, smaller "
            f"canvases or a smaller encoder ({first_line(text)})"
        )
    if not isinstance(error, DistError) and "gloo" not in text:
        return None
    if "EADDRINUSE" in text:
        return f"the port that the processes meet at is in use: set another MASTER_PORT ({first_line(text)})"
    return (
        f"another process of this run has ended or cannot be reached: see what it said, then go on with --ckpt_path "
        f"last ({first_line(text)})"
    )


def lost_worker(pids: str, signal: str) -> str:
    """Return what is said of loader workers that have ended before their time.

    Args:
        pids: their process ids, if they are known, after a space.
        signal: the name of what ended them, if it is known, in brackets after a space.
    """
    if SHARED_MEMORY in signal:
        cause = "most likely because shared memory (/dev/shm) is full: make that larger, or give"
    else:
        cause = "most likely because memory ran out: give"
    return (
        f"loader worker{pids} was ended by the system{signal}, {cause} fewer --data.loader.num_workers, a smaller "
        f"--data.loader.micro_batch_size or shuffle_span, or smaller canvases, and run the same command again (a fit "
        f"with --ckpt_path last)"
    )


def first_line(text: str) -> str:
    """Return what of a library's message is worth repeating."""
    return next(iter(text.strip().splitlines()), "no more was said")
