"""Encoded image -> augmented image on its canvas: the authors' training augmentations (paper section 4.1), fused.

Read as a list, this is what happens to an image, in this order:

1. fit into the canvas, aspect kept;
2. flip left to right;
3. colour jitter: brightness, contrast, saturation, hue; then grayscale;
4. Gaussian blur;
5. perspective, which grows the image to the moved corners' bounding box;
6. crop;
7. resize to a random height and width, aspect not kept;
8. erase a rectangle;
9. centre on the canvas.

Done as a list, it would resample three times and touch every pixel nine times. Instead draw() decides everything before
a pixel is decoded, 1, 2, 5, 6 and 7 become one matrix, only the part of the image that is kept is touched, and no step
works on more pixels than the source or the result has. Known differences from the list, all small:

- the jitter's order is fixed, where torchvision shuffles it, and values are clipped after saturation, not in between;
- colour and blur come after the crop: the blur mirrors the crop's edge, as the list would mirror the image's;
- the blur's kernel is carried over to the pixels at hand through the linear interpolation that separates them;
- a crop without perspective moves to whole pixels if that moves no edge by more than SNAP of its side, since resizing
  whole pixels takes a third of the time of a warp.

draws.py decides, warping.py says where pixels go, color.py what becomes of their values, jpeg.py decodes.
"""

import cv2
import numpy as np

from datamodules.transforms.color import blur_kernel, color_matrix, turn_hue
from datamodules.transforms.draws import Augmentation, Draw, draw
from datamodules.transforms.images import black_canvas, decode_image
from datamodules.transforms.jpeg import decode_reduced, jpeg_reduction, jpeg_size
from datamodules.transforms.warping import (
    cut_source,
    flip_matrix,
    magnification,
    perspective_matrix,
    scaling,
    shrink,
    translation,
    warp,
)
from mambaeye.geometry.box import Box


def augment(
    data: bytes, side: int, config: Augmentation, rng: np.random.Generator, what: str
) -> tuple[np.ndarray, Box]:
    """Decode an image and augment it onto the middle of a black canvas: a pure function of the first four arguments.

    Args:
        data: the image file's bytes.
        side: of the canvas, in pixels.
        config: how often and how strongly.
        rng: decides everything random; always advances by the same number of draws (see draw).
        what: names the image in a message.

    Returns:
        The canvas (side, side, 3) uint8 RGB, and the image's box on it. Black from the perspective or from erasing
        belongs to the image.

    Raises:
        InputError: the bytes are not a whole image.
    """
    size, image = jpeg_size(data), None
    if size is None:
        image = decode_image(data, what)
        size = image.shape[0], image.shape[1]
    height, width = size
    drawn = draw(height, width, side, config, rng)
    matrix = result_matrix(height, width, drawn)
    reduction = 1
    if image is None:
        reduction = jpeg_reduction(max(magnification(matrix, height, width)))
        image = decode_reduced(data, reduction, what)
        matrix = matrix @ scaling(reduction, reduction)

    source, matrix = cut_source(image, matrix, drawn.size)
    part, matrix = shrink(source, matrix)  # (h, w, 3): no longer than the source or the result on either axis
    part = adjust_color(part, drawn, cv2.mean(image)[:3] if drawn.contrast != 1 else (0, 0, 0))
    if drawn.sigma:
        x_pitch = drawn.fitted[1] / width * reduction * source.shape[1] / part.shape[1]  # fitted pixels to one at hand
        y_pitch = drawn.fitted[0] / height * reduction * source.shape[0] / part.shape[0]
        x_taps, y_taps = config.blur_kernel
        x_kernel, y_kernel = blur_kernel(x_taps, drawn.sigma, x_pitch), blur_kernel(y_taps, drawn.sigma, y_pitch)
        part = cv2.sepFilter2D(part, -1, x_kernel, y_kernel)

    canvas, box = black_canvas((side, side), drawn.size)
    result = canvas[box.slices]
    warp(part, matrix, result, cv2.BORDER_REPLICATE if drawn.corners is None else cv2.BORDER_CONSTANT)
    if drawn.erased:
        row, col, height, width = drawn.erased
        result[row : row + height, col : col + width] = 0
    return canvas, box


def result_matrix(height: int, width: int, drawn: Draw) -> np.ndarray:
    """Return what takes the source's points, (height, width) pixels, to the result's: (3, 3) float64."""
    fitted, crop, size = drawn.fitted, drawn.crop, drawn.size
    matrix = scaling(fitted[1] / width, fitted[0] / height)
    if drawn.flip:
        matrix = flip_matrix(fitted[1]) @ matrix
    if drawn.corners is not None:
        matrix = perspective_matrix(*fitted, drawn.corners) @ matrix
    kept = scaling(size[1] / crop.width, size[0] / crop.height) @ translation(-crop.col, -crop.row)
    result: np.ndarray = kept @ matrix
    return result


def adjust_color(image: np.ndarray, drawn: Draw, mean: tuple[float, ...]) -> np.ndarray:
    """Change brightness, contrast and saturation by one matrix, then hue, then grayscale: (h, w, 3) uint8 -> same.

    Args:
        mean: of red, green and blue over the whole image, which contrast leaves as gray as it is.
    """
    if (drawn.brightness, drawn.contrast, drawn.saturation) != (1, 1, 1):
        image = cv2.transform(image, color_matrix(drawn.brightness, drawn.contrast, drawn.saturation, mean))
    if drawn.hue:
        image = turn_hue(image, drawn.hue)
    if drawn.grayscale:
        image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return image
