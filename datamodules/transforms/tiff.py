"""TIFFs, read piece by piece: any number of channels, 8 or 16 bits, strips or tiles; no more is decoded than is needed.

The format (Adobe, "TIFF Revision 6.0", 1992; its Technical Note 2 for JPEG; the BigTIFF proposal for 64-bit offsets): a
header that says the byte order and where the first directory is; a directory of entries, each a tag, a type, a count,
and the values or their place. Pixels lie in segments, strips or tiles, each compressed by itself. Only the first
directory is read, so that no chain of them leads in a circle; what a segment may be decoded to follows from the header,
and is bounded before anything is decoded.
"""

import io
import zlib
from dataclasses import dataclass
from functools import cached_property
from math import ceil, prod

import numpy as np
import simplejpeg
from PIL import Image

from datamodules.transforms.headers import jpeg_frame
from datamodules.transforms.tiff_directory import Compression, Directory, Layout, Photometric, Read, Tag, damaged
from mambaeye.errors import InputError

MOST_SEGMENTS = 1 << 22  # each has 16 bytes in memory
AS_RGB = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\0"  # the segment of a JPEG by which its three components are RGB


@dataclass(frozen=True)
class Tiff:
    """A TIFF's first picture, of which single segments are decoded."""

    read: Read
    order: str
    """Of bytes: < or >, as NumPy calls them."""
    layout: Layout
    offsets: np.ndarray
    """(segments,) int64, of each one's first byte."""
    sizes: np.ndarray
    """(segments,) int64, bytes of each; 0 for one that is black."""
    tables: bytes
    """A JPEG with the tables that all segments use; empty if there is none."""
    what: str
    """Names the image in a message."""

    @classmethod
    def open(cls, read: Read, size: int, what: str) -> "Tiff":
        """Read the first directory, and decode nothing.

        Args:
            read: gives the file's bytes.
            size: of the file, bytes.
            what: names the image in a message.

        Raises:
            InputError: it is damaged, or of a kind that is not read here.
        """
        entries = Directory.of(read, size, what)
        layout = entries.layout()
        kinds = (Tag.TILES, Tag.TILE_SIZES) if layout.tiled else (Tag.STRIPS, Tag.STRIP_SIZES)
        offsets, sizes = (entries.numbers(tag, most=MOST_SEGMENTS).astype(np.int64) for tag in kinds)
        down, across = ceil(layout.height / layout.rows), ceil(layout.width / layout.cols)
        planes = layout.channels if layout.planar else 1
        if len(offsets) != down * across * planes or offsets.shape != sizes.shape:
            raise entries.damaged("it has other pieces than its size needs")
        if (offsets < 0).any() or (sizes < 0).any() or (sizes > size).any() or (offsets > size - sizes).any():
            raise entries.damaged("it is cut short")
        has_tables = layout.compression == Compression.JPEG and Tag.TABLES in entries.found
        tables = entries.bytes(Tag.TABLES) if has_tables else b""
        return cls(read, entries.order, layout, offsets, sizes, tables, what)

    @classmethod
    def of(cls, data: bytes, what: str) -> "Tiff":
        """Read the first directory of a file's bytes: see open."""
        view = memoryview(data)
        return cls.open(lambda start, size: bytes(view[start : start + size]), len(view), what)

    @cached_property
    def grid(self) -> tuple[int, int]:
        """Return how many segments there are along rows and columns."""
        return ceil(self.layout.height / self.layout.rows), ceil(self.layout.width / self.layout.cols)

    @property
    def dtype(self) -> np.dtype:
        """Return the dtype of its values."""
        return np.dtype(f"uint{self.layout.bits}")

    def segment(self, down: int, across: int) -> np.ndarray:
        """Decode the segment at that place of the grid, all channels: (rows, cols, C); the last strip may be shorter.

        Raises:
            InputError: it is damaged.
        """
        layout = self.layout
        number = down * self.grid[1] + across
        rows = layout.rows if layout.tiled else min(layout.rows, layout.height - down * layout.rows)
        if not layout.planar:
            return self._decoded(number, (rows, layout.cols, layout.channels))
        each = prod(self.grid)
        planes = [self._decoded(number + plane * each, (rows, layout.cols, 1)) for plane in range(layout.channels)]
        return np.concatenate(planes, axis=2)

    def whole(self) -> np.ndarray:
        """Decode all of it, as it is stored: (H, W, C) uint8 or uint16.

        Raises:
            InputError: it is damaged.
        """
        layout = self.layout
        image = np.empty((layout.height, layout.width, layout.channels), self.dtype)
        for down in range(self.grid[0]):
            for across in range(self.grid[1]):
                part = image[down * layout.rows :, across * layout.cols :][: layout.rows, : layout.cols]
                part[:] = self.segment(down, across)[: part.shape[0], : part.shape[1]]
        return image

    def _decoded(self, number: int, shape: tuple[int, int, int]) -> np.ndarray:
        layout, size = self.layout, int(self.sizes[number])
        if not size:  # as sparse files leave out what is black
            return np.zeros(shape, self.dtype)
        data = self.read(int(self.offsets[number]), size)
        if len(data) < size:
            raise self._damaged("it is cut short")
        if layout.compression == Compression.JPEG:
            return self._from_jpeg(data, shape)
        wanted = prod(shape) * layout.bits // 8
        values = np.frombuffer(self._bytes(data, wanted, shape[0]), self.order + self.dtype.str[1:])
        segment = values.astype(self.dtype).reshape(shape)
        if layout.predictor == 2:  # differences along rows, which wrap around
            np.cumsum(segment, axis=1, dtype=self.dtype, out=segment)
        return ~segment if layout.photometric == Photometric.WHITE_IS_ZERO else segment

    def _bytes(self, data: bytes, wanted: int, rows: int) -> bytes:
        """Return so many bytes of a segment, decompressed; no more is ever made of it."""
        compression = self.layout.compression
        if compression == Compression.NONE:
            found = data[:wanted]
        elif compression in (Compression.DEFLATE, Compression.OLD_DEFLATE):
            stream = zlib.decompressobj()
            try:
                found = stream.decompress(data, wanted)
                if stream.decompress(stream.unconsumed_tail, 1) or not stream.eof:
                    raise self._damaged("a piece holds more than its size says, or ends early")
            except zlib.error as error:
                raise self._damaged(str(error)) from None
        else:
            found = by_libtiff(data, compression, wanted, rows) or b""
        if len(found) != wanted:
            raise self._damaged("a piece of it is too short")
        return found

    def _from_jpeg(self, data: bytes, shape: tuple[int, int, int]) -> np.ndarray:
        if self.tables:
            data = self.tables[:-2] + data[2:]  # without the end of the one, and the start of the other
        if self.layout.photometric == Photometric.COLORS and self.layout.channels == 3:
            data = data[:2] + AS_RGB + data[2:]
        frame = jpeg_frame(data)
        if frame is None or (frame.height, frame.width, frame.components) != shape:
            raise self._damaged("a piece of it is no JPEG of its size")
        try:
            return np.asarray(simplejpeg.decode_jpeg(data, "RGB" if shape[2] == 3 else "GRAY", strict=True))
        except (ValueError, MemoryError) as error:
            raise self._damaged(str(error)) from None

    def _damaged(self, how: str) -> InputError:
        return damaged(self.what, how)


def by_libtiff(data: bytes, compression: int, wanted: int, rows: int) -> bytes | None:
    """Decompress a segment by Pillow's libtiff, as a gray picture of exactly its bytes; None if that fails.

    Args:
        data: LZW or PackBits.
        compression: TIFF's number of it.
        wanted: bytes, the same in all of the rows.
        rows: how many there are.
    """
    tags: dict[int, int | list[int]] = {
        Tag.WIDTH: wanted // rows,
        Tag.HEIGHT: rows,
        Tag.BITS: 8,
        Tag.COMPRESSION: compression,
        Tag.PHOTOMETRIC: Photometric.BLACK_IS_ZERO,
    }
    tags |= {Tag.SAMPLES: 1, Tag.ROWS: rows}
    try:
        with Image.open(io.BytesIO(with_header(tags, data)), formats=["TIFF"]) as picture:
            return picture.tobytes()
    except (OSError, ValueError, SyntaxError, RuntimeError):
        return None


def encoded(image: np.ndarray) -> bytes:
    """Return an image (H, W, C) uint8 or uint16 as a TIFF of one strip, compressed by deflate."""
    height, width, channels = image.shape
    tags: dict[int, int | list[int]] = {Tag.WIDTH: width, Tag.HEIGHT: height, Tag.BITS: [8 * image.itemsize] * channels}
    tags |= {
        Tag.COMPRESSION: Compression.DEFLATE,
        Tag.PHOTOMETRIC: Photometric.BLACK_IS_ZERO,
        Tag.SAMPLES: channels,
        Tag.ROWS: height,
        Tag.PLANAR: 1,
    }
    if channels > 1:
        tags[Tag.EXTRA] = [0] * (channels - 1)
    return with_header(tags, zlib.compress(image.astype(image.dtype.newbyteorder("<")).tobytes()))


def with_header(tags: dict[int, int | list[int]], strip: bytes) -> bytes:
    """Return a TIFF of one strip, with these entries and those that say where the strip is."""
    told = {tag: [value] if isinstance(value, int) else value for tag, value in tags.items()}
    told |= {Tag.STRIPS: [0], Tag.STRIP_SIZES: [len(strip)]}
    behind = 8 + 2 + 12 * len(told) + 4
    told[Tag.STRIPS] = [behind + sum(4 * len(values) for values in told.values() if len(values) > 1)]
    entries, longer = b"", b""
    for tag, values in sorted(told.items()):
        written = np.array(values, "<u4").tobytes()
        place = written if len(values) == 1 else np.array([behind + len(longer)], "<u4").tobytes()
        longer += written if len(values) > 1 else b""
        entries += np.array([tag, 4], "<u2").tobytes() + np.array([len(values)], "<u4").tobytes() + place
    return b"II*\0\x08\0\0\0" + len(told).to_bytes(2, "little") + entries + bytes(4) + longer + strip
