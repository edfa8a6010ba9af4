"""Encoded image -> augmented image on its canvas: the authors' training augmentations (paper section 4.1), fused.

Read as a list, this is what happens to an image, in this order:

1. fit into the canvas, aspect kept, with a cubic kernel;
2. flip left to right;
3. colour jitter: brightness, contrast, saturation, hue; then grayscale;
4. Gaussian blur;
5. perspective, linear, which grows the image to the moved corners' bounding box;
6. crop;
7. resize to a random height and width, aspect not kept, with a Lanczos kernel;
8. erase a rectangle;
9. centre on the canvas.

Done as a list, it would touch every pixel nine times. Instead draw() decides everything before a pixel is decoded, only
the part of the image that is kept is touched, and no step works on more pixels than it must. What 1 and 7 do to an
image's sharpness stays (see benchmarks/sharpness.py): they are one cubic resize, or two where the fit shrinks and the
resize enlarges, and a perspective is drawn at the fit's scale. Known differences from the list, all small:

- the jitter's order is fixed, where torchvision shuffles it, and values are clipped after saturation, not in between;
- colour and blur come after the crop: the blur mirrors the crop's edge, as the list would mirror the image's;
- the blur's kernel is carried over to the pixels at hand through the linear interpolation that separates them;
- a crop without perspective moves to whole pixels if that moves no edge by more than SNAP of its side, since resizing
  whole pixels takes a third of the time of a warp.

draws.py decides, warping.py says where pixels go, color.py what becomes of their values, jpeg.py decodes.
"""

from math import ceil

import cv2
import numpy as np

from datamodules.transforms.color import blur_kernel, color_matrix, turn_hue
from datamodules.transforms.draws import Augmentation, Draw, draw
from datamodules.transforms.images import black_canvas, decode_image, pixels_of
from datamodules.transforms.jpeg import decode_reduced, jpeg_reduction, jpeg_size
from datamodules.transforms.pixels import by_channels
from datamodules.transforms.warping import cut_source, perspective_matrix, resize, stretch, warp
from mambaeye.geometry.box import Box

FINEST = 1.5  # pixels of a perspective to one of the source; more would show nothing more


def augment(
    data: bytes | np.ndarray, side: int, config: Augmentation, rng: np.random.Generator, what: str
) -> tuple[np.ndarray, Box]:
    """Decode an image and augment it onto the middle of a black canvas: a pure function of the first four arguments.

    Args:
        data: the image file's bytes; or the image, decoded, (H, W, C) uint8 or uint16.
        side: of the canvas, in pixels.
        config: how often and how strongly.
        rng: decides everything random; always advances by the same number of draws (see draw).
        what: names the image in a message.

    Returns:
        The canvas (side, side, 3) uint8 RGB, or (side, side, C) like the image, and the image's box on it. Black from
        the perspective or from erasing belongs to the image.

    Raises:
        InputError: the bytes are not a whole image.
    """
    sides, image = (jpeg_size(data), None) if isinstance(data, bytes) else (None, data)
    if sides is None:
        image = decode_image(data, what) if isinstance(data, bytes) else data
        sides = image.shape[0], image.shape[1]
    height, width = sides
    drawn = draw(height, width, side, config, rng)
    size = drawn_size(height, width, drawn)
    y_fit, x_fit = drawn.fitted[0] / height, drawn.fitted[1] / width
    y_scale, x_scale = y_fit * size[0] / drawn.crop.height, x_fit * size[1] / drawn.crop.width
    reduction = 1
    if image is None:
        assert isinstance(data, bytes)
        reduction = jpeg_reduction(max(y_scale, x_scale))
        image = decode_reduced(data, reduction, what)

    matrix = source_to_drawn(height, width, drawn, size) @ stretch(reduction, reduction)
    source, rest = cut_source(image, matrix, size)
    rows, cols = source.shape[:2]
    scaled = size if rest is None else (ceil(rows * reduction * y_scale), ceil(cols * reduction * x_scale))
    part = resize(source, (min(rows, scaled[0]), min(cols, scaled[1])))  # (h, w, 3): colour and blur touch the fewest
    part = adjust_color(part, drawn, cv2.mean(image)[:3] if drawn.contrast != 1 else (0, 0, 0))
    if drawn.sigma:
        x_pitch = x_fit * reduction * cols / part.shape[1]  # fitted pixels to one at hand
        y_pitch = y_fit * reduction * rows / part.shape[0]
        x_taps, y_taps = config.blur_kernel
        x_kernel, y_kernel = blur_kernel(x_taps, drawn.sigma, x_pitch), blur_kernel(y_taps, drawn.sigma, y_pitch)
        part = by_channels(lambda some: cv2.sepFilter2D(some, -1, x_kernel, y_kernel), part)
    if rest is None and drawn.flip:
        part = by_channels(lambda some: cv2.flip(some, 1), part)
    part = resize(part, scaled)
    if rest is not None:
        border = cv2.BORDER_REPLICATE if drawn.corners is None else cv2.BORDER_CONSTANT
        part = warp(part, rest @ stretch(cols / scaled[1], rows / scaled[0]), size, border)

    canvas, box = black_canvas((side, side), drawn.size, pixels=pixels_of(image))
    result = canvas[box.slices]
    resize(part, drawn.size, result)
    if drawn.erased:
        row, col, height, width = drawn.erased
        result[row : row + height, col : col + width] = 0
    return canvas, box


def drawn_size(height: int, width: int, drawn: Draw) -> tuple[int, int]:
    """Return the height and width at which an image of (height, width) pixels is drawn, to be resized to the result's.

    The result's own, with two exceptions: what the fit has shrunk has no more detail than the crop has pixels, however
    large the result; and a perspective is drawn before the resize, but at most at FINEST times the source's scale.
    """
    fit = max(drawn.fitted) / max(height, width)
    if drawn.corners is not None:
        share = min(1.0, FINEST / fit)
        return ceil(share * drawn.crop.height), ceil(share * drawn.crop.width)
    if fit >= 1:
        return drawn.size
    return min(drawn.size[0], drawn.crop.height), min(drawn.size[1], drawn.crop.width)


def source_to_drawn(height: int, width: int, drawn: Draw, size: tuple[int, int]) -> np.ndarray:
    """Return what takes points of the source, (height, width) pixels, to those of what is drawn: (3, 3) float64."""
    fitted, crop = drawn.fitted, drawn.crop
    x, y = fitted[1] / width, fitted[0] / height
    matrix = stretch(-x, y, fitted[1]) if drawn.flip else stretch(x, y)
    if drawn.corners is not None:
        matrix = perspective_matrix(*fitted, drawn.corners) @ matrix
    x, y = size[1] / crop.width, size[0] / crop.height
    result: np.ndarray = stretch(x, y, -x * crop.col, -y * crop.row) @ matrix
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
