"""Clips: frames that lie encoded in a file, each of them a picture, and windows of them on canvases.

Along time a clip lies on its canvas as a picture does along rows and columns: in the middle, with black around it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from datamodules.transforms.avi import Span, find_frames
from datamodules.transforms.bands import Bands
from datamodules.transforms.headers import PixelLimit
from datamodules.transforms.images import decode_image, require_colors
from datamodules.transforms.pixels import RGB, Pixels
from mambaeye.errors import InputError
from mambaeye.geometry.box import Box


@dataclass(frozen=True)
class Clip:
    """A clip's frames, still encoded."""

    data: bytes
    """The file's."""
    spans: list[Span]
    limit: PixelLimit
    """Of each frame."""
    what: str
    """Names the clip in a message."""

    @classmethod
    def open(cls, data: bytes, limit: PixelLimit, what: str) -> "Clip":
        """Find the frames in a file's bytes, and decode nothing.

        Raises:
            InputError: it is not a whole clip.
        """
        return cls(data, find_frames(data, what), limit, what)

    def __len__(self) -> int:
        """Return the number of frames."""
        return len(self.spans)

    def encoded(self, at: int) -> bytes:
        """Return a frame's bytes.

        Raises:
            InputError: its header has more pixels than the limit, or is none.
        """
        frame = self.data[slice(*self.spans[at])]
        self.limit.require(frame, self.name(at))
        return frame

    def decoded(self, at: int) -> np.ndarray:
        """Return a frame, (H, W, 3) uint8 RGB.

        Raises:
            InputError: it is not a whole image, or has more pixels than the limit.
        """
        return decode_image(self.encoded(at), self.name(at))

    def name(self, at: int) -> str:
        """Return what names a frame in a message."""
        return f"frame {at} of {self.what}"

    def window(self, frames: int, start: int | None = None) -> range:
        """Return so many successive frames, or all if there are fewer: those in the middle, or from a place on."""
        if start is None:
            return middle(len(self), frames)
        return range(start, start + min(frames, len(self)))


def middle(length: int, frames: int) -> range:
    """Return so many successive frames in the middle of a clip of a length, or all if there are fewer."""
    taken = min(frames, length)
    first = (length - taken) // 2
    return range(first, first + taken)


def require_readable(data: bytes, is_clip: bool, limit: PixelLimit, what: str, pixels: Pixels = RGB) -> None:
    """Decode an image, or every frame of a clip, one after another.

    Raises:
        InputError: it is not whole, or has more pixels than the limit, or pixels of another kind.
    """
    if is_clip:
        clip = Clip.open(data, limit, what)
        for at in range(len(clip)):
            clip.decoded(at)
    elif not pixels.is_rgb:
        Bands(data, pixels, limit, what).decoded()
    else:
        require_colors(data, what)
        limit.require(data, what)
        decode_image(data, what)


def stacked(placed: Iterable[tuple[np.ndarray, Box]], length: int, frames: int, what: str) -> tuple[np.ndarray, Box]:
    """Put frames that lie on canvases into the middle of a canvas of frames, black before and after them.

    Args:
        placed: canvas (H, W, 3) uint8 and the frame's box on it, of each; taken one by one.
        length: how many these are, at least 1.
        frames: of the canvas, at least as many.
        what: names the clip in a message.

    Returns:
        The canvas (frames, H, W, 3) uint8, and the clip's box on it.

    Raises:
        InputError: the frames do not cover the same part of their canvases.
    """
    first, canvas, place = (frames - length) // 2, None, None
    for at, (picture, box) in enumerate(placed, first):
        if canvas is None:
            canvas = np.zeros((frames, *picture.shape), np.uint8)
        place = require_one_place(box, place, what)
        canvas[at] = picture
    assert canvas is not None
    assert place is not None
    return canvas, Box(first, *place.start, length, *place.size)


def require_one_place(box: Box, place: Box | None, what: str) -> Box:
    """Return a frame's box, which must be where the frames before it are, if there are any.

    Raises:
        InputError: it is not.
    """
    if place is not None and box != place:
        raise InputError(f"the frames of {what} have several shapes: replace it or leave it out")
    return box
