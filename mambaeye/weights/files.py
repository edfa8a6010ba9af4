"""Published weights of any system, checkpoints of runs, and folders to pass on, in and out. Reading runs no code."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mambaeye.atomic import atomic_write
from mambaeye.checkpoints import MODEL, checkpoint_in, encoder_of, is_of_run, read_checkpoint
from mambaeye.encoders.base import Encoder
from mambaeye.encoders.mambaeye import MambaEye
from mambaeye.errors import InputError
from mambaeye.saved_values import shown
from mambaeye.weights.fitting import blank, build, load_matching, require_fit
from mambaeye.weights.published import published_in
from mambaeye.weights.tensor_files import read_content, read_tensors, save_safetensors, tensors_in

WEIGHTS, CONFIG = "model.safetensors", "config.json"
HUB = re.compile(r"hf://(?P<repo_id>[^/@]+/[^/@]+)(@(?P<revision>[^/]+))?/(?P<filename>.+)")
HEAD, HEAD_WEIGHT = "head.", "head.weight"
IN_CHECKPOINT = "encoder."  # what stands before the encoder's names in a module


def save(encoder: Encoder, folder: str | Path) -> None:
    """Write an encoder into a folder, made if need be: model.safetensors, and config.json, which says what it is.

    Each file is written beside and renamed: a kill leaves the old file or the new one.
    """
    save_safetensors(Path(folder) / WEIGHTS, encoder.state_dict())
    with atomic_write(Path(folder) / CONFIG) as partial:
        partial.write_text(json.dumps(encoder.description(), indent=1) + "\n")


def load(source: str | Path) -> Encoder:
    """Return the encoder that save wrote into a folder, or that a run's checkpoint holds, bit for bit, on the CPU.

    Raises:
        InputError: a file is missing, damaged or not what it should be, or weights and sizes do not fit each other.
    """
    source = Path(source)
    if source.is_file():
        checkpoint = read_checkpoint(source, "the checkpoint")
        description, state = encoder_of(checkpoint), encoder_tensors(checkpoint["state_dict"])
        where = str(source)
    else:
        description, state = read_description(source / CONFIG), read_tensors(source / WEIGHTS)
        where = str(source / WEIGHTS)
    require_fit(blank(description, state, where), state, where)
    encoder = build(description, where)
    encoder.to(state["head.weight"].dtype).load_state_dict(state)
    return encoder


def read_description(path: Path) -> dict[str, Any]:
    """Read a config.json: class_path and init_args of an encoder; or, as version 0.1 wrote it, a MambaEye's sizes.

    Raises:
        InputError: it is missing, or does not hold that.
    """
    try:
        content = json.loads(path.read_text())
        if isinstance(content, dict) and "class_path" not in content:
            content = {"class_path": MambaEye.class_path(), "init_args": content}
        if not isinstance(content, dict) or not isinstance(content.get("init_args"), dict):
            raise ValueError("class_path and init_args are missing")
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path} does not exist: give a folder that mambaeye.save wrote, or a checkpoint") from None
    except ValueError as error:
        raise InputError(f"{path} does not hold an encoder's sizes: {error}") from None
    return content


def require_own_sizes(checkpoint: Mapping[str, Any], where: str) -> None:
    """Check that a checkpoint's sizes are those of its own weights, before anything of these sizes is made.

    Raises:
        InputError: they are not.
    """
    state = encoder_tensors(checkpoint["state_dict"])
    require_fit(blank(checkpoint[MODEL]["encoder"], state, where), state, where)


def init_from(encoder: Encoder, source: str | Path, new_head: bool | None = False) -> bool:
    """Take the weights of a file; return whether the encoder's head stays as it is, a new one.

    Args:
        encoder: changed in place.
        source: a published file, a checkpoint of ours, a .safetensors file with our names, or
            hf://OWNER/REPOSITORY[@REVISION]/FILE for one of these on the Hugging Face hub.
        new_head: leave the encoder's own head as it is, whatever number of classes the file has; None for where that
            is another number.

    Raises:
        InputError: the file cannot be read as tensors, or does not fit; the encoder is left as it was.
    """
    where, path = str(source), local_path(str(source))
    content = read_content(path)
    tensors = tensors_in(content, path)
    published = encoder.from_published_for(tensors, where, encoder.settings)
    state = encoder_tensors(tensors) if published is None else published.tensors
    own = encoder.state_dict()
    if published is None and own.keys() != state.keys() and (found := published_in(tensors, where)):
        kind = found[0]
        raise InputError(
            f"{where} is laid out as {kind.published_as}, and the encoder is {type(encoder).__name__}: name its own "
            f"with --model.encoder {kind.__name__}"
        )
    if not own.keys() & state.keys():
        raise InputError(f"{where} holds weights of another program: {first_of(state)}")
    require_sizes(
        encoder, sizes_told(encoder, state, content, path) if published is None else published.settings, where
    )
    classes = len(state[HEAD_WEIGHT]) if HEAD_WEIGHT in state and state[HEAD_WEIGHT].ndim else encoder.num_classes
    if new_head is None:
        new_head = classes != encoder.num_classes
    if new_head:
        state = {name: tensor for name, tensor in state.items() if not name.startswith(HEAD)}
        state |= {name: tensor for name, tensor in own.items() if name.startswith(HEAD)}
    elif classes != encoder.num_classes:
        raise InputError(
            f"{where} has {classes} classes and the model {encoder.num_classes}: set --data.num_classes {classes}, or "
            "train a new head with --model.new_head true"
        )
    load_matching(encoder, state, where)
    return new_head


def sizes_told(encoder: Encoder, state: Mapping[str, Tensor], content: Any, path: Path) -> dict[str, Any]:
    """Return the sizes of the encoder that a file of ours is of: as it states them, or as shapes that differ tell."""
    guessed = encoder.settings_in(state) or {}
    if is_of_run(content):
        stated = encoder_of(checkpoint_in(content, str(path)))["init_args"]
    elif path.name == WEIGHTS and (path.parent / CONFIG).exists():
        stated = read_description(path.parent / CONFIG)["init_args"]
    else:  # several sizes have the same shapes: those that fit are the encoder's
        own = encoder.state_dict()
        shapes = {name: (tensor.shape, own[name].shape) for name, tensor in state.items() if name in own}
        differ = any(one != other for name, (one, other) in shapes.items() if not name.startswith(HEAD))
        return guessed if differ else {}
    return {name: stated[name] for name in guessed if name in stated}


def first_of(state: Mapping[str, Tensor]) -> str:
    """Return how a message names the tensors of a state dict, by its first."""
    return f"of its {len(state)} tensors none is the encoder's, the first is {shown(min(state))}" if state else "none"


def require_sizes(encoder: Encoder, told: Mapping[str, Any], where: str) -> None:
    """Check that an encoder has the sizes that a file's weights tell, but for the number of classes.

    Raises:
        InputError: it has others; the message names these.
    """
    other = {
        name: value
        for name, value in told.items()
        if name not in ("num_classes", "coordinates") and encoder.settings.get(name, value) != value
    }
    if other:
        theirs = " and ".join(f"{name} {value}" for name, value in other.items())
        ours = " and ".join(f"{name} {encoder.settings[name]}" for name in other)
        raise InputError(f"{where} has {theirs}, the config {ours}: leave that out, for weights bring their sizes")


def encoder_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the encoder's part of a checkpoint's state dict; of any other, all of it."""
    if not any(name.startswith(IN_CHECKPOINT) for name in tensors):
        return dict(tensors)
    return {
        name.removeprefix(IN_CHECKPOINT): tensor for name, tensor in tensors.items() if name.startswith(IN_CHECKPOINT)
    }


def local_path(source: str) -> Path:
    """Return where a file is, after fetching it if it is on the hub. Raises InputError as download does."""
    return download(source) if source.startswith("hf://") else Path(source)


def download(address: str) -> Path:
    """Return the local copy of hf://OWNER/REPOSITORY[@REVISION]/FILE, fetched through the hub's own cache.

    Raises:
        InputError: the address is not of that form, huggingface_hub is not installed, or there is no such file.
    """
    parts = HUB.fullmatch(address)
    if parts is None:
        raise InputError(f"{address} is not of the form hf://OWNER/REPOSITORY[@REVISION]/FILE")
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError
    except ImportError:
        raise InputError(f"{address} needs the Hugging Face client: pip install huggingface_hub") from None
    try:
        return Path(hf_hub_download(parts["repo_id"], parts["filename"], revision=parts["revision"]))
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError) as error:
        raise InputError(f"{address} cannot be had: {str(error).strip().splitlines()[0]}") from None
