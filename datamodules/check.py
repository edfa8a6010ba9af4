"""Shards against their index: python -m datamodules.check SHARDS prints what is damaged, a line each."""

import argparse
import os
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

from datamodules.parallel import in_parallel, positive
from datamodules.shards.index import (
    INDEX_NAME,
    Shard,
    ShardIndex,
    header_matches,
    read_index,
)
from datamodules.shards.scan import scan_shard
from datamodules.transforms.clips import require_readable
from datamodules.transforms.headers import MAX_PIXELS, PixelLimit
from datamodules.transforms.pixels import RGB, Pixels
from datamodules.transforms.regions import FileRange, large_tiff
from mambaeye.errors import InputError

COLUMNS = ("keys", "labels", "offsets", "sizes", "frames")


def check(folder: Path, jobs: int, limit: PixelLimit | None) -> list[str]:
    """Return what is damaged in a folder of shards, a line for each finding; none when all is well.

    Args:
        folder: with the shards and their index.
        jobs: threads.
        limit: of the pixels of images, all of which are then decoded too; None decodes none.

    Raises:
        InputError: there is no index that can be read.
    """
    content = read_index(folder)
    shards = content["shards"]
    pixels = content["pixels"]
    findings = []
    try:
        ShardIndex(folder, content["classes"], shards)
    except InputError as error:  # labels outside the class list, samples with the same key
        findings.append(str(error))
    strays = {path.name for path in folder.glob("*.tar")} - {shard.name for shard in shards}
    findings += [f"{folder / name} is not in the index" for name in sorted(strays)]
    if not shards:
        findings.append(f"{folder / INDEX_NAME} lists no shard")

    def work(shard: Shard, advance: Callable[[int], None]) -> list[str]:
        return list(check_shard(folder / shard.name, shard, limit, advance, pixels))

    total = sum(len(shard.keys) for shard in shards)
    for found in in_parallel(work, shards, jobs, total, f"checking {folder.name}, images"):
        findings += found
    return findings


def check_shard(
    path: Path, expected: Shard, limit: PixelLimit | None, advance: Callable[[int], None], pixels: Pixels = RGB
) -> Iterator[str]:
    """Yield what differs between a shard and its index and, with a limit, which of its images are damaged."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        yield f"{path} is missing"
        advance(len(expected.keys))
        return
    if size != expected.bytes:
        yield f"{path} has {size} bytes, and {expected.bytes} in the index"
    try:
        found = scan_shard(path)
    except (InputError, OSError) as error:
        yield str(error)
    else:
        if found.sha256 != expected.sha256:
            yield f"{path} has another checksum than in the index (sha256)"
        yield from compare(path, found.compact(), expected)
    if limit:
        yield from damaged_images(path, expected, limit, advance, pixels)
    else:
        advance(len(expected.keys))


def compare(path: Path, found: Shard, expected: Shard) -> Iterator[str]:
    """Yield which samples differ: the first of every column, and how many."""
    if len(found.keys) != len(expected.keys):
        yield f"{path} has {len(found.keys)} samples, and {len(expected.keys)} in the index"
        return
    if (found.frames is None) != (expected.frames is None):
        holds, said = ("images", "clips") if found.frames is None else ("clips", "images")
        yield f"{path} holds {holds}, and {said} by its index"
        return
    for name in COLUMNS if found.frames is not None else COLUMNS[:-1]:
        here, there = getattr(found, name), getattr(expected, name)
        places = (here != there).nonzero()[0]
        if len(places):
            first = places[0]
            yield (
                f"{path} has other {name} than the index in {len(places)} samples, the first "
                f"{shown(expected.keys[first])}: {shown(here[first])}, and {shown(there[first])} in the index"
            )


def shown(value: object) -> str:
    """Write a key or a number for a message."""
    return value.decode() if isinstance(value, bytes) else str(value)


def damaged_images(
    path: Path, expected: Shard, limit: PixelLimit, advance: Callable[[int], None], pixels: Pixels
) -> Iterator[str]:
    """Decode a shard's images from where the index says that they are, and yield what is wrong with them."""
    with path.open("rb") as file:
        for encoded, start, length in zip(expected.keys, expected.offsets, expected.sizes, strict=True):
            key, offset, size = encoded.decode(), int(start), int(length)
            file.seek(min(max(0, offset - tarfile.BLOCKSIZE), expected.bytes))  # a wrong index may say anything
            try:
                if header_matches(file.read(tarfile.BLOCKSIZE), key, size):
                    what, is_clip = f"sample {key} in {path}", expected.frames is not None
                    place = FileRange(str(path), offset, size)
                    if not is_clip and (large := large_tiff(place, what, pixels, limit)):
                        large.require_whole()
                    else:
                        require_readable(file.read(size), is_clip, limit, what, pixels)
                else:
                    yield f"{path} does not hold sample {key} where the index says"
            except (InputError, OSError) as error:
                yield str(error)
            advance(1)


def main(args: list[str] | None = None) -> None:
    """Run the command line: exit code 0 when all is well, 1 when something is damaged or cannot be checked."""
    parser = argparse.ArgumentParser(prog="python -m datamodules.check", description=__doc__)
    parser.add_argument("shards", type=Path, metavar="SHARDS", help="folder of shards with their index.json")
    parser.add_argument("--decode", action="store_true", help="also decode every image")
    parser.add_argument(
        "--max_pixels",
        type=positive,
        default=MAX_PIXELS,
        metavar="N",
        help="pixels that an image may have, with --decode (default: %(default)s)",
    )
    parser.add_argument("--jobs", type=positive, default=os.cpu_count(), help="threads (default: one a core)")
    given = parser.parse_args(args)
    try:
        limit = PixelLimit(given.max_pixels, "--max_pixels") if given.decode else None
        findings = check(given.shards, given.jobs, limit)
    except InputError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("interrupted: nothing is known of the shards that were not reached")
    for finding in findings:
        print(finding)
    if findings:
        sys.exit(1)
    print(f"{given.shards} is as its index says" + (", and every image decodes" if given.decode else ""))


if __name__ == "__main__":
    main()
