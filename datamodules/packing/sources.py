"""Listing what there is to pack: the samples of a folder or a tar of class folders, with their keys and labels."""

import bz2
import gzip
import lzma
import os
import shutil
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BufferedIOBase
from pathlib import Path
from typing import ClassVar, NamedTuple, Protocol

from webdataset.tariterators import base_plus_ext

from datamodules.files import EXTENSIONS, VIDEOS
from datamodules.shards.scan import is_utf8, tar_members
from datamodules.transforms.regions import FileRange
from mambaeye.errors import InputError

SPLITS = {"train", "training", "val", "valid", "validation", "test"}
DECOMPRESSORS: dict[bytes, Callable[[Path], BufferedIOBase]] = {
    b"\x1f\x8b": gzip.GzipFile,
    b"BZh": bz2.BZ2File,
    b"\xfd7zXZ": lzma.LZMAFile,
}


class Member(NamedTuple):
    """A file of the source."""

    path: str
    """From the class folder on, with slashes."""
    offset: int
    """Offset in the source's tar, in bytes; 0 in a folder."""
    size: int
    """In bytes."""
    changed: int
    """Time of the last change, in the source's own unit."""


class Found(NamedTuple):
    """A sample of the source, before it has a label."""

    stem: str
    """Path from the class folder on, without the extension."""
    extension: str
    """Of its file in a shard, in lower case."""
    member: Member


class Entry(NamedTuple):
    """A sample that is to be packed."""

    key: str
    extension: str
    label: int
    member: Member


class Images(Protocol):
    """A place that listed samples are read from."""

    @property
    def name(self) -> str:
        """Return what it is called in messages."""
        ...

    @property
    def prefix(self) -> str:
        """Return the path before the class folder; empty where there are none."""
        ...

    def read(self, member: Member) -> bytes:
        """Read the bytes that a sample is stored as."""
        ...


@dataclass(frozen=True)
class Source:
    """Source of images: a folder or an uncompressed tar of class folders."""

    kinds: ClassVar[tuple[str, ...]] = EXTENSIONS
    """Extensions of what it takes."""
    noun: ClassVar[str] = "images"
    """Word for its samples, in messages."""
    name: str
    """For messages."""
    path: Path
    prefix: str = ""
    """Path before the class folder; ends with a slash if it is not empty."""

    def members(self) -> Iterator[Member]:
        """Yield all files under the prefix that are not hidden, in no certain order."""
        for name, offset, size, changed in self._tar() if self.path.is_file() else self._folder():
            parts = [part for part in name.split("/") if part not in ("", ".")]
            if ".." in parts:
                raise InputError(f"{self.name} holds {name}, a path that leads out of it: pack a clean copy")
            path = "/".join(parts)
            if path.startswith(self.prefix) and not any(part.startswith(".") for part in parts):
                yield Member(path.removeprefix(self.prefix), offset, size, changed)

    def samples(self) -> tuple[list[Found], Counter[str]]:
        """List the samples, and count other files by extension."""
        found: list[Found] = []
        others: Counter[str] = Counter()
        for member in self.members():
            stem, dot, extension = member.path.rpartition(".")
            if extension.lower() in EXTENSIONS:
                found.append(Found(stem, extension.lower(), member))
            else:
                others[counted_kind(dot, extension)] += 1
        return found, others

    def folders(self) -> Iterator[str]:
        """Yield the folders under the prefix that are not hidden, where the source is a folder itself."""
        place = self.path / self.prefix
        if place.is_dir():
            yield from (entry.name for entry in os.scandir(place) if entry.is_dir() and not entry.name.startswith("."))

    def _folder(self) -> Iterator[Member]:
        if not (self.path / self.prefix).is_dir():
            return
        root = str(self.path / self.prefix)
        entered = {root: {os.path.realpath(root)}}  # by folder: what it is, and what all above it are
        for folder, folders, names in os.walk(root, onerror=fail, followlinks=True):
            above = entered.pop(folder)
            inside = {name: os.path.join(folder, name) for name in folders if not name.startswith(".")}
            places = {name: os.path.realpath(path) for name, path in inside.items()}
            folders[:] = [name for name in inside if places[name] not in above]  # a link back would lead in circles
            entered |= {inside[name]: above | {places[name]} for name in folders}
            relative = Path(folder).relative_to(self.path).as_posix()
            for name in names:
                try:
                    status = os.stat(os.path.join(folder, name))
                except OSError as error:
                    if name.rpartition(".")[2].lower() not in self.kinds:
                        continue
                    raise InputError(
                        f"{os.path.join(folder, name)} cannot be read ({error.strerror}): repair or remove it"
                    ) from None
                yield Member(f"{relative}/{name}", 0, status.st_size, status.st_mtime_ns)

    def _tar(self) -> Iterator[Member]:
        places = {}  # for hard links, which name a member before them
        for _, member in tar_members(self.path):
            if member.issym() or member.issparse():
                raise InputError(f"{self.name} has {member.name} as a link or sparse: write it with tar --dereference")
            if member.isreg():
                places[member.name] = member.offset_data, member.size
            if member.isreg() or member.islnk():
                place = places.get(member.name if member.isreg() else member.linkname)
                if place is None:
                    raise InputError(
                        f"{self.name} has {member.name} as a link to {member.linkname}, which is not there"
                    )
                yield Member(member.name, *place, int(member.mtime))

    def read(self, member: Member) -> bytes:
        """Read a file's bytes."""
        if not self.path.is_file():
            return (self.path / self.prefix / member.path).read_bytes()
        with self.path.open("rb") as file:
            file.seek(member.offset)
            return file.read(member.size)

    def place(self, member: Member) -> FileRange:
        """Return where a file's bytes are."""
        if self.path.is_file():
            return FileRange(str(self.path), member.offset, member.size)
        path = self.path / self.prefix / member.path
        return FileRange(str(path), 0, path.stat().st_size)


def counted_kind(dot: str, extension: str) -> str:
    """Return what a file that is passed over is counted under: its extension, from the dot on, if it has one."""
    return dot + extension.rpartition("/")[2] if dot else "without extension"


def fail(error: OSError) -> None:
    """Raise what os.walk would pass over: a folder that cannot be read."""
    raise error


def list_entries(source: Source, classes: Sequence[str] | None) -> tuple[list[Entry], list[str], Counter[str]]:
    """List what there is to pack.

    Args:
        source: with class folders.
        classes: the class list; None takes the sorted names of the class folders.

    Returns:
        The samples, sorted by key; the class list; how many other files there are, by extension.

    Raises:
        InputError: no sample; one outside class folders, or in one that is not in the class list; two with the same
            key.
    """
    samples, others = source.samples()
    for _, _, member in samples:
        if "/" not in member.path:
            raise InputError(f"{source.noun[:-1]} {member.path} lies in no class folder: move it into one, or away")
        if not is_utf8(member.path):
            raise InputError(f"the path {member.path!a} is not UTF-8: rename the file")
    videos = sum(number for kind, number in others.items() if kind[1:].lower() in VIDEOS)
    if not samples and videos:
        raise InputError(f"{source.name} has no {source.noun} and {videos} videos: give --clips to pack these")
    if not samples:
        kinds = ", ".join(f".{name}" for name in source.kinds)
        raise InputError(
            f"{source.name} has no {source.noun} ({kinds}) under {source.prefix or 'its class folders'!r}: check "
            f"--prefix"
        )
    folders = sorted({member.path.partition("/")[0] for _, _, member in samples})
    if classes is None and set(folders) <= SPLITS:
        raise InputError(
            f"{source.name} holds splits ({', '.join(folders)}), not classes: choose one with --prefix {folders[0]}/"
        )
    labels = {name: label for label, name in enumerate(classes or folders)}
    strangers = [name for name in folders if name not in labels]
    if strangers:
        raise InputError(f"class folder {strangers[0]} ({len(strangers)} such) is not in the class list: add it there")
    entries: dict[str, Entry] = {}
    for stem, extension, member in samples:
        folder, _, name = stem.rpartition("/")
        key = f"{folder}/{name.replace('.', '_')}"  # webdataset ends a key at the first dot of the name
        if base_plus_ext(f"{key}.{extension}") != (key, extension):
            raise InputError(f"the path {member.path!r} makes no key for webdataset: rename the file")
        entry = Entry(key, extension, labels[folder.partition("/")[0]], member)
        other = entries.setdefault(key, entry)
        if other is not entry:
            raise InputError(
                f"{other.member.path} and {member.path} would have the same key, {key}: rename one of them"
            )
    return [entries[key] for key in sorted(entries)], list(labels), others


def decompressed(path: Path, folder: Path) -> Path:
    """Return the source itself or, if it is a compressed file, what it holds as a file in the given folder.

    Raises:
        InputError: there is no source, or it is damaged.
    """
    if path.is_dir():
        return path
    try:
        with path.open("rb") as file:
            start = file.read(8)
        opener = next((opener for magic, opener in DECOMPRESSORS.items() if start.startswith(magic)), None)
        if opener is None:
            return path
        with opener(path) as compressed, (folder / "source.tar").open("wb") as file:
            shutil.copyfileobj(compressed, file, 1 << 20)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: give a folder or a tar of class folders") from None
    except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path} is damaged or cut short ({error}): copy it again") from None
    return folder / "source.tar"
