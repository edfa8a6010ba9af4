"""Files of tensors, read without running code, and undamaged: .safetensors (ours have a checksum) and .pt."""

import zlib
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor
from torch.serialization import safe_globals

from mambaeye.atomic import atomic_write
from mambaeye.errors import InputError
from mambaeye.plain_files import UnreadableError, load_plain

SAFETENSORS = ".safetensors"
HOLDERS = ("state_dict", "model")  # what a file that holds more may call the state dict
CHECKSUM = "crc32"  # in the file's metadata


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the state dict in a .safetensors or .pt file or a checkpoint, without executing anything that it holds.

    Raises:
        InputError: the file is missing, damaged, or holds something else.
    """
    return tensors_in(read_content(path), path)


def read_content(path: Path) -> Any:
    """Read all of a .safetensors or .pt file or a checkpoint, without executing anything that it holds.

    Raises:
        InputError: the file is missing, damaged, or holds something else than tensors and plain containers.
    """
    try:
        if path.suffix == SAFETENSORS:
            return load_safetensors(path)
        with safe_globals([Namespace]):  # which has no code: many programs keep their arguments beside the weights
            return load_plain(path)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: give the path of a weights file") from None
    except (UnreadableError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputError(f"{path} is not a file of plain tensors (damaged, or not weights): {reason}") from None


def tensors_in(content: object, path: Path) -> dict[str, Tensor]:
    """Return the state dict that a file's content is, or has among other things: state_dict (Lightning), or model.

    Raises:
        InputError: there is none.
    """
    state = content
    if isinstance(content, dict):
        state = next((content[name] for name in HOLDERS if name in content), content)
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in state.items()
    ):
        raise InputError(f"{path} is not a plain state dict of tensors: give weights as they were published")
    return state


def save_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a .safetensors file, beside the one that it replaces and renamed, with a checksum in its metadata."""
    own = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    with atomic_write(path) as partial:
        # their own writer of files raises no OSError where a disk is full
        partial.write_bytes(save(own, {"format": "pt", CHECKSUM: checksum(own)}))


def load_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a .safetensors file, on the CPU; those with a checksum as save_safetensors wrote them.

    Raises:
        OSError: it cannot be read.
        UnreadableError: it is no such file, or not as it was written.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
        tensors: dict[str, Tensor] = load_file(path)
    except SafetensorError:
        raise UnreadableError("its header is not that of a safetensors file, or it ends too early") from None
    if CHECKSUM in metadata and metadata[CHECKSUM] != checksum(tensors):
        raise UnreadableError("its tensors are not as they were written")
    return tensors


def checksum(tensors: Mapping[str, Tensor]) -> str:
    """Return the CRC-32 of tensors with their names, types and shapes, in hexadecimal."""
    value = 0
    for name, tensor in sorted(tensors.items()):
        value = zlib.crc32(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode(), value)
        value = zlib.crc32(tensor.cpu().reshape(-1).view(torch.uint8).numpy().data, value)
    return f"{value:08x}"
