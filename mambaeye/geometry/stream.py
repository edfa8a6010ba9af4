"""The scan arriving on a stream, of which nobody knows how long it will be."""

from fractions import Fraction

import numpy as np
import torch

from mambaeye.geometry.box import Box
from mambaeye.geometry.scans import grid, scrambled, starts_at


def glimpses_a_tube(num_glimpses: int, frames: int, tube: int) -> Fraction:
    """Return how many glimpses a tube has where these are dealt to so many frames.

    Args:
        num_glimpses: of all frames.
        frames: at least as many as of a tube.
        tube: frames of a glimpse.
    """
    return Fraction(num_glimpses, len(grid(Box(0, frames), tube)))


class ArrivingStream:
    """Places glimpses as the scan arriving does, tube by tube, without knowing how many tubes will come.

    A clip of which all is known and that has as many glimpses a tube, a whole number, gets the same from arriving. Both
    are a Sobol sequence in place, which goes on however long it is, and in time a move from one tube to the next.

    Args:
        place: (row, col, height, width) of the frames on their canvases.
        glimpse: sides of a glimpse, (tube, P, P).
        each: glimpses a tube, on average.
        rng: as for arriving.
    """

    def __init__(self, place: Box, glimpse: tuple[int, ...], each: Fraction, rng: np.random.Generator) -> None:
        self.place, self.glimpse, self.each = place, glimpse, each
        self.points = scrambled(place.axes + 1, rng)
        self.tubes = self.taken = 0

    def next_tube(self, frame: int) -> np.ndarray:
        """Return the positions of the glimpses of the next tube, which begins at that frame: (n, 3) int32, n from 0."""
        self.tubes += 1
        count = -int(-self.tubes * self.each // 1) - self.taken  # the i-th, from 0, is of tube i // each
        if not count:
            return np.zeros((0, len(self.glimpse)), np.int32)
        self.taken += count
        points = self.points.draw(count, dtype=torch.float64)
        box = Box(frame, *self.place.start, self.glimpse[0], *self.place.size)
        return starts_at(points, box, self.glimpse)
