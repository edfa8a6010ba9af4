"""Decoding JPEGs, no larger than they are needed; damage that other decoders only warn of is an error here."""

import io

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from datamodules.transforms.headers import JpegFrame, jpeg_frame
from mambaeye.errors import InputError

REDUCTIONS = (2, 4, 8)
ORIENTATION = 0x112  # EXIF's tag


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
    return max((reduction for reduction in REDUCTIONS if reduction * scale <= 0.5), default=1)


def decode_reduced(data: bytes, reduction: int, what: str) -> np.ndarray:
    """Decode a JPEG to (ceil(H / reduction), ceil(W / reduction), 3) uint8 RGB, as it is stored, not turned upright.

    Args:
        data: the file's bytes, of a JPEG of 1 or 3 components.
        reduction: 1, 2, 4 or 8.
        what: names the image in a message.

    Raises:
        InputError: it does not decode, or libjpeg warns of damage.
    """
    frame = jpeg_frame(data)
    assert frame is not None, "it is a JPEG"
    return _decoded(data, frame, "RGB", reduction, what)


def decode_jpeg(data: bytes, what: str) -> np.ndarray | None:
    """Decode a JPEG to (H, W, 3) uint8 RGB, upright; None for other formats, and for components other than 1 or 3.

    Raises:
        InputError: it does not decode, or libjpeg warns of damage; of CMYK, too.
    """
    frame = jpeg_frame(data)
    if frame is None or not frame.height * frame.width:
        return None
    if frame.components == 4:
        _decoded(data, frame, "CMYK", REDUCTIONS[-1], what)  # for the damage
    if frame.components not in (1, 3):
        return None
    image = _decoded(data, frame, "RGB", 1, what)
    return upright(image, orientation_of(data)) if frame.exif else image


def _decoded(data: bytes, frame: JpegFrame, colors: str, reduction: int, what: str) -> np.ndarray:
    height, width = -(-frame.height // reduction), -(-frame.width // reduction)
    try:  # strict: what libjpeg only warns of is an error
        return np.asarray(
            simplejpeg.decode_jpeg(data, colorspace=colors, min_height=height, min_width=width, strict=True)
        )
    except (ValueError, MemoryError) as error:
        raise InputError(f"the image of {what} does not decode ({error}): replace it or leave it out") from None


def orientation_of(data: bytes) -> int:
    """Read how an image is to be turned, from its EXIF: 1, as it is, to 8."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            return int(image.getexif().get(ORIENTATION, 1))
    except (OSError, ValueError, TypeError, SyntaxError):  # what Pillow answers damaged EXIF with
        return 1


def upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turn and mirror an image (H, W, 3) as EXIF's orientation says; others than 2 to 8 leave it as it is."""
    if orientation in (5, 6, 7, 8):  # stored as columns
        image = cv2.transpose(image)
    mirrored = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}  # about the vertical axis, both, the horizontal one
    return cv2.flip(image, mirrored[orientation]) if orientation in mirrored else image
