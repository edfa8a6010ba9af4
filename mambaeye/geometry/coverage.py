"""Coverage: how much of an image a trajectory has shown (paper section 3.2)."""

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from mambaeye.errors import InputError
from mambaeye.geometry.box import Box

TILE = 1024  # pixels along an axis that share_seen looks at together


def information_ratio(positions: Tensor | np.ndarray, box: Box | tuple | Tensor, patch_size: int) -> Tensor:
    """r_t: the exact share of the box's pixels that the union of glimpses 0..t covers (paper section 3.2).

    Overlaps count once; whatever part of a glimpse lies outside the box counts nothing.

    Args:
        positions: (..., T, 2) integers, (row, col).
        box: (row, col, height, width), one for all trajectories or (..., 4), one for each.
        patch_size: side of a glimpse in pixels.

    Returns:
        (..., T) float64, non-decreasing, in [0, 1].
    """
    positions = np.asarray(positions)
    leading, length = positions.shape[:-2], positions.shape[-2]
    boxes = np.broadcast_to(np.asarray(box), (*leading, 4)).reshape(-1, 4)
    ratios = np.empty((len(boxes), length))
    for ratio, trajectory, (row, col, height, width) in zip(
        ratios, positions.reshape(len(boxes), length, 2), boxes, strict=True
    ):
        if height < 1 or width < 1:
            raise InputError(f"the box has {height} x {width} pixels: an information ratio needs at least one")
        ratio[:] = newly_seen(trajectory - (row, col), height, width, patch_size).cumsum() / (height * width)
    return torch.from_numpy(ratios.reshape(*leading, length))


def share_seen(positions: np.ndarray, box: Box, patch_size: int) -> float:
    """The last information ratio alone, in memory that grows with the positions but neither with the box nor the patch.

    The box is gone through tile by tile, and each painted with the glimpses that touch it.

    Args:
        positions: (T, 2) integers, (row, col).
        box: the image's place.
        patch_size: side of a glimpse in pixels.
    """
    seen, margin = 0, patch_size
    for row in range(0, box.height, TILE):
        for col in range(0, box.width, TILE):
            size = min(TILE, box.height - row), min(TILE, box.width - col)
            starts = positions - (box.row + row, box.col + col)
            rows, cols = starts[((starts > -margin) & (starts < size)).all(axis=1)].T + margin
            tile = np.zeros((size[0] + 2 * margin, size[1] + 2 * margin), dtype=bool)
            sliding_window_view(tile, (patch_size, patch_size), writeable=True)[rows, cols] = True
            seen += int(tile[margin:-margin, margin:-margin].sum())
    return seen / (box.height * box.width)


def newly_seen(positions: np.ndarray, height: int, width: int, patch_size: int) -> np.ndarray:
    """Pixels of a (height, width) image that each glimpse is the first to show: (T, 2) -> (T,) integers.

    Glimpses are painted with their step, last to first, so that every pixel ends up with the step that saw it first; a
    glimpse's new pixels are those that kept its number. A margin of one patch takes what falls outside the image.
    """
    length, margin = len(positions), patch_size
    rows, cols = np.clip(positions, -margin, (height, width)).T + margin
    steps = np.arange(length, dtype=np.min_scalar_type(length))[:, None, None]  # the smallest integers are the fastest
    first_seen = np.full((height + 2 * margin, width + 2 * margin), length, dtype=steps.dtype)
    windows = sliding_window_view(first_seen, (patch_size, patch_size), writeable=True)  # at each pixel, (P, P)
    backwards = np.arange(length - 1, -1, -1)  # as indices, for NumPy may walk a reversed view from its other end
    windows[rows[backwards], cols[backwards]] = steps[backwards]  # of overlapping windows the last one written stays
    first_seen[:margin] = first_seen[margin + height :] = length
    first_seen[:, :margin] = first_seen[:, margin + width :] = length
    return (windows[rows, cols] == steps).sum(axis=(1, 2), dtype=np.uint32)


class Coverage:
    """Which pixels of a batch of canvases have been shown so far, kept on their device while a policy looks around.

    Attributes:
        seen: (B, S...) bool, by pixel of the canvas.
        boxes: (B, 2 K) integers, the images' places; see Box.
    """

    def __init__(self, size: tuple[int, ...], boxes: Tensor, patch_size: int) -> None:
        """Start with nothing seen, on canvases of that size."""
        self.boxes, self.patch_size = boxes, patch_size
        self.seen = torch.zeros(len(boxes), *size, dtype=torch.bool, device=boxes.device)
        self.pixels = torch.zeros(len(boxes), dtype=torch.long, device=boxes.device)  # seen of each image
        axes = len(size)
        within = torch.arange(patch_size, device=boxes.device)
        grid = torch.stack(torch.meshgrid([within] * axes, indexing="ij"), dim=-1).flatten(0, -2)  # (P^K, K)
        self.offsets = grid
        self.strides = torch.tensor([self.seen[0].stride(axis) for axis in range(axes)], device=boxes.device)

    def add(self, positions: Tensor) -> Tensor:
        """Show the next glimpses and return the information ratio after each, (B, n) float32.

        Args:
            positions: (B, n, K) integers, every glimpse wholly on its canvas.
        """
        first, size = self.boxes.long().unflatten(1, (2, -1)).unbind(1)  # (B, K) each
        flat = self.seen.flatten(1)  # a view, (B, pixels)
        total = size.prod(1)
        ratios = []
        for at in range(positions.shape[1]):
            shown = positions[:, at, None].long() + self.offsets  # (B, P^K, K)
            inside = ((shown >= first[:, None]) & (shown < (first + size)[:, None])).all(-1)
            index = (shown * self.strides).sum(-1)
            self.pixels = self.pixels + (inside & ~flat.gather(1, index)).sum(1)
            flat.scatter_(1, index, True)
            ratios.append(self.pixels.double() / total)
        return torch.stack(ratios, dim=1).float()

    @property
    def information_ratio(self) -> Tensor:
        """Return the share of each image that was shown so far: (B,) float32."""
        return (self.pixels.double() / self.boxes.long()[:, self.boxes.shape[1] // 2 :].prod(1)).float()

    def rows(self, index: Tensor) -> "Coverage":
        """Return the coverage of some of the images."""
        some = Coverage(tuple(self.seen.shape[1:]), self.boxes[index], self.patch_size)
        some.seen, some.pixels = self.seen[index], self.pixels[index]
        return some
