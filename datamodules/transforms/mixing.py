"""Mixup and CutMix: two images, or clips, become one before glimpses are cut, and their labels share the target.

The authors name the lack of both as a limitation. Mixup: Zhang et al. 2018; CutMix: Yun et al. 2019.
"""

from dataclasses import dataclass
from math import prod, sqrt

import cv2
import numpy as np

from mambaeye.errors import InputError
from mambaeye.geometry.box import Box


@dataclass(frozen=True)
class Mixing:
    """Probabilities of mixing two training images; the partner is drawn from all training samples."""

    mixup: float = 0.0
    """Probability that an image is blended with its partner."""
    mixup_alpha: float = 0.2
    """The image's share is drawn from Beta(alpha, alpha)."""
    cutmix: float = 0.0
    """Probability that a rectangle of the image is replaced by its partner's."""
    cutmix_alpha: float = 1.0
    """The share that the image should keep is drawn from Beta(alpha, alpha)."""

    def __post_init__(self) -> None:
        if not (self.mixup >= 0 and self.cutmix >= 0 and self.mixup + self.cutmix <= 1):
            raise InputError(
                f"data.train.mixing.mixup and .cutmix are {self.mixup} and {self.cutmix}: give probabilities that sum "
                f"to at most 1"
            )
        for name in ("mixup_alpha", "cutmix_alpha"):
            if not getattr(self, name) > 0:
                raise InputError(f"data.train.mixing.{name} is {getattr(self, name)}: give a positive number")

    def choose(self, rng: np.random.Generator) -> str | None:
        """Draw what happens to an image: "mixup", "cutmix" or nothing."""
        draw = rng.random()
        if draw < self.mixup:
            return "mixup"
        return "cutmix" if draw < self.mixup + self.cutmix else None


def mixup(
    canvas: np.ndarray, box: Box, other: np.ndarray, other_box: Box, alpha: float, rng: np.random.Generator
) -> tuple[np.ndarray, Box, float]:
    """Blend two canvases of one size, each with its image, or clip, centred.

    Returns:
        The blend (S..., 3) uint8, the smallest box around both images, and the first image's share of the target.
    """
    share = rng.beta(alpha, alpha)
    flat = (-1, *canvas.shape[-2:])  # for OpenCV, which knows images alone
    blend = cv2.addWeighted(canvas.reshape(flat), share, other.reshape(flat), 1 - share, 0).reshape(canvas.shape)
    (start, size), (other_start, other_size) = box.parts, other_box.parts
    first = np.minimum(start, other_start)
    return blend, Box(*first, *(np.maximum(start + size, other_start + other_size) - first)), share


def cutmix(
    canvas: np.ndarray, box: Box, other: np.ndarray, other_box: Box, alpha: float, rng: np.random.Generator
) -> tuple[np.ndarray, Box, float]:
    """Replace a rectangle of the first image by what the second has there.

    The rectangle has the proportions of the part that both images cover and lies wholly within it. Of clips it is the
    same on all frames that both have (VideoMix, Yun et al. 2020, its spatial kind).

    Returns:
        A new canvas (S..., 3) uint8, the first image's box, and the exact share of its pixels that it kept.
    """
    (start, size), (other_start, other_size) = box.parts, other_box.parts
    first = np.maximum(start, other_start)
    common = np.minimum(start + size, other_start + other_size) - first
    scale = sqrt(1 - rng.beta(alpha, alpha))
    for axis in (-2, -1):  # rows and columns
        side = round(common[axis] * scale)
        first[axis] += rng.integers(common[axis] - side, endpoint=True)
        common[axis] = side
    mixed, cut = canvas.copy(), Box(*first, *common)
    mixed[cut.slices] = other[cut.slices]
    return mixed, box, 1 - prod(cut.size) / prod(box.size)
