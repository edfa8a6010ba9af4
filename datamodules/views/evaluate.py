"""Images for validation: each is decoded once and then looked at under every condition (paper section 4.2)."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import torch

from datamodules.transforms.clips import Clip, stacked
from datamodules.transforms.depth import AsSide, whole
from datamodules.transforms.headers import PixelLimit
from datamodules.transforms.images import Interpolation, Resize, centred, middle, resized
from datamodules.transforms.pixels import RGB, Pixels
from datamodules.transforms.planned import UnmadeCanvas
from datamodules.transforms.regions import LargeTiff
from datamodules.views.keys import Key, policy_seed
from datamodules.views.plan import plan, ratio_of_plan, without_edge
from datamodules.views.samples import row_of, scene_of
from mambaeye.batch import CANVAS, POLICY, REMEDY, CanvasBatch, EvaluationCondition, Takes
from mambaeye.errors import InputError
from mambaeye.geometry.box import Box, PatchSize, patch_sides

Result = TypeVar("Result")

LIMIT = PixelLimit()


@dataclass(frozen=True)
class EvaluateView:
    """Validation's view of an image."""

    num_glimpses: int = 64
    """Glimpses an image (T), in predict too; an encoder of canvases takes none."""
    report_at: tuple[int, ...] = ()
    """Glimpse counts that validation reports after, besides powers of two and the last."""
    shift: tuple[int, int] = (0, 0)
    """Rows and columns by which images lie further down and right, on canvases larger by as much."""
    resize: Resize = "fit"
    """Way of images to their canvases, in predict too where data.predict.resize gives one: fit scales them, aspect
    kept, until the longer side is the canvas's; full stretches both sides to it, of a larger image after it was fitted;
    none fits larger images and leaves others as they are, and of canvases of more than data.loader.max_pixels pixels
    makes no more than the glimpses, which are read from tiled TIFFs of as many where they fall."""
    interpolation: Interpolation = "lanczos"
    """Of that resizing: Pillow's lanczos, as the authors; or area where a side shrinks and linear where it grows, which
    is faster and softer, as training without augmentation and version 0.1."""
    truncate: bool = False
    """Cut fractions off the sides of fitted images, as the authors do, instead of rounding them."""
    skip_edge: bool = False
    """Let scans leave out the last data.patch_size - 1 rows and columns of a canvas, as the authors' evaluation does;
    in predict too. Only to reproduce what they published."""

    def __post_init__(self) -> None:
        if self.num_glimpses < 1:
            raise InputError(f"data.evaluate.num_glimpses is {self.num_glimpses}: give at least 1")
        for count in self.report_at:
            if not 1 <= count <= self.num_glimpses:
                raise InputError(
                    f"data.evaluate.report_at has {count}: give glimpse counts from 1 to "
                    f"data.evaluate.num_glimpses, {self.num_glimpses}"
                )
        if min(self.shift) < 0:
            raise InputError(f"data.evaluate.shift is {list(self.shift)}: give rows and columns of at least 0 pixels")

    def resized(self, image: np.ndarray, side: int) -> np.ndarray:
        """Return an image as it is to lie on a canvas: (H, W, C) -> (h, w, C)."""
        return resized(image, side, self.resize, self.interpolation, self.truncate)

    def area(self, box: Box, canvas: tuple[int, ...], patch_size: PatchSize) -> Box:
        """Return what glimpses are to fall on: the image, or less of it.

        Args:
            box: the image's place on its canvas.
            canvas: sides of the canvas, in pixels.
            patch_size: sides of a glimpse in pixels.
        """
        return without_edge(box, canvas, patch_size) if self.skip_edge else box


def require_resolutions(resolutions: Sequence[int], patch_size: int) -> None:
    """Refuse canvases on which no glimpse fits.

    Raises:
        InputError: a canvas is smaller than a glimpse, or none is given.
    """
    if not resolutions:
        raise InputError("data.resolutions is empty: give at least one")
    for resolution in resolutions:
        if resolution < patch_size:
            raise InputError(
                f"data.resolutions has {resolution}, less than a glimpse of {patch_size} pixels: "
                f"give canvas sides of at least data.patch_size"
            )


def require_frames(lengths: Sequence[int | AsSide], tube: int, resolutions: Sequence[int]) -> None:
    """Refuse a number of frames in which no glimpse fits, and glimpses without a frame.

    Raises:
        InputError: there are less frames than a glimpse has, or it has none; or no number is given.
    """
    if not lengths:
        raise InputError("data.frames is empty: give at least one number of frames")
    fewest = min(min(resolutions) if isinstance(frames, str) else frames for frames in lengths)
    if not 1 <= tube <= fewest:
        raise InputError(
            f"data.tube is {tube} and data.frames {fewest}: give frames of a glimpse, at least 1, and at least "
            f"as many of a canvas"
        )


def evaluation_conditions(
    resolutions: Sequence[int], scans: Sequence[str], takes: Takes, has_policy: bool
) -> tuple[EvaluationCondition, ...]:
    """Return what validation measures, each once: every scan at every resolution, or canvases if an encoder takes them.

    Args:
        resolutions: canvas sides in pixels.
        scans: names or import paths of scan patterns, or POLICY.
        takes: what the encoder takes.
        has_policy: whether the model has a policy.

    Raises:
        InputError: a policy is asked for that is not there.
    """
    if takes == "canvas":
        return tuple(EvaluationCondition(resolution, CANVAS) for resolution in dict.fromkeys(resolutions))
    if POLICY in scans and not has_policy:
        raise InputError(f"data.scans has {POLICY}, and the model has no policy: {REMEDY}")
    pairs = dict.fromkeys(EvaluationCondition(resolution, scan) for resolution in resolutions for scan in scans)
    return tuple(pairs)


def at_lengths(
    conditions: Sequence[EvaluationCondition], lengths: Sequence[int | AsSide]
) -> tuple[EvaluationCondition, ...]:
    """Return conditions of clips at every one of several lengths, one length after the other.

    Args:
        conditions: of resolutions and scans.
        lengths: frames of canvases; a single one changes nothing.
    """
    if len(lengths) < 2:
        return tuple(conditions)
    several = [frames for frames in lengths if not isinstance(frames, str)]
    return tuple(condition._replace(frames=frames) for frames in several for condition in conditions)


class DecodedSample(NamedTuple):
    """A decoded image, or an opened clip."""

    sample_id: int
    """In its index; negative for one that only fills up a batch."""
    key: str
    label: int
    image: np.ndarray | LargeTiff | Clip | None
    """(H, W, C) uint8 or uint16, or a TIFF that is read by region; None for a filler, and for a sample that cannot be
    read."""


FILLER = DecodedSample(-1, "", 0, None)


class OnCanvas(NamedTuple):
    """A sample on its canvas."""

    canvas: np.ndarray | UnmadeCanvas
    """(S..., C) uint8 or uint16; or what only glimpses are cut of."""
    box: Box
    valid: bool
    """False for one that is missing."""


class Attempt(Protocol):
    """Calls what reads something of the sample of an id; None if that fails, and some samples may be unreadable."""

    def __call__(self, sample_id: int, read: Callable[[], Result], /) -> Result | None: ...


def let_through(sample_id: int, read: Callable[[], Result]) -> Result:
    """Return what read() gives, and let what it raises through."""
    return read()


@dataclass(frozen=True)
class EvaluationCanvases:
    """Puts images on canvases under every condition, with trajectories that are the same on every pass.

    A clip is decoded once for every resolution, frame by frame, so that no more than a frame of it is held as it is.
    """

    conditions: Sequence[EvaluationCondition]
    patch_size: PatchSize
    view: EvaluateView
    frames: int | AsSide | None = None
    """Frames of a canvas, where samples are clips and conditions do not say; "side" for volumes, whose depth is
    scaled."""
    pixels: Pixels = RGB
    limit: PixelLimit = LIMIT
    """Of the pixels of canvases, where images keep their size: of larger ones no more is made than the glimpses."""

    @property
    def by_region(self) -> bool:
        """Tell whether some canvases are not made, so that images may be larger than what is read whole."""
        return any(self._is_unmade(condition.resolution) for condition in self.conditions)

    def _is_unmade(self, resolution: int) -> bool:
        planned = all(condition.scan not in (POLICY, CANVAS) for condition in self.conditions)
        as_they_are = self.view.resize == "none" and self.frames is None
        return planned and as_they_are and resolution**2 > self.limit.pixels

    def __call__(self, samples: list[DecodedSample], key: Key, attempt: Attempt = let_through) -> Iterator[CanvasBatch]:
        """Yield the samples of a batch, condition by condition: CanvasBatches without their first axis.

        What a scan draws depends on the key, the resolution and the sample's id alone.

        Args:
            samples: of the batch.
            key: of all random draws, before resolution and sample id.
            attempt: calls what decodes a clip, given its id, and returns None if that fails and may fail.
        """
        by_size = groupby(enumerate(self.conditions), lambda numbered: (numbered[1].resolution, numbered[1].frames))
        for (resolution, frames), group in by_size:
            view = self if frames is None else replace(self, frames=frames)
            placed = [view._place(sample, resolution, attempt) for sample in samples]
            for condition, (_, scan, _) in group:
                for sample, on_canvas in zip(samples, placed, strict=True):
                    drawn = (*key, resolution, sample.sample_id)
                    yield self._sample(sample, on_canvas, scan, condition, drawn, attempt)

    def _place(self, sample: DecodedSample, resolution: int, attempt: Attempt) -> OnCanvas:
        place = partial(self._on_canvas, sample.image, resolution, sample.key)
        found = None if sample.image is None else attempt(sample.sample_id, place)
        if found is None:
            black = np.zeros((1, 1, self.pixels.channels), self.pixels.dtype)
            return OnCanvas(*self._on_canvas(black, resolution, sample.key), False)
        return OnCanvas(*found, True)

    def _on_canvas(
        self, image: np.ndarray | LargeTiff | Clip | None, resolution: int, key: str
    ) -> tuple[np.ndarray | UnmadeCanvas, Box]:
        """Return an image's canvas, or a clip's, and its box there; a still image where clips are is one frame."""

        def frame(picture: np.ndarray, side: int = resolution) -> tuple[np.ndarray, Box]:
            return centred(self.view.resized(picture, side), resolution, self.view.shift)

        def part(at: int, side: int) -> tuple[np.ndarray, Box]:
            assert isinstance(image, Clip)
            return frame(image.decoded(at), side)

        what = f"sample {key}"
        if isinstance(image, Clip):
            assert self.frames is not None
            if isinstance(self.frames, str):
                return whole(image, resolution, what, part, self.view.resize, self.view.truncate)
            window = image.window(self.frames)
            return stacked(map(frame, map(image.decoded, window)), len(window), self.frames, what)
        assert image is not None
        if self._is_unmade(resolution) or isinstance(image, LargeTiff):
            return self._unmade(image, resolution)
        if self.frames is None:
            return frame(image)
        return stacked([frame(image)], 1, resolution if isinstance(self.frames, str) else self.frames, what)

    def _unmade(self, image: np.ndarray | LargeTiff, resolution: int) -> tuple[UnmadeCanvas, Box]:
        """Return what _on_canvas does, without making the canvas."""
        if isinstance(image, LargeTiff):
            size = image.size
            if max(size) > resolution:
                raise InputError(
                    f"{image.what} has {size[1]} x {size[0]} pixels, more than the {self.limit.pixels} of "
                    f"{self.limit.flag}, and is not scaled to the {resolution} of data.resolutions: give "
                    f"--data.resolutions [{max(size)}] or more"
                )
        else:
            image = self.view.resized(image, resolution)
            size = (image.shape[0], image.shape[1])
        box = middle((resolution, resolution), size, self.view.shift)
        rows, cols = self.view.shift
        return UnmadeCanvas(image, box, (resolution + rows, resolution + cols), self.pixels), box

    def _sample(
        self, sample: DecodedSample, on_canvas: OnCanvas, scan: str, condition: int, key: Key, attempt: Attempt
    ) -> CanvasBatch:
        num_glimpses, (canvas, box, valid) = self.view.num_glimpses, on_canvas
        if not valid:
            positions, ratio, seed = np.zeros((num_glimpses, box.axes), np.int32), torch.zeros(num_glimpses), 0
        else:
            area = self.view.area(box, canvas.shape[:-1], self.patch_size)
            positions = plan(scan, area, self.patch_size, num_glimpses, np.random.default_rng(key))
            ratio, seed = ratio_of_plan(scan, positions, box, self.patch_size), policy_seed(key)
        if isinstance(canvas, UnmadeCanvas):
            sides = patch_sides(self.patch_size, box.axes)
            cut = attempt(sample.sample_id, partial(canvas.cut, positions, sides)) if valid else None
            valid, regions = cut is not None, cut or canvas.unseen(positions, sides)
        row = row_of(sample.key, valid, sample.label, sample.label)
        scene = scene_of(regions if isinstance(canvas, UnmadeCanvas) else canvas, box, positions, seed, scan)
        return CanvasBatch(scene, ratio, *row, condition)
