"""Image files -> canvases and trajectories, as in validation, except that an image may keep its size."""

import hashlib
import os
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

import numpy as np

from datamodules.files import open_at_once
from datamodules.transforms.bands import Bands
from datamodules.transforms.headers import PixelLimit
from datamodules.transforms.images import centred, decode_file, pad_to_patch
from datamodules.transforms.nifti import Grays
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
    """Predict's view of an image or a clip."""

    resize: int | None = None
    """Side in pixels of a canvas that images are put on as in validation (data.evaluate.resize); null to take them as
    they are."""
    stream: bool = False
    """Look at clips from the first frame to the last, however many, as they are decoded, under the scan arriving: with
    data.evaluate.num_glimpses for every data.frames frames. What takes memory does not grow with their number."""

    window: tuple[float, float] | None = None
    """Of NIfTI files: the values that become black and white where they were packed with a window; null as without."""
    voxel: float | None = None
    """Of NIfTI files: side that voxels are brought to, where they were packed with one; null as without."""

    @property
    def grays(self) -> Grays:
        """Return the way of voxels to frames."""
        return Grays(self.window, self.voxel)

    def __post_init__(self) -> None:
        if self.window is not None and not self.window[0] < self.window[1]:
            raise InputError(f"data.predict.window is {list(self.window)}: give a value, and a larger one")
        if self.voxel is not None and not self.voxel > 0:
            raise InputError(f"data.predict.voxel is {self.voxel:g}: give a side above 0")
        if self.resize is not None and self.resize < 1:
            raise InputError(f"data.predict.resize is {self.resize}: give a canvas side in pixels")

    def placed(self, image: np.ndarray, evaluate: EvaluateView, patch_size: int) -> tuple[np.ndarray, Box]:
        """Return an image, or a frame, on its canvas, and its box there.

        Args:
            image: (H, W, 3) uint8.
            evaluate: says how images are resized.
            patch_size: side of a glimpse in pixels, for which there is room on the canvas.
        """
        if self.resize is None:
            return pad_to_patch(image, patch_size)
        return centred(evaluate.resized(image, self.resize), self.resize)

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
        return Placed(*self.view.placed(image, self.evaluate, self.patch_size), image.shape[:2], frames)
