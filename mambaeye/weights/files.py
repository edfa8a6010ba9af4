"""Published weights of any system, checkpoints of runs, and folders to pass on, in and out. Reading runs no code."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from mambaeye.atomic import atomic_write
from mambaeye.checkpoints import encoder_of, read_checkpoint
from mambaeye.encoders.base import Encoder, PublishedWeights
from mambaeye.encoders.mambaeye import MambaEye
from mambaeye.errors import InputError
from mambaeye.weights.tensor_files import read_tensors, save_safetensors

SHOWN_DIFFERENCES = 8
WEIGHTS, CONFIG = "model.safetensors", "config.json"
HUB = re.compile(r"hf://(?P<repo_id>[^/@]+/[^/@]+)(@(?P<revision>[^/]+))?/(?P<filename>.+)")
HEAD = "head."
IN_CHECKPOINT = "encoder."  # what stands before the encoder's names in a module


class Difference(NamedTuple):
    """A tensor of a state dict that is not as an encoder has it."""

    name: str
    found: tuple[int, ...] | None
    """Its shape; None where it is missing."""
    expected: tuple[int, ...] | None
    """The encoder's; None where the encoder has no such tensor."""

    def __str__(self) -> str:
        if self.found is None:
            return f"{self.name} is missing"
        if self.expected is None:
            return f"{self.name} is unknown"
        return f"{self.name} is {self.found}, not {self.expected}"


def load_published(source: str | Path | Mapping[str, Tensor]) -> Encoder:
    """Return an encoder with the weights that the authors of a system published, of the sizes that the shapes tell.

    Args:
        source: path of a file such as mambaeye_tiny.pt, or its state dict.

    Returns:
        The encoder, on the CPU, in float32.

    Raises:
        InputError: the file cannot be read as plain tensors, or its keys or shapes are no known system's.
    """
    where = "the state dict" if isinstance(source, Mapping) else str(source)
    tensors = source if isinstance(source, Mapping) else read_tensors(Path(source))
    found = published_in(tensors, where)
    if found is None:
        known = "such as mambaeye_tiny.pt's"
        raise InputError(f"{where} has the layout of no published system that is known here, {known}")
    system, published = found
    encoder = system(**published.settings)
    load_matching(encoder, published.tensors, where)
    return encoder


def published_in(tensors: Mapping[str, Tensor], where: str) -> tuple[type[Encoder], PublishedWeights] | None:
    """Return which system's authors lay out their weights like this, and these in our terms; None if nobody does.

    Raises:
        InputError: somebody does, and something is wrong with them; where names the file.
    """
    for system in Encoder.defined_subclasses():
        if (published := system.from_published(tensors, where)) is not None:
            return system, published
    return None


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
    encoder = build(description, where)
    require_fit(encoder, state, where)
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


def build(description: Mapping[str, Any], where: str) -> Encoder:
    """Return a new encoder of the class and with the arguments that a file says.

    Raises:
        InputError: the class is not defined, or does not take these arguments; where names the file.
    """
    system = Encoder.defined(description["class_path"], where, "--model.encoder")
    try:
        return system(**description["init_args"])
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{where} does not hold an encoder's sizes: {error}") from None


def init_from(encoder: Encoder, source: str | Path, new_head: bool = False) -> None:
    """Take the weights of a file.

    Args:
        encoder: changed in place.
        source: a published file, a checkpoint of ours, a .safetensors file with our names, or
            hf://OWNER/REPOSITORY[@REVISION]/FILE for one of these on the Hugging Face hub.
        new_head: leave the encoder's own head as it is, whatever number of classes the file has.

    Raises:
        InputError: the file cannot be read as tensors, or does not fit; the encoder is left as it was.
    """
    where = str(source)
    tensors = read_tensors(local_path(where))
    published = encoder.from_published(tensors, where)
    state = encoder_tensors(tensors) if published is None else published.tensors
    if new_head:
        own = {name: tensor for name, tensor in encoder.state_dict().items() if name.startswith(HEAD)}
        state = {name: tensor for name, tensor in state.items() if not name.startswith(HEAD)} | own
    load_matching(encoder, state, where)


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


def load_matching(model: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Load a state dict whose keys and shapes are the model's own; otherwise say which differ and change nothing."""
    require_fit(model, state, where)
    model.load_state_dict(state)


def require_fit(model: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Check that a state dict has the model's own keys and shapes.

    Raises:
        InputError: it has not; the message lists the differences.
    """
    if different := differences(model, state):
        shown = "; ".join(str(difference) for difference in different[:SHOWN_DIFFERENCES])
        more = f"; and {len(different) - SHOWN_DIFFERENCES} more" if len(different) > SHOWN_DIFFERENCES else ""
        raise InputError(f"{where} does not fit this encoder: {shown}{more}")


def differences(model: nn.Module, state: Mapping[str, Tensor]) -> list[Difference]:
    """Return where a state dict has other keys or shapes than a model: missing ones, unknown ones, other shapes."""
    own = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    return [
        *(Difference(name, None, shape) for name, shape in own.items() if name not in found),
        *(Difference(name, shape, None) for name, shape in found.items() if name not in own),
        *(
            Difference(name, found[name], shape)
            for name, shape in own.items()
            if name in found and found[name] != shape
        ),
    ]
