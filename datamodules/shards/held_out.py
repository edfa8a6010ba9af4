"""Samples that are kept out of training: by their keys alone, whatever the seed, the epoch and the order of shards."""

import hashlib

import numpy as np

from datamodules.shards.index import ShardIndex
from mambaeye.errors import InputError


def places(index: ShardIndex) -> np.ndarray:
    """Return a place in [0, 1) for every sample, drawn by its key: (n,) float64."""
    keys: list[bytes] = index.keys.tolist()
    digests = b"".join(hashlib.blake2b(key, digest_size=8).digest() for key in keys)
    return np.frombuffer(digests, "<u8") / 2.0**64


def without_held_out(index: ShardIndex, share: float) -> ShardIndex:
    """Return what is left to train on when a share of the samples is kept out.

    Raises:
        InputError: the share is of so few samples that none is kept out, or none is left.
    """
    if share == 0:
        return index
    left = places(index) >= share
    if left.all() or not left.any():
        which = "none of them is kept out" if left.all() else "none of them is left to train on"
        raise InputError(
            f"data.held_out is {share:g}, and of {len(index)} samples in {index.name} {which}: give another"
        )
    return index.part(left, f"{index.name} (data.held_out {share:g} left out)")


def to_calibrate_on(index: ShardIndex, share: float, most: int) -> ShardIndex:
    """Return the samples that are kept out, or any if none are: so many at most, the first by their places."""
    at = places(index)
    chosen = at < share if share else np.full(len(index), True)
    if chosen.sum() > most:
        chosen &= at <= np.sort(at)[most - 1]
    return index.part(chosen, index.name)
