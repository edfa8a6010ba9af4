"""An image -> one sequence of glimpses for training: everything about it is drawn."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from datamodules.transforms.augment import augment
from datamodules.transforms.draws import Augmentation
from datamodules.transforms.images import decode_image, fit_on_canvas
from datamodules.transforms.mixing import Mixing, cutmix, mixup
from mambaeye.batch import GlimpseBatch
from mambaeye.geometry.box import Box
from mambaeye.geometry.coverage import information_ratio
from mambaeye.geometry.patches import cut_patches
from mambaeye.geometry.scans import scan_pattern


class RawSample(NamedTuple):
    """A sample as it lies in its shard."""

    key: str
    image: bytes
    """Still encoded."""
    label: int


Partner = Callable[[np.random.Generator], RawSample]


@dataclass(frozen=True)
class TrainingGlimpses:
    """Random glimpses, or those of another scan, on a canvas of random side (paper section 4.1)."""

    canvas: tuple[int, int]
    """Smallest and largest canvas side, pixels, inclusive; drawn anew for every sample."""
    patch_size: int
    length: int
    """T, glimpses an image."""
    inside: float
    """Probability that a trajectory keeps to the image; otherwise it may fall anywhere on the canvas."""
    augmentation: Augmentation | None
    """None leaves images as they are, fitted into the canvas."""
    mixing: Mixing | None
    """None leaves every image by itself."""
    scan: str = "random"
    """Name of the scan pattern."""

    def __call__(self, raw: RawSample, rng: np.random.Generator, partner: Partner) -> GlimpseBatch:
        """One sample; rng decides everything random about it, partner draws another image to mix in."""
        side = int(rng.integers(*self.canvas, endpoint=True))
        canvas, box = self._place(raw, side, rng)
        partner_label, share = raw.label, 1.0
        if self.mixing and (mix := self.mixing.choose(rng)):
            other = partner(rng)
            partner_label = other.label
            other_canvas, other_box = self._place(other, side, rng)
            if mix == "mixup":
                canvas, box, share = mixup(canvas, box, other_canvas, other_box, self.mixing.mixup_alpha, rng)
            else:
                canvas, box, share = cutmix(canvas, box, other_canvas, other_box, self.mixing.cutmix_alpha, rng)
        area = box if rng.random() < self.inside else Box(0, 0, side, side)
        positions = scan_pattern(self.scan)(area, self.patch_size, self.length, rng)
        return sample(canvas, box, positions, self.patch_size, raw, partner_label, share)

    def _place(self, raw: RawSample, side: int, rng: np.random.Generator) -> tuple[np.ndarray, Box]:
        """The image on a canvas (side, side, 3), augmented if it is to be, and its box there."""
        what = f"sample {raw.key}"
        if self.augmentation is None:
            return fit_on_canvas(decode_image(raw.image, what), side)
        return augment(raw.image, side, self.augmentation, rng, what)


def sample(
    canvas: np.ndarray,
    box: Box,
    positions: np.ndarray,
    patch_size: int,
    raw: RawSample,
    partner_label: int,
    label_share: float,
) -> GlimpseBatch:
    """Cut the glimpses and note what they show: a GlimpseBatch without its first axis."""
    return GlimpseBatch(
        torch.from_numpy(cut_patches(canvas, positions, patch_size)),
        torch.from_numpy(positions),
        information_ratio(positions, box, patch_size).float(),
        torch.tensor(raw.label),
        torch.tensor(partner_label),
        torch.tensor(label_share, dtype=torch.float32),
        raw.key,
        torch.tensor(True),
    )


def filler(patch_size: int, length: int, key: str) -> GlimpseBatch:
    """A row in place of a sample that is missing: black, marked invalid, with the sample's key."""
    return GlimpseBatch(
        torch.zeros(length, 3, patch_size, patch_size, dtype=torch.uint8),
        torch.zeros(length, 2, dtype=torch.int32),
        torch.zeros(length),
        torch.tensor(0),
        torch.tensor(0),
        torch.tensor(1.0),
        key,
        torch.tensor(False),
    )
