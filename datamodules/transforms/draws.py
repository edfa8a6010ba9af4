"""Decisions about one training image before a pixel of it is decoded: the augmentations' odds and draws."""

from dataclasses import dataclass
from math import exp, log, sqrt
from typing import NamedTuple

import numpy as np

from datamodules.transforms.images import fitted_size
from datamodules.transforms.warping import rectangle
from mambaeye.errors import InputError
from mambaeye.geometry.box import Box

ERASE_TRIALS = 10  # rectangles drawn to find one that fits, as in torchvision


@dataclass(frozen=True)
class Augmentation:
    """Probability and strength of each augmentation; the defaults are the authors', but for truncate."""

    truncate: bool = False
    """Cut fractions of a pixel off the sides of the fitted image, as the authors do, instead of rounding them."""
    flip: float = 0.5
    """Probability of mirroring left to right."""
    jitter: float = 0.4
    """Probability of colour jitter."""
    brightness: float = 0.4
    """Colour jitter multiplies all values by a factor uniform in 1 - brightness to 1 + brightness."""
    contrast: float = 0.4
    """Likewise the differences from the image's mean gray."""
    saturation: float = 0.4
    """Likewise the differences from each pixel's own gray."""
    hue: float = 0.1
    """Colour jitter turns the hue by up to this many turns either way, at most 0.5."""
    grayscale: float = 0.2
    """Probability of losing all colour."""
    blur: float = 0.2
    """Probability of a Gaussian blur."""
    blur_kernel: tuple[int, int] = (5, 9)
    """Width and height of its kernel, odd, in pixels of the fitted image."""
    blur_sigma: tuple[float, float] = (0.1, 5.0)
    """Smallest and largest standard deviation, same pixels; uniform in between."""
    perspective: float = 0.3
    """Probability of a random perspective."""
    distortion: float = 0.5
    """Each corner moves by up to this share of half the shorter side, both ways on both axes; at most 0.5."""
    crop: float = 0.8
    """Probability of a random crop."""
    smallest: float = 0.3
    """A crop keeps and takes at least this share of the shorter side, a resize leaves as much; at most 0.5."""
    smallest_side: int = 16
    """And at least this many pixels, if there are as many: the authors' glimpse."""
    resize: float = 1.0
    """Probability of resizing to a height and width uniform up to the canvas side, aspect not kept."""
    erase: float = 0.4
    """Probability of blackening a rectangle."""
    erase_area: tuple[float, float] = (0.02, 0.33)
    """Smallest and largest share of the image that is blackened."""
    erase_aspect: tuple[float, float] = (0.3, 3.3)
    """Smallest and largest height/width of the rectangle, log-uniform in between."""

    def __post_init__(self) -> None:
        limits = dict.fromkeys(("flip", "jitter", "grayscale", "blur", "perspective", "crop", "resize", "erase"), 1.0)
        limits |= {"brightness": 1.0, "contrast": 1.0, "saturation": 1.0}
        limits |= {"hue": 0.5, "distortion": 0.5, "smallest": 0.5}
        for name, largest in limits.items():
            if not 0 <= getattr(self, name) <= largest:
                raise InputError(
                    f"data.train.augmentation.{name} is {getattr(self, name)}: give a number from 0 to {largest:g}"
                )
        if self.smallest_side < 1:
            raise InputError(f"data.train.augmentation.smallest_side is {self.smallest_side}: give at least 1 pixel")
        if len(self.blur_kernel) != 2 or any(length < 1 or length % 2 == 0 for length in self.blur_kernel):
            raise InputError(
                f"data.train.augmentation.blur_kernel is {self.blur_kernel}: give two odd lengths, in pixels"
            )
        for name, largest in (("blur_sigma", np.inf), ("erase_area", 1.0), ("erase_aspect", np.inf)):
            limit = getattr(self, name)
            if len(limit) != 2 or not 0 < limit[0] <= limit[1] <= largest:
                remedy = "give two positive numbers, the smaller first" + (", of at most 1" if largest == 1 else "")
                raise InputError(f"data.train.augmentation.{name} is {limit}: {remedy}")


class Draw(NamedTuple):
    """All that was decided about one image."""

    fitted: tuple[int, int]
    """Height and width when fitted into the canvas, pixels."""
    flip: bool
    brightness: float
    contrast: float
    saturation: float
    """Factors; 1 leaves the image as it is."""
    hue: float
    """Turns."""
    grayscale: bool
    sigma: float
    """Of the blur, pixels of the fitted image; 0 for none."""
    corners: np.ndarray | None
    """(4, 2) float64, (x, y): where top left, top right, bottom right and bottom left go on the fitted image."""
    crop: Box
    """The part that is kept of the fitted image, or of the moved corners' bounding box."""
    size: tuple[int, int]
    """Height and width of the result, pixels."""
    erased: Box | None
    """The blackened part of the result."""


def draw(height: int, width: int, side: int, config: Augmentation, rng: np.random.Generator) -> Draw:
    """Decide everything about an image of (height, width) pixels for a canvas of that side.

    The same 49 numbers are drawn whatever comes of them, so that no probability changes another's outcome, in this
    order: whether to flip, jitter, lose colour, blur, move corners, crop, resize, erase; brightness, contrast,
    saturation, hue; the blur's sigma; the corners' moves; the crop's height, width, row, column; the result's height,
    width; the erased row, column; the area and the aspect of every trial to erase.
    """
    odds = (config.flip, config.jitter, config.grayscale, config.blur, config.perspective, config.crop, config.resize)
    uniform = rng.random(49)
    flip, jitter, grayscale, blur, perspective, crop, resize, erase = (uniform[:8] < (*odds, config.erase)).tolist()
    strengths = (config.brightness, config.contrast, config.saturation, config.hue)
    changes = ((2 * uniform[8:12] - 1) * strengths * jitter).tolist()
    least, most = config.blur_sigma
    sigma = least + (most - least) * float(uniform[12])
    moves = 2 * uniform[13:21].reshape(4, 2) - 1
    shares = uniform[21:29].tolist()
    trials = uniform[29:].reshape(ERASE_TRIALS, 2).tolist()

    fitted = fitted_size(height, width, side, config.truncate)
    corners, (height, width) = None, fitted
    if perspective:
        distance = config.distortion * min(fitted) / 2
        corners = rectangle(*fitted) + distance * moves
        height, width = np.ceil(np.ptp(corners, axis=0)).astype(int).tolist()[::-1]
    smallest = max(config.smallest_side, int(config.smallest * min(height, width)))
    crop = crop_box(height, width, smallest, shares[:4]) if crop else Box(0, 0, height, width)
    if resize:
        size = (uniform_integer(smallest, side, shares[4]), uniform_integer(smallest, side, shares[5]))
    else:  # a perspective may have grown the image beyond the canvas
        scale = min(1, side / max(crop.height, crop.width))
        size = (max(1, round(scale * crop.height)), max(1, round(scale * crop.width)))
    erased = erased_box(*size, config, shares[6:], trials) if erase else None
    brightness, contrast, saturation = (1 + change for change in changes[:3])
    blurred = sigma if blur else 0.0
    return Draw(
        fitted, flip, brightness, contrast, saturation, changes[3], grayscale, blurred, corners, crop, size, erased
    )


def uniform_integer(low: int, high: int, share: float) -> int:
    """Return the integer at that share, in [0, 1), of the way from low to high, inclusive; high if low is beyond it."""
    return min(high, low + int(share * (high - low + 1)))


def crop_box(height: int, width: int, smallest: int, shares: list[float]) -> Box:
    """Return a box anywhere inside (height, width), each side uniform between smallest and the image's side less that.

    An image too short for both keeps smallest pixels of that side, or all it has.

    Args:
        shares: four numbers in [0, 1) that stand for height, width, row and column.
    """
    high, wide = (
        uniform_integer(smallest, max(side - smallest, min(smallest, side)), share)
        for side, share in zip((height, width), shares[:2], strict=True)
    )
    return Box(uniform_integer(0, height - high, shares[2]), uniform_integer(0, width - wide, shares[3]), high, wide)


def erased_box(
    height: int, width: int, config: Augmentation, place: list[float], trials: list[list[float]]
) -> Box | None:
    """Return the first rectangle drawn that is smaller than (height, width) on both sides, if any.

    Args:
        place: two numbers in [0, 1) that stand for row and column.
        trials: pairs of them that stand for area and aspect.
    """
    (smallest, largest), (flattest, tallest) = config.erase_area, config.erase_aspect
    for area_share, aspect_share in trials:
        area = height * width * (smallest + area_share * (largest - smallest))
        aspect = exp(log(flattest) + aspect_share * log(tallest / flattest))
        high, wide = round(sqrt(area * aspect)), round(sqrt(area / aspect))
        if high < height and wide < width:
            return Box(
                uniform_integer(0, height - high, place[0]), uniform_integer(0, width - wide, place[1]), high, wide
            )
    return None
