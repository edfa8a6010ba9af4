"""A run's directory: what is where in it, which one a command means, and whether it can be used."""

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from mambaeye.checkpoints import read_checkpoint
from mambaeye.errors import InputError

RUNS = Path("runs")


def checkpoint_dir(run_dir: str | None) -> str:
    """Return where a run keeps its checkpoints."""
    return str(Path(run_dir or RUNS) / "checkpoints")


def last_checkpoint(run_dir: str | None) -> str:
    """Return what --ckpt_path last means."""
    return str(Path(checkpoint_dir(run_dir)) / "last.ckpt")


def default_run_dir(configs: Sequence[object], ckpt_path: str | None) -> str:
    """Return where a run is without --run_dir: runs/<names of the config files>, or where its checkpoint lies.

    Args:
        configs: paths of the --config files; runs/imagenet-small is that of configs/imagenet.yaml and
            configs/encoders/small.yaml.
        ckpt_path: of the checkpoint, if one is given.
    """
    if configs:
        return str(RUNS / "-".join(Path(str(config)).stem for config in configs))
    if ckpt_path and Path(ckpt_path).parent.name == "checkpoints":
        return str(Path(ckpt_path).parent.parent)
    return str(RUNS / "default")


def find_checkpoint(command: str, run_dir: str, ckpt_path: str | None, has_weights: bool) -> str | None:
    """Return the checkpoint that a command goes on from; None to start afresh, or from other weights.

    Args:
        command: fit, validate, test, predict or calibrate.
        run_dir: of the run.
        ckpt_path: as asked for: a path, last, or None.
        has_weights: whether weights come from elsewhere.

    Raises:
        InputError: the command needs a checkpoint and there is none, or a new run would overwrite another.
    """
    last = last_checkpoint(run_dir)
    if ckpt_path == "":
        raise InputError("--ckpt_path is empty: give last, or the path of a checkpoint")
    if ckpt_path == "last":
        ckpt_path = last if os.path.exists(last) else None
        if ckpt_path is None and command == "fit":
            print_rank_zero(f"{last} does not exist: starting afresh")
    elif ckpt_path is None and command == "fit" and os.path.exists(last):
        raise InputError(
            f"{run_dir} already holds a run: continue it with --ckpt_path last, or choose another --run_dir"
        )
    if ckpt_path is None and command == "calibrate":
        raise InputError(f"calibrate has no checkpoint ({last} may be one): give it with --ckpt_path")
    if ckpt_path is None and command != "fit" and not has_weights:
        raise InputError(
            f"{command} has no weights ({last} may be some): give --ckpt_path a checkpoint, or --model.init_from"
        )
    return ckpt_path


def read_usable(path: str) -> dict[str, Any]:
    """Read the checkpoint that --ckpt_path means.

    Raises:
        InputError: it is missing, damaged or not a run's; the message offers the newest other one in its folder.
    """
    try:
        return read_checkpoint(path, "--ckpt_path")
    except InputError as error:
        steps = {}
        for other in sorted(Path(path).parent.glob("*.ckpt")):
            with suppress(InputError):
                steps[str(other)] = read_checkpoint(other, "")["global_step"]
        if not steps:
            raise
        newest = max(steps, key=steps.__getitem__)
        offer = f"the newest undamaged one beside it is --ckpt_path {newest}, saved after {steps[newest]} steps"
        raise InputError(f"{error}; {offer}") from None


def make_run_dir(run_dir: str) -> bool:
    """Make a run's directory, and return whether it was not there before.

    Raises:
        InputError: it cannot be made, or written to.
    """
    new = not os.path.exists(run_dir)
    try:
        Path(run_dir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{run_dir} cannot be made ({error.strerror}): choose another --run_dir") from None
    if not os.access(run_dir, os.W_OK):
        raise InputError(f"{run_dir} cannot be written to: choose another --run_dir")
    return new


@rank_zero_only
def forget_failed_start(run_dir: str) -> None:
    """Remove the directory of a run that ended before it began: one of a config and logs without a step in them.

    Whatever else there is says that it began, and then everything stays.
    """
    files = [path for path in Path(run_dir).rglob("*") if not path.is_dir()]
    if all(path.suffix == ".yaml" or path.name.startswith("events.out.tfevents.") for path in files):
        with suppress(OSError):  # what another run is writing meanwhile is left to it
            for path in [*sorted(Path(run_dir).rglob("*"), reverse=True), Path(run_dir)]:
                path.rmdir() if path.is_dir() else path.unlink()


@rank_zero_only
def print_rank_zero(text: str) -> None:
    """Print it once a run."""
    print(text, flush=True)
