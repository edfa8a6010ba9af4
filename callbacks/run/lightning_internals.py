"""All that the project uses of Lightning and Lightning does not promise to keep, in one file.

tests/test_lightning_internals.py fails when Lightning moves it; pyproject.toml bounds Lightning's version for this.
"""

import subprocess

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
