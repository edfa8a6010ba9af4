"""Reading images out of shards: by place where a file can be sought in, front to back where it streams."""

import logging
import tarfile
import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
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


def read_images(index: ShardIndex, sample_ids: np.ndarray, attempts: int) -> Iterator[bytes | InputError]:
    """Yield the images with the given ids, still encoded and in that order; for one that cannot be read, the error.

    A local shard is sought in. One that streams (a URL, a pipe: command) is read front to back once: image by image if
    it is asked for in its own order; else to its last image when the first is asked for, and images wait for their turn
    in memory. An order that lets few shards lie among each other bounds how many wait; see EpochOrder.

    Args:
        index: where the samples are.
        sample_ids: (n,) int64, in any order, none twice.
        attempts: how often a shard is opened again when reading breaks, before its samples count as unreadable; each
            attempt goes on with the first image that was not read.
    """
    owners = np.searchsorted(index.starts, sample_ids, side="right") - 1
    waiting: dict[int, bytes | InputError] = {}
    for shard, run in groupby(zip(owners.tolist(), sample_ids.tolist(), strict=True), key=itemgetter(0)):
        turns = [sample_id for _, sample_id in run]
        if not streams(index.sources[shard]):
            yield from read_run(index, turns, attempts)
            continue
        if turns[0] not in waiting:
            wanted = sorted(sample_ids[owners == shard].tolist(), key=index.offsets.__getitem__)
            images = read_run(index, wanted, attempts)
            if turns == wanted:
                yield from images
                continue
            waiting.update(zip(wanted, images, strict=True))
        for sample_id in turns:
            yield waiting.pop(sample_id)


def read_run(index: ShardIndex, sample_ids: Sequence[int], attempts: int) -> Iterator[bytes | InputError]:
    """Yield the images of one shard, at least one, which streams in their order; see read_images."""
    source = index.source(sample_ids[0])
    read = read_streaming if streams(source) else read_seeking
    delivered, broken = 0, 0
    while delivered < len(sample_ids):
        try:
            for image in read(index, source, sample_ids[delivered:]):
                yield image
                delivered, broken = delivered + 1, 0
        except (OSError, EOFError, URLError) as error:
            if delivered == len(sample_ids):  # a command complains that its end is not read
                return
            broken += 1
            if broken > attempts:
                for sample_id in sample_ids[delivered:]:
                    yield InputError(
                        f"sample {index.key(sample_id)} cannot be read, for {source} breaks off ({error}): "
                        f"make the shard readable again, or allow for it with --data.loader.max_unreadable"
                    )
                return
            log.warning("%s broke off (%s): attempt %d of %d to read on", source, error, broken, attempts)
            time.sleep(PAUSE * 2 ** (broken - 1))


def read_seeking(index: ShardIndex, source: str, sample_ids: Sequence[int]) -> Iterator[bytes | InputError]:
    """Yield the images with these ids of one local shard."""
    with open(source, "rb") as file:
        for sample_id in sample_ids:
            file.seek(index.offsets[sample_id] - BLOCK)
            yield checked_image(index, source, sample_id, file)


def read_streaming(index: ShardIndex, source: str, sample_ids: Sequence[int]) -> Iterator[bytes | InputError]:
    """Yield the images with these ids of one shard that streams, in the order in which they lie there."""
    place = 0
    with gopen(source) as file:
        for sample_id in sample_ids:
            start = int(index.offsets[sample_id]) - BLOCK
            while place < start:
                place += len(exactly(file, min(SKIPPED_AT_ONCE, start - place)))
            yield checked_image(index, source, sample_id, file)
            place += BLOCK + int(index.sizes[sample_id])


def checked_image(index: ShardIndex, source: str, sample_id: int, file: BinaryIO) -> bytes | InputError:
    """Read the image whose tar header comes next; return an error if the header is not the sample's."""
    header = exactly(file, BLOCK)
    image = exactly(file, int(index.sizes[sample_id]))
    if header_matches(header, index.key(sample_id), len(image)):
        return image
    return InputError(
        f"{source} does not hold sample {index.key(sample_id)} where its index says: index its folder anew with "
        f"'python -m datamodules.pack FOLDER'"
    )


def exactly(file: BinaryIO, size: int) -> bytes:
    """Read that many bytes.

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
