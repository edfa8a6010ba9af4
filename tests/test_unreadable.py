"""The rule for samples that cannot be read: one worker's part of it, and the count in the process that trains."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from datamodules.loading.unreadable import UnreadableRule
from datamodules.shards.index import ShardIndex
from datamodules.views.train import TrainingGlimpses, TrainView
from mambaeye.batch import GlimpseBatch
from mambaeye.errors import InputError


@pytest.fixture
def index(data_dir: Path) -> ShardIndex:
    return ShardIndex.read(data_dir / "digits" / "val")


def unreadable() -> int:
    raise InputError("the image of sample x does not decode")


def test_what_is_readable_passes(index: ShardIndex) -> None:
    for max_unreadable in (0, 3):
        assert UnreadableRule(index, max_unreadable).attempt(5, lambda: 7) == 7


def test_an_unreadable_sample_ends_the_pass_or_is_left_out(index: ShardIndex, caplog: pytest.LogCaptureFixture) -> None:
    said = f"the image of sample x does not decode (in {index.source(250)})"
    with pytest.raises(InputError) as error:
        UnreadableRule(index, 0).attempt(250, unreadable)
    assert str(error.value) == said
    with caplog.at_level(logging.WARNING):
        assert UnreadableRule(index, 1).attempt(250, unreadable) is None
    assert caplog.messages == [f"left out: {said}"]


def test_other_errors_are_not_swallowed(index: ShardIndex) -> None:
    with pytest.raises(ZeroDivisionError):
        UnreadableRule(index, 9).attempt(0, lambda: 1 // 0)


def batches(*rows: list[tuple[str, bool]]) -> Iterator[GlimpseBatch]:
    filler = TrainingGlimpses(TrainView(num_glimpses=1), 16).filler("")
    for batch in rows:
        yield filler._replace(keys=[key for key, _ in batch], valid=torch.tensor([valid for _, valid in batch]))


def test_samples_are_counted_once_and_fillers_not_at_all(index: ShardIndex, caplog: pytest.LogCaptureFixture) -> None:
    given = [[("a", True), ("b", False)], [("b", False), ("c", True)], [("d", False), ("", False)]]
    with caplog.at_level(logging.WARNING):
        passed = list(UnreadableRule(index, 2).counted(batches(*given)))
    assert [batch.keys for batch in passed] == [["a", "b"], ["b", "c"], ["d", ""]]
    assert caplog.messages == [f"2 samples of {index.folder} were left out of this pass"]
    some = UnreadableRule(index, 1).counted(batches(*given))
    assert [next(some).keys, next(some).keys] == [["a", "b"], ["b", "c"]]
    message = r"^2 samples of .* not be read, more than the 1 of --data.loader.max_unreadable \(b, d, ...\): repair"
    with pytest.raises(InputError, match=message):
        next(some)


def test_nothing_is_said_where_nothing_is_missing(index: ShardIndex, caplog: pytest.LogCaptureFixture) -> None:
    assert len(list(UnreadableRule(index, 0).counted(batches([("a", True)], [("", False)])))) == 2
    assert not caplog.messages
