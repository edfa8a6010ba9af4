"""All that the project uses of Lightning and Lightning does not promise to keep, in one file.

tests/test_lightning_internals.py fails when Lightning moves it; pyproject.toml bounds Lightning's version for this.
"""

import subprocess
from collections.abc import Callable, Iterator
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


def port_of_children(trainer: Trainer) -> int | None:
    """Return the port at which processes that this one is about to start will meet it; None if it starts none."""
    launcher = trainer.strategy.launcher
    if not isinstance(launcher, _SubprocessScriptLauncher):
        return None
    environment = launcher.cluster_environment
    if environment.creates_processes_externally or environment.node_rank() != 0:  # as for one that was started itself
        return None
    return environment.main_port


def disable_signal_handlers(trainer: Trainer) -> None:
    """Keep Lightning from registering handlers for SIGTERM and SIGUSR1; to be called in setup or before.

    In a fit, its handlers talk to the other ranks wherever they happen to be, requeue before all have saved, and end
    validations; in other commands they only note a signal that should end them. There is no flag to turn them off.
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


def epoch_had_last_batch(checkpoint: dict[str, Any]) -> bool:
    """Return whether a checkpoint was saved after what Lightning took for an epoch's last batch."""
    return bool(checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"])


def epoch_has_begun(checkpoint: dict[str, Any]) -> bool:
    """Return whether a checkpoint was saved after a batch of an epoch, its last one or another."""
    return bool(checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["ready"])


def reopen_epoch(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Turn a checkpoint of an epoch's end, or of its last validation, into one of a batch with others after it."""
    stepped, on_restart = batches_that_stepped(trainer, checkpoint)
    loops = checkpoint["loops"]["fit_loop"]
    for epochs in loops["epoch_progress"].values():  # of this run and in total, here and below
        epochs["processed"] = epochs["completed"] = epochs["started"] - 1
    batches = loops["epoch_loop.batch_progress"]
    batches["is_last_batch"] = False
    for count in (batches["current"], batches["total"]):
        count["completed"] = count["processed"] - 1
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] = stepped - on_restart


def close_epoch(trainer: Trainer, checkpoint: dict[str, Any]) -> None:
    """Turn a checkpoint of a batch into one of its epoch's end."""
    stepped, _ = batches_that_stepped(trainer, checkpoint)
    loops = checkpoint["loops"]["fit_loop"]
    for epochs in loops["epoch_progress"].values():
        epochs["processed"] = epochs["started"]
    batches = loops["epoch_loop.batch_progress"]
    batches["is_last_batch"] = True
    for count in (batches["current"], batches["total"]):
        count["completed"] = count["processed"]
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] = stepped


def batches_that_stepped(trainer: Trainer, checkpoint: dict[str, Any]) -> tuple[int, bool]:
    """Return a checkpoint's batches that an optimizer step came after, and whether Lightning will yet count the last.

    It counts a batch after its validation, and one that ends an accumulation when a run is continued from it.
    """
    loops = checkpoint["loops"]["fit_loop"]
    counted: int = loops["epoch_loop.state_dict"]["_batches_that_stepped"]
    accumulated = loops["epoch_loop.batch_progress"]["current"]["ready"] % trainer.accumulate_grad_batches == 0
    if not epoch_has_ended(checkpoint) and (accumulated or epoch_had_last_batch(checkpoint)):
        counted += 1
    return counted, accumulated


def when_connected(trainer: Trainer, act: Callable[[], None]) -> None:
    """Call something once the ranks can talk, and before loggers, callbacks and the data are set up."""
    connect = trainer.strategy.setup_environment

    def connect_and_act() -> None:
        connect()
        act()

    trainer.strategy.setup_environment = connect_and_act  # type: ignore[method-assign]


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
