"""The kind of pixels that samples have: their channels, their bits, and the values that are black and white."""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from mambaeye.errors import InputError

MOST_CHANNELS = 1024
AT_ONCE = 4  # channels that OpenCV takes everywhere
Levels = tuple[tuple[int, int], ...]
"""Value that is black and value that is white, for all channels or for each."""


class Pixels(NamedTuple):
    """The kind of pixels that all samples of a set have; RGB of 8 bits unless something else is said."""

    channels: int = 3
    bits: int = 8
    """Of a value, which has no sign: 8 or 16."""
    levels: Levels = ()
    """Pairs of values that become 0 and the largest; none for values as they are stored."""

    @property
    def is_rgb(self) -> bool:
        """Tell whether these are RGB of 8 bits, which images of all formats are decoded to."""
        return self[:2] == (3, 8)

    @property
    def dtype(self) -> np.dtype:
        """Return the dtype of an array of them."""
        return np.dtype(f"uint{self.bits}")

    @property
    def torch_dtype(self) -> torch.dtype:
        """Return the dtype of a tensor of them."""
        return torch.uint8 if self.bits == 8 else torch.uint16

    @property
    def words(self) -> str:
        """Return what they are called in messages."""
        return in_words(self.channels, self.bits)

    def require_possible(self, where: str) -> None:
        """Refuse what no samples have.

        Args:
            where: what stands before the names of the arguments, such as "data.".

        Raises:
            InputError: it is refused.
        """
        if not 1 <= self.channels <= MOST_CHANNELS:
            raise InputError(f"{where}channels is {self.channels}: give 1 to {MOST_CHANNELS}")
        if self.bits not in (8, 16):
            raise InputError(f"{where}bits is {self.bits}: give 8 or 16")
        if self.levels and self.is_rgb:
            raise InputError(f"{where}levels is of images of other channels or bits than 3 and 8: leave it out")
        if len(self.levels) not in (0, 1, self.channels):
            raise InputError(
                f"{where}levels has {len(self.levels)} pairs: give one for all channels, or one for each of the "
                f"{self.channels}"
            )
        for low, high in self.levels:
            if not 0 <= low < high < 1 << self.bits:
                raise InputError(
                    f"{where}levels has [{low},{high}]: give the value that is black, and a larger one that is "
                    f"white, of {self.bits} bits"
                )

    def stretched(self, image: np.ndarray) -> np.ndarray:
        """Return an image (H, W, C) with the values of levels as black and white, and what is beyond cut off."""
        if not self.levels:
            return image
        levels = self.levels * self.channels if len(self.levels) == 1 else self.levels
        result = np.empty_like(image)
        for channel, (low, high) in enumerate(levels):
            result[..., channel] = table(low, high, self.bits)[image[..., channel]]
        return result


RGB = Pixels()


@lru_cache(maxsize=MOST_CHANNELS)
def table(low: int, high: int, bits: int) -> np.ndarray:
    """Return what becomes of every value where these two are black and white: (2^bits,) uint8 or uint16."""
    most = (1 << bits) - 1
    shares = (np.arange(most + 1) - low).clip(0, high - low) / (high - low)
    return np.rint(shares * most).astype(f"uint{bits}")


def in_words(channels: int, bits: int) -> str:
    """Return how a message calls pixels."""
    return f"{channels} channel{'s' if channels > 1 else ''} of {bits} bits"


def by_channels(change: Callable[[np.ndarray], np.ndarray], image: np.ndarray) -> np.ndarray:
    """Change an image (H, W, C) by a function of OpenCV's that takes each channel alike, a few channels at once."""
    channels = image.shape[2]
    parts = [
        np.atleast_3d(change(np.ascontiguousarray(image[..., first : first + AT_ONCE])))
        for first in range(0, channels, AT_ONCE)
    ]
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=2)
