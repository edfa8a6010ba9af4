"""Values that parse and cannot be: of the trainer, the seed, the run directory; ours are checked where they are."""

import os

import torch
from jsonargparse import Namespace

from mambaeye.errors import InputError

LARGEST_SEED = 2**32 - 1  # of numpy's generators
CROWD = 4  # processes a core, more than which only wait for each other


def refuse_values(asked: Namespace) -> None:
    """Refuse what would fail later, without its flag's name, or never end.

    Raises:
        InputError: there is such a value.
    """
    seed, clip = asked.seed_everything, asked.trainer.gradient_clip_val
    if not isinstance(seed, bool) and not 0 <= seed <= LARGEST_SEED:
        raise InputError(f"seed_everything is {seed}: give an integer from 0 to {LARGEST_SEED}")
    if asked.run_dir is not None and not asked.run_dir.strip():
        raise InputError("run_dir is empty: give --run_dir a folder, or leave it out")
    if clip is not None and not clip >= 0:
        raise InputError(f"trainer.gradient_clip_val is {clip:g}: give a number above 0, or null for no clipping")


def refuse_devices(accelerator: object, devices: object) -> None:
    """Refuse a GPU that is not there, more GPUs than there are, and far more processes than cores.

    Raises:
        InputError: one is asked for.
    """
    count = int(devices) if isinstance(devices, int) or (isinstance(devices, str) and devices.isdigit()) else 0
    gpus = torch.cuda.device_count()
    if accelerator in ("gpu", "cuda") and not gpus:
        if accelerator == "gpu" and torch.backends.mps.is_available():
            return
        raise InputError(
            f"trainer.accelerator is {accelerator}, and there is no GPU here: give --trainer.accelerator cpu "
            f"--trainer.devices 1, or start it where there is one"
        )
    on_gpus = gpus > 0 and accelerator in ("gpu", "cuda", "auto")
    if on_gpus and count > gpus:
        raise InputError(
            f"trainer.devices is {count}, and there are {gpus} GPUs here: give at most --trainer.devices {gpus}"
        )
    cores = os.cpu_count() or 1
    if not on_gpus and accelerator in ("cpu", "auto") and count > CROWD * cores:
        raise InputError(
            f"trainer.devices is {count} processes, and there are {cores} cores here: give --trainer.devices {cores}"
        )
