"""The end of a program that is one of several processes."""

import atexit
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist


@contextmanager
def ending_among_others() -> Iterator[None]:
    """End a process of several with the exit code of its SystemExit, and without the interpreter's own end.

    A collective that is under way fails, in a thread of torch's, once another process is gone. If that thread waits for
    the interpreter just as it ends, the interpreter ends the thread and C++ aborts the process: exit code 134, where 75
    was to say that the run goes on later.
    """
    try:
        yield
    except SystemExit as end:
        if not dist.is_initialized():
            raise
        code = code_of(end)
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def code_of(end: SystemExit) -> int:
    """Return the exit code that a SystemExit stands for; if it is a message, print that."""
    if isinstance(end.code, int):
        return end.code
    if end.code is None:
        return 0
    print(end.code, file=sys.stderr)
    return 1
