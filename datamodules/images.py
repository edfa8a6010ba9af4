"""Image bytes -> an RGB image fitted and centred on a square canvas."""

import cv2
import numpy as np

from mambaeye.errors import InputError
from mambaeye.trajectory import Box


def decode_image(data: bytes, what: str) -> np.ndarray:
    """Decode JPEG, PNG or WebP to (H, W, 3) uint8 RGB, upright.

    Args:
        data: the file's bytes.
        what: names the image in a message.

    Raises:
        InputError: the bytes are not a whole image.
    """
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
    except cv2.error:  # no bytes at all
        image = None
    if image is None:
        raise InputError(f"the image of {what} does not decode: replace it, or take the sample out of its shard")
    return image


def fit_on_canvas(image: np.ndarray, side: int) -> tuple[np.ndarray, Box]:
    """Scale an image to fit a square canvas, aspect kept, and centre it; the rest of the canvas is black.

    Args:
        image: (H, W, 3) uint8.
        side: of the canvas, in pixels.

    Returns:
        The canvas (side, side, 3) uint8, and the image's box on it.
    """
    scale = side / max(image.shape[:2])
    height, width = (max(1, round(scale * length)) for length in image.shape[:2])
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    fitted = cv2.resize(image, (width, height), interpolation=interpolation)
    box = Box((side - height) // 2, (side - width) // 2, height, width)
    canvas = np.zeros((side, side, 3), dtype=np.uint8)
    canvas[box.row : box.row + height, box.col : box.col + width] = fitted
    return canvas, box
