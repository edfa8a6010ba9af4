"""The index of a folder of shards: where every sample lies, so that epochs can be planned and damage noticed.

A JSON file beside the shards, a shard a line; each list of a shard has an entry for every sample:

    {"classes": ["tench", ...],
     "shards": [
      {"name": "shard-000000.tar", "bytes": 1048576, "sha256": "9f86d0...", "keys": ["n01440764/n01440764_36", ...],
       "labels": [0, ...], "offsets": [1536, ...], "sizes": [110354, ...]},
      ...]}

An offset is the place of the image's first byte in the shard, and a size its length in bytes. Where samples are clips,
"kind" is "clips", beside the classes, and each shard also says how many "frames" every clip has. Where images are not
RGB of 8 bits, "channels" and "bits" are there, the same for all. Readers ignore other entries, such as the "packing"
that datamodules.pack notes down, and refuse what no shard is like (limits.py).

Whether an index still fits its shards is told by content, not by clocks, which copying upsets: sizes when it is read,
a sample's tar header when the sample is read (`header_matches`), checksums by datamodules.check.
"""

import json
import os
import tarfile
from collections.abc import Sequence
from copy import copy
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.shards.limits import require_possible
from datamodules.storage.stream import streams
from datamodules.transforms.pixels import RGB, Pixels
from mambaeye.atomic import atomic_write
from mambaeye.errors import InputError

INDEX_NAME = "index.json"
LABEL_EXTENSION = "cls"
CLIP_EXTENSION = "avi"
IMAGES, CLIPS = "images", "clips"  # kinds of samples
REMEDY = "index the folder anew with 'python -m datamodules.pack {}'"
NAME_IN_HEADER = 60  # of a key, that any writer leaves intact in a tar header; longer names go before it


@dataclass(frozen=True)
class Shard:
    """Contents of one tar file; a column has an entry for every sample, in the order of the file."""

    name: str
    """File name, in the index's folder."""
    bytes: int
    """Size of the file."""
    sha256: str
    """Checksum of the file, in hexadecimal."""
    keys: Sequence[str] | np.ndarray
    """Sample keys, as webdataset names them; UTF-8 bytes in an array."""
    labels: Sequence[int] | np.ndarray
    """Places in the class list."""
    offsets: Sequence[int] | np.ndarray
    """Offset of the image's first byte."""
    sizes: Sequence[int] | np.ndarray
    """Size of the image, in bytes."""
    frames: Sequence[int] | np.ndarray | None = None
    """Number of frames of the clip; None where samples are images."""

    def compact(self) -> "Shard":
        """Return the same with columns held as arrays: (samples,) bytes for the keys, int64 for the rest.

        Raises:
            ValueError: a column's values are no such thing, or the columns have different lengths.
        """
        keys = np.array([key.encode() for key in self.keys], dtype=np.bytes_)
        columns = [self.labels, self.offsets, self.sizes] + ([] if self.frames is None else [self.frames])
        others = [np.array(column, dtype=np.int64) for column in columns]
        if any(column.shape != keys.shape for column in others):
            raise ValueError(f"the columns of {self.name} have different lengths")
        return Shard(self.name, self.bytes, self.sha256, keys, *others)


class ShardIndex:
    """The shards of one split, in order. A sample's id is its place among the samples of all of them.

    Held as arrays, not as lists of Python objects: worker processes share their memory for as long as they live.

    Args:
        folder: where the shards are.
        classes: class names; a label is a place in this list.
        shards: what each holds.
        sources: where each is read from, a path, a URL or a pipe: command; by default the files in the folder.
        name: the shards as they were given, for messages; by default the folder.
        pixels: channels and bits of all images.

    Raises:
        InputError: a label is outside the class list; two samples have the same key.
    """

    def __init__(
        self,
        folder: Path,
        classes: Sequence[str],
        shards: Sequence[Shard],
        sources: Sequence[str] | None = None,
        name: str | None = None,
        pixels: Pixels = RGB,
    ) -> None:
        compact = [shard if isinstance(shard.keys, np.ndarray) else shard.compact() for shard in shards]
        self.folder, self.name, self.classes = folder, name or str(folder), list(classes)
        self.pixels = pixels
        self.paths = [folder / shard.name for shard in shards]
        self.sources = list(sources) if sources is not None else [str(path) for path in self.paths]
        self.bytes = [shard.bytes for shard in shards]
        self.counts = np.array([len(shard.keys) for shard in compact], dtype=np.int64)
        self.keys = np.concatenate([np.empty(0, np.bytes_), *(shard.keys for shard in compact)])
        self.labels, self.offsets, self.sizes = (
            np.concatenate([np.empty(0, np.int64), *(getattr(shard, name) for shard in compact)])
            for name in ("labels", "offsets", "sizes")
        )
        columns = [shard.frames for shard in compact if shard.frames is not None]
        if 0 < len(columns) < len(compact):
            raise InputError(f"{self.name} has shards of images and shards of clips: keep them in folders of their own")
        self.frames: np.ndarray | None = np.concatenate(columns) if columns else None  # of clips alone
        wrong = np.flatnonzero((self.labels < 0) | (self.labels >= len(self.classes)))
        if len(wrong):
            raise InputError(
                f"sample {self.key(wrong[0])} in {self.source(wrong[0])} has label {self.labels[wrong[0]]}, "
                f"outside the {len(self.classes)} classes of its index: correct its .{LABEL_EXTENSION} file, or the "
                f"class list (labels count from 0)"
            )
        ordered = np.sort(self.keys)
        repeated = ordered[1:][ordered[1:] == ordered[:-1]]
        if len(repeated):
            first, second = np.flatnonzero(self.keys == repeated[0])[:2]
            raise InputError(
                f"two samples have the key {self.key(first)}, in {self.source(first)} and in "
                f"{self.source(second)}: remove one, or give each a key of its own"
            )

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def starts(self) -> np.ndarray:
        """Return the id of each shard's first sample: (shards,) int64."""
        return self.counts.cumsum() - self.counts

    @property
    def streaming(self) -> bool:
        """Tell whether some shard is no local file, and read front to back."""
        return any(streams(source) for source in self.sources)

    def key(self, sample_id: int) -> str:
        """Return a sample's key."""
        key: bytes = self.keys[sample_id]
        return key.decode()

    def shard_path(self, sample_id: int) -> Path:
        """Return the file that a sample is in."""
        return self.paths[np.searchsorted(self.starts, sample_id, side="right") - 1]

    def source(self, sample_id: int) -> str:
        """Return where a sample's shard is read from."""
        return self.sources[np.searchsorted(self.starts, sample_id, side="right") - 1]

    def part(self, chosen: np.ndarray, name: str) -> "ShardIndex":
        """Return the index of some of the samples, (n,) bool, with ids of their own; shards without one are left out.

        Args:
            chosen: by id.
            name: for messages.
        """
        some = copy(self)
        owners = np.repeat(np.arange(len(self.counts)), self.counts)
        counts = np.bincount(owners[chosen], minlength=len(self.counts))
        there = np.flatnonzero(counts)
        some.name, some.counts = name, counts[there]
        some.paths = [self.paths[shard] for shard in there]
        some.sources = [self.sources[shard] for shard in there]
        some.bytes = [self.bytes[shard] for shard in there]
        some.keys, some.labels, some.offsets, some.sizes = (
            column[chosen] for column in (self.keys, self.labels, self.offsets, self.sizes)
        )
        some.frames = None if self.frames is None else self.frames[chosen]
        vars(some).pop("starts", None)  # of all samples
        return some

    @classmethod
    def read(cls, folder: str | Path) -> "ShardIndex":
        """Read the index in a folder and compare it with the files there.

        Raises:
            InputError: no or a damaged index; a shard that is missing or has another size than the index says; a label
                outside the class list; two samples with the same key; no sample at all.
        """
        folder = Path(folder)
        path, remedy = folder / INDEX_NAME, REMEDY.format(folder)
        content = read_index(folder)
        index = cls(folder, content["classes"], content["shards"], pixels=content["pixels"])
        index.require_shards(str(path), remedy)
        return index

    def require_shards(self, where: str, remedy: str) -> None:
        """Require that there are samples, and that every local shard is there and as long as it should be.

        Args:
            where: the index, for messages.
            remedy: what else to do, for messages.

        Raises:
            InputError: no sample at all; a local shard is missing or has another size.
        """
        if not len(self):
            raise InputError(f"{where} lists no sample: pack some, or give other shards")
        for source, expected in zip(self.sources, self.bytes, strict=True):
            if streams(source):
                continue
            try:
                size = os.stat(source).st_size
            except FileNotFoundError:
                raise InputError(f"{source} is missing, though {where} lists it: copy it there, or {remedy}") from None
            if size != expected:
                raise InputError(
                    f"{source} has {size} bytes and its index says {expected}: "
                    f"copy the shard again if it was cut short, or {remedy} if the shard is the newer"
                )


def read_index(folder: Path) -> dict[str, Any]:
    """Read index.json, but nothing of the shards.

    Returns:
        What the file holds: "classes", a list of str; "shards", a list of Shard, compact; "pixels", their Pixels; and
        whatever else it has.

    Raises:
        InputError: there is none, or it is no such file.
    """
    path, remedy = folder / INDEX_NAME, REMEDY.format(folder)
    try:
        return parse_index(path.read_bytes(), str(path), remedy)
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path} does not exist: give a folder of shards with its index, or {remedy}") from None


def parse_index(data: bytes, where: str, remedy: str) -> dict[str, Any]:
    """Parse what read_index reads; where and remedy are for messages."""
    try:
        # a shard becomes arrays as soon as it is parsed: a million samples are never lists all at once
        content: dict[str, Any] = json.loads(data, object_hook=shard_from_json)
        if not all(isinstance(name, str) for name in content["classes"]):
            raise TypeError("a class name is not text")
        if not all(isinstance(shard, Shard) for shard in content["shards"]):
            raise TypeError("a shard has no keys")
        kind = content.get("kind", IMAGES)
        of_images = {shard.frames is None for shard in content["shards"]}
        if kind not in (IMAGES, CLIPS) or of_images - {kind == IMAGES}:
            raise ValueError(f"its kind is {str(kind)[:100]!a}, and its shards hold something else")
        content["pixels"] = pixels_in(content)
    except (KeyError, TypeError, AttributeError, ValueError, OverflowError, RecursionError) as error:
        raise InputError(f"{where} is not an index of shards ({error}): {remedy}") from None
    return content


def pixels_in(content: dict[str, Any]) -> Pixels:
    """Return what pixels an index says that images have.

    Raises:
        ValueError: no images have such.
    """
    channels, bits = content.get("channels", RGB.channels), content.get("bits", RGB.bits)
    if type(channels) is not int or type(bits) is not int:
        raise ValueError("its channels or bits are no numbers")
    pixels = Pixels(channels, bits)
    try:
        pixels.require_possible("its ")
    except InputError as error:
        raise ValueError(str(error)) from None
    if not pixels.is_rgb and content.get("kind", IMAGES) != IMAGES:
        raise ValueError(f"it says that clips have {pixels.words}")
    return pixels


def shard_from_json(content: dict[str, Any]) -> Shard | dict[str, Any]:
    """Turn a JSON object into a compact Shard if it looks like one; return any other as it is."""
    if "keys" not in content:
        return content
    require_possible(content)
    return Shard(**content).compact()


def write_index(
    folder: Path,
    classes: Sequence[str],
    shards: Sequence[Shard],
    packing: dict[str, Any] | None = None,
    pixels: Pixels = RGB,
) -> None:
    """Write index.json beside the shards: all of it, or nothing.

    Args:
        folder: where the shards are.
        classes: class names; a label is a place in this list.
        shards: what each holds, with columns that are lists.
        packing: how the shards came about, if that is known; for people and for datamodules.pack.
        pixels: channels and bits of all images.
    """
    known: dict[str, Any] = {"classes": list(classes)} | ({"packing": packing} if packing is not None else {})
    if any(shard.frames is not None for shard in shards):
        known["kind"] = CLIPS
    if not pixels.is_rgb:
        known |= {"channels": pixels.channels, "bits": pixels.bits}
    told = ({name: part for name, part in asdict(shard).items() if part is not None} for shard in shards)
    lines = ",\n".join(map(json.dumps, told))
    with atomic_write(folder / INDEX_NAME) as path:
        path.write_text(f'{json.dumps(known)[:-1]}, "shards": [\n{lines}\n]}}\n', encoding="utf-8")


def header_matches(block: bytes, key: str, size: int) -> bool:
    """Tell whether the tar header block before an image may be that of the given sample.

    Compared are the block's own checksum, the size in bytes, and the name as far as it is surely there: a long or
    non-ASCII name lies in a block further ahead.
    """
    try:
        member = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return False
    named = not key.isascii() or member.name.startswith(key[:NAME_IN_HEADER])
    return named and member.isreg() and member.size == size
