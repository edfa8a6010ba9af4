"""Where the pixels of an augmented image go: matrices of points, and drawing an image through one.

Points are (x, y) in pixels from the top-left corner of the top-left pixel, so that a scale is only a scale: the centre
of the first pixel is at (0.5, 0.5). Matrices act on columns (x, y, 1).

Shape letters: H, W the source; h, w what is being worked on.
"""

from math import ceil, floor, hypot

import cv2
import numpy as np

SNAP = 1 / 128  # share of a crop's side that its edges may be moved by


def scaling(x: float, y: float) -> np.ndarray:
    """Return the (3, 3) matrix that multiplies both coordinates."""
    return np.array([[x, 0.0, 0.0], [0.0, y, 0.0], [0.0, 0.0, 1.0]])


def translation(x: float, y: float) -> np.ndarray:
    """Return the (3, 3) matrix that adds to both coordinates."""
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])


def flip_matrix(width: float) -> np.ndarray:
    """Return the (3, 3) matrix that mirrors an image of that width left to right."""
    return np.array([[-1.0, 0.0, width], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])


def perspective_matrix(height: float, width: float, corners: np.ndarray) -> np.ndarray:
    """Return the (3, 3) that moves an image's corners to (4, 2) points, and their bounding box to the origin."""
    moved = corners - corners.min(axis=0)
    return cv2.getPerspectiveTransform(rectangle(height, width).astype(np.float32), moved.astype(np.float32))


def rectangle(height: float, width: float) -> np.ndarray:
    """Return the corners of an image, (4, 2) float64: top left, top right, bottom right, bottom left."""
    return np.array([[0.0, 0.0], [width, 0.0], [width, height], [0.0, height]])


def magnification(matrix: np.ndarray, height: int, width: int) -> tuple[float, float]:
    """Return the result pixels to a source pixel along x and y, at the middle of a (height, width) source."""
    (xx, xy, x0), (yx, yy, y0), (zx, zy, z0) = matrix.tolist()
    x, y = width / 2, height / 2
    depth = zx * x + zy * y + z0
    at_x, at_y = (xx * x + xy * y + x0) / depth, (yx * x + yy * y + y0) / depth  # on the result
    return hypot(xx - zx * at_x, yx - zx * at_y) / depth, hypot(xy - zy * at_x, yy - zy * at_y) / depth


def is_stretch(matrix: np.ndarray) -> bool:
    """Tell whether it only scales, mirrors and moves."""
    return not (matrix[0, 1] or matrix[1, 0] or matrix[2, 0] or matrix[2, 1])


def cut_source(image: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Cut out the part of the source that the result shows, with a pixel around it.

    If all four edges are whole pixels, to within SNAP of their distance, it is cut there and the matrix is made to
    stretch exactly it over the result.

    Args:
        image: (H, W, 3).
        matrix: (3, 3) from the source to the result.
        size: height and width of the result.

    Returns:
        (h, w, 3), a view, at least one pixel; and (3, 3), the matrix from it to the result.
    """
    x, y, depth = np.linalg.inv(matrix) @ np.vstack([rectangle(*size).T, np.ones(4)])  # (4,) each: the result's corners
    if depth.min() <= 0:  # the result reaches beyond the horizon
        return image, matrix
    x, y = (x / depth).tolist(), (y / depth).tolist()
    starts, ends = (min(x), min(y)), (max(x), max(y))
    if is_stretch(matrix):
        (left, top), (right, bottom) = ([round(edge) for edge in edges] for edges in (starts, ends))
        moved = (starts[0] - left, starts[1] - top, ends[0] - right, ends[1] - bottom)
        allowed = [SNAP * (end - start) for start, end in zip(starts, ends, strict=True)] * 2
        if all(abs(move) <= most for move, most in zip(moved, allowed, strict=True)):
            stretch = scaling(size[1] / (right - left), size[0] / (bottom - top))
            return image[top:bottom, left:right], flip_matrix(size[1]) @ stretch if matrix[0, 0] < 0 else stretch
    lengths = image.shape[1::-1]
    left, top = (min(max(floor(edge) - 1, 0), length - 1) for edge, length in zip(starts, lengths, strict=True))
    right, bottom = (min(max(ceil(edge) + 1, 1), length) for edge, length in zip(ends, lengths, strict=True))
    return image[top : max(bottom, top + 1), left : max(right, left + 1)], matrix @ translation(left, top)


def shrink(image: np.ndarray, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Average over pixels along the axes on which the matrix makes the image smaller, so that warping skips none.

    Returns:
        (h, w, 3), and the (3, 3) that is left to do.
    """
    height, width = image.shape[:2]
    scale_x, scale_y = magnification(matrix, height, width)
    size = max(1, round(width * min(1, scale_x))), max(1, round(height * min(1, scale_y)))
    if size == (width, height):
        return image, matrix
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA), matrix @ scaling(width / size[0], height / size[1])


def warp(image: np.ndarray, matrix: np.ndarray, result: np.ndarray, border: int) -> None:
    """Draw an image onto a result, linearly interpolated: by resizing it if it only has to be stretched over all of it.

    Args:
        image: (h, w, 3) uint8.
        matrix: (3, 3) from the image to the result.
        result: (result height, result width, 3) uint8, written to.
        border: OpenCV's name for what lies around the image.
    """
    height, width = result.shape[:2]
    (x_scale, _, x_start), (_, y_scale, y_start) = matrix[:2].tolist()
    mirrored = x_scale < 0
    covered = np.array([x_start, x_start + x_scale * image.shape[1], y_start, y_start + y_scale * image.shape[0]])
    if is_stretch(matrix) and np.abs(covered - (width * mirrored, width * (not mirrored), 0, height)).max() < 1e-6:
        cv2.resize(cv2.flip(image, 1) if mirrored else image, (width, height), dst=result)
    else:
        on_centers = translation(-0.5, -0.5) @ matrix @ translation(0.5, 0.5)  # OpenCV's points start at the centre
        cv2.warpPerspective(image, on_centers, (width, height), dst=result, borderMode=border)
