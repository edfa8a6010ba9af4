"""Images of any number of channels, of 8 or 16 bits, decoded as they are stored: out of TIFFs and PNGs."""

from typing import NamedTuple

import cv2
import numpy as np

from datamodules.transforms.headers import START_OF_PNG, PixelLimit
from datamodules.transforms.pixels import Pixels, in_words
from datamodules.transforms.png import require_whole_png
from datamodules.transforms.tiff import Tiff
from datamodules.transforms.tiff_directory import is_tiff
from mambaeye.errors import InputError

PNG_CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4}  # by its colour type (RFC 2083, section 4.1.1); 3 is a palette


class Bands(NamedTuple):
    """An encoded image, of pixels that are not RGB of 8 bits."""

    data: bytes
    pixels: Pixels
    limit: PixelLimit
    what: str
    """Names the image in a message."""

    def decoded(self) -> np.ndarray:
        """Decode it: (H, W, C) uint8 or uint16, upright, with the values of levels as black and white.

        Raises:
            InputError: it is damaged, is none of the formats that are read, has other channels or bits than it should,
                or more pixels than the limit.
        """
        if is_tiff(self.data):
            image = self._from_tiff()
        elif self.data.startswith(START_OF_PNG):
            image = self._from_png()
        else:
            reason = "is empty" if not self.data else f"is neither TIFF nor PNG, of which {self.pixels.words} are read"
            raise InputError(f"the image of {self.what} {reason}: replace it or leave it out")
        return self.pixels.stretched(image)

    def _require(self, height: int, width: int, channels: int, bits: int) -> None:
        if (channels, bits) != self.pixels[:2]:
            raise InputError(
                f"the image of {self.what} has {in_words(channels, bits)}, and all are to have {self.pixels.words}: "
                f"replace it or leave it out"
            )
        self.limit.require_size(height, width, self.what)

    def _from_tiff(self) -> np.ndarray:
        tiff = Tiff.of(self.data, self.what)
        layout = tiff.layout
        self._require(layout.height, layout.width, layout.channels, layout.bits)
        return turned(tiff.whole(), layout.orientation)

    def _from_png(self) -> np.ndarray:
        require_whole_png(self.data, self.what)
        width, height = (int.from_bytes(self.data[first : first + 4]) for first in (16, 20))
        bits, color = max(8, self.data[24]), self.data[25]
        if color not in PNG_CHANNELS:
            raise InputError(f"the image of {self.what} has a palette: save it with the values themselves")
        self._require(height, width, PNG_CHANNELS[color], bits)
        try:
            image = cv2.imdecode(np.frombuffer(self.data, np.uint8), cv2.IMREAD_UNCHANGED)
        except cv2.error as error:
            raise InputError(f"the image of {self.what} does not decode ({error.err}): leave it out") from None
        if image is None or image.dtype != self.pixels.dtype:
            raise InputError(f"the image of {self.what} does not decode: replace it or leave it out")
        image = np.atleast_3d(image)
        order = {1: [0], 2: [0, -1], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[self.pixels.channels]  # OpenCV begins with blue
        return np.ascontiguousarray(image[..., order])


def turned(image: np.ndarray, orientation: int) -> np.ndarray:
    """Turn and mirror an image (H, W, C) as TIFF's orientation says; others than 2 to 8 leave it as it is."""
    if orientation in (5, 6, 7, 8):  # stored as columns
        image = image.swapaxes(0, 1)
    rows, cols = (-1 if orientation in which else 1 for which in ((3, 4, 7, 8), (2, 3, 6, 7)))
    return np.ascontiguousarray(image[::rows, ::cols])
