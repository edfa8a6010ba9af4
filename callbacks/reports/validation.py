"""What a validation leaves behind: a table on the console, validation.json, and tables and pictures of its curves."""

import csv
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from callbacks.plots.curves import (
    accuracy_and_confidence,
    against_information_ratio,
    ece_by_epoch,
    reliability,
    save,
    training_curves,
)
from callbacks.plots.sweeps import accuracy_by_area, accuracy_by_glimpse, accuracy_by_resolution, stopping
from callbacks.reports.records import (
    BINS,
    BY_STEP,
    RATIO,
    Record,
    read_records,
    records_path,
    validation_records,
)
from callbacks.reports.tables import (
    Row,
    accuracy_table,
    cells,
    early_table,
    markdown,
    on_console,
)
from mambaeye.atomic import atomic_write
from mambaeye.contracts import data_of, model_of

COLUMNS = 7  # of glimpse counts, in a table on the console


class ValidationReport(Callback):
    """Writes validation.json (or test.json) below the run directory; validate and test print it, draw it and more.

    validation.json has `rows`, the module's `validation_rows`: one dictionary for each resolution, scan and step; and
    after validate `stopping`, its `stopping_rows`: one for each resolution, scan and rule for stopping early. After
    validate, the folder validation/ has all that there is, as Markdown, CSV and PNG files: tables, curves by step,
    reliability at a few budgets, confidence against the information ratio, accuracy against resolution and area seen,
    answers given early, and what the run's curves.jsonl tells of its training.
    """

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.began = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.report(trainer, pl_module, "validation")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.began = time.perf_counter()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.report(trainer, pl_module, "test")

    @rank_zero_only
    def report(self, trainer: Trainer, pl_module: LightningModule, name: str) -> None:
        """Write <run directory>/<name>.json; unless training goes on, <name>.png, <name>/* and the tables too."""
        seconds = time.perf_counter() - self.began
        result = model_of(pl_module).result
        assert result is not None
        rows, early = result.rows(), result.early_exit_rows()
        path = Path(trainer.default_root_dir) / f"{name}.json"
        with atomic_write(path) as partial:
            content = {"rows": rows} | ({"early_exit": early} if early else {})
            partial.write_text(json.dumps(content, indent=1) + "\n")
        if trainer.state.fn != TrainerFn.FITTING:
            records = validation_records(trainer)
            save(accuracy_by_glimpse(records), path.with_suffix(".png"))
            write_validation(path.with_suffix(""), records)
            write_history(path.with_suffix(""), records_path(trainer))
            with atomic_write(path.with_suffix("") / "table.md") as partial:
                partial.write_text(markdown(*accuracy_table(rows)))
            console = Console()
            console.print(on_console(*accuracy_table(rows, COLUMNS)))
            if early:
                write_stopping(path.with_suffix(""), records, early)
                console.print(on_console(*early_table(rows, early)))
            console.print(speed(trainer, rows, seconds), soft_wrap=True)
            console.print(f"{path} has every number, {path.with_suffix('')}/ curves and pictures", soft_wrap=True)


def speed(trainer: Trainer, rows: list[Row], seconds: float) -> str:
    """How long it took, and how much of that this process waited for its loader."""
    glimpses = len(cells(rows)) * rows[0]["samples"] * max(row["step"] for row in rows)
    waited = data_of(trainer).evaluation_wait / seconds
    return f"{glimpses:,} glimpses in {seconds:.1f} s, {100 * waited:.0f}% of it waiting for data"


def write_validation(folder: Path, records: list[Record]) -> None:
    """All that records of a validation hold, as CSV and PNG files."""
    write_table(folder / "curves.csv", list(by_step(records)))
    write_table(folder / "reliability.csv", list(by_bin(records)))
    write_table(folder / "information_ratio.csv", list(by_ratio(records)))
    save(accuracy_and_confidence(records), folder / "confidence.png")
    save(reliability(records), folder / "reliability.png")
    save(against_information_ratio(records), folder / "information_ratio.png")
    save(accuracy_by_resolution(records), folder / "resolution.png")
    save(accuracy_by_area(records), folder / "area.png")


def write_stopping(folder: Path, records: list[Record], early: list[Row]) -> None:
    """Answers given early, as a table and pictures of their accuracy and calibration."""
    write_table(folder / "early_exit.csv", early)
    save(stopping(records, early, "top1", "top-1"), folder / "early_exit.png")
    save(stopping(records, early, "ece", "ECE"), folder / "early_exit_ece.png")


def write_history(folder: Path, curves: Path) -> None:
    """What a curves.jsonl holds of the training that led here, if it is there."""
    if training := read_records(curves, "training"):
        write_table(folder / "training.csv", training)
        save(training_curves(training), folder / "training.png")
    if validations := read_records(curves, "validation"):
        save(ece_by_epoch(validations), folder / "ece_by_epoch.png")


def write_table(path: Path, rows: list[Row]) -> None:
    """Rows as a CSV file; what a row does not have stays empty."""
    columns = dict.fromkeys(name for row in rows for name in row)
    with atomic_write(path) as partial, partial.open("w", newline="") as file:
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
