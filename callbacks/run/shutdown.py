"""Ending a fit on purpose, by all ranks themselves, with last.ckpt saved."""

from pathlib import Path

import torch
from lightning import Trainer
from lightning.pytorch.utilities import rank_zero_info

from callbacks.run.lightning_internals import child_processes


def save_last(trainer: Trainer, path: str, why: str) -> None:
    """Save a checkpoint and log why; to be called by all ranks, between two optimizer steps."""
    trainer.save_checkpoint(path)
    rank_zero_info(f"{why}: saved {path} at optimizer step {trainer.global_step}")


def detach_launcher(trainer: Trainer) -> None:
    """Let every rank end by itself: Lightning's launcher would kill this process once a child had ended."""
    child_processes(trainer).clear()


def step_of(path: str) -> int | None:
    """Return the optimizer step that a checkpoint holds, without its tensors; None if there is none."""
    if not Path(path).exists():
        return None
    checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    return int(checkpoint["global_step"])
