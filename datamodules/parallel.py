"""Working on many items at once, with a progress bar: what packing and checking share."""

import argparse
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from threading import Event
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

Item = TypeVar("Item")
Result = TypeVar("Result")


class Stopped(Exception):  # noqa: N818
    """Another thread has failed, or the user has interrupted: the work is not wanted any more."""


class RateColumn(ProgressColumn):
    """The column of steps a second."""

    def render(self, task: Task) -> Text:
        """Return what the column shows."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:,.0f}/s" if speed else "")


def in_parallel(
    work: Callable[[Item, Callable[[int], None]], Result], items: Sequence[Item], jobs: int, total: int, what: str
) -> list[Result]:
    """Do work(item, advance) for every item, under a progress bar with rate and time left, on standard error.

    On threads: decoding, hashing and reading let go of Python's lock, and a killed process leaves none behind.

    Args:
        work: calls advance(steps) as it goes along, which also ends it when another item has failed.
        items: in the order of the results.
        jobs: threads.
        total: steps over all items.
        what: the bar's title, with the unit of a step.
    """
    stop = Event()
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
        console=Console(stderr=True),
    )
    with bar, ThreadPoolExecutor(jobs) as pool:
        task = bar.add_task(what, total=total)

        def advance(steps: int) -> None:
            bar.advance(task, steps)
            if stop.is_set():
                raise Stopped

        try:
            futures = [pool.submit(work, item, advance) for item in items]
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in done:
                future.result()
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)
    return [future.result() for future in futures]


def positive(text: str) -> int:
    """Parse a number of at least 1, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return number
