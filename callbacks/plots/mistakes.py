"""The most confident mistakes as a contact sheet."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from callbacks.plots.wording import percent, shortened

ACROSS = 6
LETTERS = 24
INCHES = (2.0, 2.35)  # of an image with its words


class Mistake(NamedTuple):
    """An image that was taken for another class."""

    confidence: float
    """The model's in its answer after the last glimpse."""
    label: int
    answer: int
    key: str
    """Of the sample, as in the shards."""
    image: np.ndarray
    """(h, w, 3) uint8, small."""


def contact_sheet(mistakes: Sequence[Mistake], classes: Sequence[str], title: str) -> Figure:
    """Draw images with what they were taken for, how confidently, what they are labelled and their keys.

    Args:
        mistakes: at least one, in the order to be shown.
        classes: names of all classes.
        title: of the sheet.
    """
    rows = -(-len(mistakes) // ACROSS)
    width, height = ACROSS * INCHES[0], rows * INCHES[1] + 0.45
    figure = Figure(figsize=(width, height), dpi=100)
    figure.text(0.012, 1 - 0.28 / height, title, fontsize=11, parse_math=False)
    for place, mistake in enumerate(mistakes):
        row, column = divmod(place, ACROSS)
        left, top = column * INCHES[0] + 0.15, height - 0.45 - row * INCHES[1]  # inches
        axes = figure.add_axes((left / width, (top - 1.6) / height, 1.6 / width, 1.6 / height))
        axes.imshow(mistake.image, interpolation="nearest" if max(mistake.image.shape) < 100 else "antialiased")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set(color="0.7")
        answer = f"{shortened(classes[mistake.answer], LETTERS)}, {percent(mistake.confidence)}"
        words = (answer, f"label: {shortened(classes[mistake.label], LETTERS)}", shortened(mistake.key, LETTERS + 6))
        for line, (text, color) in enumerate(zip(words, ("tab:red", "black", "0.45"), strict=True)):
            size = 8 if line < 2 else 7
            at = left / width, (top - 1.74 - 0.16 * line) / height
            figure.text(*at, text, fontsize=size, color=color, va="center", parse_math=False)
    return figure
