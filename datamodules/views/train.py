"""An image -> one training sample, glimpses or a canvas: everything about it is drawn."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch

from datamodules.transforms.augment import augment
from datamodules.transforms.bands import Bands
from datamodules.transforms.clips import Clip, stacked
from datamodules.transforms.depth import AsSide, whole
from datamodules.transforms.draws import Augmentation
from datamodules.transforms.images import decode_image, fit_on_canvas, on_larger
from datamodules.transforms.mixing import Mixing, cutmix, mixup
from datamodules.transforms.pixels import RGB, Pixels
from datamodules.views.keys import draw_seed
from datamodules.views.plan import AXES, CLIP_AXES, TrainScan, draw_scan, plan, ratio_of_plan
from datamodules.views.samples import row_of, scene_of
from mambaeye.batch import CANVAS, POLICY, REMEDY, CanvasBatch, GlimpseBatch, Takes
from mambaeye.errors import InputError
from mambaeye.geometry.box import Box, PatchSize, overhung, patch_sides
from mambaeye.geometry.patches import cut_patches


@dataclass(frozen=True)
class TrainView:
    """Training's view of an image; the paper's section 4.1."""

    canvas: tuple[int, int] = (32, 64)
    """Smallest and largest canvas side, in pixels, drawn anew for every sample, or for every optimizer step where
    whole canvases are trained on."""
    num_glimpses: int = 64
    """Glimpses an image or clip (T); an encoder of canvases takes none."""
    inside_prob: float = 0.5
    """Probability that a trajectory keeps to the image instead of the whole canvas."""
    augmentation: Augmentation | None = None
    """Changes to images; null for not at all, {} for the paper's augmentations."""
    mixing: Mixing | None = None
    """Mixup and CutMix of images, or of clips; null for neither."""
    overhang: bool = False
    """Let glimpses of a trajectory that keeps to the image start on any of its pixels, as the authors' do, and so hang
    over its lower and right edges where the canvas goes on; false keeps them wholly on the image."""
    frames: tuple[int, int] | AsSide = (4, 16)
    """Of clips alone: smallest and largest number of frames of a canvas, drawn as its side is. Of a longer clip so many
    successive frames are taken, from any on. Or "side", for volumes: as many as the canvas has rows; all slices are
    taken, and scaled as rows and columns are."""

    def __post_init__(self) -> None:
        smallest, largest = self.canvas
        if not 1 <= smallest <= largest:
            raise InputError(
                f"data.train.canvas is {smallest}..{largest} pixels: give two sides of at least 1, the smaller first"
            )
        if not isinstance(self.frames, str) and not 1 <= self.frames[0] <= self.frames[1]:
            raise InputError(
                f"data.train.frames is {self.frames[0]}..{self.frames[1]}: give two numbers of frames of at least 1, "
                f"the smaller first"
            )
        if self.num_glimpses < 1:
            raise InputError(f"data.train.num_glimpses is {self.num_glimpses}: give at least 1")
        if not 0 <= self.inside_prob <= 1:
            raise InputError(f"data.train.inside_prob is {self.inside_prob}: give a probability, 0 to 1")

    @property
    def largest(self) -> tuple[int, int]:
        """Return the side of the largest canvases and their frames, if they are of clips."""
        side = self.canvas[1]
        return side, side if isinstance(self.frames, str) else self.frames[1]

    def require_room(self, patch_size: int, tube: int) -> None:
        """Refuse canvases on which no glimpse fits.

        Args:
            patch_size: side of a glimpse in pixels.
            tube: frames of a glimpse of clips.

        Raises:
            InputError: the smallest canvas is smaller than a glimpse.
        """
        if not isinstance(self.frames, str) and self.frames[0] < tube:
            raise InputError(
                f"data.train.frames is {self.frames[0]}..{self.frames[1]} and a glimpse has {tube}: give two numbers, "
                f"the smaller first, of at least data.tube"
            )
        smallest, largest = self.canvas
        if smallest < patch_size:
            raise InputError(
                f"data.train.canvas is {smallest}..{largest} pixels and a glimpse {patch_size}: give two sides, the "
                f"smaller first, of at least data.patch_size"
            )
        if isinstance(self.frames, str) and smallest < tube:
            raise InputError(
                f"data.train.canvas is {smallest}..{largest} pixels, its depth too, and a glimpse has {tube} slices: "
                f"give two sides, the smaller first, of at least data.tube"
            )


class RawSample(NamedTuple):
    """A sample as it lies in its shard."""

    key: str
    image: bytes | Bands | Clip
    """Still encoded; bytes are of RGB."""
    label: int


Partner = Callable[[np.random.Generator], RawSample]
"""Draws another sample to mix in."""


class Composed(NamedTuple):
    """An image on its canvas, augmented and mixed."""

    canvas: np.ndarray
    """(side, side, C) uint8 or uint16; of a clip (frames, side, side, 3)."""
    box: Box
    partner_label: int
    label_share: float


class TrainingSamples(Protocol):
    """Makes training samples: batches without their first axis."""

    @property
    def view(self) -> TrainView:
        """Return how training looks at an image."""

    @property
    def pixels(self) -> Pixels:
        """Return the kind of pixels that images have."""

    def sample(
        self, raw: RawSample, rng: np.random.Generator, partner: Partner, side: int, frames: int = 0
    ) -> GlimpseBatch | CanvasBatch:
        """Return the sample of an image.

        Args:
            raw: the image.
            rng: decides everything random about it.
            partner: draws another image to mix in.
            side: of the canvases of this optimizer step, where all have the same.
            frames: of these, where they are of clips.
        """

    def filler(self, key: str, side: int, frames: int = 0) -> GlimpseBatch | CanvasBatch:
        """Return a row in place of a sample that is missing: black, marked invalid, with the sample's key."""


@dataclass(frozen=True)
class TrainingGlimpses:
    """Makes glimpses of an image, cut out already, on a canvas with a side of its own."""

    view: TrainView
    patch_size: PatchSize
    scan: TrainScan = "random"
    """Scan pattern of the trajectories, or several with their shares."""
    axes: int = AXES
    """Axes of images, or of clips."""
    pixels: Pixels = RGB

    def sample(
        self, raw: RawSample, rng: np.random.Generator, partner: Partner, side: int = 0, frames: int = 0
    ) -> GlimpseBatch:
        """Return the sample of an image; see TrainingSamples. Side and frames are drawn for each."""
        view, patch_size = self.view, self.patch_size
        image = compose(view, raw, draw_size(view, self.axes, rng), rng, partner)
        area = draw_area(view, image, patch_size, rng)
        scan = draw_scan(self.scan, rng)
        positions = plan(scan, area, patch_size, view.num_glimpses, rng)
        return GlimpseBatch(
            torch.from_numpy(cut_patches(image.canvas, positions, patch_size)),
            torch.from_numpy(positions),
            ratio_of_plan(scan, positions, image.box, patch_size),
            *row_of(raw.key, True, raw.label, image.partner_label, image.label_share),
        )

    def filler(self, key: str, side: int = 0, frames: int = 0) -> GlimpseBatch:
        """Return a row in place of a sample that is missing; see TrainingSamples."""
        num_glimpses, sides = self.view.num_glimpses, patch_sides(self.patch_size, self.axes)
        return GlimpseBatch(
            torch.zeros(num_glimpses, self.pixels.channels, *sides, dtype=self.pixels.torch_dtype),
            torch.zeros(num_glimpses, self.axes, dtype=torch.int32),
            torch.zeros(num_glimpses),
            *row_of(key, False),
        )


@dataclass(frozen=True)
class TrainingCanvases:
    """Makes whole canvases, of one side an optimizer step: for encoders that take them, and for policies."""

    view: TrainView
    patch_size: PatchSize
    scan: TrainScan
    """CANVAS, or the scan patterns that are planned on them, with their shares; see plan."""
    axes: int = AXES
    """Axes of images, or of clips."""
    pixels: Pixels = RGB

    def sample(
        self, raw: RawSample, rng: np.random.Generator, partner: Partner, side: int, frames: int = 0
    ) -> CanvasBatch:
        """Return the sample of an image; see TrainingSamples."""
        view = self.view
        draw_size(view, self.axes, rng)  # left unused, so that everything else is drawn as for glimpses
        image = compose(view, raw, size_of(self.axes, side, frames), rng, partner)
        if self.scan == CANVAS:
            area, num_glimpses = image.box, 1
        else:
            area, num_glimpses = draw_area(view, image, self.patch_size, rng), view.num_glimpses
        scan = draw_scan(self.scan, rng)
        positions = plan(scan, area, self.patch_size, num_glimpses, rng)
        return CanvasBatch(
            scene_of(image.canvas, image.box, positions, draw_seed(rng), scan),
            ratio_of_plan(scan, positions, image.box, self.patch_size),
            *row_of(raw.key, True, raw.label, image.partner_label, image.label_share),
            0,
        )

    def filler(self, key: str, side: int, frames: int = 0) -> CanvasBatch:
        """Return a row in place of a sample that is missing; see TrainingSamples."""
        num_glimpses = 1 if self.scan == CANVAS else self.view.num_glimpses
        size = size_of(self.axes, side, frames)
        canvas = np.zeros((*size, self.pixels.channels), self.pixels.dtype)
        positions = np.zeros((num_glimpses, self.axes), np.int32)
        scene = scene_of(canvas, Box(*[0] * self.axes, *size), positions, 0, CANVAS)
        return CanvasBatch(scene, torch.zeros(num_glimpses), *row_of(key, False), 0)


def training_samples(
    view: TrainView,
    patch_size: PatchSize,
    scan: TrainScan,
    takes: Takes,
    has_policy: bool,
    axes: int = AXES,
    pixels: Pixels = RGB,
) -> TrainingSamples:
    """Return what makes training samples: glimpses, unless the encoder takes canvases or a policy is to see them.

    Args:
        view: how training looks at an image.
        patch_size: sides of a glimpse in pixels.
        scan: name or import path of a scan pattern, or of several with their shares; POLICY may be one.
        takes: what the encoder takes.
        has_policy: whether the model has a policy.
        axes: of images, or of clips.
        pixels: of images.

    Raises:
        InputError: a policy is asked for that is not there; or colours changed that are not RGB.
    """
    if not pixels.is_rgb and view.augmentation and (view.augmentation.jitter or view.augmentation.grayscale):
        raise InputError(
            f"data.train.augmentation changes colours of RGB of 8 bits, and these images have {pixels.words}: set its "
            f"jitter and grayscale to 0"
        )
    if takes == "canvas":
        return TrainingCanvases(view, patch_size, CANVAS, axes, pixels)
    if POLICY not in ([scan] if isinstance(scan, str) else scan):
        return TrainingGlimpses(view, patch_size, scan, axes, pixels)
    if not has_policy:
        raise InputError(f"data.train_scan has {POLICY}, and the model has no policy: {REMEDY}")
    return TrainingCanvases(view, patch_size, scan, axes, pixels)


def size_of(axes: int, side: int, frames: int) -> tuple[int, ...]:
    """Return the sides of a canvas, in pixels: (side, side), or of clips (frames, side, side)."""
    return (frames, side, side) if axes == CLIP_AXES else (side, side)


def draw_size(view: TrainView, axes: int, rng: np.random.Generator) -> tuple[int, ...]:
    """Draw the sides of a canvas, in pixels."""
    side = frames = int(rng.integers(*view.canvas, endpoint=True))
    if axes == CLIP_AXES and not isinstance(view.frames, str):
        frames = int(rng.integers(*view.frames, endpoint=True))
    return size_of(axes, side, frames)


def draw_area(view: TrainView, image: Composed, patch_size: PatchSize, rng: np.random.Generator) -> Box:
    """Draw where a trajectory may fall: on the image alone, or anywhere on its canvas."""
    canvas = Box(*[0] * image.box.axes, *image.canvas.shape[:-1])
    if rng.random() >= view.inside_prob:
        return canvas
    return overhung(image.box, canvas, patch_size) if view.overhang else image.box


def compose(
    view: TrainView, raw: RawSample, size: tuple[int, ...], rng: np.random.Generator, partner: Partner
) -> Composed:
    """Put an image on a canvas of that size, augmented and mixed with another if it is to be."""
    canvas, box = placed(view, raw, size, rng)
    if not view.mixing or not (mix := view.mixing.choose(rng)):
        return Composed(canvas, box, raw.label, 1.0)
    other = partner(rng)
    other_canvas, other_box = placed(view, other, size, rng)
    if mix == "mixup":
        canvas, box, share = mixup(canvas, box, other_canvas, other_box, view.mixing.mixup_alpha, rng)
    else:
        canvas, box, share = cutmix(canvas, box, other_canvas, other_box, view.mixing.cutmix_alpha, rng)
    return Composed(canvas, box, other.label, share)


def placed(view: TrainView, raw: RawSample, size: tuple[int, ...], rng: np.random.Generator) -> tuple[np.ndarray, Box]:
    """Decode an image onto a canvas, augmented if it is to be: (side, side, C), and its box there.

    Of a clip it is a window of successive frames, drawn, or all of a volume's, and what is drawn besides is the same
    for all of these.
    """
    *time, side, _ = size
    what = f"sample {raw.key}"
    if isinstance(raw.image, Bands):
        image = raw.image.decoded()
        if view.augmentation is None:
            return fit_on_canvas(image, side)
        return augment(image, side, view.augmentation, rng, what)
    if isinstance(raw.image, bytes):
        return placed_picture(view, raw.image, side, rng, what)
    (frames,), clip = time, raw.image
    if isinstance(view.frames, str):
        seed = draw_seed(rng)

        def part(at: int, fitted: int) -> tuple[np.ndarray, Box]:
            return placed_picture(view, clip.encoded(at), side, np.random.default_rng(seed), clip.name(at), fitted)

        return whole(clip, side, what, part)
    window = clip.window(frames, int(rng.integers(max(1, len(clip) - frames + 1))))
    seed = draw_seed(rng)
    pictures = (
        placed_picture(view, clip.encoded(at), side, np.random.default_rng(seed), clip.name(at)) for at in window
    )
    return stacked(pictures, len(window), frames, what)


def placed_picture(
    view: TrainView, data: bytes, side: int, rng: np.random.Generator, what: str, fitted: int | None = None
) -> tuple[np.ndarray, Box]:
    """Decode an encoded image onto a canvas: (side, side, 3) uint8, and its box there.

    It is put to fit a square in the middle, of a side of `fitted` pixels, or all of the canvas.
    """
    if view.augmentation is None:
        return fit_on_canvas(decode_image(data, what), side, fitted)
    return on_larger(*augment(data, side if fitted is None else fitted, view.augmentation, rng, what), side)
