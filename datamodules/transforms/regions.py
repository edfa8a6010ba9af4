"""Very large images: tiled TIFFs, of which only the tiles that glimpses touch are read and decoded.

One is a file, or a member of a tar on this machine, whose bytes are a part of that file.
"""

import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from datamodules.transforms.headers import PixelLimit
from datamodules.transforms.images import middle
from datamodules.transforms.pixels import Pixels, in_words
from datamodules.transforms.tiff import Tiff
from datamodules.transforms.tiff_directory import Read, is_tiff
from mambaeye.errors import InputError
from mambaeye.geometry.box import Box

CPU = torch.device("cpu")
CACHE = 1 << 24  # bytes of decoded tiles that are kept: a row of tiles of 256 pixels across 20,000 of RGB
MOST_IN_TILE = 1 << 26  # bytes of a single one


class FileRange(NamedTuple):
    """A file, or a part of one, that is read where it is asked for."""

    path: str
    offset: int
    """Of its first byte."""
    size: int
    """Bytes."""

    def opened(self) -> Read:
        """Open it, and return what reads so many bytes from a place in it on.

        Raises:
            InputError: it cannot be opened any more.
        """
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            raise InputError(f"{self.path} cannot be read any more ({error.strerror})") from None
        return partial(read_in, os.fdopen(descriptor, "rb"), self)  # closed with the last who reads by it


def read_in(file: BinaryIO, place: FileRange, offset: int, size: int) -> bytes:
    """Return bytes of an open file from an offset in a part of it on, none of what is behind that part."""
    return os.pread(file.fileno(), max(0, min(size, place.size - offset)), place.offset + offset)


class LargeTiff(NamedTuple):
    """A tiled TIFF that is read by region."""

    file: FileRange
    what: str
    """Names it in a message."""
    size: tuple[int, int]
    """Height and width, pixels."""

    def opened(self) -> Tiff:
        """Open it. Raises InputError if it is not there any more."""
        return Tiff.open(self.file.opened(), self.file.size, self.what)

    def require_whole(self) -> None:
        """Decode every tile, one after another. Raises InputError if one is damaged."""
        tiff = self.opened()
        for down in range(tiff.grid[0]):
            for across in range(tiff.grid[1]):
                tiff.segment(down, across)


@dataclass(frozen=True)
class TiledCanvas:
    """A canvas with an image out of a tiled TIFF, a batch of one, read where glimpses fall: see batch.Regions.

    It is opened anew by each process that has it.
    """

    image: LargeTiff
    pixels: Pixels
    shape: tuple[int, int, int, int]
    """(1, H, W, C) of the canvas."""
    box: Box
    """The image's place on it."""
    device: torch.device = CPU
    """Device that glimpses are put on."""

    def __len__(self) -> int:
        return 1

    def __getitem__(self, rows: Any) -> "TiledCanvas":
        """Return the canvas again: there is no other in its batch."""
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process gets: no open file, and no tiles."""
        return {name: value for name, value in vars(self).items() if name not in ("_tiff", "_tiles")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)

    def to(self, device: torch.device | str, **_: Any) -> "TiledCanvas":
        """Return the canvas with glimpses on another device."""
        return replace(self, device=torch.device(device))

    def cut(self, positions: Tensor, sides: Sequence[int]) -> Tensor:
        """Cut the glimpses at these positions out of the canvas: (1, T, 2) integers -> (1, T, C, P, P).

        Raises:
            InputError: a tile is damaged, or the file is not there any more.
        """
        places = positions[0].cpu().numpy()
        patches = np.zeros((len(places), *sides, self.shape[-1]), self.pixels.dtype)
        for glimpse in np.lexsort((places // self._tile).T[::-1]).tolist():  # tile by tile
            self._read(places[glimpse] - self.box.start, patches[glimpse])
        return torch.from_numpy(patches.transpose(0, 3, 1, 2).copy())[None].to(self.device)

    def _read(self, start: np.ndarray, patch: np.ndarray) -> None:
        """Fill a glimpse (P, P, C) that starts at a pixel of the image, as far as it shows any of that."""
        low = start.clip(0)
        high = np.minimum(start + patch.shape[:2], self.box.size)
        if (low >= high).any():
            return
        first, last = low // self._tile, (high - 1) // self._tile
        for down in range(first[0], last[0] + 1):
            for across in range(first[1], last[1] + 1):
                corner = np.array((down, across)) * self._tile
                begin, end = np.maximum(low, corner), np.minimum(high, corner + self._tile)
                (row, col), (rows, cols) = begin - start, end - begin
                inner, outer = begin - corner, end - corner
                tile = self._decoded(down, across)
                patch[row : row + rows, col : col + cols] = tile[inner[0] : outer[0], inner[1] : outer[1]]

    def _decoded(self, down: int, across: int) -> np.ndarray:
        """Return a tile, (rows, cols, C), of those that were decoded last, or decode it."""
        tile = self._tiles.get((down, across))
        if tile is None:
            tile = self.pixels.stretched(self._tiff.segment(down, across))
            while self._tiles and (1 + len(self._tiles)) * tile.nbytes > CACHE:
                self._tiles.popitem(last=False)
            self._tiles[down, across] = tile
        self._tiles.move_to_end((down, across))
        return tile

    @property
    def _tile(self) -> tuple[int, int]:
        return self._tiff.layout.rows, self._tiff.layout.cols

    @cached_property
    def _tiles(self) -> OrderedDict[tuple[int, int], np.ndarray]:
        return OrderedDict()

    @cached_property
    def _tiff(self) -> Tiff:
        return self.image.opened()


def large_tiff(file: FileRange, what: str, pixels: Pixels, limit: PixelLimit) -> LargeTiff | None:
    """Return a tiled TIFF of more pixels than the limit, which is read by region; None of other images.

    Args:
        file: with the image.
        what: names the image in a message.
        pixels: that it should have.
        limit: pixels of an image that is read whole; of another, each tile has to keep to it.

    Raises:
        InputError: it is such a TIFF, and in strips, or of tiles or pixels that are not read so.
    """
    read = file.opened()
    if not is_tiff(read(0, 4)):
        return None
    try:
        tiff = Tiff.open(read, file.size, what)
    except InputError:  # which reading it whole says, too, or reads it
        return None
    layout = tiff.layout
    if layout.height * layout.width <= limit.pixels:
        return None
    size = f"{what} has {layout.width} x {layout.height} pixels, more than the {limit.pixels} of {limit.flag},"
    if not layout.tiled:
        raise InputError(
            f"{size} and lies in strips: tile it, to be read where glimpses fall (tiffcp -t -w 256 -l 256, or "
            f"gdal_translate -co TILED=YES)"
        )
    in_tile = layout.rows * layout.cols
    if in_tile > limit.pixels or in_tile * layout.channels * layout.bits > 8 * MOST_IN_TILE:
        raise InputError(f"{size} in tiles of {layout.cols} x {layout.rows}: give smaller tiles, such as 256 x 256")
    if (layout.channels, layout.bits) != pixels[:2]:
        raise InputError(
            f"{size} and {in_words(layout.channels, layout.bits)}: to be read where glimpses fall, it must have "
            f"{pixels.words}"
        )
    if layout.orientation not in (0, 1):
        raise InputError(f"{size} and is to be turned (orientation {layout.orientation}): save it upright")
    return LargeTiff(file, what, (layout.height, layout.width))


def tiled_canvas(image: LargeTiff, pixels: Pixels, patch_size: int) -> tuple[TiledCanvas, Box]:
    """Return a canvas of a tiled TIFF, as pad_to_patch makes them of images, and the image's box on it.

    Args:
        image: the TIFF.
        pixels: that it has.
        patch_size: side of a glimpse in pixels.
    """
    height, width = (max(side, patch_size) for side in image.size)
    box = middle((height, width), image.size)
    return TiledCanvas(image, pixels, (1, height, width, pixels.channels), box), box
