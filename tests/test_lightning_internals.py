"""Parts of Lightning that are not promised are where the project expects them: a failure here says what has moved."""

import signal
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.plugins.environments import LightningEnvironment
from packaging.requirements import Requirement
from packaging.version import Version

from callbacks.run import lightning_internals
from callbacks.run.lightning_internals import (
    child_processes,
    close_epoch,
    count_epochs_with_max_steps,
    disable_signal_handlers,
    epoch_has_ended,
    reopen_epoch,
    when_connected,
)

MOVED = f"Lightning {lightning.__version__} has moved it: adapt callbacks/run/lightning_internals.py"


def test_the_installed_lightning_is_one_that_the_project_allows() -> None:
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    requirements = {r.name: r.specifier for r in map(Requirement, project["dependencies"])}
    assert lightning.__version__ in requirements["lightning"]
    assert Version("2.7") not in requirements["lightning"], "2.7 may move what lightning_internals.py uses"
    assert Version(lightning.__version__) < Version("2.7")


def test_the_launcher_keeps_its_children_in_a_list_that_can_be_cleared() -> None:
    launcher = lightning_internals._SubprocessScriptLauncher(LightningEnvironment(), num_processes=2, num_nodes=1)
    assert launcher.procs == [], MOVED
    trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_checkpointing=False)
    trainer.strategy._configure_launcher()
    assert isinstance(trainer.strategy.launcher, lightning_internals._SubprocessScriptLauncher), MOVED
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    trainer.strategy.launcher.procs.append(child)
    assert child_processes(trainer) == [child], MOVED
    child_processes(trainer).clear()
    assert trainer.strategy.launcher.procs == [], MOVED


def test_a_single_process_has_no_children() -> None:
    trainer = Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    assert child_processes(trainer) == []


class HandlerInTraining(Callback):
    """Notes who handles SIGTERM while a fit goes on; disables Lightning's handlers if told to."""

    def __init__(self, disable: bool) -> None:
        self.disable, self.handler = disable, None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.disable:
            disable_signal_handlers(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.handler = signal.getsignal(signal.SIGTERM)


@pytest.fixture
def own_handler() -> Iterator[Any]:
    def handler(number: int, frame: object) -> None:
        """Do nothing."""

    before = signal.signal(signal.SIGTERM, handler)
    yield handler
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("disable", [True, False])
def test_signal_handlers_are_lightnings_unless_they_are_disabled(disable: bool, own_handler: Any) -> None:
    """Without the second half, the first would pass of a Lightning that registers no handlers, or elsewhere."""
    callback = HandlerInTraining(disable)
    trainer = Trainer(
        accelerator="cpu",
        max_steps=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=[callback],
    )
    trainer.fit(BoringModel(), torch.utils.data.DataLoader(torch.zeros(4, 32)))
    assert (callback.handler is own_handler) == disable, MOVED


def test_the_trainer_says_how_often_it_logs() -> None:
    assert Trainer(accelerator="cpu", logger=False, log_every_n_steps=7).log_every_n_steps == 7, MOVED


class InSetup(Callback):
    """Notes the epoch of every batch; changes how a run that is continued counts its epochs, or what it loads."""

    def __init__(self, count_epochs: bool = False, reopen: bool = False, close: bool = False) -> None:
        self.count_epochs, self.reopen, self.close, self.epochs, self.ended = count_epochs, reopen, close, [], []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self.count_epochs:
            count_epochs_with_max_steps(trainer)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.ended.append(epoch_has_ended(checkpoint))
        if self.reopen:
            reopen_epoch(trainer, checkpoint)
        if self.close:
            close_epoch(trainer, checkpoint)

    def on_train_batch_start(self, trainer: Trainer, *_: object) -> None:
        self.epochs.append(trainer.current_epoch)


def continued(place: Path, callback: InSetup, saver: Callback | None = None, **settings: Any) -> Trainer:
    """A fit of epochs of 4 batches, from a checkpoint if it is there."""
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=[callback, *([saver] if saver else [])],
        **settings,
    )
    data = torch.utils.data.DataLoader(torch.zeros(4, 32))
    trainer.fit(BoringModel(), data, ckpt_path=place if place.exists() else None, weights_only=True)
    return trainer


class SaveAtEpochEnd(Callback):
    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("count_epochs", [True, False])
def test_an_epoch_that_has_ended_counts_once_with_max_steps(count_epochs: bool, tmp_path: Path) -> None:
    """Without the second half, the first would pass of a Lightning that does so by itself, and need not be told."""
    place, callback = tmp_path / "place.ckpt", InSetup(count_epochs)
    continued(place, InSetup(), SaveAtEpochEnd(place), max_epochs=1)
    continued(place, callback, max_epochs=3, max_steps=12)
    assert callback.ended == [True], MOVED
    assert (callback.epochs == [1, 1, 1, 1, 2, 2, 2, 2]) == count_epochs, MOVED


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.parametrize("stop", [{"max_steps": 6}, {"max_epochs": 2, "limit_train_batches": 2}], ids=str)
def test_an_epoch_that_was_stopped_goes_on_when_it_is_reopened(stop: dict[str, int], tmp_path: Path) -> None:
    place, callback = tmp_path / "place.ckpt", InSetup(reopen=True)
    continued(place, InSetup(), SaveAtEpochEnd(place), **stop)
    trainer = continued(place, callback, max_epochs=3)
    assert callback.epochs == [1, 1, 2, 2, 2, 2], MOVED
    assert trainer.fit_loop.epoch_loop._batches_that_stepped == trainer.global_step, MOVED  # what loggers count by


class Order(Callback):
    """Notes what came when."""

    def __init__(self, came: list[str]) -> None:
        self.came = came

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.came.append("callbacks")


class Logger(DummyLogger):
    """Notes when it is asked for the first time for what it writes to."""

    def __init__(self, came: list[str]) -> None:
        super().__init__()
        self.came = came

    @property
    def experiment(self) -> object:
        self.came.append("logger")
        return super().experiment


def test_something_can_be_done_before_loggers_and_callbacks_are_set_up() -> None:
    came: list[str] = []
    trainer = Trainer(accelerator="cpu", fast_dev_run=1, callbacks=[Order(came)], enable_progress_bar=False)
    trainer.loggers = [Logger(came)]
    when_connected(trainer, lambda: came.append("connected"))
    trainer.fit(BoringModel())
    assert list(dict.fromkeys(came)) == ["connected", "logger", "callbacks"], MOVED


class SaveAfterTwoBatches(Callback):
    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *arguments: Any) -> None:
        if arguments[-1] == 1:
            trainer.save_checkpoint(self.path)


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.parametrize("close", [True, False])
def test_an_epoch_without_batches_within_a_limit_is_over_when_it_is_closed(close: bool, tmp_path: Path) -> None:
    """Without the second half, the first would pass of a Lightning that does so by itself."""
    place, callback = tmp_path / "place.ckpt", InSetup(close=close)
    continued(place, InSetup(), SaveAfterTwoBatches(place), max_epochs=1)
    trainer = continued(place, callback, max_epochs=2, limit_train_batches=1)
    assert (callback.epochs == [1]) == close, MOVED
    assert not close or trainer.fit_loop.epoch_loop._batches_that_stepped == trainer.global_step == 3, MOVED
