"""Image files -> canvases and positions, in the order of the files."""

import errno
import hashlib
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.loading.loader import PREDICTION
from datamodules.loading.workers import load
from datamodules.transforms.images import decode_file, fit_on_canvas
from mambaeye.batch import FileBatch, ImageFile
from mambaeye.errors import InputError
from mambaeye.geometry.box import Box
from mambaeye.geometry.scans import scan_pattern

PIXELS = 1 << 24  # of all canvases of a batch; a larger image comes alone

Opened = tuple[ImageFile, Tensor | None, Tensor | None]
"""A file, its canvas (H, W, 3) uint8 and its positions (T, 2) int32, or neither if it cannot be read."""


@dataclass(frozen=True)
class FileGlimpses:
    """How an image file becomes a canvas and positions: as in validation, except that the image keeps its size."""

    scan: str
    """Name of the scan pattern."""
    patch_size: int
    length: int
    """T, glimpses an image."""
    resize: int | None
    """Canvas side, pixels, that images are fitted and centred on; None leaves them as they are."""
    seed: int

    def __call__(self, path: str) -> Opened:
        """Open a file. What is drawn depends on the seed and the file's bytes alone."""
        try:
            with open(path, "rb", opener=open_now) as file:
                image, frames = decode_file(file, path)
                file.seek(0)
                digest = hashlib.file_digest(file, "sha256").digest()
        except OSError as error:
            return ImageFile(path, error=f"{path} cannot be read ({error.strerror})"), None, None
        except InputError as error:
            return ImageFile(path, error=str(error)), None, None
        canvas, box = self._place(image)
        rng = np.random.default_rng((PREDICTION, self.seed, *digest))
        positions = scan_pattern(self.scan)(box, self.patch_size, self.length, rng)
        return ImageFile(path, image.shape[:2], frames, box), torch.from_numpy(canvas), torch.from_numpy(positions)

    def _place(self, image: np.ndarray) -> tuple[np.ndarray, Box]:
        """The image on its canvas, which is the image itself if it has room for a glimpse."""
        if self.resize is not None:
            return fit_on_canvas(image, self.resize)
        height, width = image.shape[:2]
        size = max(height, self.patch_size), max(width, self.patch_size)
        box = Box((size[0] - height) // 2, (size[1] - width) // 2, height, width)
        if size == (height, width):
            return image, box
        canvas = np.zeros((*size, 3), dtype=np.uint8)
        canvas[box.row : box.row + height, box.col : box.col + width] = image
        return canvas, box


def open_now(path: str, flags: int) -> int:
    """For open: refuses what is no file, without waiting for what a pipe may bring."""
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file")
    return descriptor


class OpenedFiles(Dataset):
    """The files one by one, by number."""

    def __init__(self, files: Sequence[str], glimpses: FileGlimpses) -> None:
        self.files, self.glimpses = files, glimpses

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, number: int) -> Opened:
        return self.glimpses(self.files[number])


class FileLoader:
    """Opens files and puts together those that lie side by side and have canvases of one size.

    There is a batch for every file, so that progress counts files: a file that waits for the next one to join it leaves
    a batch without an image. So does a process without a file, for Lightning calls nothing where there is no batch.

    Args:
        files: of this process.
        glimpses: makes canvas and positions of a file.
        batch_size: images a batch, at most.
        num_workers: worker processes; 0 opens files in this one.
        timeout: seconds without a file after which worker processes count as stuck.
        pin_memory: whether batches are for a CUDA device.
    """

    def __init__(
        self,
        files: Sequence[str],
        glimpses: FileGlimpses,
        batch_size: int,
        num_workers: int,
        timeout: float,
        pin_memory: bool,
    ) -> None:
        self.opened = OpenedFiles(files, glimpses)
        self.batch_size, self.num_workers, self.timeout = batch_size, num_workers, timeout
        self.pin_memory = pin_memory

    def __len__(self) -> int:
        return max(1, len(self.opened))

    def __iter__(self) -> Iterator[FileBatch]:
        if not len(self.opened):
            yield FileBatch(None, None, [])
        waiting: list[Opened] = []
        for opened in self._files():
            if waiting and self._joins(waiting, opened):
                yield FileBatch(None, None, [])
            elif waiting:
                yield together(waiting)
                waiting = []
            waiting.append(opened)
            if not self._joins(waiting, opened):  # not even another one like it
                yield together(waiting)
                waiting = []
            del opened  # so that the next one is decoded when this one is gone
        if waiting:
            yield together(waiting)

    def _files(self) -> Iterator[Opened]:
        ahead = {"prefetch_factor": 1} if self.num_workers else {}  # images may be large
        return load(
            self.opened,
            self.num_workers,
            self.timeout,
            "image files",
            batch_size=None,
            pin_memory=self.pin_memory,
            **ahead,
        )

    def _joins(self, waiting: list[Opened], opened: Opened) -> bool:
        """Whether there is room for it in the batch that waits."""
        canvas, before = opened[1], waiting[-1][1]
        if canvas is None or before is None or canvas.shape != before.shape:
            return False
        most = min(self.batch_size, PIXELS // (canvas.shape[0] * canvas.shape[1]))
        return len(waiting) < most


def together(opened: list[Opened]) -> FileBatch:
    """The batch of files with canvases of one size, or of one that cannot be read; one canvas is not copied."""
    files, canvases, positions = zip(*opened, strict=True)
    if canvases[0] is None:
        return FileBatch(None, None, list(files))
    canvas = canvases[0][None] if len(canvases) == 1 else torch.stack(canvases)
    return FileBatch(canvas, torch.stack(positions), list(files))
