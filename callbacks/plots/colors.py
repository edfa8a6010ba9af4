"""Images of any channels as colours that can be shown."""

import numpy as np


def as_rgb(image: np.ndarray) -> np.ndarray:
    """Return an image in colours: RGB of 8 bits as it is, of other channels the first, the middle and the last one.

    Args:
        image: (..., C) uint8 or uint16.

    Returns:
        (..., 3) uint8, of 16 bits the higher 8.
    """
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    channels = image.shape[-1]
    return image if channels == 3 else np.ascontiguousarray(image[..., [0, channels // 2, channels - 1]])
