"""Images -> WebDataset shards with their index.

python -m datamodules.pack IMAGES DEST   packs a folder, or a tar, of class folders: class/.../image.jpg
python -m datamodules.pack SHARDS        indexes a folder of shards anew

An image's bytes are stored as they are, in the order of --seed, under its path without the extension as the key. Until
all is complete, everything lies in DEST.packing; when a packing was interrupted, the same command continues it.
"""

import argparse
import hashlib
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from webdataset import TarWriter

from datamodules.parallel import in_parallel, positive
from datamodules.shards.index import (
    INDEX_NAME,
    LABEL_EXTENSION,
    Shard,
    ShardIndex,
    read_index,
    scan_shard,
    write_index,
)
from datamodules.sources import Entry, Source, decompressed, list_entries
from datamodules.transforms.headers import MAX_PIXELS, PixelLimit
from datamodules.transforms.images import decode_image
from mambaeye.atomic import atomic_write, refusals
from mambaeye.errors import InputError
from mambaeye.locks import WriterLock

NOTES = "notes"  # the folder in DEST.packing for everything that is not part of the result
SEED = 0
SAMPLES_PER_SHARD = 1000  # some 110 MB of ImageNet: 1282 shards, enough for any number of workers


@dataclass(frozen=True)
class Task:
    """One shard to write."""

    name: str
    entries: list[Entry]

    @cached_property
    def fingerprint(self) -> str:
        """Return a checksum that changes with everything that the shard's bytes depend on."""
        return checksum(self.entries)


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

    source: Source
    folder: Path
    skip: bool
    """Leave unreadable images out, instead of refusing them."""
    limit: PixelLimit

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
                    data = self.source.read(entry.member)
                    self.limit.require(data, entry.member.path)
                    decode_image(data, entry.member.path)
                except (InputError, OSError) as error:
                    unreadable[entry.member.path] = str(error)
                else:
                    tar.write({"__key__": entry.key, entry.extension: data, LABEL_EXTENSION: str(entry.label).encode()})
                advance(1)
        if len(unreadable) == len(task.entries) or (unreadable and not self.skip):
            path.unlink()
            return Done(task.fingerprint, None, unreadable)
        shard = scan_shard(path)
        # after the shard, so that what a note vouches for is there
        with atomic_write(self.note(task)) as partial:
            partial.write_text(json.dumps((task.fingerprint, asdict(shard), unreadable)), encoding="utf-8")
        return Done(task.fingerprint, shard, unreadable)

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


def pack(
    path: Path,
    dest: Path,
    prefix: str,
    classes: Sequence[str] | None,
    per_shard: int,
    seed: int,
    skip: bool,
    limit: PixelLimit,
    jobs: int,
) -> None:
    """Pack a folder or a tar of class folders into shards, and print what was done.

    Args:
        path: the folder or tar; a tar may be compressed (gz, bz2, xz), and is then unpacked beside the shards.
        dest: folder for the shards; new, empty, or complete from an earlier run with the same arguments.
        prefix: what stands before the class folders.
        classes: the class list; None takes the sorted names of the class folders.
        per_shard: images a shard, at most; the shards are made equally long.
        seed: of the order of the images.
        skip: leave unreadable images out.
        limit: images of more pixels are unreadable.
        jobs: threads.

    Raises:
        InputError: nothing to pack, or not clearly; the destination holds something else; unreadable images.
    """
    target = dest.resolve()
    if target.is_relative_to(path.resolve()):
        raise InputError(f"{dest} lies in {path}, which it is packed from: choose a folder outside")
    holds(target)  # raises, before a source is listed that may be large
    folder = target.with_name(f"{target.name}.packing")
    notes = folder / NOTES
    with refusals(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
    busy = f"another process is packing into {dest}", "wait for it, or choose another folder"
    # beside the folder, which is renamed at the end
    lock = WriterLock(target.with_name(f"{target.name}.packing.lock"), busy)
    lock.acquire()
    try:
        held = holds(target)
        notes.mkdir(parents=True, exist_ok=True)
        source = Source(path.name, decompressed(path, notes), prefix)
        entries, classes, others = list_entries(source, classes)
        tasks = plan(entries, per_shard, seed)
        fingerprint = checksum([*classes, *(task.fingerprint for task in tasks)])
        if held not in (None, fingerprint):
            raise InputError(
                f"{dest} already holds another data set, or this one from files or arguments that have changed "
                f"since: choose another folder, or delete it"
            )
        if others:
            kinds = ", ".join(f"{count} {kind}" for kind, count in others.most_common(5))
            print(f"passed over files that are not images: {kinds}")
        if held is None:
            if holds(folder, unfinished=True) != fingerprint:  # else it was interrupted at the last moment
                how = {"source": path.name, "prefix": prefix, "seed": seed, "fingerprint": fingerprint}
                write_shards(Packing(source, folder, skip, limit), tasks, classes, how, jobs)
            shutil.rmtree(notes)
            os.replace(folder, target)
    finally:
        if folder.exists() and not any(folder.glob("*.tar")):  # nothing to continue from
            shutil.rmtree(folder)
        lock.release()
    summary(dest)


def holds(folder: Path, unfinished: bool = False) -> str | None:
    """Return the fingerprint of what was packed into a folder; None if it is empty or not there, or unfinished.

    Raises:
        InputError: it holds something that was not packed here.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    if (folder / INDEX_NAME).exists():
        return str(read_index(folder).get("packing", {}).get("fingerprint", ""))
    if unfinished:
        return None
    raise InputError(f"{folder} already holds something else: choose a new folder")


def plan(entries: list[Entry], per_shard: int, seed: int) -> list[Task]:
    """Deal the images to shards, in the order of the seed; as many shards as it takes, equally long to one image."""
    order = np.random.default_rng(seed).permutation(len(entries))
    parts = np.array_split(order, -(-len(entries) // per_shard))
    return [
        Task(f"shard-{number:06d}.tar", [entries[place] for place in part.tolist()])
        for number, part in enumerate(parts)
    ]


def write_shards(packing: Packing, tasks: list[Task], classes: list[str], how: dict[str, Any], jobs: int) -> None:
    """Write all shards and then their index.

    Raises:
        InputError: unreadable images; they are listed before.
    """
    (packing.folder / INDEX_NAME).unlink(missing_ok=True)
    names = {task.name for task in tasks}
    for path in packing.folder.glob("*.tar"):  # of an earlier run with other arguments
        if path.name not in names:
            path.unlink()
    for path in packing.folder.glob(".*.partial"):  # which a kill left half written
        path.unlink()
    total = sum(len(task.entries) for task in tasks)
    done = in_parallel(packing.write, tasks, jobs, total, "packing, images")
    unreadable = {name: reason for result in done for name, reason in result.unreadable.items()}
    for name, reason in sorted(unreadable.items()):
        print(f"unreadable: {name}: {reason}", file=sys.stderr)
    if unreadable and not packing.skip:
        raise InputError(
            f"{len(unreadable)} of {total} images are unreadable: repair or remove them and run the same command "
            f"again, or leave them out with --unreadable skip"
        )
    shards = [result.shard for result in done if result.shard]
    if not shards:
        raise InputError(f"none of the {total} images is readable: check {packing.source.name}")
    write_index(packing.folder, classes, shards, how | {"left_out": sorted(unreadable)})


def reindex(folder: Path, classes: Sequence[str] | None, jobs: int) -> None:
    """Index a folder of shards anew; without a class list, with that of the index which is there.

    Raises:
        InputError: no shards; a damaged one; no class list, or one that does not fit the labels.
    """
    paths = sorted(folder.glob("*.tar"))
    if not paths:
        raise InputError(f"{folder} has no .tar files to index: give DEST to pack a folder of images")
    if classes is None and not (folder / INDEX_NAME).exists():
        raise InputError(f"{folder} has no index to take the class names from: give them with --classes FILE")
    classes = read_index(folder)["classes"] if classes is None else classes

    def work(path: Path, advance: Callable[[int], None]) -> Shard:
        shard = scan_shard(path)
        advance(1)
        return shard

    shards = in_parallel(work, paths, jobs, len(paths), "indexing, shards")
    ShardIndex(folder, classes, shards)  # raises if labels or keys are wrong
    write_index(folder, classes, shards)
    summary(folder)


def summary(folder: Path) -> None:
    """Print what a folder of shards holds now."""
    content = read_index(folder)
    count, size = sum(len(shard.keys) for shard in content["shards"]), sum(shard.bytes for shard in content["shards"])
    left_out = len(content.get("packing", {}).get("left_out", []))
    print(
        f"{folder}: images {count}, classes {len(content['classes'])}, shards {len(content['shards'])}, "
        f"{size / 1e6:.1f} MB" + (f"; {left_out} unreadable ones left out" if left_out else "")
    )


def class_list(path: Path) -> list[str]:
    """Read the class names in a file, one a line.

    Raises:
        InputError: the file is not there, not text, has no names, or one of them twice.
    """
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except FileNotFoundError:
        raise InputError(f"--classes {path} does not exist") from None
    except UnicodeDecodeError:
        raise InputError(f"--classes {path} is not text: give a file with a class name a line") from None
    if not names:
        raise InputError(f"--classes {path} is empty: give a file with a class name a line")
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise InputError(f"--classes {path} has {repeated[0]} twice: name each class once, the first has label 0")
    return names


def main(args: list[str] | None = None) -> None:
    """Run the command line; a user's mistake ends in one sentence and exit code 1 or, of the arguments' form, 2."""
    parser = argparse.ArgumentParser(
        prog="python -m datamodules.pack", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help="folder or tar (.gz, .bz2, .xz) of class folders")
    parser.add_argument(
        "dest", type=Path, metavar="DEST", nargs="?", help="new folder; without it, SOURCE is indexed anew"
    )
    parser.add_argument("--prefix", help="what stands before the class folders in SOURCE, such as train/")
    parser.add_argument(
        "--classes",
        type=Path,
        metavar="FILE",
        help="class names, one a line, label 0 first (default: sorted folder names)",
    )
    parser.add_argument(
        "--samples_per_shard",
        type=positive,
        metavar="N",
        help=f"images a shard, at most (default: {SAMPLES_PER_SHARD})",
    )
    parser.add_argument("--seed", type=int, help=f"of the order of the images (default: {SEED})")
    parser.add_argument(
        "--unreadable",
        choices=("refuse", "skip"),
        help="images that do not decode: list and refuse (default), or leave out",
    )
    parser.add_argument(
        "--max_pixels",
        type=positive,
        metavar="N",
        help=f"pixels that an image may have; one of more counts as one that does not decode (default: {MAX_PIXELS})",
    )
    parser.add_argument("--jobs", type=positive, default=os.cpu_count(), help="threads (default: one a core)")
    given = parser.parse_args(args)
    try:
        classes = class_list(given.classes) if given.classes else None
        if given.dest is None or given.dest.resolve() == given.source.resolve():
            for name in ("prefix", "samples_per_shard", "seed", "unreadable", "max_pixels"):
                if getattr(given, name) is not None:
                    raise InputError(f"--{name} is for packing images: without DEST, shards are only indexed anew")
            reindex(given.source, classes, given.jobs)
        else:
            if given.seed is not None and given.seed < 0:
                raise InputError(f"--seed is {given.seed}: give 0 or more")
            prefix = "".join(f"{part}/" for part in (given.prefix or "").split("/") if part not in ("", "."))
            per_shard, seed = given.samples_per_shard or SAMPLES_PER_SHARD, SEED if given.seed is None else given.seed
            skip = given.unreadable == "skip"
            limit = PixelLimit(given.max_pixels or MAX_PIXELS, "--max_pixels")
            pack(given.source, given.dest, prefix, classes, per_shard, seed, skip, limit, given.jobs)
    except (InputError, OSError) as error:  # of the system's, too: no space, no permission
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted: the same command continues")


if __name__ == "__main__":
    main()
