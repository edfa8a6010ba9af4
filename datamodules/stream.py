"""Shards -> samples, streamed by DataLoader workers in a given order."""

import tarfile
from collections.abc import Iterator

import cv2
import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from datamodules.glimpses import FixedGlimpses, TrainingGlimpses, filler
from datamodules.images import decode_image
from datamodules.index import REMEDY, ShardIndex
from datamodules.order import lane
from mambaeye.batch import GlimpseBatch
from mambaeye.errors import InputError

LONGEST_NAME = 60  # of a key, that a tar header holds without an extension to it


class SampleStream(IterableDataset):
    """One rank's samples of one pass, each worker reading its own lane of the order.

    Args:
        index: the shards.
        order: sample numbers of the pass over all ranks; it is cut, or filled up with invalid rows, to batches of
            batch_size for every rank.
        batches: batches of every rank.
        batch_size: samples of one rank's batch.
        rank: of this process.
        glimpses: makes the sample of an image.
        key: what a sample's random draws depend on besides its number, as a tuple of integers.
    """

    def __init__(
        self,
        index: ShardIndex,
        order: np.ndarray,
        batches: int,
        batch_size: int,
        rank: int,
        glimpses: TrainingGlimpses | FixedGlimpses,
        key: tuple[int, ...],
    ) -> None:
        super().__init__()
        self.index = index
        self.order = order
        self.batches, self.batch_size, self.rank = batches, batch_size, rank
        self.glimpses = glimpses
        self.key = key

    def __len__(self) -> int:
        """Samples of this rank, over all its workers."""
        return self.batches * self.batch_size

    def __iter__(self) -> Iterator[GlimpseBatch]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        if info:  # one core a worker, as for torch's own operations
            cv2.setNumThreads(0)
        mine = lane(self.batches, self.batch_size, self.rank, worker, workers)
        numbers = self.order[mine]
        for number in numbers.tolist():
            key = self.index.key(number)
            image = decode_image(read_image(self.index, number), f"sample {key} in {self.index.shard_path(number)}")
            rng = np.random.default_rng((*self.key, number))
            yield self.glimpses(image, int(self.index.labels[number]), key, rng)
        for _ in range(mine.stop - mine.start - len(numbers)):
            yield filler(self.glimpses.patch_size, self.glimpses.length)


def read_image(index: ShardIndex, number: int) -> bytes:
    """A sample's image, still encoded, after a look at the tar header before it.

    Raises:
        InputError: the shard holds something else there than its index says.
    """
    path, size = index.shard_path(number), int(index.sizes[number])
    with path.open("rb") as file:
        file.seek(int(index.offsets[number]) - tarfile.BLOCKSIZE)
        header, data = file.read(tarfile.BLOCKSIZE), file.read(size)
    try:
        member = tarfile.TarInfo.frombuf(header, tarfile.ENCODING, "surrogateescape")
    except tarfile.HeaderError:
        member = None
    if member is None or member.size != size or not member.name.startswith(index.key(number)[:LONGEST_NAME]):
        raise InputError(
            f"{path} does not hold sample {index.key(number)} where its index says: {REMEDY.format(index.folder)}"
        )
    return data
