"""The command that continues a run, said last when a fit ends before its time."""

import atexit
import shlex
import sys
from pathlib import Path

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from callbacks.run.directory import last_checkpoint


class Continuation(Callback):
    """Says after Ctrl-C, a signal or an error how the run goes on: in the last line, if there is a checkpoint."""

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if trainer.is_global_zero and trainer.state.fn == TrainerFn.FITTING:
            atexit.register(say_how_to_continue, trainer.default_root_dir)  # behind a traceback, too


def say_how_to_continue(run_dir: str) -> None:
    """Print the command that continues a run, if it has a checkpoint to go on from."""
    if Path(last_checkpoint(run_dir)).exists():
        print(f"continue with: {program()} fit --run_dir {shlex.quote(run_dir)} --ckpt_path last", file=sys.stderr)


def program() -> str:
    """Return how this program was called."""
    path = Path(sys.argv[0])
    return f"python {shlex.quote(str(path))}" if path.suffix == ".py" else path.name
