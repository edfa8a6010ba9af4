"""Scans with places that overlap, as --data.scans [benchmarks.dense_scans.dense]."""

import math

import numpy as np

from mambaeye.geometry.box import Box, PatchSize, start_range


def dense(box: Box, patch_size: PatchSize, num_glimpses: int, rng: np.random.Generator) -> np.ndarray:
    """Look row by row at as many places as there are glimpses, in a square lattice spread over an image's box.

    Returns:
        (num_glimpses, 2) int32; of 144 glimpses of 16 pixels at a canvas of 64, each is 4 pixels from the next.
    """
    lines = math.ceil(math.sqrt(num_glimpses))
    first, last = start_range(box, patch_size)
    rows, cols = (np.linspace(low, high, lines).round() for low, high in zip(first, last, strict=True))
    places = np.stack(np.meshgrid(rows, cols, indexing="ij"), axis=-1).reshape(-1, 2)
    return places[:num_glimpses].astype(np.int32)
