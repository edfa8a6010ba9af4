"""Images for validation: each is decoded once and then seen in every cell (paper section 4.2)."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import IterableDataset

from datamodules.loading.stream import numbers_here
from datamodules.shards.index import ShardIndex
from datamodules.shards.order import LoaderLayout
from datamodules.shards.reading import ATTEMPTS, read_images
from datamodules.transforms.images import decode_image, fit_on_canvas
from mambaeye.batch import CanvasBatch, EvaluationCondition
from mambaeye.errors import InputError
from mambaeye.geometry.box import Box
from mambaeye.geometry.coverage import information_ratio
from mambaeye.geometry.scans import scan_pattern

log = logging.getLogger(__name__)


class Photo(NamedTuple):
    """A decoded sample."""

    number: int
    """In its index; negative for one that only fills up a batch."""
    key: str
    label: int
    image: np.ndarray | None
    """(H, W, 3) uint8; None for a filler, and for a sample that cannot be read."""


FILLER = Photo(-1, "", 0, None)


@dataclass(frozen=True)
class FixedGlimpses:
    """Every cell's glimpses of an image, at positions that are the same whenever it is looked at."""

    cells: tuple[EvaluationCondition, ...]
    patch_size: int
    length: int
    """T, glimpses an image."""
    shift: tuple[int, int]
    """Rows and columns by which images lie further down and right on their canvases."""

    def __call__(self, photos: list[Photo], key: tuple[int, ...]) -> Iterator[CanvasBatch]:
        """The samples of a batch, cell by cell: CanvasBatches without their first axis.

        What a scan draws depends on the key, the resolution and the sample's number alone.
        """
        for resolution, cells in groupby(enumerate(self.cells), lambda numbered: numbered[1].resolution):
            placed = [self._place(photo, resolution) for photo in photos]
            for place, cell in cells:
                for photo, (canvas, box) in zip(photos, placed, strict=True):
                    yield self._sample(photo, canvas, box, cell, place, key)

    def _place(self, photo: Photo, resolution: int) -> tuple[np.ndarray, Box]:
        image = np.zeros((1, 1, 3), np.uint8) if photo.image is None else photo.image
        return fit_on_canvas(image, resolution, self.shift)

    def _sample(
        self, photo: Photo, canvas: np.ndarray, box: Box, cell: EvaluationCondition, place: int, key: tuple[int, ...]
    ) -> CanvasBatch:
        if photo.image is None:
            positions, ratio = np.zeros((self.length, 2), np.int32), torch.zeros(self.length)
        else:
            rng = np.random.default_rng((*key, cell.resolution, photo.number))
            positions = scan_pattern(cell.scan)(box, self.patch_size, self.length, rng)
            assert positions.min() >= 0, "a glimpse starts outside the canvas"
            ratio = information_ratio(positions, box, self.patch_size).float()
        return CanvasBatch(
            torch.from_numpy(canvas),
            torch.from_numpy(positions),
            ratio,
            torch.tensor(photo.label),
            photo.key,
            torch.tensor(photo.image is not None),
            torch.tensor(place),
        )


@dataclass
class CanvasStream(IterableDataset):
    """One rank's samples of a validation, a batch of images after the other, each in all cells; in a worker, its own.

    A sample that cannot be read or decoded ends the pass with an InputError or, if some are max_unreadable, leaves a row in
    every cell that is marked invalid and bears its key.
    """

    index: ShardIndex
    order: np.ndarray
    """Sample numbers over all ranks, in whole batches; a negative number stands for a row of filler."""
    layout: LoaderLayout
    rank: int
    glimpses: FixedGlimpses
    key: tuple[int, ...]
    """What all random draws depend on, besides resolution and number."""
    tolerant: bool
    """Whether a sample may be unreadable."""

    def __iter__(self) -> Iterator[CanvasBatch]:
        numbers = numbers_here(self.order, self.layout, self.rank, 0)
        encoded = read_images(self.index, numbers[numbers >= 0], ATTEMPTS)
        for batch in numbers.reshape(-1, self.layout.batch_size).tolist():
            photos = [self._photo(number, next(encoded)) if number >= 0 else FILLER for number in batch]
            yield from self.glimpses(photos, self.key)

    def _photo(self, number: int, encoded: bytes | InputError) -> Photo:
        key, label = self.index.key(number), int(self.index.labels[number])
        try:
            if isinstance(encoded, InputError):
                raise encoded
            return Photo(number, key, label, decode_image(encoded, f"sample {key}"))
        except InputError as error:
            if not self.tolerant:
                raise InputError(f"{error} (in {self.index.source(number)})") from None
            log.warning("left out: %s (in %s)", error, self.index.source(number))
            return Photo(number, key, label, None)
