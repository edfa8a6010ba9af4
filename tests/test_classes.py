"""Answers by class: against scikit-learn, against the metrics by step, and what is written and drawn of them."""

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, precision_score, recall_score
from test_callbacks import KeepResults, fit

from callbacks.plots.confusion import confusion_card, confusion_figure, pooled
from callbacks.reports.class_report import ClassReport, accuracy_rows, confusion_rows
from mambaeye.batch import EvaluationCondition
from mambaeye.evaluation.classes import class_counts, confused, filled
from mambaeye.evaluation.metrics import ConfusionMetric
from mambaeye.evaluation.result import ConditionResult


def counted(labels: Sequence[int], answers: Sequence[int], classes: int) -> ConditionResult:
    """A condition of which nothing but the answers is known."""
    matrix = confusion_matrix(labels, answers, labels=range(classes))
    samples = np.array([len(labels)])
    return ConditionResult(EvaluationCondition(48, "random"), classes, [9], [9], samples, {}, samples, {}, {}, matrix)


@pytest.mark.parametrize("classes", [2, 7, 1000])
def test_counts_are_scikit_learns(classes: int) -> None:
    draw = np.random.default_rng(classes)
    labels, answers = draw.integers(classes, size=(2, 500))
    answers = np.where(draw.random(500) < 0.6, labels, answers)
    metric = ConfusionMetric(classes)
    for part in range(0, 500, 70):  # batches, each with two rows of filler
        some = slice(part, part + 70)
        logits = torch.eye(classes)[[*answers[some], 0, 1]]
        target, valid = torch.tensor([*labels[some], 1, 1]), torch.tensor([*[True] * len(labels[some]), False, False])
        metric.update(logits, target, valid)
    matrix = metric.finish().numpy()
    assert metric.compute().sum() == 0
    assert (matrix == confusion_matrix(labels, answers, labels=range(classes))).all()
    counts = class_counts(matrix)
    for average, name in ((recall_score, "accuracy"), (precision_score, "precision")):
        expected = average(labels, answers, labels=range(classes), average=None, zero_division=np.nan)
        assert [getattr(one, name) for one in counts] == pytest.approx(expected.tolist(), nan_ok=True)
    assert sum(images for _, _, images in filled(matrix)) == 500
    pairs = confused(matrix)
    assert sum(pair.images for pair in pairs) == (labels != answers).sum()
    assert [pair.images for pair in pairs] == sorted((pair.images for pair in pairs), reverse=True)


def test_the_diagonal_is_top1_and_padding_counts_nothing(data_dir: Path, tmp_path: Path) -> None:
    """397 images in batches of 50: the last has three rows of filler under every condition."""
    keep = KeepResults()
    trainer = fit(tmp_path, data_dir, keep, limit_val_batches=None, lr=0.01, max_epochs=2)
    assert len(keep.results) == 2
    labels = np.bincount(trainer.datamodule.indices["val"].labels, minlength=10)
    for result in (one for told in keep.results for one in told.conditions):
        assert result.confusion is not None
        assert result.confusion.sum(1).tolist() == labels.tolist()
        assert result.confusion.trace() == round(result["top1"][-1] * 397)


def test_rows_name_every_class_and_what_it_is_taken_for_most() -> None:
    result = counted([0, 0, 0, 0, 1, 1], [0, 1, 2, 2, 1, 1], 4)
    rows = list(accuracy_rows(result, ["a", "b", "c", "d"]))
    assert [(row["class"], row["images"], row["right"], row["answered"]) for row in rows] == [
        *[("a", 4, 1, 1), ("b", 2, 2, 3), ("c", 0, 0, 2), ("d", 0, 0, 0)]
    ]
    assert [(row["taken_for"], row["taken_for_images"]) for row in rows] == [("c", 2), ("", 0), ("", 0), ("", 0)]
    pairs = [(row["class"], row["taken_for"], row["images"]) for row in confusion_rows(result, ["a", "b", "c", "d"])]
    assert pairs == [("a", "a", 1), ("a", "b", 1), ("a", "c", 2), ("b", "b", 2)]


def test_every_validation_writes_its_classes(data_dir: Path, tmp_path: Path) -> None:
    """A fit into classes/, validate into validation/classes/: tables, lists and a picture of every condition."""
    trainer = fit(tmp_path, data_dir, ClassReport(every=0), limit_val_batches=None)
    assert {path.name for path in (tmp_path / "classes").iterdir()} == {
        *["accuracy.csv", "confusion.csv", "confusion.json"]
    }
    trainer.validate(trainer.lightning_module, datamodule=trainer.datamodule, verbose=False)
    folder = tmp_path / "validation" / "classes"
    assert (folder / "confusion_32_random.png").exists()
    assert (folder / "confusion_40_random.png").exists()
    (report,) = (callback for callback in trainer.callbacks if isinstance(callback, ClassReport))
    report.plots = False
    for picture in folder.glob("*.png"):
        picture.unlink()
    trainer.validate(trainer.lightning_module, datamodule=trainer.datamodule, verbose=False)
    assert not [*folder.glob("*.png")]
    with (folder / "accuracy.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 10
    content = json.loads((folder / "confusion.json").read_text())
    right = {(row["resolution"], row["scan"]): 0 for row in rows}
    for row in rows:
        right[row["resolution"], row["scan"]] += int(row["right"])
    for condition in content["conditions"]:
        diagonal = sum(images for label, answer, images in condition["confusion"] if label == answer)
        assert diagonal == right[str(condition["resolution"]), condition["scan"]]
        assert sum(images for *_, images in condition["confusion"]) == 397


@pytest.mark.parametrize("classes", [2, 14, 50, 1000])
def test_a_matrix_of_any_size_is_drawn_with_its_worst_classes(classes: int) -> None:
    draw = np.random.default_rng(0)
    labels = np.repeat(np.arange(classes), 2)
    answers = np.where(draw.random(len(labels)) < 0.5, labels, (labels + 1) % classes)
    names = [f"<b>$class_{label}$" for label in range(classes)]
    result = counted(labels.tolist(), answers.tolist(), classes)
    matrix, accuracy, _ = confusion_figure(result, names).axes
    shown = matrix.images[0].get_array()
    (alone,) = confusion_card(result, names).axes
    assert (alone.images[0].get_array() == shown).all()
    assert shown.shape == ((classes, classes) if classes < 1000 else (250, 250))
    assert len(matrix.texts) == (len({*zip(labels, answers, strict=True)}) if classes <= 14 else 0)
    widths = [bar.get_width() for bar in accuracy.patches]
    assert len(widths) == min(classes, 16)
    assert widths == sorted(widths)


def test_pooling_loses_no_large_share() -> None:
    shares = np.zeros((1001, 1001))
    shares[1000, 3], shares[7, 1000] = 0.9, 0.4
    small = pooled(shares, 250)
    assert small.shape == (201, 201)
    assert sorted(small[small > 0].tolist()) == [0.4, 0.9]
    assert small[200, 0] == 0.9
    assert small[1, 200] == 0.4


def test_of_too_many_classes_there_is_no_report(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mambaeye.evaluation.sums.MOST_CLASSES", 9)
    keep = KeepResults()
    fit(tmp_path, data_dir, keep, ClassReport(), limit_val_batches=1)
    assert [one.confusion for one in keep.results[0].conditions] == [None, None]
    assert not (tmp_path / "classes").exists()
