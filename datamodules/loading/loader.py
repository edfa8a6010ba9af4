"""The loaders that Lightning drives: a DataLoader a pass, with a place in the epoch that survives interruptions."""

import logging
import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from datamodules.loading.stream import SampleStream
from datamodules.loading.workers import load
from datamodules.shards.index import ShardIndex
from datamodules.shards.order import LoaderLayout, ResumedSegment, batches_of, epoch_order, remaining
from datamodules.views.evaluate import CanvasStream, FixedGlimpses
from datamodules.views.train import TrainingGlimpses
from mambaeye.batch import CanvasBatch, GlimpseBatch
from mambaeye.errors import InputError

TRAINING, VALIDATION, PREDICTION = 0, 1, 2  # the first part of every random key

log = logging.getLogger(__name__)


class GlimpseLoader:
    """What loaders of training and of validation share: a pass over a stream of samples, in batches.

    Args:
        index: where the samples are.
        layout: who shares the samples.
        rank: of this process.
        num_workers: worker processes; 0 loads in this one.
        max_unreadable: samples a pass and process that may be unreadable before the run stops.
        timeout: seconds without a batch after which worker processes count as stuck.
        pin_memory: whether batches are for a CUDA device.
    """

    def __init__(
        self,
        index: ShardIndex,
        layout: LoaderLayout,
        rank: int,
        num_workers: int,
        max_unreadable: int,
        timeout: float,
        pin_memory: bool,
    ) -> None:
        assert layout.workers == max(1, num_workers)
        self.index, self.layout, self.rank, self.num_workers = index, layout, rank, num_workers
        self.max_unreadable, self.timeout, self.pin_memory = max_unreadable, timeout, pin_memory

    def batches(self, stream: SampleStream | CanvasStream) -> Iterator[Any]:
        """A stream's samples in batches, and a count of what could not be read.

        Raises:
            InputError: more samples than are max_unreadable could not be read; or nothing came for too long.
        """
        batches = load(
            stream,
            self.num_workers,
            self.timeout,
            str(self.index.folder),
            batch_size=self.layout.batch_size,
            pin_memory=self.pin_memory,
        )
        unreadable: dict[str, None] = {}  # each once, in whatever number of cells it is missing
        for batch in batches:
            rows = zip(batch.keys, batch.valid.tolist(), strict=True)
            unreadable |= {key: None for key, valid in rows if key and not valid}
            if len(unreadable) > self.max_unreadable:
                raise InputError(
                    f"{len(unreadable)} samples of {self.index.folder} could not be read, more than the "
                    f"{self.max_unreadable} of --data.max_unreadable ({', '.join(list(unreadable)[:5])}, ...): mend the "
                    f"shards"
                )
            yield batch
        if unreadable:
            log.warning("%d samples of %s were left out of this pass", len(unreadable), self.index.folder)


class FixedLoader(GlimpseLoader):
    """Every sample once over all ranks, in the order of the shards, at fixed positions; the same on every pass.

    A batch of images comes once for every cell. The last batches are filled up with invalid rows, so that all ranks
    have as many. `waited` is how many seconds the batches of the last pass took to come.

    Args:
        glimpses: makes the samples of an image.
        seed: of what scans draw.
        limit: how many batches of images to read of every rank: a number of them, or a share.

    Raises:
        InputError: the share is less than a batch.
    """

    def __init__(self, *args: Any, glimpses: FixedGlimpses, seed: int, limit: int | float = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.glimpses, self.key = glimpses, (VALIDATION, seed)
        self.waited = 0.0
        batch_of_all = self.layout.batch_of_all
        whole = -(-len(self.index) // batch_of_all)
        self.image_batches = min(limit, whole) if isinstance(limit, int) else int(limit * whole)
        if not self.image_batches:
            raise InputError(
                f"{limit} of {whole} batches is less than one: give --trainer.limit_val_batches (limit_test_batches) "
                f"at least {math.ceil(10_000 / whole) / 10_000:g}, or a number of batches"
            )
        self.order = np.full(whole * batch_of_all, -1)
        self.order[: len(self.index)] = np.arange(len(self.index))
        self.order = self.order[: self.image_batches * batch_of_all]

    def __len__(self) -> int:
        return self.image_batches * len(self.glimpses.cells)

    def __iter__(self) -> Iterator[CanvasBatch]:
        self.waited, asked = 0.0, time.perf_counter()
        stream = CanvasStream(
            self.index, self.order, self.layout, self.rank, self.glimpses, self.key, tolerant=self.max_unreadable > 0
        )
        for batch in self.batches(stream):
            self.waited += time.perf_counter() - asked
            yield batch
            asked = time.perf_counter()


class EpochLoader(GlimpseLoader):
    """Every pass is an epoch with an order of its own, or what is left of one.

    Its state is the same on every rank, counts batches that were handed out (not those that workers prefetched), and
    may be loaded by a loader with another layout. `waited` is how many seconds its last batch took to come.

    Args:
        glimpses: makes the sample of an image.
        seed: of the order and of all draws.
        epoch: says which epoch it is. It is asked when the first batch is, not before: Lightning makes an iterator
            before it has restored its own counters.
    """

    def __init__(
        self, *args: Any, glimpses: TrainingGlimpses, seed: int, epoch: Callable[[], int], **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.glimpses, self.seed, self.current_epoch = glimpses, seed, epoch
        self.place: dict[str, Any] = {"epoch": -1}
        self.waited = 0.0

    def _left(self, segments: list[ResumedSegment], seed: int, epoch: int) -> np.ndarray:
        return remaining(epoch_order(self.index.counts, seed, epoch), segments)

    def _legs(self) -> tuple[int, list[ResumedSegment]]:
        """Seed and segments of the current epoch, the last one this layout's."""
        if self.place["epoch"] != self.current_epoch():
            return self.seed, [ResumedSegment(self.layout, 0)]
        segments = [ResumedSegment(LoaderLayout(*layout), batches) for *layout, batches in self.place["segments"]]
        return self.place["seed"], segments if segments[-1].layout == self.layout else [
            *segments,
            ResumedSegment(self.layout, 0),
        ]

    def __len__(self) -> int:
        """Batches of the current epoch, those before an interruption included."""
        seed, segments = self._legs()
        left = self._left(segments[:-1], seed, self.current_epoch())
        return sum(segment.batches for segment in segments[:-1]) + batches_of(len(left), self.layout)

    def __iter__(self) -> Iterator[GlimpseBatch]:
        epoch = self.current_epoch()
        seed, (*before, segment) = self._legs()
        asked = time.perf_counter()
        order, done = self._left(before, seed, epoch), segment.batches
        key = (TRAINING, seed, epoch)
        stream = SampleStream(
            self.index, order, self.layout, self.rank, done, self.glimpses, key, tolerant=self.max_unreadable > 0
        )
        for batch in self.batches(stream):
            self.waited = time.perf_counter() - asked
            done += 1
            self.place = {
                "seed": seed,
                "epoch": epoch,
                "samples": len(self.index),
                "segments": [[*layout, batches] for layout, batches in (*before, ResumedSegment(self.layout, done))],
            }
            yield batch
            asked = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        """The place in the epoch: seed, epoch, samples, and the segments as [*layout, batches]."""
        return dict(self.place)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a place.

        Raises:
            InputError: it is a place among other samples.
        """
        samples = state.get("samples", len(self.index))
        if samples != len(self.index):
            raise InputError(
                f"the checkpoint was saved in an epoch over {samples} samples and {self.index.folder} has "
                f"{len(self.index)}: go on with the same shards, or load the weights alone into a new run"
            )
        self.place = dict(state)
