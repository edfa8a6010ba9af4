"""Depth of volumes: slices scaled along their axis as they come, by as much as their rows and columns are.

Along an axis that shrinks a value is the mean of what it covers, and along one that grows it lies on a line between
two: with cv2.resize's INTER_AREA and INTER_LINEAR that is so along rows and columns. One slice is held of those that
go in, and of those that come out only what is not complete yet.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import numpy as np

from datamodules.transforms.clips import Clip, require_one_place, stacked
from datamodules.transforms.headers import stored_size
from datamodules.transforms.images import Resize, fitted_size
from mambaeye.geometry.box import Box

AsSide = Literal["side"]
"""Depth that follows from a canvas's side, in place of a number of frames: as many slices as rows."""


def axis_weights(count: int, size: int) -> np.ndarray:
    """Return what brings values along an axis to another number of them: (size, count) float32, rows of sum 1.

    Args:
        count: of the values that there are.
        size: of those to come: means of what they cover if they are fewer, else linear between centres, and beyond
            the first and the last as these are.
    """
    step = count / size
    if size < count:
        edges = step * np.arange(size + 1)
        places = np.arange(count)
        covered = np.minimum(edges[1:, None], places + 1) - np.maximum(edges[:-1, None], places)
        return (np.maximum(covered, 0) / step).astype(np.float32)
    centres = np.clip(step * (np.arange(size) + 0.5) - 0.5, 0, count - 1)  # among the values that there are
    weights = np.maximum(0, 1 - np.abs(centres[:, None] - np.arange(count)))
    return weights.astype(np.float32)


def scale_depth(
    placed: Iterable[tuple[np.ndarray, Box]], count: int, depth: int, what: str
) -> Iterator[tuple[np.ndarray, Box]]:
    """Yield slices on canvases scaled to another number of them; as they are where that is the same.

    Args:
        placed: canvas (H, W, 3) uint8 and the slice's box on it, of each; taken one by one.
        count: how many these are.
        depth: how many are to come.
        what: names the volume in a message.

    Raises:
        InputError: the slices do not cover the same part of their canvases.
    """
    if count == depth:
        yield from placed
        return
    weights = axis_weights(count, depth)
    last = count - 1 - (weights[:, ::-1] > 0).argmax(1)  # (depth,), not decreasing
    sums: dict[int, np.ndarray] = {}
    done, place = 0, None
    for at, (picture, box) in enumerate(placed):
        place = require_one_place(box, place, what)
        for part in np.flatnonzero(weights[:, at]).tolist():
            sums[part] = sums.get(part, np.float32(0)) + weights[part, at] * picture
        while done < depth and last[done] <= at:
            yield np.rint(sums.pop(done)).astype(np.uint8), box
            done += 1


def fit_depth(length: int, longer: int, side: int, resize: Resize = "fit", truncate: bool = False) -> tuple[int, int]:
    """Return how many slices a volume has on a cubic canvas, and the side of the square that a slice is put to fit.

    Args:
        length: its slices.
        longer: the longer side of a slice, in pixels.
        side: of the canvas, in pixels.
        resize: see Resize.
        truncate: see fitted_size.
    """
    if resize == "full":
        return side, side
    if resize == "none" and max(length, longer) <= side:
        return length, side
    return fitted_size(length, longer, side, truncate)


def whole(
    clip: Clip,
    side: int,
    what: str,
    place: Callable[[int, int], tuple[np.ndarray, Box]],
    resize: Resize = "fit",
    truncate: bool = False,
) -> tuple[np.ndarray, Box]:
    """Put all slices of a volume on a canvas with as many slices as rows, scaled alike along all three axes.

    Args:
        clip: the volume.
        side: of the canvas, in pixels.
        what: names the volume in a message.
        place: puts a slice, by its number, on a canvas of that side, and is told the side of the square that it is to
            fit into.
        resize: see Resize.
        truncate: see fitted_size.

    Returns:
        The canvas (side, H, W, 3) uint8, and the volume's box on it.

    Raises:
        InputError: a slice is damaged, or of another shape than the others.
    """
    size = stored_size(clip.encoded(0)) or (1, 1)  # where there is none, the first slice is refused as it is decoded
    depth, fitted = fit_depth(len(clip), max(size), side, resize, truncate)
    slices = (place(at, fitted) for at in range(len(clip)))
    return stacked(scale_depth(slices, len(clip), depth, what), depth, side, what)
