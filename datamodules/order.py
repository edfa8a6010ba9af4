"""Which sample comes when: pure functions of (seed, epoch), the same on every rank and worker."""

import numpy as np


def epoch_order(counts: np.ndarray, seed: int, epoch: int) -> np.ndarray:
    """The sample numbers of one training epoch, in order: shards shuffled, and samples shuffled within each.

    Args:
        counts: (shards,) samples in each shard.
        seed: of the run.
        epoch: number of the epoch; each has its own order.

    Returns:
        (sum of counts,) int64, a permutation.
    """
    rng = np.random.default_rng((seed, epoch))
    starts = counts.cumsum() - counts
    return np.concatenate([starts[shard] + rng.permutation(counts[shard]) for shard in rng.permutation(len(counts))])


def lane(batches: int, batch_size: int, rank: int, worker: int, workers: int) -> slice:
    """The part of an epoch's order that one worker of one rank reads: contiguous, and whole batches.

    A rank's batches are dealt to its workers as a DataLoader asks for them: in turn, beginning with worker 0.

    Args:
        batches: batches of every rank.
        batch_size: samples of one rank's batch.
        rank: of this process.
        worker: number of this worker in its process.
        workers: workers of every process.
    """
    share, extra = divmod(batches, workers)
    first = rank * batches + worker * share + min(worker, extra)
    return slice(first * batch_size, (first + share + (worker < extra)) * batch_size)
