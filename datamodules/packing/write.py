"""Writing listed images into shards: each shard whole or not at all, and the same command continues what was left.

Until all is complete, everything lies in DEST.packing: the shards of every part, and notes of those that are finished.
"""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from tarfile import TarInfo
from typing import Any, NamedTuple

import numpy as np
from webdataset import TarWriter

from datamodules.packing.listing import Listing
from datamodules.packing.sources import Entry, Images, Source
from datamodules.parallel import in_parallel
from datamodules.shards.index import CLIP_EXTENSION, INDEX_NAME, LABEL_EXTENSION, Shard, read_index, write_index
from datamodules.shards.limits import LARGEST_IMAGE
from datamodules.shards.scan import scan_shard
from datamodules.transforms.clips import require_readable
from datamodules.transforms.headers import PixelLimit
from datamodules.transforms.pixels import RGB, Pixels
from datamodules.transforms.regions import FileRange, large_tiff
from mambaeye.atomic import atomic_write, refusals
from mambaeye.errors import InputError
from mambaeye.locks import WriterLock

NOTES = "notes"  # the folder in DEST.packing for everything that is not part of the result
SEED = 0
SAMPLES_PER_SHARD = 1000  # some 110 MB of ImageNet: 1282 shards, enough for any number of workers


@dataclass(frozen=True)
class PackingOptions:
    """Choices of a packing that do not depend on what is packed."""

    limit: PixelLimit
    """Images of more pixels are unreadable."""
    per_shard: int = SAMPLES_PER_SHARD
    """Images a shard, at most; the shards are made equally long."""
    seed: int = SEED
    """Seed of the order of the images."""
    most_unreadable: float = 0
    """Unreadable images that may be left out; with one more, the packing is refused."""
    leave_out: str = "--unreadable skip"
    """Flag that leaves unreadable images out, for a message; {} stands for how many there are."""
    jobs: int = os.cpu_count() or 1
    """Threads."""
    pixels: Pixels = RGB
    """Channels and bits of all images; one of others is unreadable."""


@dataclass(frozen=True)
class Task:
    """One shard to write."""

    name: str
    """From the packed folder on, with slashes."""
    source: Images
    entries: list[Entry]
    pixels: Pixels = RGB

    @cached_property
    def fingerprint(self) -> str:
        """Return a checksum that changes with everything that the shard's bytes depend on."""
        return checksum(self.entries if self.pixels.is_rgb else [*self.entries, self.pixels])


def checksum(content: list[Any]) -> str:
    """Return the SHA-256 of anything that JSON can write, in hexadecimal."""
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


class Done(NamedTuple):
    """The outcome of a task."""

    fingerprint: str
    shard: Shard | None
    """None if it was not written: it would have no image, or unreadable ones are refused."""
    unreadable: dict[str, str]
    """For each image that does not decode, the path: the reason."""


@dataclass(frozen=True)
class Packing:
    """Writes shards into a folder, and a note of each that is finished into its notes."""

    folder: Path
    options: PackingOptions

    def write(self, task: Task, advance: Callable[[int], None]) -> Done:
        """Write a shard, unless an earlier run did."""
        path = self.folder / task.name
        done = self.earlier(task)
        if done:
            advance(len(task.entries))
            return done
        self.note(task).unlink(missing_ok=True)
        unreadable = {}
        with atomic_write(path) as partial, TarWriter(str(partial), encoder=False, mtime=0) as tar:
            for entry in task.entries:
                try:
                    image = self.readable(task.source, entry)
                except (InputError, OSError) as error:
                    unreadable[entry.member.path] = str(error)
                else:
                    add(tar, entry, image)
                advance(1)
        if len(unreadable) == len(task.entries) or (unreadable and not self.options.most_unreadable):
            path.unlink()
            return Done(task.fingerprint, None, unreadable)
        shard = scan_shard(path)
        # after the shard, so that what a note vouches for is there
        with atomic_write(self.note(task)) as partial:
            partial.write_text(json.dumps((task.fingerprint, asdict(shard), unreadable)), encoding="utf-8")
        return Done(task.fingerprint, shard, unreadable)

    def readable(self, source: Images, entry: Entry) -> bytes | FileRange:
        """Return what is to be written of a sample that is whole: its bytes, or where these are if it is very large.

        Raises:
            InputError: it is damaged, has too many pixels and is not read by region, or pixels of another kind.
            OSError: it cannot be read.
        """
        member, limit, pixels = entry.member, self.options.limit, self.options.pixels
        is_clip = entry.extension == CLIP_EXTENSION
        place = source.place(member) if isinstance(source, Source) and not is_clip else None
        large = large_tiff(place, member.path, pixels, limit) if place is not None else None
        if large is not None:
            if large.file.size > LARGEST_IMAGE:
                raise InputError(f"{member.path} has {large.file.size} bytes, more than {LARGEST_IMAGE}: compress it")
            large.require_whole()
            return large.file
        data = source.read(member)
        require_readable(data, is_clip, limit, member.path, pixels)
        return data

    def note(self, task: Task) -> Path:
        """Return where it is noted that a shard is finished."""
        return self.folder / NOTES / f"{task.name}.json"

    def earlier(self, task: Task) -> Done | None:
        """Return what an earlier run noted of the same shard, if that is what this one would write."""
        if not self.note(task).exists():
            return None
        fingerprint, shard, unreadable = json.loads(self.note(task).read_text())
        path = self.folder / task.name
        same = fingerprint == task.fingerprint and path.exists() and path.stat().st_size == shard["bytes"]
        return Done(fingerprint, Shard(**shard), unreadable) if same else None


def add(tar: TarWriter, entry: Entry, image: bytes | FileRange) -> None:
    """Write a sample: its label and its image."""
    if isinstance(image, bytes):
        tar.write({"__key__": entry.key, entry.extension: image, LABEL_EXTENSION: str(entry.label).encode()})
        return
    member = TarInfo(f"{entry.key}.{entry.extension}")  # as TarWriter writes, which takes bytes alone
    member.size, member.mtime, member.mode, member.uname, member.gname = image.size, 0, tar.mode, tar.user, tar.group
    tar.write({"__key__": entry.key, LABEL_EXTENSION: str(entry.label).encode()})
    with open(image.path, "rb") as file:
        file.seek(image.offset)
        tar.tarstream.addfile(member, file)


@dataclass(frozen=True)
class Plan:
    """Shards that are to be written of listed images, by part."""

    listing: Listing
    tasks: dict[str, list[Task]]

    @classmethod
    def of(cls, listing: Listing, options: PackingOptions) -> "Plan":
        """Deal the images of each part to shards, in the order of the seed: as few as it takes, equally long to one."""
        tasks = {}
        for part, (source, entries) in listing.parts.items():
            order = np.random.default_rng(options.seed).permutation(len(entries))
            pieces = np.array_split(order, -(-len(entries) // options.per_shard))
            tasks[part] = [
                Task(
                    f"{part}/shard-{number:06d}.tar".lstrip("/"),
                    source,
                    [entries[place] for place in piece.tolist()],
                    options.pixels,
                )
                for number, piece in enumerate(pieces)
            ]
        return cls(listing, tasks)

    @cached_property
    def fingerprint(self) -> str:
        """Return a checksum that changes with the classes, and the name, size and time of any file."""
        parts = ([*filter(None, [part]), *(task.fingerprint for task in tasks)] for part, tasks in self.tasks.items())
        return checksum([*self.listing.classes, *(word for part in parts for word in part)])


def pack(dest: Path, parts: Sequence[str], list_images: Callable[[Path], Listing], options: PackingOptions) -> None:
    """Pack images into shards: DEST holds a folder for each part, or the shards themselves where "" is the only one.

    Args:
        dest: folder for the shards; new, empty, or complete from an earlier run with the same arguments.
        parts: of the listing.
        list_images: lists what there is to pack, given a folder to unpack into.
        options: see there.

    Raises:
        InputError: nothing to pack, or not clearly; the destination holds something else; unreadable images.
    """
    target = dest.resolve()
    holds(target, parts)  # raises, before a source is listed that may be large
    folder = target.with_name(f"{target.name}.packing")
    notes = folder / NOTES
    with refusals(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
    busy = f"another process is packing into {dest}", "wait for it, or choose another folder"
    # beside the folder, which is renamed at the end
    lock = WriterLock(target.with_name(f"{target.name}.packing.lock"), busy)
    lock.acquire()
    try:
        held = holds(target, parts)
        notes.mkdir(parents=True, exist_ok=True)
        plan = Plan.of(list_images(notes), options)
        if held not in (None, plan.fingerprint):
            raise InputError(
                f"{dest} already holds another data set, or this one from files or arguments that have changed "
                f"since: choose another folder, or delete it"
            )
        for remark in plan.listing.remarks:
            print(remark)
        if held is None:
            if holds(folder, parts, unfinished=True) != plan.fingerprint:  # else it was interrupted at the last moment
                write_shards(Packing(folder, options), plan)
            shutil.rmtree(notes)
            os.replace(folder, target)
    finally:
        if folder.exists() and not tars(folder):  # nothing to continue from
            shutil.rmtree(folder)
        lock.release()


def tars(folder: Path) -> list[Path]:
    """Return the shards in a folder and its parts, but nothing of its notes."""
    return [path for path in folder.rglob("*.tar") if NOTES not in path.relative_to(folder).parts]


def holds(folder: Path, parts: Sequence[str], unfinished: bool = False) -> str | None:
    """Return the fingerprint of what was packed into a folder; None if it is empty or not there, or unfinished.

    Raises:
        InputError: it holds something that was not packed here.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    if all((folder / part / INDEX_NAME).exists() for part in parts):
        found = {str(read_index(folder / part).get("packing", {}).get("fingerprint", "")) for part in parts}
        return found.pop() if len(found) == 1 else ""
    if unfinished:
        return None
    raise InputError(f"{folder} already holds something else: choose a new folder")


def write_shards(packing: Packing, plan: Plan) -> None:
    """Write all shards and then the index of each part.

    Raises:
        InputError: unreadable images; they are listed before.
    """
    clear(packing.folder, plan)
    options, listing = packing.options, plan.listing
    tasks = [task for part in plan.tasks.values() for task in part]
    total = sum(len(task.entries) for task in tasks)
    done = in_parallel(packing.write, tasks, options.jobs, total, f"packing, {listing.noun}")
    unreadable = {name: reason for result in done for name, reason in result.unreadable.items()}
    for name, reason in sorted(unreadable.items()):
        print(f"unreadable: {name}: {reason}", file=sys.stderr)
    if len(unreadable) > options.most_unreadable:
        raise InputError(
            f"{len(unreadable)} of {total} {listing.noun} are unreadable: repair or remove them and run the same "
            f"command again, or leave them out with {options.leave_out.format(len(unreadable))}"
        )
    outcomes = dict(zip((task.name for task in tasks), done, strict=True))
    for part, its_tasks in plan.tasks.items():
        shards = [outcome.shard for task in its_tasks if (outcome := outcomes[task.name]).shard]
        if not shards:
            count = sum(len(task.entries) for task in its_tasks)
            raise InputError(f"none of the {count} {listing.noun} is readable: check {listing.name}")
        left_out = sorted(name for task in its_tasks for name in outcomes[task.name].unreadable)
        how = {"source": listing.name, "prefix": its_tasks[0].source.prefix, "seed": options.seed}
        how |= {"fingerprint": plan.fingerprint, "left_out": left_out}
        write_index(packing.folder / part, listing.classes, shards, how, options.pixels)


def clear(folder: Path, plan: Plan) -> None:
    """Remove what earlier, interrupted packings left that is not of this one: indexes, shards, half-written files."""
    for path in folder.rglob(INDEX_NAME):  # first, for it says that its shards are there
        path.unlink()
    names = {task.name for tasks in plan.tasks.values() for task in tasks}
    for path in tars(folder):
        if path.relative_to(folder).as_posix() not in names:
            path.unlink()
    for path in folder.rglob(".*.partial"):
        path.unlink()
    for path in folder.iterdir():
        if path.is_dir() and path.name not in (NOTES, *plan.tasks):
            path.rmdir()
