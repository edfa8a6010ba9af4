"""The report on classes: accuracy by class and the confusion matrix of every validation."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from jsonargparse.typing import NonNegativeInt
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from callbacks.plots.confusion import class_names, confusion_card, confusion_figure
from callbacks.plots.panels import garbage_kept_young, save
from callbacks.reports.due import draws_now, is_fitting, report_folder, result_of
from callbacks.reports.tables import write_csv
from callbacks.reports.tensorboard import add_figure
from mambaeye.atomic import atomic_write
from mambaeye.contracts import model_of
from mambaeye.evaluation.classes import class_counts, confused, filled
from mambaeye.evaluation.result import ConditionResult, Row


class ClassReport(Callback):
    """Writes what every validation measured by class, after the last glimpse of every resolution and scan.

    The folder classes/ of the run directory, or after `validate` of its folder validation/, has accuracy.csv, a row a
    class: its images, how many of them were right, how many images were taken for it, and what it was taken for most;
    confusion.csv, a row for every pair of label and answer that occurred; confusion.json, the same as lists [label,
    answer, images]; and a picture confusion_<resolution>_<scan>.png, whose matrix TensorBoard has too.

    There is no report on more than 4096 classes.

    Args:
        every: In a fit, draw every so many validations, and the first and the last epoch's; 0 for none.
        plots: Draw what validate and test measured; the command line's report.plots.
    """

    def __init__(self, every: NonNegativeInt = 1, plots: bool = True) -> None:
        self.every = every
        self.plots = plots
        self.validations = 0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._report(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._report(trainer, pl_module)

    @rank_zero_only
    def _report(self, trainer: Trainer, pl_module: LightningModule) -> None:
        results = [result for result in result_of(pl_module).conditions if result.confusion is not None]
        if not results:
            return
        folder, classes = classes_folder(trainer), class_names(model_of(pl_module).classes, results[0].num_classes)
        write_csv(folder / "accuracy.csv", [row for result in results for row in accuracy_rows(result, classes)])
        write_csv(folder / "confusion.csv", [row for result in results for row in confusion_rows(result, classes)])
        content = {"classes": classes, "conditions": [confusion_record(result) for result in results]}
        with atomic_write(folder / "confusion.json") as partial:
            partial.write_text(json.dumps(content) + "\n")
        if draws_now(trainer, self.every, self.validations) and (self.plots or is_fitting(trainer)):
            with garbage_kept_young():
                for result in results:
                    save(confusion_figure(result, classes), folder / f"confusion_{result.condition.name}.png")
                    add_figure(trainer, f"confusion/{result.condition.name}", confusion_card(result, classes))
        self.validations += 1


def classes_folder(trainer: Trainer) -> Path:
    """Return the folder for what is said of classes."""
    return (Path(trainer.default_root_dir) if is_fitting(trainer) else report_folder(trainer)) / "classes"


def accuracy_rows(result: ConditionResult, classes: Sequence[str]) -> Iterator[Row]:
    """Yield a row for each class."""
    assert result.confusion is not None
    first = {pair.label: pair for pair in reversed(confused(result.confusion))}
    for one in class_counts(result.confusion):
        pair = first.get(one.label)
        yield result.condition.columns | {
            "label": one.label,
            "class": classes[one.label],
            "images": one.images,
            "right": one.right,
            "accuracy": one.accuracy,
            "answered": one.answered,
            "precision": one.precision,
            "taken_for": classes[pair.answer] if pair else "",
            "taken_for_images": pair.images if pair else 0,
        }


def confusion_rows(result: ConditionResult, classes: Sequence[str]) -> Iterator[Row]:
    """Yield a row for each pair of label and answer that occurred."""
    assert result.confusion is not None
    for label, answer, images in filled(result.confusion):
        names = {"class": classes[label], "taken_for": classes[answer]}
        yield result.condition.columns | {"label": label, "answer": answer, **names, "images": images}


def confusion_record(result: ConditionResult) -> Row:
    """Return what a condition's matrix counted, as JSON has it."""
    assert result.confusion is not None
    counted = [list(entry) for entry in filled(result.confusion)]
    return result.condition.columns | {"step": result.steps[-1], "confusion": counted}
