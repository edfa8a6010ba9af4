"""Decoding JPEGs no larger than they are needed."""

import cv2
import numpy as np

from datamodules.transforms.images import decode_image

FRAME_HEADERS = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # JPEG markers SOF0 to SOF15
REDUCED = {  # OpenCV names these flags for gray and BGR only; they are sums of bits, and this is the one for RGB
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2 | cv2.IMREAD_COLOR_RGB,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4 | cv2.IMREAD_COLOR_RGB,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8 | cv2.IMREAD_COLOR_RGB,
}


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Read height and width from a JPEG's header; None for other formats, and for what only decoding can tell upright.

    Walks the segments up to the frame header (ITU-T T.81, B.1 and B.2.2).
    """
    at = 2 if data[:2] == b"\xff\xd8" else len(data)
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xE1 and data[at + 4 : at + 8] == b"Exif":  # may be rotated
            return None
        if marker in FRAME_HEADERS:
            components = data[at + 9]
            size = int.from_bytes(data[at + 5 : at + 7]), int.from_bytes(data[at + 7 : at + 9])
            return size if components in (1, 3) and all(size) else None
        at += 2 + int.from_bytes(data[at + 2 : at + 4])
    return None


def jpeg_reduction(scale: float) -> int:
    """Return by what a JPEG that is to be scaled may already be decoded smaller: the largest of 1, 2, 4, 8.

    A factor of at least 2 is left to averaging over pixels, for the decoder's own way of shrinking is sharper.
    """
    return max((reduction for reduction in REDUCED if reduction * scale <= 0.5), default=1)


def decode_reduced(data: bytes, reduction: int, what: str) -> np.ndarray:
    """Decode a JPEG to (ceil(H / reduction), ceil(W / reduction), 3) uint8 RGB; see decode_image."""
    if reduction == 1:
        return decode_image(data, what)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), REDUCED[reduction])
    except cv2.error:
        image = None
    return decode_image(data, what) if image is None else image  # which says what is wrong with it
