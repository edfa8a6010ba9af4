"""Places of the pixels of an augmented image: matrices of points, and drawing an image through one.

Points are (x, y) in pixels from the top-left corner of the top-left pixel, so that a scale is only a scale: the centre
of the first pixel is at (0.5, 0.5). Matrices act on columns (x, y, 1).

Shape letters: H, W the source; h, w what is being worked on.
"""

from math import ceil, floor

import cv2
import numpy as np
import torch
from torch.nn.functional import interpolate

from datamodules.transforms.pixels import by_channels

SNAP = 1 / 128  # share of a crop's side that its edges may be moved by


def stretch(x_scale: float, y_scale: float, x: float = 0.0, y: float = 0.0) -> np.ndarray:
    """Return the (3, 3) matrix that multiplies the coordinates, and then adds to them."""
    return np.array([[x_scale, 0.0, x], [0.0, y_scale, y], [0.0, 0.0, 1.0]])


def shift(x: float, y: float) -> np.ndarray:
    """Return the (3, 3) matrix that adds to the coordinates."""
    return stretch(1.0, 1.0, x, y)


def perspective_matrix(height: float, width: float, corners: np.ndarray) -> np.ndarray:
    """Return the (3, 3) that moves an image's corners to (4, 2) points, and their bounding box to the origin."""
    moved = corners - corners.min(axis=0)
    return cv2.getPerspectiveTransform(rectangle(height, width).astype(np.float32), moved.astype(np.float32))


def rectangle(height: float, width: float) -> np.ndarray:
    """Return the corners of an image, (4, 2) float64: top left, top right, bottom right, bottom left."""
    return np.array([[0.0, 0.0], [width, 0.0], [width, height], [0.0, height]])


def is_stretch(matrix: np.ndarray) -> bool:
    """Tell whether it only scales, mirrors and moves."""
    return not (matrix[0, 1] or matrix[1, 0] or matrix[2, 0] or matrix[2, 1])


def cut_source(image: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray | None]:
    """Cut out the part of the source that the result shows, with a pixel around it.

    If nothing but a stretch is asked for and all four edges are whole pixels, to within SNAP of their distance, it is
    cut there, to be stretched over all of the result.

    Args:
        image: (H, W, C).
        matrix: (3, 3) from the source to the result.
        size: height and width of the result.

    Returns:
        (h, w, C), a view, at least one pixel; and (3, 3), the matrix from it to the result, or None if it only has to
        be stretched (and mirrored).
    """
    if is_stretch(matrix):
        (x_scale, _, x_start), (_, y_scale, y_start) = matrix[:2].tolist()
        x, y = (-x_start / x_scale, (size[1] - x_start) / x_scale), (-y_start / y_scale, (size[0] - y_start) / y_scale)
        (left, right), (top, bottom) = (sorted(map(round, edges)) for edges in (x, y))
        moved = (min(x) - left, max(x) - right, min(y) - top, max(y) - bottom)
        allowed = (SNAP * abs(x[1] - x[0]),) * 2 + (SNAP * abs(y[1] - y[0]),) * 2
        if all(abs(move) <= most for move, most in zip(moved, allowed, strict=True)):
            return image[top:bottom, left:right], None
    else:
        corners = np.linalg.inv(matrix) @ np.vstack([rectangle(*size).T, np.ones(4)])  # (3, 4)
        if corners[2].min() <= 0:  # the result reaches beyond the horizon
            return image, matrix
        x, y = (corners[:2] / corners[2]).tolist()
    left, right = (min(max(edge, 0), image.shape[1]) for edge in (floor(min(x)) - 1, ceil(max(x)) + 1))
    top, bottom = (min(max(edge, 0), image.shape[0]) for edge in (floor(min(y)) - 1, ceil(max(y)) + 1))
    left, top = min(left, image.shape[1] - 1), min(top, image.shape[0] - 1)
    return image[top : max(bottom, top + 1), left : max(right, left + 1)], matrix @ shift(left, top)


def resize(image: np.ndarray, size: tuple[int, int], result: np.ndarray | None = None) -> np.ndarray:
    """Resize with a cubic kernel, as wide as it takes to skip no pixel where the image gets smaller.

    Args:
        image: (H, W, C) uint8 or uint16.
        size: height and width of the result.
        result: (height, width, C) of that dtype to write to; null to make one.

    Returns:
        (height, width, C); without a result to write to, the image itself if it has that size.
    """
    height, width = image.shape[:2]
    if size[0] >= height and size[1] >= width and (result is not None or size != (height, width)):
        if image.shape[2] == 3:
            return cv2.resize(image, size[::-1], dst=result, interpolation=cv2.INTER_CUBIC)
        larger = by_channels(lambda part: cv2.resize(part, size[::-1], interpolation=cv2.INTER_CUBIC), image)
        if result is None:
            return larger
        result[:] = larger
        return result
    resized = image
    if size != (height, width) and image.dtype != np.uint8:  # bicubic values go beyond, where uint8's are cut off
        pixels = torch.from_numpy(image.astype(np.float32))[None].permute(0, 3, 1, 2)
        smaller = interpolate(pixels, size, mode="bicubic", antialias=True).round().clamp(0, np.iinfo(image.dtype).max)
        resized = smaller[0].permute(1, 2, 0).numpy().astype(image.dtype)
    elif size != (height, width):
        pixels = torch.from_numpy(image)[None].permute(0, 3, 1, 2)  # (1, 3, H, W), channels last
        smaller = interpolate(pixels, size, mode="bicubic", antialias=True)  # in uint8: fast, and close to Pillow's
        resized = smaller[0].permute(1, 2, 0).numpy()
    if result is None:
        return resized
    result[:] = resized
    return result


def warp(image: np.ndarray, matrix: np.ndarray, size: tuple[int, int], border: int) -> np.ndarray:
    """Draw an image through a matrix, linearly interpolated, as the authors' perspective is.

    Args:
        image: (h, w, C) uint8 or uint16.
        matrix: (3, 3) from the image to the result.
        size: height and width of the result.
        border: OpenCV's name for what lies around the image.

    Returns:
        (height, width, C).
    """
    on_centers = shift(-0.5, -0.5) @ matrix @ shift(0.5, 0.5)  # OpenCV's points start at the centre
    if image.shape[2] != 3 or image.dtype != np.uint8:
        return by_channels(lambda some: cv2.warpPerspective(some, on_centers, size[::-1], borderMode=border), image)
    with_alpha = cv2.cvtColor(image, cv2.COLOR_RGB2RGBA)  # four channels take half the time of three
    return cv2.cvtColor(cv2.warpPerspective(with_alpha, on_centers, size[::-1], borderMode=border), cv2.COLOR_RGBA2RGB)
