"""One fit, and one predict, in a run directory at a time."""

from pathlib import Path

from lightning import Callback, LightningModule, Trainer

from callbacks.run.directory import checkpoint_dir, find_checkpoint
from callbacks.run.lightning_internals import when_connected
from mambaeye.errors import on_all_ranks
from mambaeye.locks import WriterLock


class OneWriter(Callback):
    """Holds <run directory>/fit.lock (or predict.lock) from before anything is written there to the end.

    The first process holds it. If another run does, all processes of this one learn so and end. What a fit that was
    killed left half written is removed.

    Args:
        trainer: that will fit or predict; this becomes one of its callbacks.
        command: fit or predict.
        ckpt_path: of the checkpoint that it goes on from, if there was one when it began.
    """

    def __init__(self, trainer: Trainer, command: str, ckpt_path: str | None) -> None:
        self.command, self.run_dir, self.ckpt_path = command, trainer.default_root_dir, ckpt_path
        busy = f"another {command} is writing to {self.run_dir}", "wait for it to end, or choose another --run_dir"
        self.lock = WriterLock(Path(self.run_dir) / f"{command}.lock", busy)
        trainer.callbacks.append(self)  # type: ignore[attr-defined]  # which Lightning declares nowhere
        when_connected(trainer, lambda: self._begin(trainer))  # no hook of a callback is before its loggers

    def _begin(self, trainer: Trainer) -> None:
        with on_all_ranks():
            if not trainer.is_global_zero:
                return
            self.lock.acquire()
            if self.command == "fit":
                find_checkpoint("fit", self.run_dir, self.ckpt_path, has_weights=False)  # still none
                for left in Path(checkpoint_dir(self.run_dir)).glob(".*.partial"):
                    left.unlink(missing_ok=True)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.lock.release()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.lock.release()
