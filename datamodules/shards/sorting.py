"""Shards that are sorted by class, which the labels in their index give away."""

import numpy as np

from datamodules.shards.index import ShardIndex

FEW = 0.55  # of the classes that a shard would have if its samples were drawn from all
NOTICED = 0.1  # of all samples, in such shards


def class_sorted(index: ShardIndex) -> list[str]:
    """Return the names of the shards whose samples are of few classes, of those that the samples of all are of.

    None if fewer than a tenth of the samples lie in such shards, as may happen by chance where shards are very small.
    """
    classes, labels = np.unique(index.labels, return_inverse=True)
    owners = np.repeat(np.arange(len(index.counts)), index.counts)
    held = np.unique(owners * len(classes) + labels) // len(classes)  # a shard, as often as it has classes
    others = 1 - np.bincount(labels) / len(labels)  # (classes,) the share of samples that are of another class
    sizes, size = np.unique(index.counts, return_inverse=True)
    expected = np.array([(1 - others**count).sum() for count in sizes])[size]  # (shards,)
    few = np.bincount(held, minlength=len(index.counts)) < FEW * expected
    if index.counts[few].sum() < NOTICED * len(labels):
        return []
    return [index.paths[shard].name for shard in np.flatnonzero(few)]
