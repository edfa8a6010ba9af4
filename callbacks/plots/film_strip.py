"""A film strip: what a model has seen of a few images after some glimpses, and what it takes them for."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from callbacks.plots.colors import as_rgb
from callbacks.plots.wording import counted
from mambaeye.evaluation.result import spread_steps

TOP = 5
SIDE = 96  # pixels of an image in the figure
TURNS = 32  # glimpses whose way is drawn
UNSEEN = 200  # gray


class Film(NamedTuple):
    """One image's way through the model."""

    patches: np.ndarray
    """(T, C, P, P) uint8 or uint16."""
    positions: np.ndarray
    """(T, 2) integers, (row, col)."""
    probabilities: np.ndarray
    """(T, C) floating, after every glimpse."""
    label: int


def film_strip(films: Sequence[Film], canvas: int, classes: Sequence[str]) -> Figure:
    """Draw a row an image: the way of its first glimpses; what a few counts of them show, and what it was taken for.

    The image itself is put together from all its glimpses. Everything is in one pair of axes, whose unit is an image's
    side; rows run downwards.

    Args:
        films: of at least one image, all of as many glimpses.
        canvas: side in pixels.
        classes: names.
    """
    steps = spread_steps(list(range(1, len(films[0].positions) + 1)))
    lefts = 1.1 + 2.1 * np.arange(len(steps))  # of what has been seen; the bars are to the right of it
    width, height = 1.1 + 2.1 * len(steps), 1.1 * len(films)
    figure = Figure(figsize=(1.15 * width, 1.15 * height + 0.3), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    axes.text(0, -0.07, f"the first {min(TURNS, steps[-1])}", fontsize=8)
    for left, step in zip(lefts, steps, strict=True):
        axes.text(left, -0.07, counted(step, "glimpse"), fontsize=8)
    ways, bars = [], []  # collected, for one artist draws them faster than many
    for top, film in zip(1.1 * np.arange(len(films)), films, strict=True):
        show_image(axes, seen(film, len(film.positions), canvas), 0, top)
        way = (film.positions[:TURNS, ::-1] + film.patches.shape[-1] / 2) / canvas + (0, top)  # (turns, 2), (x, y)
        ways.append(np.stack((way[:-1], way[1:]), axis=1))
        winners = film.probabilities[-1].argsort()[::-1][:TOP].tolist()
        for left, step in zip(lefts, steps, strict=True):
            show_image(axes, seen(film, step, canvas), left, top)
            for place, winner in enumerate(winners):
                start = left + 1.04, top + 0.1 + 0.2 * place
                end = start[0] + 0.95 * film.probabilities[step - 1, winner], start[1]
                bars.append((start, end, "tab:green" if winner == film.label else "0.7"))
                if step in (steps[0], steps[-1]):
                    axes.text(start[0] + 0.02, start[1], classes[winner][:14], fontsize=6, va="center")
    starts, ends, colors = zip(*bars, strict=True)
    axes.add_collection(LineCollection(list(zip(starts, ends, strict=True)), colors=colors, linewidths=13, zorder=0.5))
    turn = np.tile(np.arange(len(ways[0])), len(films))
    axes.add_collection(LineCollection(list(np.concatenate(ways)), array=turn, cmap="plasma", linewidths=1))
    axes.set(xlim=(-0.05, width), ylim=(height, -0.25), aspect="auto")
    return figure


def show_image(axes: Axes, image: np.ndarray, left: float, top: float) -> None:
    """Put an image with its upper left corner there, without pixels that it would not show at this size."""
    every = max(1, image.shape[0] // SIDE)
    axes.imshow(image[::every, ::every], extent=(left, left + 1, top + 1, top), interpolation="nearest")


def seen(film: Film, steps: int, canvas: int) -> np.ndarray:
    """Return what the first glimpses show of the canvas, the rest gray: (canvas, canvas, 3) uint8."""
    side = film.patches.shape[-1]  # also a margin, for a glimpse of a narrow image may stand over the canvas
    image = np.full((canvas + 2 * side, canvas + 2 * side, 3), UNSEEN, dtype=np.uint8)
    for patch, (row, col) in zip(film.patches[:steps], film.positions[:steps] + side, strict=True):
        image[row : row + side, col : col + side] = as_rgb(patch.transpose(1, 2, 0))
    return image[side:-side, side:-side]
