"""Image files -> canvases and trajectories, as in validation, except that an image may keep its size."""

import errno
import hashlib
import os
import stat
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

import numpy as np

from datamodules.transforms.bands import Bands
from datamodules.transforms.headers import PixelLimit
from datamodules.transforms.images import centred, decode_file, pad_to_patch
from datamodules.transforms.pixels import RGB, Pixels
from datamodules.transforms.regions import FileRange, TiledCanvas, large_tiff, tiled_canvas
from datamodules.views.evaluate import EvaluateView
from datamodules.views.keys import PREDICTION, policy_seed
from datamodules.views.plan import plan
from datamodules.views.samples import scene_of
from mambaeye.batch import CANVAS, POLICY, ImageFile, Scene
from mambaeye.errors import InputError
from mambaeye.geometry.box import Box


@dataclass(frozen=True)
class PredictView:
    """Predict's view of an image."""

    resize: int | None = None
    """Side in pixels of a canvas that images are put on as in validation (data.evaluate.resize); null to take them as
    they are."""

    def __post_init__(self) -> None:
        if self.resize is not None and self.resize < 1:
            raise InputError(f"data.predict.resize is {self.resize}: give a canvas side in pixels")

    def require_room(self, patch_size: int) -> None:
        """Refuse canvases on which no glimpse fits.

        Raises:
            InputError: they are smaller than a glimpse.
        """
        if self.resize is not None and self.resize < patch_size:
            raise InputError(
                f"data.predict.resize is {self.resize}, less than a glimpse of {patch_size} pixels: give a canvas side "
                f"of at least data.patch_size"
            )


class OpenedFile(NamedTuple):
    """The outcome for a file."""

    file: ImageFile
    scene: Scene | None
    """Of one image, without the first axis; None if the file cannot be read."""


class Placed(NamedTuple):
    """A file's image on its canvas."""

    canvas: np.ndarray | TiledCanvas
    """(H, W, C), or what of it is read where glimpses fall."""
    box: Box
    size: tuple[int, ...]
    """Height and width in the file, pixels."""
    frames: int
    """Pictures in the file."""


@dataclass(frozen=True)
class FileCanvases:
    """Opens image files and plans trajectories on them."""

    view: PredictView
    evaluate: EvaluateView
    scan: str
    patch_size: int
    seed: int
    limit: PixelLimit
    pixels: Pixels = RGB

    def __call__(self, path: str) -> OpenedFile:
        """Open a file. What is drawn depends on the seed and the file's bytes alone."""
        try:
            with open(path, "rb", opener=open_at_once) as file:
                canvas, box, size, frames = self._placed(file, path)
                file.seek(0)
                digest = hashlib.file_digest(file, "sha256").digest()
        except OSError as error:
            return OpenedFile(ImageFile(path, error=f"{path} cannot be read ({error.strerror})"), None)
        except InputError as error:
            return OpenedFile(ImageFile(path, error=str(error)), None)
        key = (PREDICTION, self.seed, *digest)
        sides = canvas.shape[1:3] if isinstance(canvas, TiledCanvas) else canvas.shape[:2]
        area = self.evaluate.area(box, sides, self.patch_size)
        positions = plan(self.scan, area, self.patch_size, self.evaluate.num_glimpses, np.random.default_rng(key))
        scene = scene_of(canvas, box, positions, policy_seed(key), self.scan)
        return OpenedFile(ImageFile(path, size, frames), scene)

    def _placed(self, file: BinaryIO, path: str) -> Placed:
        """Return an open file's image on its canvas."""
        large = None
        if self.view.resize is None and self.scan not in (CANVAS, POLICY):
            place = FileRange(path, 0, os.fstat(file.fileno()).st_size)
            large = large_tiff(place, path, self.pixels, self.limit)
        if large:
            return Placed(*tiled_canvas(large, self.pixels, self.patch_size), large.size, 1)
        if self.pixels.is_rgb:
            image, frames = decode_file(file, path, self.limit)
        else:
            image, frames = Bands(file.read(), self.pixels, self.limit, path).decoded(), 1
        size = image.shape[:2]
        if self.view.resize is None:
            return Placed(*pad_to_patch(image, self.patch_size), size, frames)
        return Placed(*centred(self.evaluate.resized(image, self.view.resize), self.view.resize), size, frames)


def open_at_once(path: str, flags: int) -> int:
    """Open a file for `open`, refusing what is no file, without waiting for what a pipe may bring."""
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file")
    return descriptor
