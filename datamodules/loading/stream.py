"""Shards -> training samples: what one DataLoader worker reads, and what becomes of a sample that cannot be read."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from datamodules.shards.index import ShardIndex
from datamodules.shards.order import LoaderLayout, share
from datamodules.shards.reading import ATTEMPTS, read_images
from datamodules.views.train import RawSample, TrainingGlimpses, filler
from mambaeye.batch import GlimpseBatch
from mambaeye.errors import InputError

log = logging.getLogger(__name__)


def numbers_here(order: np.ndarray, layout: LoaderLayout, rank: int, done: int) -> np.ndarray:
    """The samples of an order that this process reads: a loader worker, or the rank itself; see order.share."""
    info = get_worker_info()
    # a DataLoader asks its first worker first; the batch that comes next belongs to this one
    worker = ((info.id if info else 0) + done) % layout.workers
    return share(order, layout, done, rank, worker)


@dataclass
class SampleStream(IterableDataset):
    """One rank's samples of the rest of a training epoch; in a worker process, that worker's.

    A sample that cannot be read or decoded ends the pass with an InputError or, if some are max_unreadable, leaves a row
    that is marked invalid and bears its key; the loader counts those.
    """

    index: ShardIndex
    order: np.ndarray
    """Sample numbers of the pass when this layout began, over all ranks."""
    layout: LoaderLayout
    rank: int
    done: int
    """Batches that this layout has handed out on every rank."""
    glimpses: TrainingGlimpses
    """Makes the sample of an image."""
    key: tuple[int, ...]
    """What a sample's random draws depend on, besides its number."""
    tolerant: bool
    """Whether a sample may be unreadable."""

    def __iter__(self) -> Iterator[GlimpseBatch]:
        numbers = numbers_here(self.order, self.layout, self.rank, self.done)
        for number, image in zip(numbers.tolist(), read_images(self.index, numbers, ATTEMPTS), strict=True):
            yield self._sample(number, image)

    def _sample(self, number: int, image: bytes | InputError) -> GlimpseBatch:
        try:
            return self.glimpses(self._raw(number, image), np.random.default_rng((*self.key, number)), self._partner)
        except InputError as error:
            if not self.tolerant:
                raise InputError(f"{error} (in {self.index.source(number)})") from None
            log.warning("left out: %s (in %s)", error, self.index.source(number))
            return filler(self.glimpses.patch_size, self.glimpses.length, self.index.key(number))

    def _raw(self, number: int, image: bytes | InputError) -> RawSample:
        if isinstance(image, InputError):
            raise image
        return RawSample(self.index.key(number), image, int(self.index.labels[number]))

    def _partner(self, rng: np.random.Generator) -> RawSample:
        """Any sample of the index."""
        number = rng.integers(len(self.index), size=1)
        return self._raw(int(number[0]), next(read_images(self.index, number, ATTEMPTS)))
