"""The loaders that Lightning drives: a DataLoader a pass, with a state in the epoch that survives interruptions."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from datamodules.loading.config import LoaderConfig
from datamodules.loading.slots import Slots
from datamodules.loading.stream import EvaluationStream, TrainingStream, collate
from datamodules.loading.unreadable import UnreadableRule
from datamodules.loading.workers import load
from datamodules.shards.index import ShardIndex
from datamodules.shards.order import EpochOrder, LoaderLayout, ResumedSegment, batches_of
from datamodules.views.evaluate import EvaluationCanvases
from datamodules.views.keys import TRAINING, VALIDATION
from datamodules.views.train import TrainingSamples
from mambaeye.batch import CanvasBatch, GlimpseBatch
from mambaeye.contracts import limited
from mambaeye.errors import InputError

Batch = TypeVar("Batch")

NO_EPOCH = {"epoch": -1}  # the state of a loader that has handed out nothing


@dataclass(frozen=True)
class ShardAccess:
    """Shards, who shares them, and how one process loads its part: what loaders of all kinds are given."""

    index: ShardIndex
    layout: LoaderLayout
    rank: int
    """Of this process."""
    config: LoaderConfig
    pin_memory: bool = False
    """True where batches are for a CUDA device."""

    def __post_init__(self) -> None:
        assert self.layout.workers == max(1, self.config.num_workers)

    @property
    def rule(self) -> UnreadableRule:
        """Return what becomes of unreadable samples."""
        return UnreadableRule(self.index, self.config.max_unreadable)

    def batches(self, stream: TrainingStream | EvaluationStream) -> Iterator[Any]:
        """Yield the samples of a stream in batches.

        Raises:
            InputError: too many samples could not be read; or nothing came for too long.
        """
        workers = self.config.num_workers
        batches = load(
            stream,
            workers,
            self.config.timeout,
            self.index.name,
            batch_size=self.layout.batch_size,
            pin_memory=self.pin_memory,
            collate_fn=Slots(workers, collate) if workers else collate,
        )
        return self.rule.counted(batches)


class Waiting:
    """Knows whether a batch is waited for now."""

    waiting = False

    def watched(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Pass on batches."""
        try:
            self.waiting = True
            for batch in batches:
                self.waiting = False
                yield batch
                self.waiting = True
        finally:
            self.waiting = False


class FixedLoader(Waiting):
    """Every sample once over all ranks, in the order of the shards, at fixed positions; the same on every pass.

    A batch of images comes once for every condition. The last batches are filled up with invalid rows, so that all
    ranks have as many. `waited` is how many seconds the batches of the last pass took to come.

    Args:
        access: the shards.
        samples: makes the samples of an image.
        seed: of what scans draw.
        limit: how many batches of images to read of every rank: a number of them, or a share.
        purpose: what it is for, the first part of the key of what scans draw.

    Raises:
        InputError: the share is less than a batch.
    """

    def __init__(
        self,
        access: ShardAccess,
        samples: EvaluationCanvases,
        seed: int,
        limit: int | float = 1.0,
        purpose: int = VALIDATION,
    ) -> None:
        self.access, self.samples, self.key = access, samples, (purpose, seed)
        self.waited = 0.0
        size, batch_of_all = len(access.index), access.layout.batch_of_all
        complete = -(-size // batch_of_all)
        self.image_batches = limited(complete, limit)
        if not self.image_batches:
            raise InputError(
                f"{limit} of {complete} batches is less than one: give --trainer.limit_val_batches "
                f"(limit_test_batches) at least {math.ceil(10_000 / complete) / 10_000:g}, or a number of batches"
            )
        order = np.full(complete * batch_of_all, -1)
        order[:size] = np.arange(size)
        self.order = order[: self.image_batches * batch_of_all]

    def __len__(self) -> int:
        return self.image_batches * len(self.samples.conditions)

    def __iter__(self) -> Iterator[CanvasBatch]:
        self.waited, asked = 0.0, time.perf_counter()
        access = self.access
        stream = EvaluationStream(
            access.index,
            self.order,
            access.layout,
            access.rank,
            self.samples,
            self.key,
            access.rule,
            access.config.pixel_limit,
            access.config.read_limits,
        )
        for batch in self.watched(access.batches(stream)):
            self.waited += time.perf_counter() - asked
            yield batch
            asked = time.perf_counter()


class EpochLoader(Waiting):
    """Every pass is an epoch with an order of its own, or what is left of one.

    Its state is the same on every rank, counts batches that were handed out (not those that workers prefetched), and
    may be loaded by a loader with another layout. `waited` is how many seconds its last batch took to come.

    Args:
        access: the shards.
        samples: makes the sample of an image.
        seed: of the order and of all draws.
        epoch: says which epoch it is. It is asked when the first batch is, not before: Lightning makes an iterator
            before it has restored its own counters.
    """

    def __init__(
        self,
        access: ShardAccess,
        samples: TrainingSamples,
        seed: int,
        epoch: Callable[[], int],
    ) -> None:
        self.access, self.samples = access, samples
        self.seed, self.current_epoch = seed, epoch
        self.state: dict[str, Any] = dict(NO_EPOCH)
        self.waited = 0.0

    def _segments(self) -> tuple[int, list[ResumedSegment]]:
        """Return seed and segments of the current epoch, the last one under this layout."""
        layout = self.access.layout
        if self.state["epoch"] != self.current_epoch():
            return self.seed, [ResumedSegment(layout, 0)]
        segments = [ResumedSegment(LoaderLayout(*saved), batches) for *saved, batches in self.state["segments"]]
        if segments[-1].layout.span == 1:  # as in version 0.1: an epoch that takes shard after shard goes on so
            layout = layout._replace(span=1)
        if segments[-1].layout != layout:
            segments.append(ResumedSegment(layout, 0))
        return self.state["seed"], segments

    @property
    def done(self) -> int:
        """Return the batches of the current epoch that were handed out, those before an interruption included."""
        _, segments = self._segments()
        return sum(segment.batches for segment in segments)

    def __len__(self) -> int:
        """Return the batches of the current epoch, those before an interruption included."""
        _, segments = self._segments()
        done = sum(segment.batches for segment in segments[:-1])
        seen = sum(segment.batches * segment.layout.batch_of_all for segment in segments[:-1])
        return done + batches_of(len(self.access.index) - seen, self.access.layout)

    def __iter__(self) -> Iterator[GlimpseBatch | CanvasBatch]:
        epoch = self.current_epoch()
        seed, segments = self._segments()
        *before, (layout, done) = segments
        asked, access = time.perf_counter(), self.access
        stream = TrainingStream(
            access.index,
            EpochOrder(access.index.counts, seed, epoch).left(segments),
            segments,
            access.rank,
            self.samples,
            (TRAINING, seed, epoch),
            access.rule,
            access.config.pixel_limit,
            access.config.read_limits,
        )
        for batch in self.watched(access.batches(stream)):
            self.waited = time.perf_counter() - asked
            done += 1
            self.state = {
                "seed": seed,
                "epoch": epoch,
                "samples": len(access.index),
                "segments": [[*saved, batches] for saved, batches in (*before, ResumedSegment(layout, done))],
            }
            yield batch
            asked = time.perf_counter()

    def state_dict(self) -> dict[str, Any]:
        """Return where in the epoch it is: seed, epoch, samples, and the segments as [*layout, batches]."""
        return dict(self.state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state.

        Raises:
            InputError: it is of an epoch over other samples.
        """
        index = self.access.index
        samples = state.get("samples", len(index))
        if samples != len(index):
            raise InputError(
                f"the checkpoint was saved in an epoch over {samples} samples and {index.name} has {len(index)}: go "
                f"on with the same shards, or load the weights alone into a new run"
            )
        self.state = dict(state)
