"""Files of torch.save, read without running anything that they hold: tensors and plain containers alone."""

import re
import struct
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

# what torch raises of files that it does not take, the last ones because its unpickler follows any bytes for a while
SAID = (RuntimeError, OSError)
UNSAID = (UnpicklingError, EOFError, LookupError, ValueError, TypeError, AttributeError, AssertionError, struct.error)


class UnreadableError(ValueError):
    """A file is damaged, or holds something else than tensors and plain containers; the message says which."""


def load_plain(path: str | Path, mmap: bool = False) -> Any:
    """Return what a file of torch.save holds, on the CPU.

    Args:
        path: of the file.
        mmap: map tensors from the file as they are needed, rather than read them all; not for files of old formats.

    Raises:
        FileNotFoundError: it is not there.
        UnreadableError: it is damaged, or holds something else than tensors and plain containers.
    """
    try:
        return torch.load(path, map_location="cpu", mmap=mmap, weights_only=True)
    except FileNotFoundError:
        raise
    except (*SAID, *UNSAID) as error:
        raise UnreadableError(reason(error)) from None


def reason(error: Exception) -> str:
    """Say in a few words why a file was not taken, without torch's advice to trust it."""
    if code := re.search(r"GLOBAL (\S+)", str(error)):
        return f"it asks for {code[1]}, which is code and is not run"
    if isinstance(error, EOFError):
        return "it ends too early"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, SAID):
        return re.split(r"\.\s", str(error), maxsplit=1)[0].strip()
    return "it holds something else than tensors and plain containers"
