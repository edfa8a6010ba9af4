"""TIFFs, read piece by piece: any number of channels, 8 or 16 bits, strips or tiles; no more is decoded than is needed.

The format (Adobe, "TIFF Revision 6.0", 1992; its Technical Note 2 for JPEG; the BigTIFF proposal for 64-bit offsets): a
header that says the byte order and where the first directory is; a directory of entries, each a tag, a type, a count,
and the values or their place. Pixels lie in segments, strips or tiles, each compressed by itself. Only the first
directory is read, so that no chain of them leads in a circle; what a segment may be decoded to follows from the header,
and is bounded before anything is decoded.
"""

import io
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import ceil, prod
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from datamodules.transforms.headers import jpeg_frame
from datamodules.transforms.pixels import MOST_CHANNELS
from mambaeye.errors import InputError

STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # plain and with 64-bit offsets
MOST_ENTRIES = 1 << 12
MOST_SEGMENTS = 1 << 22  # each has 16 bytes in memory
MOST_IN_TILE = 1 << 24  # pixels of a tile: 4096 x 4096
TYPES = {1: "u1", 3: "u2", 4: "u4", 7: "u1", 16: "u8"}
NONE, LZW, JPEG, DEFLATE, OLD_DEFLATE, PACKBITS = 1, 5, 7, 8, 32946, 32773
COMPRESSIONS = {NONE, LZW, JPEG, DEFLATE, OLD_DEFLATE, PACKBITS}
WHITE_IS_ZERO, BLACK_IS_ZERO, COLORS, PALETTE, YCBCR = 0, 1, 2, 3, 6
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 256, 257, 258, 259, 262
STRIPS, ORIENTATION, SAMPLES, ROWS, STRIP_SIZES, PLANAR, PREDICTOR = 273, 274, 277, 278, 279, 284, 317
TILE_WIDTH, TILE_HEIGHT, TILES, TILE_SIZES, EXTRA, FORMAT, TABLES = 322, 323, 324, 325, 338, 339, 347
AS_RGB = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\0"  # the segment of a JPEG by which its three components are RGB

Read = Callable[[int, int], bytes]
"""Returns so many bytes from an offset on, or fewer at the end of the file."""


def is_tiff(start: bytes) -> bool:
    """Tell whether a file begins as TIFFs do."""
    return start[:4] in STARTS


class Layout(NamedTuple):
    """The numbers of a TIFF's first directory that say what its pixels are."""

    height: int
    width: int
    channels: int
    bits: int
    compression: int
    photometric: int
    predictor: int
    planar: bool
    """Channels lie in segments of their own."""
    orientation: int
    tiled: bool
    rows: int
    """Of a segment."""
    cols: int
    """Of a segment."""


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
        kinds = (TILES, TILE_SIZES) if layout.tiled else (STRIPS, STRIP_SIZES)
        offsets, sizes = (entries.numbers(tag, most=MOST_SEGMENTS).astype(np.int64) for tag in kinds)
        down, across = ceil(layout.height / layout.rows), ceil(layout.width / layout.cols)
        planes = layout.channels if layout.planar else 1
        if len(offsets) != down * across * planes or offsets.shape != sizes.shape:
            raise entries.damaged("it has other pieces than its size needs")
        if (offsets < 0).any() or (sizes < 0).any() or (sizes > size).any() or (offsets > size - sizes).any():
            raise entries.damaged("it is cut short")
        tables = entries.bytes(TABLES) if layout.compression == JPEG and TABLES in entries.found else b""
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
        if layout.compression == JPEG:
            return self._from_jpeg(data, shape)
        wanted = prod(shape) * layout.bits // 8
        values = np.frombuffer(self._bytes(data, wanted, shape[0]), self.order + self.dtype.str[1:])
        segment = values.astype(self.dtype).reshape(shape)
        if layout.predictor == 2:  # differences along rows, which wrap around
            np.cumsum(segment, axis=1, dtype=self.dtype, out=segment)
        return ~segment if layout.photometric == WHITE_IS_ZERO else segment

    def _bytes(self, data: bytes, wanted: int, rows: int) -> bytes:
        """Return so many bytes of a segment, decompressed; no more is ever made of it."""
        compression = self.layout.compression
        if compression == NONE:
            found = data[:wanted]
        elif compression in (DEFLATE, OLD_DEFLATE):
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
        if self.layout.photometric == COLORS and self.layout.channels == 3:
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


def damaged(what: str, how: str) -> InputError:
    """Return the error of a damaged TIFF."""
    return InputError(f"the image of {what} does not decode ({how}): replace it or leave it out")


def by_libtiff(data: bytes, compression: int, wanted: int, rows: int) -> bytes | None:
    """Decompress a segment by Pillow's libtiff, as a gray picture of exactly its bytes; None if that fails.

    Args:
        data: LZW or PackBits.
        compression: TIFF's number of it.
        wanted: bytes, the same in all of the rows.
        rows: how many there are.
    """
    tags: dict[int, int | list[int]] = {
        WIDTH: wanted // rows,
        HEIGHT: rows,
        BITS: 8,
        COMPRESSION: compression,
        PHOTOMETRIC: BLACK_IS_ZERO,
    }
    tags |= {SAMPLES: 1, ROWS: rows}
    try:
        with Image.open(io.BytesIO(with_header(tags, data)), formats=["TIFF"]) as picture:
            return picture.tobytes()
    except (OSError, ValueError, SyntaxError, RuntimeError):
        return None


def encoded(image: np.ndarray) -> bytes:
    """Return an image (H, W, C) uint8 or uint16 as a TIFF of one strip, compressed by deflate."""
    height, width, channels = image.shape
    tags: dict[int, int | list[int]] = {WIDTH: width, HEIGHT: height, BITS: [8 * image.itemsize] * channels}
    tags |= {COMPRESSION: DEFLATE, PHOTOMETRIC: BLACK_IS_ZERO, SAMPLES: channels, ROWS: height, PLANAR: 1}
    if channels > 1:
        tags[EXTRA] = [0] * (channels - 1)
    return with_header(tags, zlib.compress(image.astype(image.dtype.newbyteorder("<")).tobytes()))


def with_header(tags: dict[int, int | list[int]], strip: bytes) -> bytes:
    """Return a TIFF of one strip, with these entries and those that say where the strip is."""
    told = {tag: [value] if isinstance(value, int) else value for tag, value in tags.items()}
    told |= {STRIPS: [0], STRIP_SIZES: [len(strip)]}
    behind = 8 + 2 + 12 * len(told) + 4
    told[STRIPS] = [behind + sum(4 * len(values) for values in told.values() if len(values) > 1)]
    entries, longer = b"", b""
    for tag, values in sorted(told.items()):
        written = np.array(values, "<u4").tobytes()
        place = written if len(values) == 1 else np.array([behind + len(longer)], "<u4").tobytes()
        longer += written if len(values) > 1 else b""
        entries += np.array([tag, 4], "<u2").tobytes() + np.array([len(values)], "<u4").tobytes() + place
    return b"II*\0\x08\0\0\0" + len(told).to_bytes(2, "little") + entries + bytes(4) + longer + strip


@dataclass(frozen=True)
class Directory:
    """Entries of a TIFF's first directory."""

    read: Read
    size: int
    """Of the file, bytes."""
    order: str
    what: str
    found: dict[int, tuple[int, int, int]]
    """Type, count and the values' offset, by tag."""

    @classmethod
    def of(cls, read: Read, size: int, what: str) -> "Directory":
        """Read it. Raises InputError where there is none."""
        header = read(0, 16)
        if not is_tiff(header):
            raise InputError(f"the image of {what} is no TIFF: replace it or leave it out")
        order = "<" if header[:2] == b"II" else ">"
        big = header[2:4] in (b"+\0", b"\0+")
        wide, counted, head = (8, 8, 8) if big else (4, 2, 4)  # bytes of an offset, of the count, before the offset

        def number(data: bytes) -> int:
            return int.from_bytes(data, "little" if order == "<" else "big")

        at = number(header[head : head + wide])
        count = number(read(at, counted)) if at + counted <= size else 0
        entry = 4 + 2 * wide
        if not 1 <= count <= MOST_ENTRIES or at + counted + count * entry > size:
            raise damaged(what, "its directory is not there")
        data = read(at + counted, count * entry)
        found = {}
        for first in range(0, count * entry, entry):
            tag, kind = number(data[first : first + 2]), number(data[first + 2 : first + 4])
            values = number(data[first + 4 : first + 4 + wide])
            if kind not in TYPES:
                continue
            place = at + counted + first + 4 + wide  # where the values are, if they fit there
            if values * int(TYPES[kind][1]) > wide:
                place = number(data[first + 4 + wide : first + entry])
            found[tag] = kind, values, place
        return cls(read, size, order, what, found)

    def numbers(self, tag: int, most: int = MOST_CHANNELS) -> np.ndarray:
        """Return all values of an entry, at least one and at most so many: (n,) unsigned."""
        if tag not in self.found:
            raise self.damaged(f"its entry {tag} is missing")
        kind, count, place = self.found[tag]
        dtype = np.dtype(self.order + TYPES[kind])
        if not 1 <= count <= most or place + count * dtype.itemsize > self.size:
            raise self.damaged(f"its entry {tag} is too long")
        return np.frombuffer(self.read(place, count * dtype.itemsize), dtype)

    def bytes(self, tag: int) -> bytes:
        """Return an entry's bytes."""
        return self.numbers(tag, most=1 << 16).tobytes()

    def one(self, tag: int, default: int | None = None) -> int:
        """Return the value of an entry, of several the only one that they have."""
        if default is not None and tag not in self.found:
            return default
        values = {*self.numbers(tag).tolist()}
        if len(values) > 1:
            raise self.unread("channels of several kinds")
        return int(values.pop())

    def layout(self) -> Layout:
        """Return what the pixels are. Raises InputError where they are of a kind that is not read here."""
        height, width, channels, bits = (
            self.one(tag, none) for tag, none in ((HEIGHT, None), (WIDTH, None), (SAMPLES, 1), (BITS, 1))
        )
        if not (height and width and 1 <= channels <= MOST_CHANNELS):
            raise self.damaged("it has no pixels, or too many channels")
        kind = self.one(FORMAT, 1)
        if bits not in (8, 16) or kind != 1:
            raise self.unread(f"values of {bits} bits" + {2: " with a sign", 3: " in floating point"}.get(kind, ""))
        compression, photometric = self.one(COMPRESSION, NONE), self.one(PHOTOMETRIC, BLACK_IS_ZERO)
        predictor, planar, tiled = self.one(PREDICTOR, 1), self.one(PLANAR, 1) == 2, TILES in self.found
        is_jpeg = compression == JPEG and bits == 8 and channels in (1, 3) and not planar
        if compression not in COMPRESSIONS or (compression == JPEG and not is_jpeg):
            raise self.unread(f"a compression with the number {compression}")
        if photometric == PALETTE or (photometric == YCBCR and compression != JPEG):
            raise self.unread("a palette" if photometric == PALETTE else "colours as YCbCr")
        if predictor not in (1, 2):
            raise self.unread(f"a predictor with the number {predictor}")
        rows, cols = (self.one(TILE_HEIGHT), self.one(TILE_WIDTH)) if tiled else (self.one(ROWS, height), width)
        rows = rows if tiled else min(rows, height)
        if not rows or not cols or (tiled and rows * cols > MOST_IN_TILE):
            raise self.unread(f"tiles of {cols} x {rows} pixels")
        orientation = self.one(ORIENTATION, 1)
        return Layout(
            height, width, channels, bits, compression, photometric, predictor, planar, orientation, tiled, rows, cols
        )

    def damaged(self, how: str) -> InputError:
        """Return the error of a damaged file."""
        return damaged(self.what, how)

    def unread(self, kind: str) -> InputError:
        """Return the error of a kind that is not read here."""
        return InputError(
            f"the image of {self.what} has {kind}, which is not read here: save it with unsigned values of 8 or 16 "
            f"bits, uncompressed or by deflate, LZW, PackBits or JPEG, in tiles of at most {MOST_IN_TILE} pixels"
        )
