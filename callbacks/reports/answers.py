"""Answers to every image of a validation, from all processes."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks.reports.due import is_reporting, report_folder, result_of
from callbacks.reports.ranks import of_all_ranks
from callbacks.reports.tables import write_csv
from mambaeye.batch import CanvasBatch
from mambaeye.evaluation.result import Row


class Answers(Callback):
    """Leaves what validate or test answered to each image, so that two runs can be compared image by image.

    The folder answers/ of validation/ (or test/) in the run directory has a table <resolution>_<scan>.csv for each
    resolution and scan: a row an image, by key, with key and label, and for every reported step, such as 64, answer_64,
    the class (an index, like the label), and confidence_64, its probability. An image's key and label are those in the
    shards, or in a folder of pictures.

    Args:
        write: Write them: as many numbers for each resolution and scan as there are images times reported steps.
    """

    def __init__(self, write: bool = False) -> None:
        self.write = write
        self.found: dict[int, list[BatchAnswers]] = defaultdict(list)  # by condition

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.found.clear()

    on_test_start = on_validation_start

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: CanvasBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self.write and is_reporting(trainer):
            self.found[batch.condition].append(answers_in(batch, outputs))

    on_test_batch_end = on_validation_batch_end

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.write or not is_reporting(trainer):
            return
        for place, result in enumerate(result_of(pl_module).conditions):
            found = of_all_ranks(self.found.pop(place, []))
            if trainer.is_global_zero:
                path = report_folder(trainer) / "answers" / f"{result.condition.name}.csv"
                write_csv(path, by_key(found, result.report_at))

    on_test_end = on_validation_end


class BatchAnswers(NamedTuple):
    """Answers to the B images of a batch that count, after R reported steps."""

    keys: list[str]
    labels: np.ndarray
    """(B,) int64."""
    answers: np.ndarray
    """(B, R) int32: the likeliest classes."""
    confidence: np.ndarray
    """(B, R) float32: their probabilities."""


def answers_in(batch: CanvasBatch, outputs: Mapping[str, Tensor]) -> BatchAnswers:
    """Return the answers that a validation step gave to a batch, without rows that only fill it up."""
    valid = batch.valid.cpu().numpy()
    return BatchAnswers(
        keys=[key for key, counts in zip(batch.keys, valid, strict=True) if counts],
        labels=batch.labels.cpu().numpy()[valid],
        answers=outputs["answers"].int().cpu().numpy()[valid],
        confidence=outputs["confidence"].float().cpu().numpy()[valid],
    )


def by_key(found: Sequence[BatchAnswers], steps: Sequence[int]) -> list[Row]:
    """Return a row for each image, whoever it was answered by, in the order of the keys."""
    rows = [row for batch in found for row in rows_of(batch, steps)]
    return sorted(rows, key=lambda row: tuple(row.values()))  # keys may come twice, in several shards


def rows_of(batch: BatchAnswers, steps: Sequence[int]) -> Iterator[Row]:
    """Yield a row for each image of a batch."""
    for key, label, answers, confidence in zip(*batch, strict=True):
        row: Row = {"key": key, "label": int(label)}
        for step, answer, share in zip(steps, answers, confidence, strict=True):
            row |= {f"answer_{step}": int(answer), f"confidence_{step}": f"{share:.4f}"}
        yield row
