"""The order of samples: pure functions of (seed, epoch, layout), the same on every rank and worker.

Unshuffled, an epoch is one sequence of all its samples: shards in a seeded order, and a seeded permutation inside each.
Shuffling moves every sample by a seeded distance, so that those of a few shards, or of all, lie among each other. A
layout (so many ranks with so many workers, so many samples a batch) cuts what is left of the sequence; less than one
optimizer step's samples stay over. There are two cuts:

- Where samples are read by place, they are shuffled over all shards, every permutation as likely as another, and every
  optimizer step takes the next of them, whoever shares them: so one process and many train on the same batches.
- Where shards stream front to back, every worker gets a contiguous run of complete batches of the unshuffled sequence,
  for it reads what lies between its samples too, and shuffles its run over a few shards, which it holds in memory.

When a run is interrupted, its place in the epoch is told by the layouts that worked on it and the batches that each
handed out: the same layout goes on where it was, and another layout cuts what is left anew. So no sample is seen twice,
none is lost but that last part of a step, and a shard that was used up is not read again, however often the layout
changes.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from mambaeye.errors import InputError


class LoaderLayout(NamedTuple):
    """Division of an epoch's samples among ranks and workers."""

    ranks: int
    workers: int
    """Loader workers of every rank, at least 1: without worker processes the rank itself."""
    batch_size: int
    """Samples of one rank's batch."""
    accumulation: int = 1
    """Batches of a rank that make an optimizer step."""
    runs: bool = False
    """True where every worker gets a contiguous run."""
    span: int | None = 1
    """Shards over which samples are shuffled, None for all. A saved layout that does not say is version 0.1's: 1."""

    @property
    def batch_of_all(self) -> int:
        """Return the samples of one batch of every rank."""
        return self.ranks * self.batch_size


class ResumedSegment(NamedTuple):
    """A stretch of an epoch under one layout."""

    layout: LoaderLayout
    batches: int
    """Batches that every rank was handed."""


class EpochOrder:
    """The samples of one training epoch, in the order in which each layout takes them.

    Args:
        counts: (shards,) samples in each shard.
        seed: of the run.
        epoch: index of the epoch; each has its own order.
    """

    def __init__(self, counts: np.ndarray, seed: int, epoch: int) -> None:
        rng = np.random.default_rng((seed, epoch))
        starts = counts.cumsum() - counts
        shards = rng.permutation(len(counts))
        self.unshuffled = np.concatenate([starts[shard] + rng.permutation(counts[shard]) for shard in shards])
        self.moves = rng.uniform(-1, 1, len(self.unshuffled))  # of each sample, in the farthest that it may move
        self.shard_size = len(self.unshuffled) / len(counts)  # mean

    def left(self, segments: Sequence[ResumedSegment]) -> np.ndarray:
        """Return the ids of the samples that were left when the last of some segments began: (n,) int64.

        They are in the order in which that segment's layout takes them; how many it was handed does not matter.
        """
        *before, (layout, _) = segments
        left = np.ones(len(self.unshuffled), dtype=bool)
        for earlier, batches in before:
            left[handed_out(self._taken(left, earlier), earlier, batches)] = False
        return self._taken(left, layout)

    def _taken(self, left: np.ndarray, layout: LoaderLayout) -> np.ndarray:
        """Return the ids of some samples, (all,) bool by id, in the order in which a layout takes them."""
        if not layout.runs:  # shuffled with those that are gone, so that the others keep their order
            order = self._shuffled(self.unshuffled, layout.span)
            return order[left[order]]
        order = self.unshuffled[left[self.unshuffled]]
        for start, stop in runs(len(order), layout).reshape(-1, 2):
            order[start:stop] = self._shuffled(order[start:stop], layout.span)
        return order

    def _shuffled(self, samples: np.ndarray, span: int | None) -> np.ndarray:
        """Return a stretch of the sequence in which each sample has moved, by up to the length of span - 1 shards.

        What would leave the stretch is reflected at its end, so that samples lie as dense there as elsewhere; and where
        they may move by its whole length, each comes to lie anywhere with the same probability.
        """
        length = len(samples)
        farthest = length if span is None else min(length, (span - 1) * self.shard_size)
        places = np.abs(np.arange(length) + 0.5 + farthest * self.moves[samples])
        return samples[np.argsort(length - np.abs(length - places), kind="stable")]


def divide(global_batch: int, ranks: int, most: int | None) -> tuple[int, int]:
    """Return the batch of a rank, of at most so many samples, and how many of these make an optimizer step.

    Raises:
        InputError: a global batch of that size does not divide; the message names the nearest that does.
    """

    def cut(size: int) -> tuple[int, int] | None:
        accumulation = -(-size // (ranks * (most or size)))
        batch, rest = divmod(size, ranks * accumulation)
        return None if rest or not batch else (batch, accumulation)

    parts = cut(global_batch)
    if parts is None:
        divisible = (size for size in range(1, 2 * global_batch + ranks + 1) if cut(size))
        nearest = min(divisible, key=lambda size: abs(size - global_batch))
        within = f" in batches of at most {most}" if most else ""
        raise InputError(
            f"data.loader.batch_size is {global_batch}, which {ranks} processes cannot share evenly{within}: the "
            f"nearest that they can is {nearest}"
        )
    return parts


def batches_of(samples: int, layout: LoaderLayout) -> int:
    """Return the batches that every rank of a layout gets out of so many samples: those of complete optimizer steps."""
    return samples // (layout.batch_of_all * layout.accumulation) * layout.accumulation


def deal(batches: int, layout: LoaderLayout) -> np.ndarray:
    """Deal batches to workers as a DataLoader asks for them, in turn from worker 0 on: (ranks, workers) int64."""
    of_a_rank = (batches + np.arange(layout.workers)[::-1]) // layout.workers
    return np.tile(of_a_rank, (layout.ranks, 1))


def runs(samples: int, layout: LoaderLayout) -> np.ndarray:
    """Return where every worker's run of the samples left starts and stops: (ranks, workers, 2) int64."""
    lengths = deal(batches_of(samples, layout), layout) * layout.batch_size
    stops = lengths.cumsum().reshape(lengths.shape)
    return np.stack((stops - lengths, stops), axis=-1)


def handed_out(order: np.ndarray, layout: LoaderLayout, batches: int) -> np.ndarray:
    """Return the samples of the first batches that a layout hands to every rank, of the samples left when it began."""
    if not layout.runs:
        return order[: batches * layout.batch_of_all]
    starts = runs(len(order), layout)[..., 0]
    done = deal(batches, layout) * layout.batch_size
    return np.concatenate([order[start : start + n] for start, n in zip(starts.flat, done.flat, strict=True)])


def optimizer_step_of(segments: Sequence[ResumedSegment], batch: int) -> int:
    """Return the index in the epoch of the optimizer step that a batch belongs to.

    A step is complete whenever the epoch's batches so far are a multiple of the accumulation, as Lightning counts.

    Args:
        segments: of the epoch so far, the last one under the layout that the batch belongs to.
        batch: its index among that layout's batches of a rank.
    """
    steps, batches = 0, 0
    for (layout, _), further in zip(segments, (*(segment.batches for segment in segments[:-1]), batch), strict=True):
        steps += (batches + further) // layout.accumulation - batches // layout.accumulation
        batches += further
    return steps


def share(order: np.ndarray, layout: LoaderLayout, done: int, rank: int, worker: int) -> np.ndarray:
    """Return what a worker still has to read of the samples left when its layout began, after `done` batches a rank."""
    if layout.runs:
        start, stop = runs(len(order), layout)[rank, worker]
        return order[start + deal(done, layout)[rank, worker] * layout.batch_size : stop]
    batches = batches_of(len(order), layout)
    by_batch = order[: batches * layout.batch_of_all].reshape(batches, layout.ranks, layout.batch_size)
    next_one = done + (worker - done) % layout.workers  # workers are asked in turn
    return by_batch[next_one :: layout.workers, rank].ravel()
