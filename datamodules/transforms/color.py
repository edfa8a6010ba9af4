"""Augmentation of the values of pixels: colour and blur."""

from math import ceil

import cv2
import numpy as np

GRAY = (0.299, 0.587, 0.114)  # weights of red, green and blue (ITU-R BT.601)


def color_matrix(brightness: float, contrast: float, saturation: float, mean: tuple[float, ...]) -> np.ndarray:
    """Return what changes all three, one after another: (red, green, blue, 1) -> (red, green, blue), (3, 4) float64.

    Args:
        brightness: factor of all values.
        contrast: factor of the differences from the gray of the mean, after brightness.
        saturation: factor of the differences from each pixel's gray.
        mean: red, green and blue, before brightness.
    """
    saturate = saturation * np.eye(3) + (1 - saturation) * np.array(GRAY)  # each row blends one colour with the gray
    offset = (1 - contrast) * brightness * np.dot(GRAY, mean)  # is gray, and saturation leaves it
    return np.column_stack([brightness * contrast * saturate, np.full(3, offset)])


def turn_hue(image: np.ndarray, turns: float) -> np.ndarray:
    """Turn the hue in HSV, with 256 steps to a turn: (h, w, 3) uint8 -> same."""
    hsv = cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL)
    turn = np.zeros(hsv.shape[1:], np.uint8)  # (w, 3)
    turn[:, 0] = round(turns * 256) % 256
    rows = hsv.reshape(len(hsv), -1)  # in which NumPy adds without a stride, in a third of the time
    rows += turn.ravel()  # wraps around
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB_FULL)


def blur_kernel(taps: int, sigma: float, pitch: float) -> np.ndarray:
    """Return a Gaussian of that many taps, a pixel apart, on a grid of another pitch: (n,) float64, n odd, sum 1.

    What the taps would find on the fitted image is interpolated from the pixels at hand, or, where those are denser,
    averaged over as many: each tap is shared out over them by a cubic kernel, which leaves the variance as it is.

    Args:
        taps: an odd number.
        sigma: in pixels of the fitted image.
        pitch: of the pixels at hand, in those of the fitted image.
    """
    offsets = np.arange(taps) - taps // 2
    gaussian = np.exp(-0.5 * (offsets / sigma) ** 2)
    reach = max(1.0, 1 / pitch)  # by how much the cubic is stretched, in pixels at hand
    radius = ceil(taps // 2 / pitch + 2 * reach) - 1
    grid = np.arange(-radius, radius + 1)[:, None]  # (n, 1)
    kernel = np.trim_zeros(cubic((grid - offsets / pitch) / reach) @ gaussian)
    normalised: np.ndarray = kernel / kernel.sum()
    return normalised


def cubic(x: np.ndarray) -> np.ndarray:
    """Evaluate Keys's cubic convolution kernel, a = -0.5, which is 0 from 2 on."""
    x = np.abs(x)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
