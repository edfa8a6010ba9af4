"""What a validation leaves behind: a table on the console, validation.json, and tables and pictures of its curves."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from callbacks.pictures import (
    accuracy_and_confidence,
    accuracy_by_glimpse,
    against_information_ratio,
    ece_by_epoch,
    reliability,
    save,
    training_curves,
)
from callbacks.records import BINS, BY_STEP, RATIO, Record, read_records, records_path, validation_records
from callbacks.whole import written_whole


class ValidationReport(Callback):
    """Writes validation.json (or test.json) below the run directory; validate and test print it, draw it and more.

    validation.json is the module's `validation_rows`: one dictionary for each resolution, scan and step. After
    validate, the folder validation/ has all that there is, as CSV and PNG files: curves by step, reliability at a few
    budgets, confidence against the information ratio, and what the run's curves.jsonl tells of its training.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.report(trainer, pl_module.validation_rows, "validation")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.report(trainer, pl_module.validation_rows, "test")

    @rank_zero_only
    def report(self, trainer: Trainer, rows: list[dict[str, Any]], name: str) -> None:
        """Write <run directory>/<name>.json; unless training goes on, <name>.png, <name>/* and the table too."""
        path = Path(trainer.default_root_dir) / f"{name}.json"
        with written_whole(path) as partial:
            partial.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
        if trainer.state.fn != TrainerFn.FITTING:
            records = validation_records(trainer)
            save(accuracy_by_glimpse(records), path.with_suffix(".png"))
            write_validation(path.with_suffix(""), records)
            write_history(path.with_suffix(""), records_path(trainer))
            Console().print(accuracy_table(rows))
            Console().print(f"{path} has every number, {path.with_suffix('')}/ curves and pictures", soft_wrap=True)


def write_validation(folder: Path, records: list[Record]) -> None:
    """All that records of a validation hold, as CSV and PNG files."""
    write_table(folder / "curves.csv", list(by_step(records)))
    write_table(folder / "reliability.csv", list(by_bin(records)))
    write_table(folder / "information_ratio.csv", list(by_ratio(records)))
    save(accuracy_and_confidence(records), folder / "confidence.png")
    save(reliability(records), folder / "reliability.png")
    save(against_information_ratio(records), folder / "information_ratio.png")


def write_history(folder: Path, curves: Path) -> None:
    """What a curves.jsonl holds of the training that led here, if it is there."""
    if training := read_records(curves, "training"):
        write_table(folder / "training.csv", training)
        save(training_curves(training), folder / "training.png")
    if validations := read_records(curves, "validation"):
        save(ece_by_epoch(validations), folder / "ece_by_epoch.png")


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Rows as a CSV file; what a row does not have stays empty."""
    columns = dict.fromkeys(name for row in rows for name in row)
    with written_whole(path) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def by_step(records: list[Record]) -> Iterator[dict[str, Any]]:
    """A row for each cell and kept step."""
    for record in records:
        for values in zip(record["steps"], *(record[name] for name in BY_STEP), strict=True):
            yield cell(record) | dict(zip(("step", *BY_STEP), values, strict=True))


def by_bin(records: list[Record]) -> Iterator[dict[str, Any]]:
    """A row for each cell, budget and confidence bin."""
    for record in records:
        for bins in record["reliability"]:
            for values in zip(record["bin_edges"], *(bins[name] for name in BINS), strict=True):
                yield cell(record) | {"step": bins["step"]} | dict(zip(("bin_edge", *BINS), values, strict=True))


def by_ratio(records: list[Record]) -> Iterator[dict[str, Any]]:
    """A row for each cell and bin of the information ratio."""
    for record in records:
        for values in zip(*(record[name] for name in RATIO), strict=True):
            yield cell(record) | dict(zip(RATIO, values, strict=True))


def cell(record: Record) -> dict[str, Any]:
    """Where a record was measured."""
    return {"resolution": record["resolution"], "scan": record["scan"]}


def accuracy_table(rows: list[dict[str, Any]]) -> Table:
    """Top-1 by glimpses for every canvas side and scan; after the last one top-5, mean confidence and ECE. All in %."""
    steps = sorted({row["step"] for row in rows})
    title = f"Top-1 (%) after so many glimpses, {rows[0]['samples']} images"
    table = Table(title=title, box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for heading in ("side", "scan", *map(str, steps), "top-5", "sure", "ECE"):
        table.add_column(heading, justify="left" if heading == "scan" else "right", no_wrap=True)
    for resolution, scan in dict.fromkeys((row["resolution"], row["scan"]) for row in rows):
        cell = {row["step"]: row for row in rows if (row["resolution"], row["scan"]) == (resolution, scan)}
        last = cell[steps[-1]]
        shares = [*(cell[step]["top1"] for step in steps), last["top5"], last["confidence"], last["ece"]]
        table.add_row(str(resolution), scan, *(f"{100 * share:.1f}" for share in shares))
    return table
