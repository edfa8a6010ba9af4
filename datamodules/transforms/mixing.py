"""Mixup and CutMix: two images become one before glimpses are cut, and the target is shared between their labels.

The authors name the lack of both as a limitation. Mixup: Zhang et al. 2018; CutMix: Yun et al. 2019.
"""

from dataclasses import dataclass
from math import sqrt

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
    """Blend two canvases of one size, each with its image centred.

    Returns:
        The blend (S, S, 3) uint8, the smallest box around both images, and the first image's share of the target.
    """
    share = rng.beta(alpha, alpha)
    row, col = min(box.row, other_box.row), min(box.col, other_box.col)
    bottom = max(box.row + box.height, other_box.row + other_box.height)
    right = max(box.col + box.width, other_box.col + other_box.width)
    blend = cv2.addWeighted(canvas, share, other, 1 - share, 0)
    return blend, Box(row, col, bottom - row, right - col), share


def cutmix(
    canvas: np.ndarray, box: Box, other: np.ndarray, other_box: Box, alpha: float, rng: np.random.Generator
) -> tuple[np.ndarray, Box, float]:
    """Replace a rectangle of the first image by what the second has there.

    The rectangle has the proportions of the part that both images cover and lies wholly within it.

    Returns:
        A new canvas (S, S, 3) uint8, the first image's box, and the exact share of its pixels that it kept.
    """
    top, left = max(box.row, other_box.row), max(box.col, other_box.col)
    common_height = min(box.row + box.height, other_box.row + other_box.height) - top
    common_width = min(box.col + box.width, other_box.col + other_box.width) - left
    scale = sqrt(1 - rng.beta(alpha, alpha))
    height, width = round(common_height * scale), round(common_width * scale)
    row = top + int(rng.integers(common_height - height, endpoint=True))
    col = left + int(rng.integers(common_width - width, endpoint=True))
    mixed = canvas.copy()
    mixed[row : row + height, col : col + width] = other[row : row + height, col : col + width]
    return mixed, box, 1 - height * width / (box.height * box.width)
