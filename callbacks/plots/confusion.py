"""Answers by class, drawn: the confusion matrix, the classes that are right least often, and what is confused most."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure

from callbacks.plots.wording import counted, percent, shortened
from mambaeye.evaluation.classes import ClassCounts, class_counts, confused
from mambaeye.evaluation.result import ConditionResult

NAMED, NUMBERED = 50, 14  # classes at most whose names are at the axes, and whose counts are in the matrix
PIXELS = 250  # squares along the matrix, at most
LISTED = 16  # classes, and pairs, that are listed
NAME = 16  # letters
FIGURE = (14.5, 5.2)  # inches
CARD = (4.8, 5.0)  # inches of what is shown small


def confusion_figure(result: ConditionResult, classes: Sequence[str]) -> Figure:
    """Draw the confusion matrix after the last glimpse, accuracy by class, and the pairs that are confused most.

    Shares are of a class's images, dark where they are large. Of very many classes a square stands for some next to
    each other and shows the largest share among them, so that none is lost.

    Args:
        result: of one condition, with its confusion matrix.
        classes: names; numbers stand for those that are not known.
    """
    assert result.confusion is not None
    names = class_names(classes, result.num_classes)
    figure = Figure(figsize=FIGURE, dpi=100)
    right, images = int(result.confusion.trace()), int(result.confusion.sum())
    title = f"{result.title}, after {counted(result.steps[-1], 'glimpse')}: {right} of {images} images right"
    figure.text(0.01, 0.96, title, fontsize=11)
    draw_matrix(figure.add_axes((0.08, 0.21, 0.29, 0.7)), result.confusion, names)
    draw_accuracy(figure.add_axes((0.475, 0.08, 0.12, 0.8)), class_counts(result.confusion), names)
    draw_pairs(figure.add_axes((0.865, 0.08, 0.12, 0.8)), result.confusion, names)
    return figure


def confusion_card(result: ConditionResult, classes: Sequence[str]) -> Figure:
    """Draw the confusion matrix alone, legible at TensorBoard's default size.

    Args:
        result: of one condition, with its confusion matrix.
        classes: names; numbers stand for those that are not known.
    """
    assert result.confusion is not None
    figure = Figure(figsize=CARD, dpi=100)
    right, images = int(result.confusion.trace()), int(result.confusion.sum())
    figure.text(0.02, 0.95, f"{result.title}: {right} of {images} images right", fontsize=11)
    draw_matrix(figure.add_axes((0.23, 0.22, 0.74, 0.71)), result.confusion, class_names(classes, result.num_classes))
    return figure


def class_names(classes: Sequence[str], number: int) -> list[str]:
    """Return the names of so many classes; numbers where they are not known."""
    return list(classes) if len(classes) == number else [str(label) for label in range(number)]


def draw_matrix(axes: Axes, confusion: np.ndarray, names: Sequence[str]) -> None:
    """Draw shares of each label's images: a row a label."""
    number = len(names)
    shares = shares_of(confusion)
    shown = pooled(shares, PIXELS)
    edges = (-0.5, number - 0.5, number - 0.5, -0.5)
    axes.imshow(shown, cmap="Blues", norm=PowerNorm(0.5, 0, 1), extent=edges, interpolation="nearest")
    if number <= NUMBERED:
        for label, answer in np.argwhere(confusion).tolist():
            color = "white" if shares[label, answer] > 0.35 else "black"
            axes.text(answer, label, confusion[label, answer], ha="center", va="center", fontsize=8, color=color)
    if number <= NAMED:
        size = 8 if number <= 2 * NUMBERED else 5.5
        labels = [shortened(name, NAME) for name in names]
        axes.set_xticks(range(number), labels, rotation=90, fontsize=size, parse_math=False)
        axes.set_yticks(range(number), labels, fontsize=size, parse_math=False)
    else:
        axes.tick_params(labelsize=8)
    axes.tick_params(length=2)
    axes.set_xlabel("taken for", fontsize=9)
    axes.set_ylabel("class", fontsize=9)
    axes.spines[:].set(color="0.7")


def shares_of(confusion: np.ndarray) -> np.ndarray:
    """Return a confusion matrix as shares of every row, zeros where it has no images: (C, C) float64."""
    return confusion / np.maximum(confusion.sum(1, keepdims=True), 1)


def pooled(shares: np.ndarray, most: int) -> np.ndarray:
    """Return a matrix of at most so many rows and columns, each of its entries the largest of a square block."""
    side = -(-len(shares) // most)
    padded = np.pad(shares, (0, -len(shares) % side))
    return padded.reshape(len(padded) // side, side, -1, side).max(axis=(1, 3))


def draw_accuracy(axes: Axes, counts: Sequence[ClassCounts], names: Sequence[str]) -> None:
    """Draw the accuracy of the classes that are right least often, the worst first."""
    seen = sorted((one for one in counts if one.images), key=lambda one: (one.accuracy, one.label))
    worst = seen[:LISTED]
    bars(axes, [names[one.label] for one in worst], [one.accuracy for one in worst], "tab:blue")
    for place, one in enumerate(worst):
        axes.text(1.03, place, f"{percent(one.accuracy)} of {one.images}", va="center", fontsize=7.5)
    axes.set_xlim(0, 1)
    shown = f"{LISTED} worst of {len(seen)} classes" if len(seen) > LISTED else "worst first"
    axes.set_title(f"accuracy, {shown}", fontsize=9, loc="left")


def draw_pairs(axes: Axes, confusion: np.ndarray, names: Sequence[str]) -> None:
    """Draw the pairs of classes that are confused most."""
    pairs = confused(confusion)
    most = pairs[:LISTED]
    labels = [
        f"{shortened(names[pair.label], NAME)} \N{RIGHTWARDS ARROW} {shortened(names[pair.answer], NAME)}"
        for pair in most
    ]
    bars(axes, labels, [pair.images for pair in most], "tab:orange", 2 * NAME + 3)
    for place, pair in enumerate(most):
        axes.text(pair.images, place, f" {pair.images}", va="center", fontsize=7.5)
    if most:
        axes.set_xlim(0, 1.25 * most[0].images)
    wrong = sum(pair.images for pair in pairs)
    axes.set_title(f"images taken for another class, {wrong} in all", fontsize=9, loc="right")


def bars(axes: Axes, labels: Sequence[str], values: Sequence[float], color: str, letters: int = NAME) -> None:
    """Draw labelled bars, the first on top."""
    axes.barh(range(len(values)), values, color=color, height=0.7)
    texts = [shortened(label, letters) for label in labels]
    axes.set_yticks(range(len(values)), texts, fontsize=8, parse_math=False)
    axes.set_ylim(LISTED - 0.4, -0.6)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[["top", "right", "bottom"]].set_visible(False)
