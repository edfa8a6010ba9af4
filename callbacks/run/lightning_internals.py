"""All that the project uses of Lightning and Lightning does not promise to keep, in one file.

tests/test_lightning_internals.py fails when Lightning moves it; pyproject.toml bounds Lightning's version for this.
"""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning import Trainer
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher


def child_processes(trainer: Trainer) -> list[subprocess.Popen[bytes]]:
    """Return the processes that Lightning's launcher has started and observes: its own list; or none.

    The launcher kills its own process once one of these has ended with an error code, and there is no way to tell it
    that they are meant to end.
    """
    launcher = trainer.strategy.launcher
    return launcher.procs if isinstance(launcher, _SubprocessScriptLauncher) else []


def disable_signal_handlers(trainer: Trainer) -> None:
    """Keep Lightning from registering handlers for SIGTERM and SIGUSR1; to be called in setup.

    Its handlers talk to the other ranks wherever they happen to be, requeue before all have saved, and end validations,
    and there is no flag to turn them off.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]


def count_epochs_with_max_steps(trainer: Trainer) -> None:
    """Let a run that has max_steps continue from a checkpoint as others do; to be called in setup.

    Else Lightning would take an epoch that has ended for one that has not, and count it twice.
    """
    trainer.fit_loop._iteration_based_training = lambda: False  # type: ignore[method-assign]


def epoch_has_ended(checkpoint: dict[str, Any]) -> bool:
    """Return whether a checkpoint was saved when Lightning had ended an epoch, and no other had begun."""
    epochs = checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]
    return bool(0 < epochs["started"] == epochs["processed"])


def reopen_epoch(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Turn a checkpoint of an epoch's end into one of that epoch's last batch, after which there are others."""
    loops = checkpoint["loops"]["fit_loop"]
    for epochs in loops["epoch_progress"].values():  # of this run and in total, here and below
        epochs["processed"] = epochs["completed"] = epochs["started"] - 1
    batches = loops["epoch_loop.batch_progress"]
    batches["is_last_batch"] = False
    for count in (batches["current"], batches["total"]):
        count["completed"] = count["processed"] - 1
    if batches["current"]["ready"] % trainer.accumulate_grad_batches == 0:  # else Lightning will not count it again
        loops["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1


def has_batches_behind(trainer: Trainer) -> bool:
    """Tell whether some batches of the epoch are done: before the first one, its counts are those of none."""
    return trainer.fit_loop.epoch_loop.batch_progress.current.completed > 0


@contextmanager
def as_at_batch_end(trainer: Trainer) -> Iterator[None]:
    """Let a checkpoint that is saved while the next batch is waited for be that of on_train_batch_end.

    Lightning counts a batch as completed right after this hook, and an optimizer step's batches a second time when it
    continues.
    """
    loop = trainer.fit_loop.epoch_loop
    counts = (loop.batch_progress.current, loop.batch_progress.total)
    for count in counts:
        count.completed -= 1
    loop._batches_that_stepped -= 1
    yield
    for count in counts:
        count.completed += 1
    loop._batches_that_stepped += 1
