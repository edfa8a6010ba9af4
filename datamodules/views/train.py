"""An image -> one training sample, glimpses or a canvas: everything about it is drawn."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch

from datamodules.transforms.augment import augment
from datamodules.transforms.draws import Augmentation
from datamodules.transforms.images import decode_image, fit_on_canvas
from datamodules.transforms.mixing import Mixing, cutmix, mixup
from datamodules.views.keys import draw_seed
from datamodules.views.plan import AXES, TrainScan, draw_scan, plan, ratio_of_plan
from datamodules.views.samples import row_of, scene_of
from mambaeye.batch import CANVAS, POLICY, REMEDY, CanvasBatch, GlimpseBatch, Takes
from mambaeye.errors import InputError
from mambaeye.geometry.box import Box, overhung
from mambaeye.geometry.patches import cut_patches


@dataclass(frozen=True)
class TrainView:
    """Training's view of an image; the paper's section 4.1."""

    canvas: tuple[int, int] = (32, 64)
    """Smallest and largest canvas side, in pixels, drawn anew for every sample, or for every optimizer step where
    whole canvases are trained on."""
    num_glimpses: int = 64
    """Glimpses an image (T); an encoder of canvases takes none."""
    inside_prob: float = 0.5
    """Probability that a trajectory keeps to the image instead of the whole canvas."""
    augmentation: Augmentation | None = None
    """Changes to images; null for not at all, {} for the paper's augmentations."""
    mixing: Mixing | None = None
    """Mixup and CutMix of images; null for neither."""
    overhang: bool = False
    """Let glimpses of a trajectory that keeps to the image start on any of its pixels, as the authors' do, and so hang
    over its lower and right edges where the canvas goes on; false keeps them wholly on the image."""

    def __post_init__(self) -> None:
        smallest, largest = self.canvas
        if not 1 <= smallest <= largest:
            raise InputError(
                f"data.train.canvas is {smallest}..{largest} pixels: give two sides of at least 1, the smaller first"
            )
        if self.num_glimpses < 1:
            raise InputError(f"data.train.num_glimpses is {self.num_glimpses}: give at least 1")
        if not 0 <= self.inside_prob <= 1:
            raise InputError(f"data.train.inside_prob is {self.inside_prob}: give a probability, 0 to 1")

    def require_room(self, patch_size: int) -> None:
        """Refuse canvases on which no glimpse fits.

        Raises:
            InputError: the smallest canvas is smaller than a glimpse.
        """
        smallest, largest = self.canvas
        if smallest < patch_size:
            raise InputError(
                f"data.train.canvas is {smallest}..{largest} pixels and a glimpse {patch_size}: give two sides, the "
                f"smaller first, of at least data.patch_size"
            )


class RawSample(NamedTuple):
    """A sample as it lies in its shard."""

    key: str
    image: bytes
    """Still encoded."""
    label: int


Partner = Callable[[np.random.Generator], RawSample]
"""Draws another sample to mix in."""


class Composed(NamedTuple):
    """An image on its canvas, augmented and mixed."""

    canvas: np.ndarray
    """(side, side, 3) uint8."""
    box: Box
    partner_label: int
    label_share: float


class TrainingSamples(Protocol):
    """Makes training samples: batches without their first axis."""

    @property
    def view(self) -> TrainView:
        """Return how training looks at an image."""

    def sample(
        self, raw: RawSample, rng: np.random.Generator, partner: Partner, side: int
    ) -> GlimpseBatch | CanvasBatch:
        """Return the sample of an image.

        Args:
            raw: the image.
            rng: decides everything random about it.
            partner: draws another image to mix in.
            side: of the canvases of this optimizer step, where all have the same.
        """

    def filler(self, key: str, side: int) -> GlimpseBatch | CanvasBatch:
        """Return a row in place of a sample that is missing: black, marked invalid, with the sample's key."""


@dataclass(frozen=True)
class TrainingGlimpses:
    """Makes glimpses of an image, cut out already, on a canvas with a side of its own."""

    view: TrainView
    patch_size: int
    scan: TrainScan = "random"
    """Scan pattern of the trajectories, or several with their shares."""

    def sample(self, raw: RawSample, rng: np.random.Generator, partner: Partner, side: int = 0) -> GlimpseBatch:
        """Return the sample of an image; see TrainingSamples. The side is drawn for each image."""
        view, patch_size = self.view, self.patch_size
        image = compose(view, raw, draw_side(view, rng), rng, partner)
        area = draw_area(view, image, patch_size, rng)
        scan = draw_scan(self.scan, rng)
        positions = plan(scan, area, patch_size, view.num_glimpses, rng)
        return GlimpseBatch(
            torch.from_numpy(cut_patches(image.canvas, positions, patch_size)),
            torch.from_numpy(positions),
            ratio_of_plan(scan, positions, image.box, patch_size),
            *row_of(raw.key, True, raw.label, image.partner_label, image.label_share),
        )

    def filler(self, key: str, side: int = 0) -> GlimpseBatch:
        """Return a row in place of a sample that is missing; see TrainingSamples."""
        num_glimpses, sides = self.view.num_glimpses, [self.patch_size] * AXES
        return GlimpseBatch(
            torch.zeros(num_glimpses, 3, *sides, dtype=torch.uint8),
            torch.zeros(num_glimpses, AXES, dtype=torch.int32),
            torch.zeros(num_glimpses),
            *row_of(key, False),
        )


@dataclass(frozen=True)
class TrainingCanvases:
    """Makes whole canvases, of one side an optimizer step: for encoders that take them, and for policies."""

    view: TrainView
    patch_size: int
    scan: TrainScan
    """CANVAS, or the scan patterns that are planned on them, with their shares; see plan."""

    def sample(self, raw: RawSample, rng: np.random.Generator, partner: Partner, side: int) -> CanvasBatch:
        """Return the sample of an image; see TrainingSamples."""
        view = self.view
        draw_side(view, rng)  # left unused, so that everything else is drawn as for glimpses
        image = compose(view, raw, side, rng, partner)
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

    def filler(self, key: str, side: int) -> CanvasBatch:
        """Return a row in place of a sample that is missing; see TrainingSamples."""
        num_glimpses = 1 if self.scan == CANVAS else self.view.num_glimpses
        canvas, positions = np.zeros((side, side, 3), np.uint8), np.zeros((num_glimpses, AXES), np.int32)
        scene = scene_of(canvas, Box(0, 0, side, side), positions, 0, CANVAS)
        return CanvasBatch(scene, torch.zeros(num_glimpses), *row_of(key, False), 0)


def training_samples(
    view: TrainView, patch_size: int, scan: TrainScan, takes: Takes, has_policy: bool
) -> TrainingSamples:
    """Return what makes training samples: glimpses, unless the encoder takes canvases or a policy is to see them.

    Args:
        view: how training looks at an image.
        patch_size: side of a glimpse in pixels.
        scan: name or import path of a scan pattern, or of several with their shares; POLICY may be one.
        takes: what the encoder takes.
        has_policy: whether the model has a policy.

    Raises:
        InputError: a policy is asked for that is not there.
    """
    if takes == "canvas":
        return TrainingCanvases(view, patch_size, CANVAS)
    if POLICY not in ([scan] if isinstance(scan, str) else scan):
        return TrainingGlimpses(view, patch_size, scan)
    if not has_policy:
        raise InputError(f"data.train_scan has {POLICY}, and the model has no policy: {REMEDY}")
    return TrainingCanvases(view, patch_size, scan)


def draw_side(view: TrainView, rng: np.random.Generator) -> int:
    """Draw the side of a canvas, in pixels."""
    return int(rng.integers(*view.canvas, endpoint=True))


def draw_area(view: TrainView, image: Composed, patch_size: int, rng: np.random.Generator) -> Box:
    """Draw where a trajectory may fall: on the image alone, or anywhere on its canvas."""
    canvas = Box(0, 0, *image.canvas.shape[:2])
    if rng.random() >= view.inside_prob:
        return canvas
    return overhung(image.box, canvas, patch_size) if view.overhang else image.box


def compose(view: TrainView, raw: RawSample, side: int, rng: np.random.Generator, partner: Partner) -> Composed:
    """Put an image on a canvas, augmented and mixed with another if it is to be."""
    canvas, box = placed(view, raw, side, rng)
    if not view.mixing or not (mix := view.mixing.choose(rng)):
        return Composed(canvas, box, raw.label, 1.0)
    other = partner(rng)
    other_canvas, other_box = placed(view, other, side, rng)
    if mix == "mixup":
        canvas, box, share = mixup(canvas, box, other_canvas, other_box, view.mixing.mixup_alpha, rng)
    else:
        canvas, box, share = cutmix(canvas, box, other_canvas, other_box, view.mixing.cutmix_alpha, rng)
    return Composed(canvas, box, other.label, share)


def placed(view: TrainView, raw: RawSample, side: int, rng: np.random.Generator) -> tuple[np.ndarray, Box]:
    """Decode an image onto a canvas, augmented if it is to be: (side, side, 3) uint8, and its box there."""
    what = f"sample {raw.key}"
    if view.augmentation is None:
        return fit_on_canvas(decode_image(raw.image, what), side)
    return augment(raw.image, side, view.augmentation, rng, what)
