"""Trajectories that hang over the image, as the authors' do in training: where they may start, and what they show."""

from itertools import product

import numpy as np
import pytest

from datamodules.transforms.draws import Augmentation, draw
from datamodules.transforms.images import black_canvas
from datamodules.views.train import Composed, TrainView, draw_area
from mambaeye.geometry.box import Box
from mambaeye.geometry.scans import random

PATCH = 16
SIZES = [(375, 500)] * 4 + [(500, 375)] * 2 + [(333, 500), (500, 333), (500, 500), (768, 1024)]
"""Heights and widths like ImageNet's."""


def test_glimpses_start_on_any_pixel_of_the_image_from_which_they_stay_on_the_canvas() -> None:
    canvas = np.zeros((21, 21, 3), np.uint8)
    for row, col, height, width in ((3, 5, 4, 7), (0, 0, 21, 21), (9, 2, 12, 3), (18, 20, 1, 1)):
        image = Composed(canvas, Box(row, col, height, width), 0, 1.0)
        area = draw_area(TrainView(inside_prob=1, overhang=True), image, 8, np.random.default_rng(0))
        positions = random(area, 8, 20_000, np.random.default_rng(1))
        rows, cols = (
            {min(start, 21 - 8) for start in range(*axis)} for axis in ((row, row + height), (col, col + width))
        )
        assert {tuple(position) for position in positions.tolist()} == set(product(rows, cols))


@pytest.mark.parametrize(("overhang", "padding", "seen"), [(False, 0.0, 0.180), (True, 0.050, 0.169)])
def test_the_paper_s_trajectories_show_as_much_padding_and_image_as_the_authors(
    overhang: bool, padding: float, seen: float
) -> None:
    """Counted pixel by pixel, under the authors' canvases and augmentations.

    Expected are means over 4800 images, which ours have to meet to within four standard errors.
    """
    images, num_glimpses = 1000, 64
    view = TrainView((256, 1024), num_glimpses, inside_prob=1, overhang=overhang)
    shares = np.empty((images, 2))
    for number in range(images):
        rng = np.random.default_rng(number)
        side = int(rng.integers(*view.canvas, endpoint=True))
        canvas, box = black_canvas((side, side), draw(*SIZES[number % len(SIZES)], side, Augmentation(), rng).size)
        area = draw_area(view, Composed(canvas, box, 0, 1.0), PATCH, rng)
        image, shown, padded = np.zeros((side, side), bool), np.zeros((side, side), bool), 0
        image[box.slices] = True
        for row, col in random(area, PATCH, num_glimpses, rng).tolist():
            glimpse = slice(row, row + PATCH), slice(col, col + PATCH)
            shown[glimpse] = True
            padded += PATCH**2 - np.count_nonzero(image[glimpse])
        shares[number] = padded / (num_glimpses * PATCH**2), (shown & image).sum() / image.sum()
    errors = shares.std(axis=0) * np.sqrt(1 / images + 1 / 4800)
    assert (np.abs(shares.mean(axis=0) - (padding, seen)) <= 4 * errors).all(), (shares.mean(axis=0), errors)
