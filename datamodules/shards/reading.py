"""Reading images out of shards: by place where a file can be sought in, front to back where it streams."""

import logging
import tarfile
import time
from collections.abc import Iterator
from typing import BinaryIO
from urllib.error import URLError

import numpy as np
from webdataset import gopen

from datamodules.shards.index import ShardIndex, header_matches, streams
from mambaeye.errors import InputError

ATTEMPTS = 3  # to go on with a shard that breaks off
PAUSE = 1.0  # seconds before the first new attempt; doubled for every further one
SKIPPED_AT_ONCE = 1 << 20  # bytes
BLOCK = tarfile.BLOCKSIZE  # bytes of the header before a tar's member

log = logging.getLogger(__name__)


def read_images(index: ShardIndex, numbers: np.ndarray, attempts: int) -> Iterator[bytes | InputError]:
    """The images with the given numbers, still encoded and in that order; for one that cannot be read, the error.

    A local shard is sought in. One that streams (a URL, a pipe: command) is read front to back once for every run of
    its numbers; images that come before their turn wait in memory, so that at most one shard is held.

    Args:
        index: where the samples are.
        numbers: of the samples.
        attempts: how often a shard is opened again when reading breaks, before its samples count as unreadable; each
            attempt goes on with the first image that was not delivered.
    """
    owners = np.searchsorted(index.starts, numbers, side="right") - 1
    first_of_run = np.flatnonzero(np.diff(owners, prepend=-1))
    for run in np.split(numbers, first_of_run[1:]):
        yield from read_run(index, run, attempts)


def read_run(index: ShardIndex, numbers: np.ndarray, attempts: int) -> Iterator[bytes | InputError]:
    """read_images for numbers of one shard."""
    if not len(numbers):
        return
    source = index.source(numbers[0])
    delivered, broken = 0, 0
    while delivered < len(numbers):
        try:
            for image in (read_streaming if streams(source) else read_seeking)(index, source, numbers[delivered:]):
                yield image
                delivered, broken = delivered + 1, 0
        except (OSError, EOFError, URLError) as error:
            broken += 1
            if broken > attempts:
                for number in numbers[delivered:]:
                    yield InputError(
                        f"sample {index.key(number)} cannot be read, for {source} breaks off ({error}): "
                        f"make the shard readable again, or allow for it with --data.max_unreadable"
                    )
                return
            log.warning("%s broke off (%s): attempt %d of %d to read on", source, error, broken, attempts)
            time.sleep(PAUSE * 2 ** (broken - 1))


def read_seeking(index: ShardIndex, source: str, numbers: np.ndarray) -> Iterator[bytes | InputError]:
    """The images with these numbers of one local shard."""
    with open(source, "rb") as file:
        for number in numbers:
            file.seek(index.offsets[number] - BLOCK)
            yield checked_image(index, source, number, file)


def read_streaming(index: ShardIndex, source: str, numbers: np.ndarray) -> Iterator[bytes | InputError]:
    """The images with these numbers of one shard that streams."""
    waiting: dict[int, bytes | InputError] = {}
    turns = iter(numbers.tolist())
    turn, place = next(turns), 0
    with gopen(source) as file:
        for number in sorted(numbers.tolist(), key=lambda n: index.offsets[n]):
            start = int(index.offsets[number]) - BLOCK
            while place < start:
                place += len(exactly(file, min(SKIPPED_AT_ONCE, start - place)))
            waiting[number] = checked_image(index, source, number, file)
            place += BLOCK + int(index.sizes[number])
            while turn in waiting:
                yield waiting.pop(turn)
                turn = next(turns, None)


def checked_image(index: ShardIndex, source: str, number: int, file: BinaryIO) -> bytes | InputError:
    """The image whose tar header comes next; an error if the header is not the sample's."""
    header = exactly(file, BLOCK)
    image = exactly(file, int(index.sizes[number]))
    if header_matches(header, index.key(number), len(image)):
        return image
    return InputError(
        f"{source} does not hold sample {index.key(number)} where its index says: index its folder anew with "
        f"'python -m datamodules.pack FOLDER'"
    )


def exactly(file: BinaryIO, size: int) -> bytes:
    """That many bytes.

    Raises:
        EOFError: there are fewer.
    """
    parts, missing = [], size
    while missing:  # a pipe may give less at a time
        part = file.read(missing)
        if not part:
            raise EOFError(f"it ends {missing} bytes too early")
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)
