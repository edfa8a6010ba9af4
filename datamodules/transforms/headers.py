"""Size of an image, from its header: a small file may hold more pixels than there is memory for."""

import io
from typing import NamedTuple

from PIL import Image

from mambaeye.errors import InputError

MAX_PIXELS = 178_956_970  # as Pillow refuses
Image.MAX_IMAGE_PIXELS = None  # Pillow's own refusal, which no flag would raise: the limit here stands in for it

START_OF_JPEG, START_OF_PNG = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
FRAME_HEADERS = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # JPEG markers SOF0 to SOF15
WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD8)}  # JPEG markers TEM and RST0 to RST7
OTHERS = ("JPEG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "AVIF", "JPEG2000", "SUN")  # that OpenCV decodes too
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


class PixelLimit(NamedTuple):
    """The most pixels that an image may have."""

    pixels: int = MAX_PIXELS
    flag: str = "--data.loader.max_pixels"
    """That sets it, for a message."""

    def require(self, data: bytes, what: str) -> None:
        """Refuse an image that has more pixels, or whose header does not say how many.

        Args:
            data: the file's bytes; that they are empty is left to decoding.
            what: names the image in a message.

        Raises:
            InputError: it is refused.
        """
        size = stored_size(data)
        if size is None and is_heic(data):
            raise InputError(f"the image of {what} is HEIC, which is not read here: save it as JPEG or leave it out")
        if size is None and data:
            raise InputError(f"the image of {what} does not decode: replace it or leave it out")
        if size:
            self.require_size(*size, what)

    def require_size(self, height: int, width: int, what: str) -> None:
        """Refuse an image that has more pixels.

        Raises:
            InputError: it is refused.
        """
        if height * width > self.pixels:
            raise InputError(
                f"the image of {what} has {width} x {height} pixels, more than the {self.pixels} of {self.flag}: "
                f"scale it down, leave it out, or raise the limit"
            )


def is_avif(data: bytes) -> bool:
    """Tell whether it is an AVIF, by its brands (ISO/IEC 14496-12, 4.3)."""
    return data[4:8] == b"ftyp" and b"avif" in data[8 : int.from_bytes(data[:4])]


def is_heic(data: bytes) -> bool:
    """Tell whether it is a HEIF file of HEVC images, as telephones write (ISO/IEC 23008-12, B.4)."""
    return data[4:8] == b"ftyp" and data[8:12] in HEIC_BRANDS


class JpegFrame(NamedTuple):
    """Facts that a JPEG states before its pixels."""

    height: int
    width: int
    components: int
    exif: bool
    """It has a segment of EXIF before, and may be rotated."""


def jpeg_frame(data: bytes) -> JpegFrame | None:
    """Read a JPEG's frame header, walking the segments before it as libjpeg does; None for what has none.

    Formats: ITU-T T.81, B.1 and B.2.2.
    """
    at = len(START_OF_JPEG) if data.startswith(START_OF_JPEG) else len(data)
    exif = False
    while at + 10 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # filling
            at += 1
        elif marker in WITHOUT_LENGTH:
            at += 2
        elif marker in FRAME_HEADERS:
            height, width = int.from_bytes(data[at + 5 : at + 7]), int.from_bytes(data[at + 7 : at + 9])
            return JpegFrame(height, width, data[at + 9], exif)
        else:
            exif = exif or (marker == 0xE1 and data[at + 4 : at + 8] == b"Exif")
            at += 2 + max(2, int.from_bytes(data[at + 2 : at + 4]))
    return None


def stored_size(data: bytes) -> tuple[int, int] | None:
    """Read height and width from an image file's header, as they are stored, not turned upright; None if it has none.

    JPEG, PNG and WebP are read here, in microseconds and without a copy; all others by Pillow.
    """
    frame = jpeg_frame(data)
    if frame is not None:
        return frame.height, frame.width
    if data.startswith(START_OF_PNG):  # whose first chunk is always the header
        return int.from_bytes(data[20:24]), int.from_bytes(data[16:20])
    return webp_size(data) or size_by_pillow(data)


def webp_size(data: bytes) -> tuple[int, int] | None:
    """Read height and width from a WebP's first chunk; None for other formats (RFC 9649, section 2)."""
    if data[:4] != b"RIFF" or data[8:12] != b"WEBP":
        return None
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[27:30], "little"), 1 + int.from_bytes(data[24:27], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF)
    if kind == b"VP8 ":
        return int.from_bytes(data[28:30], "little") & 0x3FFF, int.from_bytes(data[26:28], "little") & 0x3FFF
    return None


def size_by_pillow(data: bytes) -> tuple[int, int] | None:
    """Read height and width from the header of any format that both Pillow and OpenCV know; None if it has none."""
    try:
        with Image.open(io.BytesIO(data), formats=OTHERS) as image:
            return image.height, image.width
    except (OSError, ValueError, RuntimeError):  # all of which Pillow answers damaged headers with
        return None


def has_alpha(data: bytes) -> bool:
    """Tell from the header whether an image may have transparent pixels: alpha, or a colour that stands for it."""
    if data.startswith(START_OF_PNG):
        return data[25:26] in (b"\4", b"\6") or b"tRNS" in data[: max(0, data.find(b"IDAT"))]  # colour types; RFC 2083
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        flags = {b"VP8X": data[20:21], b"VP8L": data[24:25]}.get(data[12:16], b"")
        return bool(int.from_bytes(flags) & 0x10)  # RFC 9649, sections 2.7 and 3.4
    if jpeg_frame(data) is not None:
        return False
    try:
        with Image.open(io.BytesIO(data), formats=OTHERS) as image:
            return bool(image.has_transparency_data)
    except (OSError, ValueError, RuntimeError):
        return False
