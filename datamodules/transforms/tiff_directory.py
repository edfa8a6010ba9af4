"""A TIFF's first directory: what its pixels are, and where.

The format: see tiff.py. A header says the byte order and where the directory is, which has entries: each a tag, a type,
a count, and the values or their place. All are read within the file's bounds.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from datamodules.transforms.pixels import MOST_CHANNELS
from mambaeye.errors import InputError

STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # plain and with 64-bit offsets
MOST_ENTRIES = 1 << 12
MOST_IN_TILE = 1 << 24  # pixels of a tile: 4096 x 4096
TYPES = {1: "u1", 3: "u2", 4: "u4", 7: "u1", 16: "u8"}
Read = Callable[[int, int], bytes]
"""Returns so many bytes from an offset on, or fewer at the end of the file."""


class Tag(IntEnum):
    """Entries of a directory, those that are read here."""

    WIDTH = 256
    HEIGHT = 257
    BITS = 258
    COMPRESSION = 259
    PHOTOMETRIC = 262
    STRIPS = 273
    ORIENTATION = 274
    SAMPLES = 277
    ROWS = 278
    STRIP_SIZES = 279
    PLANAR = 284
    PREDICTOR = 317
    TILE_WIDTH = 322
    TILE_HEIGHT = 323
    TILES = 324
    TILE_SIZES = 325
    EXTRA = 338
    FORMAT = 339
    TABLES = 347


class Compression(IntEnum):
    """Ways of a segment's bytes to its values, those that are read here."""

    NONE = 1
    LZW = 5
    JPEG = 7
    DEFLATE = 8
    OLD_DEFLATE = 32946
    PACKBITS = 32773


class Photometric(IntEnum):
    """Meanings of values."""

    WHITE_IS_ZERO = 0
    BLACK_IS_ZERO = 1
    COLORS = 2
    PALETTE = 3
    YCBCR = 6


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
        height, width = self.one(Tag.HEIGHT), self.one(Tag.WIDTH)
        channels, bits = self.one(Tag.SAMPLES, 1), self.one(Tag.BITS, 1)
        if not (height and width and 1 <= channels <= MOST_CHANNELS):
            raise self.damaged("it has no pixels, or too many channels")
        kind = self.one(Tag.FORMAT, 1)
        if bits not in (8, 16) or kind != 1:
            raise self.unread(f"values of {bits} bits" + {2: " with a sign", 3: " in floating point"}.get(kind, ""))
        compression = self.one(Tag.COMPRESSION, Compression.NONE)
        photometric = self.one(Tag.PHOTOMETRIC, Photometric.BLACK_IS_ZERO)
        predictor, planar, tiled = self.one(Tag.PREDICTOR, 1), self.one(Tag.PLANAR, 1) == 2, Tag.TILES in self.found
        is_jpeg = compression == Compression.JPEG and bits == 8 and channels in (1, 3) and not planar
        if compression not in set(Compression) or (compression == Compression.JPEG and not is_jpeg):
            raise self.unread(f"a compression with the number {compression}")
        if photometric == Photometric.PALETTE or (photometric == Photometric.YCBCR and compression != Compression.JPEG):
            raise self.unread("a palette" if photometric == Photometric.PALETTE else "colours as YCbCr")
        if predictor not in (1, 2):
            raise self.unread(f"a predictor with the number {predictor}")
        if tiled:
            rows, cols = self.one(Tag.TILE_HEIGHT), self.one(Tag.TILE_WIDTH)
        else:
            rows, cols = min(self.one(Tag.ROWS, height), height), width
        if not rows or not cols or (tiled and rows * cols > MOST_IN_TILE):
            raise self.unread(f"tiles of {cols} x {rows} pixels")
        orientation = self.one(Tag.ORIENTATION, 1)
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


def damaged(what: str, how: str) -> InputError:
    """Return the error of a damaged TIFF."""
    return InputError(f"the image of {what} does not decode ({how}): replace it or leave it out")
