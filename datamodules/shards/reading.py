"""Reading images out of shards: by place where a file can be sought in, front to back where it streams."""

import tarfile
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby
from operator import itemgetter

import numpy as np

from datamodules.shards.index import ShardIndex, header_matches
from datamodules.storage.limits import Attempts, ReadLimits
from datamodules.storage.stream import ByteStream, open_stream, streams
from datamodules.transforms.regions import FileRange
from mambaeye.errors import InputError

WORTH_A_REQUEST = 1 << 21  # bytes between two wanted images: some more are read and thrown away as fast
BLOCK = tarfile.BLOCKSIZE  # bytes of the header before a tar's member


def read_images(
    index: ShardIndex, sample_ids: np.ndarray, attempts: int, limits: ReadLimits = ReadLimits()
) -> Iterator[bytes | InputError]:
    """Yield the images with the given ids, still encoded and in that order; for one that cannot be read, the error.

    A local shard is sought in. One that streams (a URL, a pipe: command) is read front to back once: image by image if
    it is asked for in its own order; else to its last image when the first is asked for, and images wait for their turn
    in memory. An order that lets few shards lie among each other bounds how many wait; see EpochOrder. Where ranges of
    bytes can be asked for, reading begins at the first wanted image, and long stretches without one are left out.

    Args:
        index: where the samples are.
        sample_ids: (n,) int64, in any order, none twice.
        attempts: how often a shard is opened again when reading breaks, before its samples count as unreadable; each
            attempt goes on with the first image that was not read.
        limits: to how slowly a shard that streams may come.
    """
    owners = np.searchsorted(index.starts, sample_ids, side="right") - 1
    waiting: dict[int, bytes | InputError] = {}
    for shard, run in groupby(zip(owners.tolist(), sample_ids.tolist(), strict=True), key=itemgetter(0)):
        turns = [sample_id for _, sample_id in run]
        if not streams(index.sources[shard]):
            yield from read_run(index, turns, attempts, limits)
            continue
        if turns[0] not in waiting:
            wanted = sorted(sample_ids[owners == shard].tolist(), key=index.offsets.__getitem__)
            images = read_run(index, wanted, attempts, limits)
            if turns == wanted:
                yield from images
                continue
            waiting.update(zip(wanted, images, strict=True))
        for sample_id in turns:
            yield waiting.pop(sample_id)


def place_of(index: ShardIndex, sample_id: int) -> FileRange | None:
    """Return where an image lies in its shard, a local one; None if it is not there, which reading it says."""
    source, offset, size = index.source(sample_id), int(index.offsets[sample_id]), int(index.sizes[sample_id])
    try:
        with open(source, "rb") as file:
            file.seek(offset - BLOCK)
            header = file.read(BLOCK)
    except OSError:
        return None
    return FileRange(source, offset, size) if header_matches(header, index.key(sample_id), size) else None


def read_run(
    index: ShardIndex, sample_ids: Sequence[int], attempts: int, limits: ReadLimits
) -> Iterator[bytes | InputError]:
    """Yield the images of one shard, at least one, which streams in their order; see read_images."""
    source, delivered = index.source(sample_ids[0]), 0
    read = partial(read_streaming, limits=limits) if streams(source) else read_seeking
    trying = Attempts(source, attempts, limits)
    while delivered < len(sample_ids):
        try:
            for image in read(index, source, sample_ids[delivered:]):
                yield image
                delivered += 1
                trying.succeeded()
        except (OSError, EOFError) as error:
            if not trying.another(error):
                for sample_id in sample_ids[delivered:]:
                    yield InputError(
                        f"sample {index.key(sample_id)} cannot be read, for {source} breaks off ({error}): "
                        f"make the shard readable again, or allow for it with --data.loader.max_unreadable"
                    )
                return


def read_seeking(index: ShardIndex, source: str, sample_ids: Sequence[int]) -> Iterator[bytes | InputError]:
    """Yield the images with these ids of one local shard."""
    with open(source, "rb") as file:
        for sample_id in sample_ids:
            file.seek(index.offsets[sample_id] - BLOCK)
            header, image = file.read(BLOCK), file.read(index.sizes[sample_id])
            if missing := BLOCK + index.sizes[sample_id] - len(header) - len(image):
                raise EOFError(f"it ends {missing} bytes too early")
            yield checked_image(index, source, sample_id, header, image)


def read_streaming(
    index: ShardIndex, source: str, sample_ids: Sequence[int], limits: ReadLimits
) -> Iterator[bytes | InputError]:
    """Yield the images with these ids of one shard that streams, in the order in which they lie there."""
    stream: ByteStream | None = None
    stop = int(index.offsets[sample_ids[-1]] + index.sizes[sample_ids[-1]])
    try:
        for sample_id in sample_ids:
            start = int(index.offsets[sample_id]) - BLOCK
            if stream is not None and stream.ranges and start - stream.place > WORTH_A_REQUEST:
                stream.close()
                stream = None
            stream = stream or open_stream(source, limits, start, stop)
            stream.skip_to(start)
            header, image = stream.read(BLOCK), stream.read(int(index.sizes[sample_id]))
            yield checked_image(index, source, sample_id, header, image)
    finally:
        if stream is not None:
            stream.close()


def checked_image(index: ShardIndex, source: str, sample_id: int, header: bytes, image: bytes) -> bytes | InputError:
    """Return an image, or an error if the tar header before it is not the sample's."""
    if header_matches(header, index.key(sample_id), len(image)):
        return image
    remedy = "index its folder anew with 'python -m datamodules.pack FOLDER'"
    if streams(source):
        remedy = (
            "put the shard there that belongs to the index; or index the shards anew with 'python -m datamodules.pack "
            "FOLDER' where they are files, and put that index there"
        )
    return InputError(f"{source} does not hold sample {index.key(sample_id)} where its index says: {remedy}")
