"""An image -> one sequence of glimpses, for training (everything drawn) and for validation (everything fixed)."""

from dataclasses import dataclass

import numpy as np
import torch

from datamodules.images import fit_on_canvas
from mambaeye.batch import GlimpseBatch
from mambaeye.patches import cut_patches
from mambaeye.trajectory import Box, information_ratio, random, scan_pattern


@dataclass(frozen=True)
class TrainingGlimpses:
    """Random glimpses on a canvas of random side (paper section 4.1)."""

    canvas: tuple[int, int]
    """Smallest and largest canvas side, pixels, inclusive; drawn anew for every sample."""
    patch_size: int
    length: int
    """T, glimpses an image."""
    inside: float
    """Probability that a trajectory keeps to the image; otherwise it may fall anywhere on the canvas."""

    def __call__(self, image: np.ndarray, label: int, key: str, rng: np.random.Generator) -> GlimpseBatch:
        """One sample; rng decides everything random about it."""
        side = int(rng.integers(*self.canvas, endpoint=True))
        canvas, box = fit_on_canvas(image, side)
        area = box if rng.random() < self.inside else Box(0, 0, side, side)
        positions = random(area, self.patch_size, self.length, rng)
        return sample(canvas, box, positions, self.patch_size, label, key)


@dataclass(frozen=True)
class FixedGlimpses:
    """One scan at one resolution, positions inside the image (paper section 4.2)."""

    resolution: int
    """Canvas side, pixels."""
    scan: str
    """Name of the scan pattern."""
    patch_size: int
    length: int
    """T, glimpses an image."""

    def __call__(self, image: np.ndarray, label: int, key: str, rng: np.random.Generator) -> GlimpseBatch:
        """One sample; rng decides the positions of a random scan."""
        canvas, box = fit_on_canvas(image, self.resolution)
        positions = scan_pattern(self.scan)(box, self.patch_size, self.length, rng)
        return sample(canvas, box, positions, self.patch_size, label, key)


def sample(canvas: np.ndarray, box: Box, positions: np.ndarray, patch_size: int, label: int, key: str) -> GlimpseBatch:
    """Cut the glimpses and note what they show: a GlimpseBatch without its first axis."""
    return GlimpseBatch(
        torch.from_numpy(cut_patches(canvas, positions, patch_size)),
        torch.from_numpy(positions),
        information_ratio(positions, box, patch_size).float(),
        torch.tensor(label),
        key,
        torch.tensor(True),
    )


def filler(patch_size: int, length: int) -> GlimpseBatch:
    """A row that only fills up a batch: black, with an empty key, and marked invalid."""
    return GlimpseBatch(
        torch.zeros(length, 3, patch_size, patch_size, dtype=torch.uint8),
        torch.zeros(length, 2, dtype=torch.int32),
        torch.zeros(length),
        torch.tensor(0),
        "",
        torch.tensor(False),
    )
