"""Decoding JPEGs no larger than they are needed."""

import cv2
import numpy as np

from datamodules.transforms.headers import jpeg_frame
from datamodules.transforms.images import decode_image

REDUCED = {  # OpenCV names these flags for gray and BGR only; they are sums of bits, and this is the one for RGB
    2: cv2.IMREAD_REDUCED_GRAYSCALE_2 | cv2.IMREAD_COLOR_RGB,
    4: cv2.IMREAD_REDUCED_GRAYSCALE_4 | cv2.IMREAD_COLOR_RGB,
    8: cv2.IMREAD_REDUCED_GRAYSCALE_8 | cv2.IMREAD_COLOR_RGB,
}


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Read height and width of a JPEG, upright; None for other formats, and for what only decoding can tell."""
    frame = jpeg_frame(data)
    if frame is None or frame.exif or frame.components not in (1, 3) or not frame.height * frame.width:
        return None
    return frame.height, frame.width


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
