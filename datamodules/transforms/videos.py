"""Videos as OpenCV's FFmpeg decodes them, frame by frame from the first.

What is to be decoded must begin as the files of a few containers do, so that no playlist makes FFmpeg open other files
or URLs.
"""

from collections.abc import Iterator

import cv2
import numpy as np

from datamodules.transforms.headers import PixelLimit
from mambaeye.errors import InputError

WHOLE = 0.9  # of the frames that a video's header says, which must decode; some headers only estimate


def frames_of(video: cv2.VideoCapture) -> Iterator[np.ndarray]:
    """Yield the frames of a video, (H, W, 3) uint8 BGR, upright, as far as they decode."""
    there, frame = video.read()
    while there:
        yield frame
        there, frame = video.read()


def is_container(data: bytes) -> bool:
    """Tell whether a file begins as MP4 and MOV (ISO/IEC 14496-12), Matroska and WebM (RFC 8794), or AVI do."""
    return data[4:8] == b"ftyp" or data[:4] == b"\x1a\x45\xdf\xa3" or (data[:4] == b"RIFF" and data[8:12] == b"AVI ")


def require_whole(frames: int, told: float, what: str) -> None:
    """Refuse a video of which less frames decode than its header says, or none.

    Args:
        frames: that decode.
        told: by the header, 0 or less where it does not say.
        what: names it in a message.

    Raises:
        InputError: it is refused.
    """
    if not frames or frames < WHOLE * told:
        raise InputError(
            f"{what} is cut short or damaged: {frames} of {told:.0f} frames decode: replace it or leave it out"
        )


def require_size(video: cv2.VideoCapture, limit: PixelLimit, what: str) -> tuple[int, int]:
    """Return height and width of a video's frames, pixels, as it states them.

    Raises:
        InputError: they have more pixels than the limit.
    """
    width, height = (int(video.get(side)) for side in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
    if width * height > limit.pixels:
        raise InputError(
            f"{what} has frames of {width} x {height} pixels, more than the {limit.pixels} of {limit.flag}: scale it "
            f"down, leave it out, or raise the limit"
        )
    return height, width
