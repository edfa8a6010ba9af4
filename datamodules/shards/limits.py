"""Limits to what an index says of a shard: anyone may have written it, and it is read before the shard is."""

import tarfile
from pathlib import PurePath
from typing import Any

from datamodules.transforms.avi import MOST_FRAMES

LARGEST_IMAGE = 1 << 30  # bytes, still encoded
LONGEST_KEY = 1024  # bytes; a key takes as much memory as the longest
COLUMNS = {"keys": str, "labels": int, "offsets": int, "sizes": int}
FRAMES = "frames"  # a column of clips


def require_possible(shard: dict[str, Any]) -> None:
    """Refuse what no shard is like: another file than one in the index's folder, and what no such file can hold.

    Args:
        shard: as it was parsed; other entries than these are not looked at.

    Raises:
        ValueError: a name is no file name, a number none or out of bounds, a column no list.
        KeyError: an entry is missing.
    """
    name, size = shard["name"], shard["bytes"]
    if not is_file_name(name):
        raise ValueError(f"{str(name)[:100]!a} is not the name of a file in its folder")
    if type(size) is not int or not 0 <= size < 1 << 62:
        raise ValueError(f"{name} cannot have {str(size)[:20]} bytes")
    if not isinstance(shard["sha256"], str):
        raise ValueError(f"the checksum of {name} is not text")
    for column, kind in (COLUMNS | ({FRAMES: int} if FRAMES in shard else {})).items():
        values = shard[column]
        if not isinstance(values, list):
            raise ValueError(f"the {column} of {name} are not a list")
        if any(type(value) is not kind for value in values):
            raise ValueError(f"one of the {column} of {name} is not {'text' if kind is str else 'an integer'}")
    if any(len(key.encode()) > LONGEST_KEY or "\0" in key for key in shard["keys"]):
        raise ValueError(f"a key in {name} has more than {LONGEST_KEY} bytes, or a zero byte")
    if any(not 0 <= length <= LARGEST_IMAGE for length in shard["sizes"]):
        raise ValueError(f"an image in {name} has less than 0 bytes or more than {LARGEST_IMAGE}")
    if any(not 1 <= count <= MOST_FRAMES for count in shard.get(FRAMES, ())):
        raise ValueError(f"a clip in {name} has less than 1 frame or more than {MOST_FRAMES}")
    ends = zip(shard["offsets"], shard["sizes"], strict=False)  # columns of different lengths are refused later
    if any(offset < tarfile.BLOCKSIZE or offset + length > size for offset, length in ends):
        raise ValueError(f"an image is not within the {size} bytes of {name}")


def is_file_name(name: object) -> bool:
    """Tell whether that is the name of a file in a folder: no path to elsewhere, no URL, no command."""
    if not isinstance(name, str) or not name.isprintable() or name.startswith("pipe:"):
        return False
    return name not in ("", ".", "..") and "\\" not in name and PurePath(name).name == name
