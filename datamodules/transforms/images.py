"""Image bytes -> an RGB image; and images of any channels resized and centred on a square canvas."""

import io
import os
from collections.abc import Callable
from typing import BinaryIO, Literal

import cv2
import numpy as np
from PIL import Image, ImageOps

from datamodules.transforms.headers import PixelLimit, has_alpha, is_avif
from datamodules.transforms.jpeg import decode_jpeg
from datamodules.transforms.pixels import RGB, Pixels, by_channels, in_words
from datamodules.transforms.png import require_whole_png
from datamodules.transforms.tiff import Tiff
from datamodules.transforms.tiff_directory import is_tiff
from mambaeye.errors import InputError
from mambaeye.geometry.box import Box

Resize = Literal["fit", "full", "none"]
"""Ways of an image to a square canvas: scaled to fit it, aspect kept; stretched over all of it; or as it is. One that
is larger than the canvas is fitted first, whichever it is."""
Interpolation = Literal["lanczos", "area"]
"""Pillow's LANCZOS; or means of areas along an axis that shrinks, and linear along one that grows, which are softer."""

MOST_COLORS = 4  # channels: RGB with alpha, or CMYK

# what OpenCV says of a damaged image is raised here, with the image's name
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def decode_image(data: bytes, what: str) -> np.ndarray:
    """Decode an image of any format that OpenCV reads to (H, W, 3) uint8 RGB, upright.

    What comes out is what Pillow's convert("RGB") gives, to a step of 1: grayscale and palettes are expanded, CMYK and
    YCCK converted, of 16 bits the high 8 kept, EXIF's orientation applied, of an animation the first frame taken; what
    is transparent lies on white. Colour profiles are not applied. JPEGs that libjpeg warns of, for damage inside, are
    refused. How large an image may be is for the caller to say before (headers.PixelLimit).

    Args:
        data: the file's bytes; the extension does not matter.
        what: names the image in a message.

    Raises:
        InputError: the bytes are not a whole image, or one of more than 2^30 pixels.
    """
    if not data:
        raise InputError(f"the image of {what} is empty: replace it or leave it out")
    image = decode_jpeg(data, what)
    if image is not None:
        return image
    require_colors(data, what)
    if has_alpha(data) or is_avif(data):
        return on_white(data, what)
    require_whole_png(data, what)
    return _decoded(lambda: cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB), what)


def decode_file(file: BinaryIO, what: str, limit: PixelLimit) -> tuple[np.ndarray, int]:
    """Decode an open file of any format that OpenCV reads, in half the memory: from bytes, OpenCV makes a copy.

    Returns:
        (H, W, 3) uint8 RGB, and how many pictures the file holds: frames of an animation or pages.

    Raises:
        InputError: the file is not a whole image, or has more pixels than the limit.
    """
    if not os.fstat(file.fileno()).st_size:
        raise InputError(f"{what} is empty: replace it or leave it out")
    data = file.read()
    require_colors(data, what)
    limit.require(data, what)
    image = decode_jpeg(data, what)
    if image is None and (has_alpha(data) or is_avif(data)):
        image = on_white(data, what)
    require_whole_png(data, what)
    del data  # OpenCV reads the file itself
    name = f"/dev/fd/{file.fileno()}"  # for OpenCV takes no name that is not UTF-8
    if image is None:
        file.seek(0)
        image = _decoded(lambda: cv2.imread(name, None, cv2.IMREAD_COLOR_RGB), what)
    file.seek(0)
    return image, max(1, cv2.imcount(name))


def on_white(data: bytes, what: str) -> np.ndarray:
    """Decode an image with alpha to (H, W, 3) uint8 RGB, upright and laid on white.

    By Pillow: OpenCV drops alpha, takes red for blue in AVIFs that have it, and does not turn AVIFs upright.

    Raises:
        InputError: it is not a whole image.
    """
    try:
        with Image.open(io.BytesIO(data)) as file:
            image = ImageOps.exif_transpose(file).convert("RGBA")
    except (OSError, ValueError, SyntaxError, RuntimeError, MemoryError) as error:  # Pillow's answers to damage
        raise InputError(f"the image of {what} does not decode ({error}): replace it or leave it out") from None
    white = Image.new("RGBA", image.size, "white")
    return np.array(Image.alpha_composite(white, image).convert("RGB"))


def _decoded(read: Callable[[], np.ndarray | None], what: str) -> np.ndarray:
    try:
        image = read()
    except cv2.error as error:  # more pixels than OpenCV reads, or than there is memory for
        raise InputError(f"the image of {what} does not decode ({error.err}): scale it down or leave it out") from None
    if image is None:
        raise InputError(f"the image of {what} does not decode: replace it or leave it out")
    return image


def require_colors(data: bytes, what: str) -> None:
    """Refuse a TIFF of more channels than are colours, some of which OpenCV would take for RGB.

    Raises:
        InputError: it is one.
    """
    if not is_tiff(data):
        return
    try:
        layout = Tiff.of(data, what).layout
    except InputError:  # whether it is damaged, or only not read by region, is for OpenCV to find
        return
    if layout.channels > MOST_COLORS:
        raise InputError(
            f"the image of {what} has {in_words(layout.channels, layout.bits)}, not RGB: pack such images with "
            f"--channels {layout.channels} --bits {layout.bits}, and give --data.channels and --data.bits to what "
            f"reads them"
        )


def fitted_size(height: int, width: int, side: int, truncate: bool = False) -> tuple[int, int]:
    """Return height and width of an image, scaled so that the longer one is side; at least one pixel.

    Args:
        height: in pixels.
        width: in pixels.
        side: in pixels.
        truncate: cut fractions of a pixel off instead of rounding them; of some sides, such as 306 pixels for a canvas
            of 224, float64 then leaves one pixel less than side.
    """
    scale = side / max(height, width)
    rows, cols = (int(length) if truncate else round(length) for length in (scale * height, scale * width))
    return max(1, rows), max(1, cols)


def scaled(image: np.ndarray, size: tuple[int, int], interpolation: Interpolation) -> np.ndarray:
    """Return an image (H, W, C) uint8 or uint16 scaled to another height and width; itself where it has them."""
    if size == image.shape[:2]:
        return image
    height, width = size
    if image.shape[2] != RGB.channels or image.dtype != RGB.dtype:
        return scaled_bands(image, size, interpolation)
    if interpolation == "lanczos":
        return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))
    smaller = min(height, image.shape[0]), min(width, image.shape[1])
    if smaller != image.shape[:2]:
        image = cv2.resize(image, smaller[::-1], interpolation=cv2.INTER_AREA)
    return image if smaller == size else cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)


def scaled_bands(image: np.ndarray, size: tuple[int, int], interpolation: Interpolation) -> np.ndarray:
    """Return what scaled does of an image of any channels: each as a gray picture."""
    if interpolation == "area":
        smaller = min(size[0], image.shape[0]), min(size[1], image.shape[1])
        image = by_channels(lambda part: cv2.resize(part, smaller[::-1], interpolation=cv2.INTER_AREA), image)
        return by_channels(lambda part: cv2.resize(part, size[::-1], interpolation=cv2.INTER_LINEAR), image)
    wide = image if image.dtype == np.uint8 else image.astype(np.float32)  # Pillow scales no gray of 16 bits so
    channels = (Image.fromarray(wide[..., channel].copy()) for channel in range(image.shape[2]))
    values = np.dstack([np.asarray(one.resize(size[::-1], Image.Resampling.LANCZOS)) for one in channels])
    if values.dtype == np.uint8:
        return values
    return np.rint(values.clip(0, np.iinfo(image.dtype).max)).astype(image.dtype)


def resized(
    image: np.ndarray, side: int, resize: Resize, interpolation: Interpolation, truncate: bool = False
) -> np.ndarray:
    """Return an image as it is to lie on a square canvas: (h, w, C), neither side longer than the canvas's.

    Args:
        image: (H, W, C) uint8 or uint16.
        side: of the canvas, in pixels.
        resize: see Resize; "full" scales an image that is larger than the canvas twice, as the authors do.
        interpolation: see Interpolation.
        truncate: see fitted_size.
    """

    def fitted(image: np.ndarray) -> np.ndarray:
        height, width = image.shape[:2]
        return scaled(image, fitted_size(height, width, side, truncate), interpolation)

    if max(image.shape[:2]) > side:
        image = fitted(image)
    if resize == "fit":
        return fitted(image)
    return scaled(image, (side, side), interpolation) if resize == "full" else image


def middle(size: tuple[int, int], image_size: tuple[int, int], shift: tuple[int, int] = (0, 0)) -> Box:
    """Return the box in the middle of a canvas that an image is to fill; arguments as for black_canvas."""
    (height, width), (rows, cols) = size, shift
    return Box((height - image_size[0]) // 2 + rows, (width - image_size[1]) // 2 + cols, *image_size)


def black_canvas(
    size: tuple[int, int], image_size: tuple[int, int], shift: tuple[int, int] = (0, 0), pixels: Pixels = RGB
) -> tuple[np.ndarray, Box]:
    """Return a black canvas and the box in its middle that an image is to fill.

    Args:
        size: height and width of the canvas, in pixels.
        image_size: height and width of the image, at most as large.
        shift: rows and columns by which the box lies further down and right, on a canvas larger by as much.
        pixels: their channels and bits.

    Returns:
        The canvas (height + rows, width + columns, C) uint8 or uint16, and the box.
    """
    (height, width), (rows, cols) = size, shift
    canvas = np.zeros((height + rows, width + cols, pixels.channels), pixels.dtype)
    return canvas, middle(size, image_size, shift)


def pixels_of(image: np.ndarray) -> Pixels:
    """Return the kind of an image's pixels: (H, W, C) uint8 or uint16."""
    return Pixels(image.shape[2], 8 * image.dtype.itemsize)


def centred(image: np.ndarray, side: int, shift: tuple[int, int] = (0, 0)) -> tuple[np.ndarray, Box]:
    """Centre an image on a black square canvas.

    Args:
        image: (h, w, C) uint8 or uint16, at most as large as the canvas.
        side: of the canvas, in pixels.
        shift: see black_canvas.

    Returns:
        The canvas (side + rows, side + columns, C), and the image's box on it.
    """
    canvas, box = black_canvas((side, side), image.shape[:2], shift, pixels_of(image))
    canvas[box.slices] = image
    return canvas, box


def fit_on_canvas(image: np.ndarray, side: int, fitted: int | None = None) -> tuple[np.ndarray, Box]:
    """Scale an image to fit a square canvas, aspect kept, by area or linearly, and centre it: as training does.

    Args:
        image: (H, W, C) uint8 or uint16.
        side: of the canvas, in pixels.
        fitted: side of the square in its middle that the image is scaled to fit; None for all of it.

    Returns:
        The canvas (side, side, C), and the image's box on it.
    """
    return centred(resized(image, side if fitted is None else fitted, "fit", "area"), side)


def on_larger(canvas: np.ndarray, box: Box, side: int) -> tuple[np.ndarray, Box]:
    """Return a canvas in the middle of a black square one, and the box there; itself where it is as large.

    Args:
        canvas: (H, W, 3) uint8, at most as large.
        box: of the image on it.
        side: of the square, in pixels.
    """
    if canvas.shape[:2] == (side, side):
        return canvas, box
    larger, place = black_canvas((side, side), canvas.shape[:2])
    larger[place.slices] = canvas
    return larger, Box(box.row + place.row, box.col + place.col, *box.size)


def pad_to_patch(image: np.ndarray, patch_size: int) -> tuple[np.ndarray, Box]:
    """Return an image that has room for a glimpse as it is, and another on the smallest canvas that has.

    Args:
        image: (H, W, C) uint8 or uint16.
        patch_size: side of a glimpse in pixels.

    Returns:
        The canvas, at least (patch_size, patch_size, C), and the image's box on it.
    """
    height, width = image.shape[:2]
    if min(height, width) >= patch_size:
        return image, Box(0, 0, height, width)
    canvas, box = black_canvas(
        (max(height, patch_size), max(width, patch_size)), (height, width), pixels=pixels_of(image)
    )
    canvas[box.slices] = image
    return canvas, box
