"""How all ranks end a fit on purpose, by themselves, with last.ckpt saved."""

from lightning import Trainer
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher
from lightning.pytorch.utilities import rank_zero_info


def save_last(trainer: Trainer, path: str, why: str) -> None:
    """Save a checkpoint and say so; to be called by all ranks, between two optimizer steps."""
    trainer.save_checkpoint(path)
    rank_zero_info(f"{why}: saved {path} at optimizer step {trainer.global_step}")


def detach_launcher(trainer: Trainer) -> None:
    """Every rank is about to end. Lightning's launcher would kill this process once a child had, with an error code."""
    launcher = trainer.strategy.launcher
    if isinstance(launcher, _SubprocessScriptLauncher):
        launcher.procs.clear()
