"""Weights in files: the authors' published ones, checkpoints of ours, and safetensors to pass on."""

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mambaeye.encoders.mambaeye import EncoderConfig, MambaEye
from mambaeye.errors import InputError

# published name -> ours; below a block the names agree
PREFIXES = {
    "init_fc.0.": "projection.",
    "mamba2_net.layers.": "blocks.",
    "mamba2_net.norm_f.": "norm.",
    "classification_head.0.": "head.",
}
MOVE_EMBEDDING_DIM = 256
SHOWN_DIFFERENCES = 8
WEIGHTS, CONFIG = "model.safetensors", "config.json"
HUB = re.compile(r"hf://(?P<repo_id>[^/@]+/[^/@]+)(@(?P<revision>[^/]+))?/(?P<filename>.+)")
HEAD = "head."


def load_published(source: str | Path | Mapping[str, Tensor]) -> MambaEye:
    """A MambaEye with the authors' weights, of the sizes that the shapes tell.

    Args:
        source: path of a mambaeye_*.pt file, or its state dict.

    Returns:
        The encoder, on the CPU, in float32.

    Raises:
        InputError: the file cannot be read as plain tensors, or its keys or shapes are not a MambaEye's.
    """
    where = "the state dict" if isinstance(source, Mapping) else str(source)
    state = from_published(source if isinstance(source, Mapping) else read_tensors(Path(source)), where)
    model = MambaEye(sizes(state, where))
    load_matching(model, state, where)
    return model


def from_published(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """The published names -> ours; where is for messages."""
    state = {}
    for name, tensor in tensors.items():
        prefix = next((p for p in PREFIXES if name.startswith(p)), None)
        if prefix is None:
            raise InputError(f"{where} has a key {name!r} that no published MambaEye has")
        state[PREFIXES[prefix] + name.removeprefix(prefix)] = tensor
    return state


def save(model: MambaEye, folder: str | Path) -> None:
    """Write an encoder into a folder, made if need be: model.safetensors, and config.json, its EncoderConfig.

    Each file is written beside and renamed: a kill leaves the old file or the new one.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    partial = folder / f"{WEIGHTS}.partial"
    save_file(tensors, partial)
    os.replace(partial, folder / WEIGHTS)
    partial = folder / f"{CONFIG}.partial"
    partial.write_text(json.dumps(asdict(model.config), indent=1) + "\n")
    os.replace(partial, folder / CONFIG)


def load(folder: str | Path) -> MambaEye:
    """The encoder that save wrote into a folder, bit for bit, on the CPU and in the dtype that it had.

    Raises:
        InputError: a file is missing, damaged or not what save writes, or the two do not fit each other.
    """
    path = Path(folder) / CONFIG
    try:
        config = EncoderConfig(**json.loads(path.read_text()))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: give a folder that mambaeye.weights.save wrote") from None
    except (ValueError, TypeError) as error:
        raise InputError(f"{path} does not hold an encoder's sizes: {error}") from None
    state = read_tensors(Path(folder) / WEIGHTS)
    model = MambaEye(config)
    require_fit(model, state, str(Path(folder) / WEIGHTS))
    model.to(state["head.weight"].dtype).load_state_dict(state)
    return model


def init_from(model: MambaEye, source: str | Path, new_head: bool = False) -> None:
    """Take the weights of a file.

    Args:
        model: changed in place.
        source: a published .pt file, a checkpoint of ours, a .safetensors file with our names, or
            hf://OWNER/REPOSITORY[@REVISION]/FILE for one of these on the Hugging Face hub.
        new_head: leave the model's own head as it is, whatever number of classes the file has.

    Raises:
        InputError: the file cannot be read as tensors, or does not fit; the model is left as it was.
    """
    where = str(source)
    tensors = read_tensors(download(where) if where.startswith("hf://") else Path(source))
    if all(name.startswith("encoder.") for name in tensors):  # a checkpoint of ours
        state = {name.removeprefix("encoder."): tensor for name, tensor in tensors.items()}
    elif any(name.startswith(tuple(PREFIXES)) for name in tensors):
        state = from_published(tensors, where)
    else:
        state = tensors
    if new_head:
        own = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(HEAD)}
        state = {name: tensor for name, tensor in state.items() if not name.startswith(HEAD)} | own
    load_matching(model, state, where)


def download(address: str) -> Path:
    """The local copy of hf://OWNER/REPOSITORY[@REVISION]/FILE, fetched through the hub's own cache.

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
        return Path(hf_hub_download(**parts.groupdict()))
    except (EntryNotFoundError, HfHubHTTPError, HFValidationError) as error:
        raise InputError(f"{address} cannot be had: {str(error).strip().splitlines()[0]}") from None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The state dict in a .safetensors or .pt file or a checkpoint, read without executing anything that it holds."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: give the path of a weights file") from None
    except (UnpicklingError, RuntimeError, EOFError, SafetensorError, OSError) as error:
        raise InputError(f"{path} is not a file of plain tensors (damaged, or not weights): {error}") from None
    if isinstance(loaded, dict) and "state_dict" in loaded:  # a checkpoint of Lightning's
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise InputError(f"{path} is not a plain state dict of tensors: give a published mambaeye_*.pt")
    return loaded


def sizes(state: Mapping[str, Tensor], where: str) -> EncoderConfig:
    """The EncoderConfig that the shapes of a state dict (our names) tell; the embedding has 256 values an axis."""
    try:
        dim, glimpse = state["projection.weight"].shape
        num_classes = state["head.weight"].shape[0]
        inner = state["blocks.0.mixer.norm.weight"].shape[0]
        heads = state["blocks.0.mixer.A_log"].shape[0]
        channels, _, d_conv = state["blocks.0.mixer.conv1d.weight"].shape
    except (KeyError, ValueError) as error:
        raise InputError(f"{where} is not a MambaEye: {error} is missing or has another rank") from None
    return EncoderConfig(
        num_classes=num_classes,
        patch_size=math.isqrt((glimpse - 2 * MOVE_EMBEDDING_DIM) // 3),
        dim=dim,
        depth=1 + max(int(name.split(".")[1]) for name in state if name.startswith("blocks.")),
        d_state=(channels - inner) // 2,
        d_conv=d_conv,
        expand=inner // dim,
        headdim=inner // heads,
        move_embedding_dim=MOVE_EMBEDDING_DIM,
    )


def load_matching(model: MambaEye, state: Mapping[str, Tensor], where: str) -> None:
    """Load a state dict whose keys and shapes are the model's own; otherwise say which differ and change nothing."""
    require_fit(model, state, where)
    model.load_state_dict(state)


def require_fit(model: nn.Module, state: Mapping[str, Tensor], where: str) -> None:
    """Nothing, if a state dict has the model's own keys and shapes.

    Raises:
        InputError: it has not; the message lists the differences.
    """
    own = model.state_dict()
    differences = [f"{name} is missing" for name in own if name not in state]
    differences += [f"{name} is unknown" for name in state if name not in own]
    differences += [
        f"{name} is {tuple(state[name].shape)}, not {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    if differences:
        shown = "; ".join(differences[:SHOWN_DIFFERENCES])
        more = f"; and {len(differences) - SHOWN_DIFFERENCES} more" if len(differences) > SHOWN_DIFFERENCES else ""
        raise InputError(f"{where} does not fit this encoder: {shown}{more}")
