"""A run's checkpoint, read: what it says of itself; and one of version 0.1 in today's terms.

Reading one runs no code: tensors and plain containers alone are loaded, and classes that it names must be defined.
"""

from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from packaging.version import Version

from mambaeye.configurable import Configurable
from mambaeye.encoders.base import Encoder
from mambaeye.encoders.mambaeye import MambaEye
from mambaeye.errors import InputError
from mambaeye.plain_files import UnreadableError, load_plain, require_checksums
from mambaeye.policies.base import Policy
from mambaeye.saved_limits import excesses
from mambaeye.saved_values import misfits, shown, types_of

MODEL, DATA = "hyper_parameters", "datamodule_hyper_parameters"
ENTRIES = ("state_dict", MODEL, DATA, "global_step")
UNUSABLE = "is damaged or not a checkpoint of a MambaEye run"
GROUPS = ("train", "evaluate", "loader")
# the arguments that a checkpoint gives: no source, no folder, nothing that is run
GIVEN = (
    *("model.encoder", "model.policy", "model.optimizer", "model.schedule", "model.metrics"),
    *("model.head_only", "model.balanced", "model.policy_learning"),
    *("data.num_classes", "data.patch_size", "data.train_scan", "data.resolutions", "data.scans", "data.seed"),
    *("data.held_out", "data.tube", "data.frames", "data.channels", "data.bits", "data.levels"),
    *(f"data.{group}" for group in GROUPS),
)
SHARED = ("num_classes", "patch_size", "tube", "channels")  # arguments of the encoder that are stated for the data
BASES: dict[str, type[Configurable]] = {"model.encoder": Encoder, "model.policy": Policy}
# places that it remembers, for messages alone
SHARDS = ("data.folder", "data.train_shards", "data.val_shards", "data.train_index", "data.val_index")
PLACES = (*SHARDS, "data.data_dir")
LIMITS = ("data.loader.max_pixels",)  # that a file may lower but not raise
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


@dataclass(frozen=True)
class Description:
    """Description that builds an encoder or a policy again."""

    class_path: str
    """Import path of its class."""
    init_args: Any
    """Arguments of its constructor: numbers and names."""


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


def require_undamaged(path: str | Path) -> None:
    """Require that a checkpoint is as it was written.

    Raises:
        InputError: it is not.
    """
    try:
        require_checksums(path)
    except UnreadableError as error:
        raise InputError(f"the checkpoint {path} is damaged: {error}") from None


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
        require_summary(checkpoint)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{where} {UNUSABLE}: its arguments are no run's ({error})") from None
    return checkpoint


def require_summary(checkpoint: dict[str, Any]) -> None:
    """Require that what is printed of a checkpoint is what it should be.

    Raises:
        TypeError, ValueError: it is something else.
    """
    classes = checkpoint.get("classes", [])
    if type(checkpoint["global_step"]) is not int or not isinstance(checkpoint[DATA], dict):
        raise TypeError("global_step or the data's arguments are of another type")
    Version(checkpoint["pytorch-lightning_version"])
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes):
        raise TypeError("a class name is not text")


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


def command_line_defaults(checkpoint: dict[str, Any], model: type, data: type) -> dict[str, Any]:
    """Return the arguments that a checkpoint gives, by their flags' names without dashes: sizes, numbers and names.

    Args:
        checkpoint: of a run, in today's terms.
        model: class of the LightningModule, whose constructor's types the values must have.
        data: class of the data module, likewise.

    Raises:
        InputError: it names an encoder or a policy that is not defined, no argument, or a value of another type.
    """
    types = flattened("model", types_of(model)) | flattened("data", types_of(data))
    types |= dict.fromkeys(BASES, Description | None)
    defaults: dict[str, Any] = {}
    for name, value in arguments_of(checkpoint).items():
        if name in PLACES or name.rpartition(".")[2].startswith("_"):
            continue
        wrong = misfits(name, value, types[name]) if name in GIVEN else [(name, value)]
        for place, found in wrong:
            raise InputError(
                f"the checkpoint is damaged, or of another version: its {shown(place)} cannot be {shown(found)}"
            )
        if name in BASES and value is not None:
            BASES[name].defined(value.get("class_path"), "the checkpoint", f"--{name}")
        grouped = is_dataclass(types[name])
        defaults |= flattened(name, value) if grouped else {name.replace("data.seed", "seed_everything"): value}
    for name, value in excesses(defaults):
        raise InputError(f"the checkpoint's {name} is {shown(value)}, which is more than a file may give")
    for name, value in encoder_of(checkpoint)["init_args"].items():
        if name in SHARED and defaults.get(f"data.{name}", value) != value:
            told = f"its data.{name} is {defaults[f'data.{name}']}, and its encoder's {name} {shown(value)}"
            raise InputError(f"the checkpoint is damaged: {told}")
    return {name: value for name, value in defaults.items() if name not in lowered(defaults, types)}


def unsaid(checkpoint: dict[str, Any], model: type, data: type) -> list[str]:
    """Return the arguments that a checkpoint of another version lacks, by their flags' names: their defaults hold.

    Args:
        checkpoint: of a run, in today's terms.
        model: class of the LightningModule.
        data: class of the data module.
    """
    types = flattened("model", types_of(model)) | flattened("data", types_of(data))
    arguments = arguments_of(checkpoint)
    missing = []
    for name in GIVEN:
        if name not in arguments:
            missing.append(name)
        elif isinstance(arguments[name], dict) and is_dataclass(types[name]):
            missing += [f"{name}.{field.name}" for field in fields(types[name]) if field.name not in arguments[name]]
    return missing


def lowered(values: dict[str, Any], types: dict[str, Any]) -> list[str]:
    """Return the limits that a file raises above the default, which only a flag or a config may do."""
    names = [name.rpartition(".")[::2] for name in LIMITS]
    return [
        f"{group}.{name}" for group, name in names if values.get(f"{group}.{name}", 0) > getattr(types[group], name)
    ]


def remembered(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return what a checkpoint says and does not give, by their flags' names: shards, and the limit of pixels."""
    arguments = arguments_of(checkpoint)
    limits = {name: arguments.get(group, {}).get(last) for name in LIMITS for group, _, last in [name.rpartition(".")]}
    return {name: arguments.get(name) for name in SHARDS} | {name: most for name, most in limits.items() if most}


def arguments_of(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return all arguments that a checkpoint holds, by their flags' names without dashes, whatever they are."""
    return flattened("model", checkpoint[MODEL]) | flattened("data", checkpoint[DATA])


def flattened(prefix: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return a group's values by their full names."""
    return {f"{prefix}.{name}": value for name, value in values.items()}
