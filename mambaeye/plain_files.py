"""Files of torch.save, read without running anything that they hold: undamaged, tensors and plain containers alone."""

import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import torch
from torch import Tensor

from mambaeye.saved_values import shown

# what torch raises of files that it does not take, the last ones because its unpickler follows any bytes for a while
SAID = (RuntimeError, OSError)
UNSAID = (
    *(UnpicklingError, EOFError, LookupError, ValueError, TypeError, AttributeError, AssertionError, struct.error),
    *(MemoryError, RecursionError),
)
ZIP = b"PK\x03\x04"
OPENINGS = {
    b"\x89HDF": "an HDF5 file, such as Keras writes",
    b"GGUF": "a GGUF file",
    b"\x93NUMPY": "a NumPy array",
    b"\x1f\x8b": "compressed by gzip",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"%PDF": "a PDF document",
    b"version https://git-lfs": "a pointer of Git LFS, not the file itself",
}
SHARED = 2  # times that tensors may be larger than what the file holds: one that is tied to another is there twice


class UnreadableError(ValueError):
    """A file is damaged, or holds something else than tensors and plain containers; the message says which."""


def load_plain(path: str | Path, mmap: bool = False) -> Any:
    """Return what a file of torch.save holds, on the CPU, after comparing all of it with the checksums in it.

    The file is a zip archive, in which every record has its CRC-32, which torch.load does not look at. Files of
    torch.save's older format have none.

    Args:
        path: of the file.
        mmap: map tensors from the file as they are needed, rather than read them all; not for files of old formats.

    Raises:
        FileNotFoundError: it is not there.
        UnreadableError: it is damaged, or holds something else than tensors and plain containers.
    """
    try:
        require_checksums(path)
        content = torch.load(path, map_location="cpu", mmap=mmap, weights_only=True)
        require_values(content)
    except (FileNotFoundError, UnreadableError):
        raise
    except (*SAID, *UNSAID) as error:
        raise UnreadableError(reason(error, path)) from None
    return content


def require_checksums(path: str | Path) -> None:
    """Require that the records of a zip archive are as they were written; other files are not looked at.

    Raises:
        UnreadableError: one is not, or they are compressed.
        OSError: the file cannot be read.
    """
    if opening(path, len(ZIP)) != ZIP:
        return
    try:
        with ZipFile(path) as archive:
            if any(record.compress_type != ZIP_STORED for record in archive.infolist()):
                kind = kind_of(path)
                compressed = "its records are compressed, as torch.save's are not, or it is damaged"
                raise UnreadableError(f"it is {kind}" if kind else compressed)
            changed = archive.testzip()
    except UnreadableError:
        raise
    except (BadZipFile, zlib.error, NotImplementedError, *SAID, *UNSAID):
        raise UnreadableError("it is cut short, or its table of contents is damaged") from None
    if changed is not None:
        raise UnreadableError(f"its {shown(changed)} is not as it was written")


def require_values(content: Any) -> None:
    """Require that the tensors in nested containers are no larger than what they were read from.

    A few bytes could be spread out to any shape otherwise, by strides of zero.

    Raises:
        UnreadableError: they are larger.
    """
    values, storages = 0, {}
    for tensor in tensors_of(content):
        if tensor.layout != torch.strided or tensor.device.type == "meta":
            raise UnreadableError("a tensor in it is sparse or has no values")
        storage = tensor.untyped_storage()
        values += tensor.numel() * tensor.element_size()
        storages[storage.data_ptr()] = storage.nbytes()
    if values > SHARED * sum(storages.values()):
        raise UnreadableError("its tensors are larger than what it holds of them")


def tensors_of(content: Any) -> Iterator[Tensor]:
    """Yield the tensors in nested containers, which may contain each other."""
    left, seen = [content], set()
    while left:
        part = left.pop()
        if isinstance(part, Tensor):
            yield part
        elif isinstance(part, dict | list | tuple | set) and id(part) not in seen:
            seen.add(id(part))
            left += part.values() if isinstance(part, dict) else part


def reason(error: Exception, path: str | Path) -> str:
    """Say in a few words why a file was not taken, in no library's words and without torch's advice to trust it."""
    if code := re.search(r"GLOBAL (\S+)", str(error)):
        return f"it asks for {code[1]}, which is code and is not run"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if kind := kind_of(path):
        return f"it is {kind}"
    if isinstance(error, EOFError):
        return "it ends too early"
    return "it holds something else than tensors and plain containers, or is damaged"


def kind_of(path: str | Path) -> str | None:
    """Return what a file is that torch.save did not write, in words; None where nothing tells."""
    first = opening(path, 256)
    for start, kind in OPENINGS.items():
        if first.startswith(start):
            return kind
    if first.startswith(ZIP):
        with ZipFile(path) as archive:
            names = archive.namelist()
        if any(name.endswith("/constants.pkl") for name in names):
            return "a TorchScript program"
        return None if any(name.endswith("data.pkl") for name in names) else "a zip archive of something else"
    if first[8:9] == b"{":
        return "a safetensors file: its name must end in .safetensors"
    is_text = first and all(byte >= 32 or byte in b"\t\n\r" for byte in first)
    return "text" if is_text else None if first else "empty"


def opening(path: str | Path, size: int) -> bytes:
    """Return a file's first bytes."""
    with open(path, "rb") as file:
        return file.read(size)
