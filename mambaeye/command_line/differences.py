"""Differences between a checkpoint and what flags and configs say, and what they must say for it."""

from typing import Any

from jsonargparse import Namespace

from mambaeye.errors import InputError
from mambaeye.saved_values import shown

# numbers that two sides need are stated once: where the encoder gets them from
LINKS = {
    "data.num_classes": "model.encoder.init_args.num_classes",
    "data.patch_size": "model.encoder.init_args.patch_size",
    "data.tube": "model.encoder.init_args.tube",
    "data.channels": "model.encoder.init_args.channels",
}
FOLDER = "data.folder"
SCANS = ("data.scans", "data.train_scan")
# the shards that a command reads, and what it does there
READS = {
    "fit": {"data.train_shards": "trained", "data.val_shards": "validated"},
    "validate": {"data.val_shards": "validated"},
    "test": {"data.val_shards": "validated"},
    "predict": {},
    "calibrate": {"data.train_shards": "trained"},
}


def refuse_foreign_scans(saved: dict[str, Any], asked: Namespace) -> None:
    """Refuse scans that a checkpoint names by import path, unless flags or a config do: a file must not import code.

    Raises:
        InputError: it names one.
    """
    for name in SCANS:
        value = saved.get(name, ())
        scans = [value] if isinstance(value, str) else [*value]  # of shares by scan, the scans
        foreign = [scan for scan in scans if "." in scan and scan not in asked[name]]
        if foreign:
            del saved[name]
            raise InputError(
                f"the checkpoint's {name} is {foreign[0]}, code outside the project: give it with --{name}"
            )


def require_shards(command: str, shards: dict[str, Any], asked: Namespace) -> None:
    """Require that flags or a config say where shards are, if a checkpoint's run had others than the embedded digits.

    Raises:
        InputError: they do not.
    """
    if asked.data.folder is not None:
        return
    read = {name: did for name, did in READS[command].items() if asked[name] is None}
    if read and shards[FOLDER] is not None:
        missing = {FOLDER: f"{' and '.join(read.values())} on {shown(shards[FOLDER])}"}
    else:
        missing = {name: f"{did} on {shown(shards[name])}" for name, did in read.items() if shards[name] is not None}
    if missing:
        raise InputError(
            f"the checkpoint was {' and '.join(missing.values())}, and a file does not say what is read: "
            f"give --{' and --'.join(missing)}, or the run's --config"
        )


def differing(name: str, was: Any, now: Any) -> list[str]:
    """Return a line for every plain value at or below an argument that is another one now, old and new side by side."""
    before, after = leaves(name, was), leaves(name, now)
    return [
        f"  {key.replace('.init_args', '')}: {shown(before[key])} -> {shown(after[key])}"
        for key in before.keys() & after.keys() - set(LINKS.values())
        if before[key] != after[key]
    ]


def leaves(name: str, value: Any) -> dict[str, Any]:
    """Return the plain values below an argument, by their full names, however they were written down or parsed."""
    if isinstance(value, Namespace):
        value = value.as_dict()
    if isinstance(value, dict):
        return {key: leaf for inner in value for key, leaf in leaves(f"{name}.{inner}", value[inner]).items()}
    if name.endswith(".class_path"):  # the same class may go by several paths
        value = value.rpartition(".")[2]
    return {name: list(value) if isinstance(value, tuple) else value}
