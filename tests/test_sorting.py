"""Shards that are sorted by class are told from shuffled ones by their labels."""

from pathlib import Path

import numpy as np
import pytest

from datamodules.shards.index import Shard, ShardIndex
from datamodules.shards.sorting import class_sorted


def index_of(*shards: np.ndarray) -> ShardIndex:
    """An index of shards with these labels; there are no files."""
    made, first = [], 0
    for number, labels in enumerate(shards):
        keys = [str(first + place) for place in range(len(labels))]
        first += len(labels)
        made.append(Shard(f"{number}.tar", 1, "", keys, labels.tolist(), [512] * len(labels), [1] * len(labels)))
    return ShardIndex(Path("shards"), [str(label) for label in range(1000)], made)


def labels_of(classes: int, samples: int, skew: float = 0) -> np.ndarray:
    """Labels in order, of classes of which the first ones are the more frequent, the more the skew."""
    odds = np.arange(1.0, classes + 1) ** -skew
    return np.sort(np.random.default_rng(0).choice(classes, samples, p=odds / odds.sum()))


@pytest.mark.parametrize("skew", [0, 1])
@pytest.mark.parametrize("classes", [2, 10, 1000])
@pytest.mark.parametrize("shard", [30, 100, 1000])
def test_sorted_shards_are_named_and_shuffled_ones_are_not(shard: int, classes: int, skew: float) -> None:
    labels = labels_of(classes, 20_000, skew)
    names = class_sorted(index_of(*np.array_split(labels, len(labels) // shard)))
    assert len(names) > 0.9 * (len(labels) // shard) - 1  # but those on the border of two classes, if there are but two
    for seed in range(5):
        shuffled = np.random.default_rng(seed).permutation(labels)
        assert class_sorted(index_of(*np.array_split(shuffled, len(labels) // shard))) == []


def test_those_that_are_sorted_are_named_among_others() -> None:
    shuffled = np.random.default_rng(0).permutation(np.repeat(np.arange(10), 100))
    parts = np.array_split(shuffled, 10)
    assert class_sorted(index_of(*parts, np.repeat(3, 100), np.repeat([4, 5], 50))) == ["10.tar", "11.tar"]


@pytest.mark.parametrize("shards", [[np.arange(10)], [np.zeros(50, int)], [np.zeros(5, int)] * 3, [np.arange(50), []]])
def test_what_cannot_be_mixed_better_is_not_sorted(shards: list[np.ndarray]) -> None:
    """One shard; one class; a shard without samples."""
    assert class_sorted(index_of(*(np.array(labels, dtype=int) for labels in shards))) == []


def test_the_digits_are_shuffled(data_dir: Path) -> None:
    for split in ("train", "val"):
        assert class_sorted(ShardIndex.read(data_dir / "digits" / split)) == []
