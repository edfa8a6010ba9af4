"""A run's checkpoint, read: what it says of itself; and one of version 0.1 in today's terms.

Reading one runs no code: tensors and plain containers alone are loaded, and classes that it names must be defined.
"""

from pathlib import Path
from typing import Any

from mambaeye.encoders.base import Encoder
from mambaeye.encoders.mambaeye import MambaEye
from mambaeye.errors import InputError
from mambaeye.plain_files import UnreadableError, load_plain
from mambaeye.policies.base import Policy

MODEL, DATA = "hyper_parameters", "datamodule_hyper_parameters"
ENTRIES = ("state_dict", MODEL, DATA, "global_step")
UNUSABLE = "is damaged or not a checkpoint of a MambaEye run"
GROUPS = ("train", "evaluate", "loader")
# version 0.1's flat arguments of the data module -> group and name
GROUPED = {
    "canvas": ("train", "canvas"),
    "length": ("train", "num_glimpses"),
    "inside": ("train", "inside_prob"),
    "augmentation": ("train", "augmentation"),
    "mixing": ("train", "mixing"),
    "shift": ("evaluate", "shift"),
    "batch_size": ("loader", "batch_size"),
    "micro_batch_size": ("loader", "micro_batch_size"),
    "num_workers": ("loader", "num_workers"),
    "tolerated": ("loader", "max_unreadable"),
    "timeout": ("loader", "timeout"),
}


def read_checkpoint(path: str | Path, what: str) -> dict[str, Any]:
    """Read a checkpoint of a run, today's or version 0.1's; its tensors are mapped from the file as they are needed.

    Args:
        path: of the file.
        what: names it in a message, such as the flag that gave it.

    Raises:
        InputError: the file is not there, or not a checkpoint of a MambaEye run.
    """
    try:
        content = load_plain(path, mmap=True)
    except FileNotFoundError:
        raise InputError(f"{what} {path} does not exist") from None
    except UnreadableError as error:
        raise InputError(f"{what} {path} {UNUSABLE}: {error}") from None
    return checkpoint_in(content, f"{what} {path}")


def checkpoint_in(content: Any, where: str) -> dict[str, Any]:
    """Return what a file holds as a checkpoint of a run, in today's terms.

    Raises:
        InputError: it is none; where names the file.
    """
    if not is_of_run(content):
        raise InputError(f"{where} {UNUSABLE}: it lacks one of {', '.join(ENTRIES)}")
    try:
        checkpoint = migrate(content)
        encoder_of(checkpoint)["class_path"]
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{where} {UNUSABLE}: its arguments are no run's ({error})") from None
    return checkpoint


def is_of_run(content: object) -> bool:
    """Tell whether what a file holds has the entries of a run's checkpoint, today's or version 0.1's."""
    return isinstance(content, dict) and all(name in content for name in ENTRIES)


def encoder_of(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return what builds a checkpoint's encoder again: class_path and init_args."""
    description: dict[str, Any] = checkpoint[MODEL]["encoder"]
    return description


def migrate(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return a checkpoint of version 0.1 in today's terms; any other as it is."""
    model, data = checkpoint.get(MODEL, {}), checkpoint.get(DATA, {})
    if "class_path" in model.get("encoder", {"class_path": ""}):
        return checkpoint
    checkpoint = dict(checkpoint)
    encoder = {"class_path": MambaEye.class_path(), "init_args": model["encoder"]}
    kept = {name: value for name, value in model.items() if not name.startswith("_")}
    checkpoint[MODEL] = kept | {"encoder": encoder, "policy": None}
    groups: dict[str, Any] = {group: {} for group in GROUPS}
    groups["evaluate"]["interpolation"] = "area"  # there was no other
    for name, value in data.items():
        if name == "validation_length":
            counts = [value] if isinstance(value, int) else list(value)
            most = max(counts)
            groups["evaluate"] |= {"num_glimpses": most, "report_at": [count for count in counts if count != most]}
        elif name in GROUPED:
            group, new = GROUPED[name]
            groups[group][new] = value
        else:
            groups[name] = value
    checkpoint[DATA] = groups
    # where the epoch was, once in the data module's state and once in the loader's
    places = [checkpoint.get("ShardDataModule", {})]
    places += checkpoint.get("loops", {}).get("fit_loop", {}).get("state_dict", {}).get("combined_loader", [])
    for place in places:
        if "legs" in place:
            place["segments"] = place.pop("legs")
    return checkpoint


def command_line_defaults(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments that a checkpoint was trained with, by their flags' names without dashes.

    Raises:
        InputError: it names an encoder or a policy that is not defined.
    """
    model, data = checkpoint[MODEL], dict(checkpoint[DATA])
    where = "the checkpoint"
    Encoder.defined(model["encoder"]["class_path"], where, "--model.encoder")
    if model["policy"] is not None:
        Policy.defined(model["policy"]["class_path"], where, "--model.policy")
    defaults = {"seed_everything": data.pop("seed")}
    for name, value in data.items():
        defaults |= flattened(f"data.{name}", value) if name in GROUPS else {f"data.{name}": value}
    for name, value in model.items():
        plain = isinstance(value, dict) and "class_path" not in value
        defaults |= flattened(f"model.{name}", value) if plain else {f"model.{name}": value}
    return {name: value for name, value in defaults.items() if not name.rpartition(".")[2].startswith("_")}


def flattened(prefix: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return a group's values by their full names."""
    return {f"{prefix}.{name}": value for name, value in values.items()}
