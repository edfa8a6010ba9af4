"""Answers by class: how often each class is right, and what it is taken for, from a confusion matrix.

A confusion matrix counts the answers after the last glimpse: (C, C) int64, rows are labels, columns answers.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np


class ClassCounts(NamedTuple):
    """Counts of one class in a confusion matrix."""

    label: int
    images: int
    """Of the class."""
    right: int
    """Of them."""
    answered: int
    """Images of any class that were taken for this one."""

    @property
    def accuracy(self) -> float:
        """Return the share of the class's images that were recognized; NaN without images."""
        return self.right / self.images if self.images else float("nan")

    @property
    def precision(self) -> float:
        """Return the share of the answers of this class that were right; NaN without answers."""
        return self.right / self.answered if self.answered else float("nan")


class Confused(NamedTuple):
    """Images of one class that were taken for another."""

    label: int
    answer: int
    images: int
    share: float
    """Of the images of the label's class."""


def class_counts(confusion: np.ndarray) -> list[ClassCounts]:
    """Return what a confusion matrix says of every class, in the order of the class list."""
    images, right, answered = confusion.sum(1), confusion.diagonal(), confusion.sum(0)
    columns = zip(images.tolist(), right.tolist(), answered.tolist(), strict=True)
    return [ClassCounts(label, *counts) for label, counts in enumerate(columns)]


def confused(confusion: np.ndarray) -> list[Confused]:
    """Return the pairs of classes that were confused, the most frequent first; among equals the larger share."""
    images = confusion.sum(1)
    pairs = [
        Confused(label, answer, count, count / int(images[label]))
        for label, answer, count in filled(confusion)
        if label != answer
    ]
    return sorted(pairs, key=lambda pair: (-pair.images, -pair.share, pair.label, pair.answer))


def filled(confusion: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """Yield (label, answer, images) of what a confusion matrix counted, row by row."""
    labels, answers = np.nonzero(confusion)
    yield from zip(labels.tolist(), answers.tolist(), confusion[labels, answers].tolist(), strict=True)
