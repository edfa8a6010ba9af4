"""Canvases that are larger than memory should be: never made, of each only the glimpses that a scan planned there.

Shapes: B canvases, T glimpses, P the side of a glimpse, C channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from datamodules.transforms.pixels import Pixels
from datamodules.transforms.regions import LargeTiff, TiledCanvas
from mambaeye.geometry.box import Box


@dataclass(frozen=True, eq=False)
class PlannedGlimpses:
    """Canvases of which there is what their planned glimpses show, cut out already: see batch.Regions.

    Without the first axis of both tensors it is of one canvas.
    """

    patches: Tensor
    """(B, T, C, P, P) uint8 or uint16."""
    positions: Tensor
    """(B, T, 2) int32: each one's first pixel, (row, col)."""
    sides: tuple[int, int]
    """Of a canvas, pixels."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Return (B, H, W, C)."""
        return (len(self.patches), *self.sides, self.patches.shape[2])

    @property
    def device(self) -> torch.device:
        """Return the device of the glimpses."""
        return self.patches.device

    def __len__(self) -> int:
        return len(self.patches)

    def __getitem__(self, rows: Any) -> "PlannedGlimpses":
        """Return some of the canvases: rows is what a tensor takes along its first axis."""
        return PlannedGlimpses(self.patches[rows], self.positions[rows], self.sides)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "PlannedGlimpses":
        """Return the same on another device."""
        patches, positions = (part.to(device, non_blocking=non_blocking) for part in (self.patches, self.positions))
        return PlannedGlimpses(patches, positions, self.sides)

    def pin_memory(self) -> "PlannedGlimpses":
        """Return the same in memory that a GPU copies from by itself."""
        return PlannedGlimpses(self.patches.pin_memory(), self.positions.pin_memory(), self.sides)

    def cut(self, positions: Tensor, sides: Sequence[int]) -> Tensor:
        """Return the glimpses at some of the planned positions: (B, t, 2) integers -> (B, t, C, P, P)."""
        assert tuple(sides) == self.patches.shape[-2:], "glimpses were cut with other sides"
        planned, order = self._numbers(self.positions).sort(dim=1)
        wanted = self._numbers(positions)
        at = torch.searchsorted(planned, wanted).clamp(max=planned.shape[1] - 1)
        assert (planned.gather(1, at) == wanted).all(), "a glimpse was not planned"
        canvas = torch.arange(len(self), device=self.device)[:, None]
        return self.patches[canvas, order.gather(1, at)]

    def _numbers(self, positions: Tensor) -> Tensor:
        """Return the number of each position's pixel on the canvas: (B, t, 2) -> (B, t) int64."""
        return positions[..., 0].long() * self.sides[1] + positions[..., 1]


class UnmadeCanvas(NamedTuple):
    """A canvas with an image somewhere on it, of which glimpses are to be cut."""

    image: np.ndarray | LargeTiff
    """(h, w, C); or what is read where glimpses fall."""
    box: Box
    """The image's place."""
    sides: tuple[int, int]
    """Of the canvas, pixels."""
    pixels: Pixels

    @property
    def shape(self) -> tuple[int, int, int]:
        """Return (H, W, C)."""
        return (*self.sides, self.pixels.channels)

    def cut(self, positions: np.ndarray, sides: Sequence[int]) -> PlannedGlimpses:
        """Cut the glimpses at these positions, (T, 2) integers; what is around the image is black.

        Raises:
            InputError: one falls on a tile that is damaged, or the file is not there any more.
        """
        where = torch.from_numpy(positions)
        if isinstance(self.image, LargeTiff):  # opened for this alone, so that no tiles are kept
            canvas = TiledCanvas(self.image, self.pixels, (1, *self.shape), self.box)
            return PlannedGlimpses(canvas.cut(where[None], sides)[0], where, self.sides)
        patches = np.zeros((len(positions), *sides, self.pixels.channels), self.pixels.dtype)
        for patch, start in zip(patches, positions - self.box.start, strict=True):
            low, high = start.clip(0), np.minimum(start + sides, self.box.size)
            if (low < high).all():
                (top, left), (bottom, right) = low - start, high - start
                patch[top:bottom, left:right] = self.image[low[0] : high[0], low[1] : high[1]]
        return PlannedGlimpses(torch.from_numpy(patches.transpose(0, 3, 1, 2).copy()), where, self.sides)

    def unseen(self, positions: np.ndarray, sides: Sequence[int]) -> PlannedGlimpses:
        """Return black glimpses in place of those that cannot be cut."""
        black = np.zeros((1, 1, self.pixels.channels), self.pixels.dtype)
        return self._replace(image=black, box=Box(0, 0, 1, 1)).cut(positions, sides)
