"""A film strip: what the model has seen of a few images after some glimpses, and what it takes them for."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jsonargparse.typing import NonNegativeInt
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure

from callbacks.plots.curves import save
from callbacks.reports.figures import add_figure, garbage_kept_young
from callbacks.reports.records import budgets, of_fit
from mambaeye.contracts import data_of, model_of

TOP = 5
SIDE = 96  # pixels of an image in the picture
TURNS = 32  # glimpses whose way is drawn
UNSEEN = 200


class Film(NamedTuple):
    """One image's way through the model."""

    patches: np.ndarray
    """(T, 3, P, P) uint8."""
    positions: np.ndarray
    """(T, 2), (row, col)."""
    probabilities: np.ndarray
    """(T, C), after every glimpse."""
    label: int


class FilmStrip(Callback):
    """Draws the same few validation images after every validation, as a figure and, after `validate`, as a PNG.

    A row an image: the way of the first glimpses on it, then what has been seen at a few budgets with the probabilities
    of the five classes that win in the end. The image itself is put together from all its glimpses; what none of them
    shows stays gray. The images are the first of the middle cell's loader.

    Args:
        images: How many; 0 for no film strip.
    """

    def __init__(self, images: NonNegativeInt = 3) -> None:
        self.images = images
        self.films: list[Film] = []
        self.side = 0  # of their canvas, in pixels

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.films = []

    @rank_zero_only
    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.images and not self.films and batch.condition == middle(trainer):
            with trainer.precision_plugin.forward_context():
                steps = list(model_of(pl_module).rollout(batch, self.images))
            if steps[0].patches is None:
                return
            patches, positions = (
                torch.cat([getattr(step, name) for step in steps], dim=1) for name in ("patches", "positions")
            )
            probabilities = torch.cat([step.logits for step in steps], dim=1).float().softmax(-1)
            if probabilities.shape[1] != positions.shape[1]:
                return
            self.side = max(batch.scene.canvases.shape[1:3])
            parts = (part.cpu().numpy() for part in (patches, positions, probabilities))
            rows = zip(*parts, batch.labels.tolist(), batch.valid.tolist(), strict=False)
            self.films = [Film(*film) for *film, valid in rows if valid]

    @rank_zero_only
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or not self.films:
            return
        classes = data_of(trainer).classes
        with garbage_kept_young():
            figure = film_strip(self.films, self.side, classes)
            if of_fit(trainer):
                add_figure(trainer, "film_strip", figure)
            else:
                save(figure, Path(trainer.default_root_dir) / "validation" / "film_strip.png")
            del figure


def middle(trainer: Trainer) -> int:
    """Which cell the images are from."""
    return len(data_of(trainer).conditions) // 2


def film_strip(films: list[Film], canvas: int, classes: list[str]) -> Figure:
    """The strip: everything in one pair of axes, whose unit is an image's side; rows run downwards."""
    steps = budgets(list(range(1, len(films[0].positions) + 1)))
    lefts = 1.1 + 2.1 * np.arange(len(steps))  # of what has been seen; the bars are to the right of it
    width, height = 1.1 + 2.1 * len(steps), 1.1 * len(films)
    figure = Figure(figsize=(1.15 * width, 1.15 * height + 0.3), dpi=100)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    axes.text(0, -0.07, f"the first {min(TURNS, steps[-1])}", fontsize=8)
    for left, step in zip(lefts, steps, strict=True):
        axes.text(left, -0.07, f"{step} glimpse{'s' if step > 1 else ''}", fontsize=8)
    ways, bars = [], []  # collected, for one artist draws them faster than many
    for top, film in zip(1.1 * np.arange(len(films)), films, strict=True):
        draw(axes, seen(film, len(film.positions), canvas), 0, top)
        way = (film.positions[:TURNS, ::-1] + film.patches.shape[-1] / 2) / canvas + (0, top)  # (turns, 2), (x, y)
        ways.append(np.stack((way[:-1], way[1:]), axis=1))
        winners = film.probabilities[-1].argsort()[::-1][:TOP]
        for left, step in zip(lefts, steps, strict=True):
            draw(axes, seen(film, step, canvas), left, top)
            for place, winner in enumerate(winners):
                start = left + 1.04, top + 0.1 + 0.2 * place
                end = start[0] + 0.95 * film.probabilities[step - 1, winner], start[1]
                bars.append((start, end, "tab:green" if winner == film.label else "0.7"))
                if step in (steps[0], steps[-1]):
                    axes.text(start[0] + 0.02, start[1], classes[winner][:14], fontsize=6, va="center")
    starts, ends, colors = zip(*bars, strict=True)
    axes.add_collection(LineCollection(list(zip(starts, ends, strict=True)), colors=colors, linewidths=13, zorder=0.5))
    turn = np.tile(np.arange(len(ways[0])), len(films))
    axes.add_collection(LineCollection(np.concatenate(ways), array=turn, cmap="plasma", linewidths=1))
    axes.set(xlim=(-0.05, width), ylim=(height, -0.25), aspect="auto")
    return figure


def draw(axes: Axes, picture: np.ndarray, left: float, top: float) -> None:
    """Put an image with its upper left corner there, without pixels that it would not show at this size."""
    every = max(1, picture.shape[0] // SIDE)
    axes.imshow(picture[::every, ::every], extent=(left, left + 1, top + 1, top), interpolation="nearest")


def seen(film: Film, steps: int, canvas: int) -> np.ndarray:
    """What the first glimpses show of the canvas, the rest gray: (canvas, canvas, 3) uint8."""
    side = film.patches.shape[-1]  # also a margin, for a glimpse of a narrow image may stand over the canvas
    picture = np.full((canvas + 2 * side, canvas + 2 * side, 3), UNSEEN, dtype=np.uint8)
    for patch, (row, col) in zip(film.patches[:steps], film.positions[:steps] + side, strict=True):
        picture[row : row + side, col : col + side] = patch.transpose(1, 2, 0)
    return picture[side:-side, side:-side]
