"""Coverage: how much of an image a trajectory has shown (paper section 3.2).

Shapes: B images, T glimpses, K axes, P... the sides of a glimpse, N pixels in it, S... the sides of a canvas.
"""

from collections.abc import Sequence
from copy import copy
from itertools import product
from math import prod

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mambaeye.errors import InputError
from mambaeye.geometry.box import Box, PatchSize, patch_sides

BLOCK = 1 << 20  # pixels that are counted together where memory is not to grow with the image
LARGE = 1 << 24  # pixels of an image, from which on that is so


def information_ratio(
    positions: Tensor | np.ndarray,
    box: Sequence[int] | Sequence[Sequence[int]] | Tensor | np.ndarray,
    patch_size: PatchSize,
) -> Tensor:
    """Return r_t: the exact share of the box's pixels that the union of glimpses 0..t covers (paper section 3.2).

    Overlaps count once; whatever part of a glimpse lies outside the box counts nothing.

    Args:
        positions: (..., T, K) integers, each glimpse's first pixel.
        box: a Box, one for all trajectories, or (..., 2 K), one for each.
        patch_size: sides of a glimpse in pixels.

    Returns:
        (..., T) float64, non-decreasing, in [0, 1].

    Raises:
        InputError: a box has no pixels.
    """
    positions = np.asarray(positions)
    *leading, num_glimpses, axes = positions.shape
    boxes = np.broadcast_to(np.asarray(box), (*leading, 2 * axes)).reshape(-1, 2, axes)
    ratios = np.empty((len(boxes), num_glimpses))
    trajectories = positions.reshape(len(boxes), num_glimpses, axes)
    for ratio, trajectory, (start, size) in zip(ratios, trajectories, boxes, strict=True):
        sides = size.tolist()
        if min(sides) < 1:
            shape = " x ".join(map(str, sides))
            raise InputError(f"the box has {shape} pixels: an information ratio needs at least one")
        count = newly_seen if prod(sides) <= LARGE else newly_seen_in_blocks
        ratio[:] = count(trajectory - start, sides, patch_size).cumsum() / prod(sides)
    return torch.from_numpy(ratios.reshape(*leading, num_glimpses))


def share_seen(positions: np.ndarray, box: Box, patch_size: PatchSize) -> float:
    """Return the last information ratio alone, in the memory of the positions and of one block of pixels.

    The box is gone through block by block, and each painted with the glimpses that touch it.

    Args:
        positions: (T, K) integers, each glimpse's first pixel.
        box: the image's place.
        patch_size: sides of a glimpse in pixels.
    """
    sides = patch_sides(patch_size, box.axes)
    seen, side, margin = 0, round(BLOCK ** (1 / box.axes)), np.array(sides)
    inside = tuple(slice(length, -length) for length in sides)
    for corner in product(*(range(0, length, side) for length in box.size)):
        size = np.minimum(side, np.subtract(box.size, corner))
        starts = positions - np.add(box.start, corner)
        touching = starts[((starts > -margin) & (starts < size)).all(axis=1)]
        block = np.zeros(size + 2 * margin, dtype=bool)
        _glimpses(block, sides)[tuple((touching + margin).T)] = _lines(np.ones(1, bool), sides[-1])
        seen += int(np.count_nonzero(block[inside]))
    return seen / prod(box.size)


def newly_seen(positions: np.ndarray, size: Sequence[int], patch_size: PatchSize) -> np.ndarray:
    """Return how many pixels of an image each glimpse is the first to show.

    Glimpses are painted with their step, from 1, so that every pixel ends up with the step that saw it first; a
    glimpse's new pixels are those that bear its own. A margin of one patch takes what falls outside the image.

    Painting all glimpses by one assignment, last to first, is by far the fastest, but NumPy does not promise that the
    one written last stays where they overlap. Whichever stays is one of them: so every pixel has its first step if and
    only if no glimpse shows a later one than its own, and if one does, they are painted again one by one.

    Args:
        positions: (T, K) integers, from the image's first pixel.
        size: the image's K sides, pixels.
        patch_size: sides of a glimpse in pixels.

    Returns:
        (T,), the smallest unsigned integers that hold N.
    """
    sides = patch_sides(patch_size, len(size))
    new, margin = np.zeros(len(positions), np.min_scalar_type(prod(sides))), np.reshape(sides, (-1, 1))
    starts = np.ascontiguousarray(positions.T)  # (K, T)
    touching = ((starts > -margin) & (starts < np.reshape(size, (-1, 1)))).all(axis=0)  # the others show nothing
    places = tuple(starts[:, touching] + margin)  # K of (t,), in the painting
    steps = np.arange(1, len(places[0]) + 1, dtype=np.min_scalar_type(len(positions)))  # the smallest are the fastest
    own, lines = steps[:, None], _lines(steps, sides[-1])
    painting = np.zeros([length + 2 * side for length, side in zip(size, sides, strict=True)], steps.dtype)
    glimpses = _glimpses(painting, sides)
    for paint in (_paint_at_once, _paint_one_by_one):
        paint(glimpses, places, lines.reshape(-1, *[1] * (len(size) - 1)))
        _clear_margin(painting, sides)
        shown = glimpses[places].view(steps.dtype).reshape(len(steps), prod(sides))  # (t, N)
        if (shown <= own).all():
            break
    new[touching] = (shown == own).sum(axis=1, dtype=new.dtype)
    return new


def newly_seen_in_blocks(positions: np.ndarray, size: Sequence[int], patch_size: PatchSize) -> np.ndarray:
    """Return what newly_seen does, in the memory of the positions and of one block: only blocks that are touched count.

    Args:
        positions: (T, K) integers, from the image's first pixel.
        size: the image's K sides, pixels.
        patch_size: sides of a glimpse in pixels, none longer than a block.

    Returns:
        (T,) int64.
    """
    sides = patch_sides(patch_size, len(size))
    side = round(BLOCK ** (1 / len(size)))
    assert max(sides) <= side, "a glimpse touches two blocks along an axis at most"
    new = np.zeros(len(positions), np.int64)
    last = (np.array(size) - 1) // side
    ends = [((positions + offset) // side).clip(0, last) for offset in (0, np.array(sides) - 1)]  # (T, K) each
    corners = [
        np.stack([ends[end][:, axis] for axis, end in enumerate(which)], axis=1)
        for which in product((0, 1), repeat=len(size))
    ]
    for block in np.unique(np.concatenate(corners), axis=0):
        starts = positions - block * side
        here = np.minimum(side, np.array(size) - block * side)
        touching = ((starts > -np.array(sides)) & (starts < here)).all(axis=1)
        new[touching] += newly_seen(starts[touching], here.tolist(), patch_size)
    return new


def _lines(values: np.ndarray, length: int) -> np.ndarray:
    """Return a line of so many pixels, all of each value, as one element: (n,) -> (n,)."""
    return np.repeat(values, length).view(np.dtype((np.void, length * values.itemsize)))


def _glimpses(pixels: np.ndarray, sides: Sequence[int]) -> np.ndarray:
    """Return a view that has, at each pixel, the glimpse that starts there, each line along the last axis one element.

    NumPy copies an element of many bytes at once, several times as fast as those bytes one by one.

    Args:
        pixels: (S...) of K axes, C-contiguous.
        sides: of a glimpse, in pixels: K of them.

    Returns:
        (S - P + 1..., P...), of P all but the last.
    """
    *across, line = sides
    starts = [length - side + 1 for length, side in zip(pixels.shape, sides, strict=True)]
    element = np.dtype((np.void, line * pixels.itemsize))
    return np.ndarray((*starts, *across), element, pixels, strides=pixels.strides + pixels.strides[:-1])


def _paint_at_once(glimpses: np.ndarray, places: tuple[np.ndarray, ...], lines: np.ndarray) -> None:
    # copied, for NumPy may walk a reversed view from its other end
    glimpses[tuple(place[::-1].copy() for place in places)] = lines[::-1].copy()


def _paint_one_by_one(glimpses: np.ndarray, places: tuple[np.ndarray, ...], lines: np.ndarray) -> None:
    for place, line in reversed(list(zip(zip(*places, strict=True), lines, strict=True))):
        glimpses[place] = line


def _clear_margin(painting: np.ndarray, margins: Sequence[int]) -> None:
    for axis, margin in enumerate(margins):
        lines = painting.swapaxes(0, axis)
        lines[:margin] = lines[-margin:] = 0


class Coverage:
    """The pixels of a batch of canvases that were shown so far, kept on their device for policies.

    Attributes:
        boxes: (B, 2 K) integers, the images' places; see Box.
        seen: (B, S...) bool, the pixels of each canvas that were shown, its padding's too.
        pixels: (B,) int64, how many of the image's own were shown.
        sides: (K,) int64, of a glimpse in pixels.
    """

    def __init__(self, size: Sequence[int], boxes: Tensor, patch_size: PatchSize) -> None:
        """Start with nothing seen.

        Args:
            size: the canvases' K sides, pixels.
            boxes: (B, 2 K) integers, each wholly on its canvas.
            patch_size: sides of a glimpse in pixels.
        """
        sides = patch_sides(patch_size, len(size))
        self.boxes, self.sides = boxes, torch.tensor(sides).to(boxes.device, non_blocking=True)  # (K,)
        self.seen = torch.zeros(len(boxes), *size, dtype=torch.bool, device=boxes.device)
        self.pixels = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
        within = [torch.arange(side, device=boxes.device) for side in sides]
        self._offsets = torch.stack(torch.meshgrid(within, indexing="ij"), dim=-1).flatten(0, -2)  # (N, K)
        self._strides = torch.tensor(self.seen.stride()[1:]).to(boxes.device, non_blocking=True)
        self._integral: Tensor | None = None  # of what is unseen, until more is shown

    def add(self, positions: Tensor) -> Tensor:
        """Show the next glimpses and return the information ratio after each, (B, n) float32.

        Args:
            positions: (B, n, K) integers, every glimpse wholly on its canvas.
        """
        new = torch.zeros(positions.shape[:2], dtype=torch.int64, device=positions.device)
        for step in range(positions.shape[1]):
            index, unseen = self._window(positions[:, step : step + 1])
            new[:, step] = unseen.sum(2)[:, 0]
            self.seen.flatten(1).scatter_(1, index[:, 0], True)  # into a view
        ratios = self._share(self.pixels[:, None] + new.cumsum(1))
        self.pixels, self._integral = self.pixels + new.sum(1), None
        return ratios

    def new_pixels(self, positions: Tensor) -> Tensor:
        """Return how many of the image's pixels each of some glimpses would be the first to show: (B, n) int64.

        Nothing is shown: these are alternatives, not a sequence.

        Args:
            positions: (B, n, K) integers, every glimpse wholly on its canvas.
        """
        first, size = self.boxes[:, None].long().chunk(2, dim=-1)  # (B, 1, K) each
        low = positions.long().clamp(first, first + size)
        return self._unseen_in(low, (positions.long() + self.sides).clamp(first, first + size))

    def in_blocks(self, blocks: int) -> Tensor:
        """Return what share of every part of the images was shown: (B, blocks, ...) float32, an axis for each of K.

        A block is a part of the image as adaptive pooling takes it: from the floor of its first edge to the ceiling of
        its last, so that of an image of fewer pixels than blocks neighbours share pixels.

        Args:
            blocks: along each axis.
        """
        first, size = self.boxes[:, None].long().chunk(2, dim=-1)  # (B, 1, K) each
        edges = torch.arange(blocks, device=first.device)[:, None]
        low, high = first + edges * size // blocks, first - (-(edges + 1) * size) // blocks  # (B, blocks, K) each
        axes = low.shape[-1]
        place = torch.cartesian_prod(*[edges[:, 0]] * axes).view(-1, axes)  # (blocks^K, K)
        axis = torch.arange(axes, device=first.device)
        low, high = low[:, place, axis], high[:, place, axis]  # (B, blocks^K, K) each
        unseen = self._unseen_in(low, high) / (high - low).prod(-1)
        return (1 - unseen).unflatten(1, (blocks,) * axes)

    def _unseen_in(self, low: Tensor, high: Tensor) -> Tensor:
        """Return how many pixels of each of some boxes were not shown: (B, n) integers.

        Args:
            low: (B, n, K) int64, the first pixel of each.
            high: (B, n, K) int64, the first pixel after each, from low up.
        """
        axes = low.shape[-1]
        if self._integral is None:
            integral = F.pad(~self.seen, (1, 0) * axes).to(torch.int32)  # (B, S + 1...), 0 before the first pixels
            for axis in range(1, 1 + axes):
                integral = integral.cumsum(axis, dtype=torch.int32)
            self._integral = integral
        strides = torch.tensor(self._integral.stride()[1:]).to(low.device, non_blocking=True)
        ends = (low * strides).unbind(-1), (high * strides).unbind(-1)  # K of (B, n) each
        integral, unseen = self._integral.flatten(1), torch.zeros_like(low[..., 0])
        for corner in product((0, 1), repeat=axes):
            at = torch.stack([ends[end][axis] for axis, end in enumerate(corner)]).sum(0)
            unseen += (-1) ** (axes - sum(corner)) * integral.gather(1, at)
        return unseen

    def _window(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return the flat indices of the pixels of glimpses, and which are the image's and unseen: (B, n, N) each."""
        first, size = self.boxes.reshape(len(self.boxes), 2, 1, 1, -1).unbind(1)  # (B, 1, 1, K) each
        shown = positions[:, :, None].long() + self._offsets  # (B, n, N, K)
        own = ((shown >= first) & (shown < first + size)).all(-1)
        index = (shown * self._strides).sum(-1)
        seen = self.seen.flatten(1).gather(1, index.flatten(1)).view_as(own)
        return index, own & ~seen

    @property
    def information_ratio(self) -> Tensor:
        """Return the share of each image that was shown so far: (B,) float32."""
        return self._share(self.pixels[:, None])[:, 0]

    def rows(self, index: Tensor) -> "Coverage":
        """Return a copy that goes on with some of the images: (b,) integers, or (B,) bool."""
        some = copy(self)
        some.boxes, some.seen, some.pixels = self.boxes[index], self.seen[index], self.pixels[index]
        some._integral = None
        return some

    def _share(self, pixels: Tensor) -> Tensor:
        """Return what share of each image so many pixels are, (B, n): float32, rounded once from float64."""
        total = self.boxes[:, self.boxes.shape[1] // 2 :].long().prod(1, keepdim=True)
        return (pixels.double() / total).float()
