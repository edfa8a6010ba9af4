"""The index of a folder of shards: where every sample lies, so that epochs can be planned and damage noticed.

A JSON file beside the shards; each list has an entry for every sample:

    {"classes": ["tench", ...],
     "shards": [{"name": "train-000000.tar", "bytes": 1048576, "sha256": "9f86d0...", "keys": ["n01440764_36", ...],
                 "labels": [0, ...], "offsets": [512, ...], "sizes": [110354, ...]}, ...]}

An offset is the place of the image's first byte in the shard, and a size its length in bytes.
"""

import hashlib
import json
import os
import tarfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from webdataset.tariterators import base_plus_ext

from mambaeye.errors import InputError

INDEX_NAME = "index.json"
IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp")
LABEL_EXTENSION = "cls"
REMEDY = "index the folder anew with 'python -m datamodules.pack {}'"


@dataclass(frozen=True)
class Shard:
    """What one tar file holds; a list has an entry for every sample, in the order of the file."""

    name: str
    """File name, in the index's folder."""
    bytes: int
    """Size of the file."""
    sha256: str
    """Checksum of the file."""
    keys: list[str]
    """Sample keys."""
    labels: list[int]
    """Places in the class list."""
    offsets: list[int]
    """Where the image's bytes begin."""
    sizes: list[int]
    """How many bytes the image has."""


class ShardIndex:
    """The shards of one split, in order. A sample's number counts through all of them.

    Held as arrays, not as lists of Python objects: worker processes share their memory for as long as they live.

    Args:
        folder: where the shards are.
        classes: class names; a label is a place in this list.
        shards: what each holds.

    Raises:
        InputError: a label is outside the class list.
    """

    def __init__(self, folder: Path, classes: Sequence[str], shards: Sequence[Shard]) -> None:
        self.folder, self.classes = folder, list(classes)
        self.paths = [folder / shard.name for shard in shards]
        self.bytes = [shard.bytes for shard in shards]
        self.counts = np.array([len(shard.keys) for shard in shards], dtype=np.int64)
        self.keys = np.array([key.encode() for shard in shards for key in shard.keys], dtype=np.bytes_)
        self.labels, self.offsets, self.sizes = (
            np.array([value for shard in shards for value in getattr(shard, name)], dtype=np.int64)
            for name in ("labels", "offsets", "sizes")
        )
        wrong = np.flatnonzero((self.labels < 0) | (self.labels >= len(self.classes)))
        if len(wrong):
            raise InputError(
                f"sample {self.key(wrong[0])} in {self.shard_path(wrong[0])} has label {self.labels[wrong[0]]}, "
                f"outside the {len(self.classes)} classes of its index: mend its .{LABEL_EXTENSION} file, or the class list "
                f"(labels count from 0)"
            )

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def starts(self) -> np.ndarray:
        """(shards,) int64: number of each shard's first sample."""
        return self.counts.cumsum() - self.counts

    def key(self, number: int) -> str:
        """A sample's key."""
        return self.keys[number].decode()

    def shard_path(self, number: int) -> Path:
        """The file that a sample is in."""
        return self.paths[np.searchsorted(self.starts, number, side="right") - 1]

    @classmethod
    def read(cls, folder: str | Path) -> "ShardIndex":
        """Read the index in a folder and hold it against the files there.

        Raises:
            InputError: no or a damaged index; a shard that is missing or has another size than the index says; a label
                outside the class list; no sample at all.
        """
        folder = Path(folder)
        path, remedy = folder / INDEX_NAME, REMEDY.format(folder)
        try:
            content = json.loads(path.read_text())
            index = cls(folder, content["classes"], [Shard(**shard) for shard in content["shards"]])
        except FileNotFoundError:
            raise InputError(f"{path} does not exist: give a folder of shards with its index, or {remedy}") from None
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise InputError(f"{path} is not an index of shards ({error}): {remedy}") from None
        for shard, expected in zip(index.paths, index.bytes, strict=True):
            try:
                size = shard.stat().st_size
            except FileNotFoundError:
                raise InputError(f"{shard} is missing, though {path} lists it: copy it there, or {remedy}") from None
            if size != expected:
                raise InputError(
                    f"{shard} has {size} bytes and its index says {expected}: "
                    f"copy the shard again if it was cut short, or {remedy} if the shard is the newer"
                )
        if not len(index):
            raise InputError(f"{path} lists no sample: pack some, or give another folder")
        return index


def write_index(folder: Path, classes: Sequence[str], shards: Sequence[Shard]) -> None:
    """Write index.json beside the shards; it appears whole or not at all."""
    path = folder / INDEX_NAME
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps({"classes": list(classes), "shards": [asdict(shard) for shard in shards]}))
    os.replace(partial, path)


def scan_shard(path: Path) -> Shard:
    """Read a shard front to back and note what it holds. Members with other extensions than ours are passed over.

    Raises:
        InputError: the tar is damaged or cut short; a sample has no image, two, or no integer label; a key comes twice.
    """
    samples: dict[str, dict[str, int]] = {}
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                key, extension = base_plus_ext(member.name)
                if not member.isreg() or key is None:
                    continue
                extension = extension.lower()
                if extension in IMAGE_EXTENSIONS:
                    sample = samples.setdefault(key, {})
                    if "offset" in sample:
                        raise InputError(f"sample {key} in {path} has two images: give each a key of its own")
                    sample |= {"offset": member.offset_data, "size": member.size}
                elif extension == LABEL_EXTENSION:
                    sample = samples.setdefault(key, {})
                    sample["label"] = parse_label(tar.extractfile(member).read(), key, path)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: give a folder with .tar files") from None
    except (tarfile.ReadError, EOFError) as error:
        raise InputError(f"{path} is damaged or not a tar file ({error}): copy it again") from None
    for key, sample in samples.items():
        if "offset" not in sample:
            raise InputError(f"sample {key} in {path} has no image: give it one of .{', .'.join(IMAGE_EXTENSIONS)}")
        if "label" not in sample:
            raise InputError(f"sample {key} in {path} has no label: give it a .{LABEL_EXTENSION} file with its number")
    size = path.stat().st_size
    columns = ([sample[name] for sample in samples.values()] for name in ("label", "offset", "size"))
    return Shard(path.name, size, digest, list(samples), *columns)


def parse_label(data: bytes, key: str, path: Path) -> int:
    """The number in a .cls member; key and path are for the message."""
    try:
        return int(data)
    except ValueError:
        raise InputError(
            f"sample {key} in {path} has the label {data[:20]!r}: write its class number into the .{LABEL_EXTENSION} file"
        ) from None
