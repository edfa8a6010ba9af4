"""A run directory, read for its page: whatever is there of it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from callbacks.reports.saved_config import Plain, config_text, config_values
from mambaeye.batch import EvaluationCondition
from mambaeye.errors import InputError
from mambaeye.evaluation.result import Row

PICTURES = {"film_strip": "A few images, as they are seen", "mistakes": "The most confident mistakes"}
MANY = 100  # classes, of which a picture of the matrix is shown
FOLDERS = ("", "classes", "validation", "validation/classes")  # that fit and validate leave pictures and counts in


@dataclass(frozen=True)
class Run:
    """All that a page shows of one run."""

    name: str
    """Told apart from other runs' by it."""
    config: dict[str, Plain]
    """By the flags' names without dashes."""
    training: list[Row]
    """Lines of curves.jsonl, of the kind training."""
    validations: list[Row]
    """Those of the kind validation, one for each condition and epoch."""
    last: list[Row]
    """Those of the last validation, of a fit or of validate, one for each condition."""
    classes: list[str]
    """Names; none where no validation has written them."""
    confusions: list[tuple[EvaluationCondition, list[tuple[int, int, int]]]]
    """(label, answer, images) of every condition."""
    pictures: list[tuple[str, bytes]]
    """Titles and PNG files."""

    @property
    def conditions(self) -> list[EvaluationCondition]:
        """Return what the last validation measured."""
        return [condition_of(record) for record in self.last]


def read_run(path: Path, name: str) -> Run:
    """Read a run directory.

    Raises:
        InputError: there is no validation in it.
    """
    records, own = path / "curves.jsonl", path / "validation" / "curves.jsonl"
    lines = [*read_lines(records)]
    validations = [line for line in lines if line["kind"] == "validation"]
    last = [line for line in validations if line["optimizer_step"] == validations[-1]["optimizer_step"]]
    if own.exists() and (not last or own.stat().st_mtime >= records.stat().st_mtime):
        last = [*read_lines(own)]
    if not last:
        raise InputError(f"{path} has no curves.jsonl with a validation: give run directories of fit or validate")
    classes, confusions = read_classes(path)
    titles = dict(PICTURES)
    if len(classes) > MANY:
        condition, _ = confusions[len(confusions) // 2]
        titles[f"confusion_{condition.name}"] = "Who was taken for whom"
    return Run(
        name=name,
        config=config_values(config_text(path) or "{}"),
        training=[line for line in lines if line["kind"] == "training"],
        validations=validations,
        last=last,
        classes=classes,
        confusions=confusions,
        pictures=[*read_pictures(path, titles)],
    )


def read_lines(path: Path) -> Iterator[Row]:
    """Yield the lines of a curves.jsonl, without one that a kill cut off; none if there is no file."""
    if path.exists():
        for line in path.read_text().splitlines(keepends=True):
            if line.endswith("\n"):
                yield json.loads(line)


def read_classes(path: Path) -> tuple[list[str], list[tuple[EvaluationCondition, list[tuple[int, int, int]]]]]:
    """Return class names and what was counted under every condition, of the validation that was last."""
    found = [place for folder in FOLDERS if (place := path / folder / "confusion.json").exists()]
    if not found:
        return [], []
    content: dict[str, Any] = json.loads(newest(found).read_text())
    counted = [(condition_of(entry), [tuple(one) for one in entry["confusion"]]) for entry in content["conditions"]]
    return content["classes"], counted


def read_pictures(path: Path, titles: Mapping[str, str]) -> Iterator[tuple[str, bytes]]:
    """Yield pictures with their titles, each of the validation that was last."""
    for name, title in titles.items():
        found = [place for folder in FOLDERS if (place := path / folder / f"{name}.png").exists()]
        if found:
            yield title, newest(found).read_bytes()


def newest(paths: Sequence[Path]) -> Path:
    """Return the file that was written last."""
    return max(paths, key=lambda path: path.stat().st_mtime)


def condition_of(record: Row) -> EvaluationCondition:
    """Return the condition of a record."""
    return EvaluationCondition(record["resolution"], record["scan"], record.get("frames"))
