"""The exception for a user's mistakes, and how it ends every process of a run."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import distributed


class InputError(ValueError):
    """A user's mistake: the message says in one sentence what is wrong, where, and the remedy.

    train.py prints the message alone, without a traceback; everything else that fails keeps its traceback.
    """


class NotInstalledError(InputError):
    """A library of an extra is missing, or does not fit: whatever asked for it is right as it is."""


def mistake_in(error: BaseException | None) -> InputError | None:
    """Return the InputError that an exception is or was raised from, as where one of several types was tried."""
    while error is not None and not isinstance(error, InputError):
        error = error.__cause__ or error.__context__
    return error


@contextmanager
def on_all_ranks() -> Iterator[None]:
    """Raise an InputError of any rank on every rank, so that none waits for one that has ended.

    All ranks must enter, for they tell each other how it went; a single process just goes through.
    """
    problem = None
    try:
        yield
    except InputError as error:
        problem = str(error)
    problems = [problem]
    if distributed.is_available() and distributed.is_initialized():
        problems = [None] * distributed.get_world_size()
        distributed.all_gather_object(problems, problem)
    for rank, text in enumerate(problems):
        if text is not None:
            raise InputError(f"{text} (found by rank {rank})" if len(problems) > 1 else text)
