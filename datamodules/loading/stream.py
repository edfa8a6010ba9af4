"""Shards -> samples: what one DataLoader worker reads, in training and in validation."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info
from torch.utils.data._utils.collate import collate as collate_by
from torch.utils.data._utils.collate import default_collate_fn_map

from datamodules.loading.slots import Stack
from datamodules.loading.unreadable import UnreadableRule
from datamodules.shards.index import ShardIndex
from datamodules.shards.order import LoaderLayout, ResumedSegment, optimizer_step_of, share
from datamodules.shards.reading import place_of, read_images
from datamodules.storage.limits import ATTEMPTS, ReadLimits
from datamodules.transforms.bands import Bands
from datamodules.transforms.clips import Clip
from datamodules.transforms.headers import PixelLimit
from datamodules.transforms.images import decode_image
from datamodules.transforms.planned import PlannedGlimpses
from datamodules.transforms.regions import LargeTiff, large_tiff
from datamodules.views.evaluate import FILLER, DecodedSample, EvaluationCanvases
from datamodules.views.keys import Key, frames_of_step, side_of_step
from datamodules.views.train import RawSample, TrainingSamples
from mambaeye.batch import CanvasBatch, GlimpseBatch
from mambaeye.errors import InputError


class Share(NamedTuple):
    """The samples of an order that this process reads, a loader worker or the rank itself."""

    sample_ids: np.ndarray
    """(n,) int64, batch after batch."""
    first_batch: int
    """Index of the first batch that it makes among its rank's, counted from where its layout began."""


def share_here(order: np.ndarray, layout: LoaderLayout, rank: int, done: int) -> Share:
    """Return what this process reads of an order after `done` batches a rank; see order.share."""
    info = get_worker_info()
    first_batch = done + (info.id if info else 0)  # a DataLoader asks its first worker first
    return Share(share(order, layout, done, rank, first_batch % layout.workers), first_batch)


@dataclass
class TrainingStream(IterableDataset[GlimpseBatch | CanvasBatch]):
    """One rank's samples of the rest of a training epoch; in a worker process, that worker's."""

    index: ShardIndex
    order: np.ndarray
    """Sample ids of the epoch that were left when the current layout began, over all ranks."""
    segments: Sequence[ResumedSegment]
    """The epoch so far, the last one under the current layout."""
    rank: int
    samples: TrainingSamples
    """Makes the sample of an image."""
    key: Key
    """Key of a sample's random draws, before its id."""
    rule: UnreadableRule
    limit: PixelLimit
    reads: ReadLimits
    """Limits to how slowly shards that stream may come."""

    def __iter__(self) -> Iterator[GlimpseBatch | CanvasBatch]:
        layout, done = self.segments[-1]
        sample_ids, first_batch = share_here(self.order, layout, self.rank, done)
        encoded = read_images(self.index, sample_ids, ATTEMPTS, self.reads)
        for turn, batch in enumerate(sample_ids.reshape(-1, layout.batch_size).tolist()):
            step = optimizer_step_of(self.segments, first_batch + turn * layout.workers)
            view = self.samples.view
            side = side_of_step(view.canvas, self.key, step)
            frames = side if isinstance(view.frames, str) else frames_of_step(view.frames, self.key, step)
            for sample_id in batch:
                yield self._sample(sample_id, next(encoded), side, frames)

    def _sample(self, sample_id: int, image: bytes | InputError, side: int, frames: int) -> GlimpseBatch | CanvasBatch:
        def read() -> GlimpseBatch | CanvasBatch:
            rng = np.random.default_rng((*self.key, sample_id))
            return self.samples.sample(self._raw(sample_id, image), rng, self._partner, side, frames)

        sample = self.rule.attempt(sample_id, read)
        return self.samples.filler(self.index.key(sample_id), side, frames) if sample is None else sample

    def _raw(self, sample_id: int, image: bytes | InputError) -> RawSample:
        if isinstance(image, InputError):
            raise image
        key, label = self.index.key(sample_id), int(self.index.labels[sample_id])
        if self.index.frames is not None:
            return RawSample(key, Clip.open(image, self.limit, f"sample {key}"), label)
        if not self.samples.pixels.is_rgb:
            return RawSample(key, Bands(image, self.samples.pixels, self.limit, f"sample {key}"), label)
        self.limit.require(image, f"sample {key}")
        return RawSample(key, image, label)

    def _partner(self, rng: np.random.Generator) -> RawSample:
        """Draw any sample of the index."""
        sample_ids = rng.integers(len(self.index), size=1)
        return self._raw(int(sample_ids[0]), next(read_images(self.index, sample_ids, ATTEMPTS, self.reads)))


@dataclass
class EvaluationStream(IterableDataset[CanvasBatch]):
    """One rank's samples of a validation, batch after batch, each under all conditions; in a worker, its own."""

    index: ShardIndex
    order: np.ndarray
    """Sample ids over all ranks, in complete batches; a negative one stands for a row of filler."""
    layout: LoaderLayout
    rank: int
    samples: EvaluationCanvases
    """Makes the samples of a batch of images."""
    key: Key
    """Key of all random draws, before resolution and sample id."""
    rule: UnreadableRule
    limit: PixelLimit
    reads: ReadLimits
    """Limits to how slowly shards that stream may come."""

    def __iter__(self) -> Iterator[CanvasBatch]:
        sample_ids, _ = share_here(self.order, self.layout, self.rank, 0)
        encoded = self._encoded(sample_ids[sample_ids >= 0])
        for batch in sample_ids.reshape(-1, self.layout.batch_size).tolist():
            decoded = [self._decoded(sample_id, next(encoded)) if sample_id >= 0 else FILLER for sample_id in batch]
            yield from self.samples(decoded, self.key, self.rule.attempt)

    def _encoded(self, sample_ids: np.ndarray) -> Iterator[bytes | LargeTiff | InputError]:
        """Yield what read_images does, and large TIFFs in local shards as what is read where glimpses fall."""
        if not self.samples.by_region or self.index.streaming:
            yield from read_images(self.index, sample_ids, ATTEMPTS, self.reads)
            return
        for sample_id in sample_ids:
            large = self._large(sample_id)
            one = np.array([sample_id])
            yield next(read_images(self.index, one, ATTEMPTS, self.reads)) if large is None else large

    def _large(self, sample_id: int) -> LargeTiff | InputError | None:
        """Return a TIFF that is read by region, or the error that it cannot be; None for an image to read whole."""
        place = place_of(self.index, sample_id)
        try:
            what = f"sample {self.index.key(sample_id)}"
            return None if place is None else large_tiff(place, what, self.samples.pixels, self.limit)
        except InputError as error:
            return error

    def _decoded(self, sample_id: int, encoded: bytes | LargeTiff | InputError) -> DecodedSample:
        key = self.index.key(sample_id)

        def read() -> np.ndarray | LargeTiff | Clip:
            if isinstance(encoded, InputError):
                raise encoded
            if isinstance(encoded, LargeTiff):
                return encoded
            if self.index.frames is not None:
                return Clip.open(encoded, self.limit, f"sample {key}")
            if not self.samples.pixels.is_rgb:
                return Bands(encoded, self.samples.pixels, self.limit, f"sample {key}").decoded()
            self.limit.require(encoded, f"sample {key}")
            return decode_image(encoded, f"sample {key}")

        return DecodedSample(sample_id, key, int(self.index.labels[sample_id]), self.rule.attempt(sample_id, read))


def collate(samples: list[GlimpseBatch | CanvasBatch], stack: Stack | None = None) -> GlimpseBatch | CanvasBatch:
    """Stack samples of one shape into a batch; canvases of a batch are all of one condition.

    Args:
        samples: at least one.
        stack: makes each of the batch's tensors; as torch does if it is None.
    """
    ways = default_collate_fn_map | {PlannedGlimpses: collate_planned}
    if stack:
        ways |= {Tensor: lambda parts, *, collate_fn_map: stack(parts)}
    batch: GlimpseBatch | CanvasBatch = collate_by(samples, collate_fn_map=ways)
    batch = batch._replace(keys=list(batch.keys))
    if isinstance(batch, CanvasBatch) and isinstance(samples[0], CanvasBatch):
        return batch._replace(condition=samples[0].condition)
    return batch


def collate_planned(parts: list[PlannedGlimpses], *, collate_fn_map: dict[Any, Any]) -> PlannedGlimpses:
    """Stack glimpses of one canvas each, by torch's collation."""
    patches, positions = (
        collate_by(list(tensors), collate_fn_map=collate_fn_map)
        for tensors in zip(*((part.patches, part.positions) for part in parts), strict=True)
    )
    return PlannedGlimpses(patches, positions, parts[0].sides)
