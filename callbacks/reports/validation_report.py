"""The report of a validation: a table on the console, validation.json, and tables and plots of its curves."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from callbacks.plots.calibration import confidence_by_information_ratio, reliability
from callbacks.plots.curves import accuracy_and_confidence
from callbacks.plots.early_exit import early_exit
from callbacks.plots.panels import save
from callbacks.plots.resolutions import (
    accuracy_by_area,
    accuracy_by_glimpse,
    accuracy_by_length,
    accuracy_by_resolution,
    token_budgets,
)
from callbacks.reports.due import is_reporting, report_folder, result_of
from callbacks.reports.tables import accuracy_table, early_exit_table, markdown, on_console, write_csv
from mambaeye.atomic import atomic_write
from mambaeye.contracts import data_of, model_of
from mambaeye.evaluation.result import BINS, BY_RATIO, METRICS, ConditionResult, Row, ValidationResult, to_builtin

COLUMNS = 7  # of glimpse counts, in a table on the console


class ValidationReport(Callback):
    """Writes validation.json (or test.json) below the run directory; validate and test print it, draw it and more.

    validation.json has `protocol`, how images were looked at (data.evaluate); `rows`, one for each resolution, scan and
    reported step; and after validate `early_exit`, one for each resolution, scan and rule for exiting early. After
    validate, the folder validation/ has all that there is, as Markdown, CSV and PNG files: tables, curves by step,
    reliability after a few glimpse counts, confidence against the information ratio, accuracy against resolution and
    area seen, at fixed token budgets too where there are several resolutions, and answers given early.

    Args:
        plots: Draw the PNG files too; they take about half of the time of a small validation.
    """

    def __init__(self, plots: bool = True) -> None:
        self.plots = plots

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.began = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._report(trainer, pl_module)

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.began = time.perf_counter()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._report(trainer, pl_module)

    @rank_zero_only
    def _report(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write <folder>.json; unless training goes on, <folder>.png, <folder>/* and the tables too."""
        seconds = time.perf_counter() - self.began
        result, folder = result_of(pl_module), report_folder(trainer)
        path = folder.with_suffix(".json")
        early, protocol = result.early_exit_rows(), dict(result.protocol)
        with atomic_write(path) as partial:
            content: Row = {"protocol": protocol, "rows": result.rows()}
            content |= {"early_exit": early} if early else {}
            partial.write_text(json.dumps(content, indent=1) + "\n")
        if not is_reporting(trainer):
            return
        write_conditions(folder, result.conditions)
        if self.plots:
            plot_conditions(folder, result, data_of(trainer).canvas_range)
        with atomic_write(folder / "table.md") as partial:
            partial.write_text(f"{markdown(accuracy_table(result))}\ndata.evaluate: {json.dumps(protocol)}\n")
        console = Console()
        console.print(on_console(accuracy_table(result, COLUMNS)))
        if early:
            write_csv(folder / "early_exit.csv", early)
            if self.plots:
                plot_early_exit(folder, result)
            console.print(on_console(early_exit_table(result)))
        waited = data_of(trainer).evaluation_wait / seconds
        amount = f"{glimpses(result):,} {'glimpses' if model_of(pl_module).takes == 'glimpses' else 'canvases'}"
        console.print(f"{amount} in {seconds:.1f} s, {100 * waited:.0f}% of it waiting for data", soft_wrap=True)
        console.print(f"{path} has every number, {folder}/ curves and pictures", soft_wrap=True)


def glimpses(result: ValidationResult) -> int:
    """Return how many glimpses of images that count were taken in all."""
    return sum(int(condition.samples[-1]) * condition.steps[-1] for condition in result.conditions)


def write_conditions(folder: Path, results: list[ConditionResult]) -> None:
    """Write all that was measured under every condition, as CSV files."""
    write_csv(folder / "curves.csv", list(by_step(results)))
    write_csv(folder / "reliability.csv", list(by_bin(results)))
    write_csv(folder / "information_ratio.csv", list(by_ratio(results)))


def plot_conditions(folder: Path, result: ValidationResult, trained: tuple[int, int]) -> None:
    """Draw what was measured under every condition, of a model trained on canvases from one side to another."""
    results = result.conditions
    save(accuracy_by_glimpse(results), folder.with_suffix(".png"))
    save(accuracy_and_confidence(results), folder / "confidence.png")
    save(reliability(results), folder / "reliability.png")
    save(confidence_by_information_ratio(results), folder / "information_ratio.png")
    save(accuracy_by_resolution(results), folder / "resolution.png")
    save(accuracy_by_area(results), folder / "area.png")
    if results[0].condition.frames is not None:
        save(accuracy_by_length(results), folder / "length.png")
    if result.has_sizes:
        save(token_budgets(results, trained), folder / "token_budgets.png")


def plot_early_exit(folder: Path, result: ValidationResult) -> None:
    """Draw accuracy and calibration of answers given early."""
    save(early_exit(result, "top1", "top-1"), folder / "early_exit.png")
    save(early_exit(result, "ece", "ECE"), folder / "early_exit_ece.png")


def by_step(results: list[ConditionResult]) -> Iterator[Row]:
    """Yield a row for each condition and kept step."""
    for result in results:
        columns = {"step": result.steps, "samples": to_builtin(result.samples)}
        columns |= {name: to_builtin(result.metrics[name]) for name in METRICS}
        yield from rows(result, columns)


def by_bin(results: list[ConditionResult]) -> Iterator[Row]:
    """Yield a row for each condition, confidence bin and one of a few glimpse counts."""
    for result in results:
        record = result.record()
        for bins in record["reliability"]:
            columns = {"step": [bins["step"]] * len(result.bin_edges), "bin_edge": record["bin_edges"]}
            yield from rows(result, columns | {name: bins[name] for name in BINS})


def by_ratio(results: list[ConditionResult]) -> Iterator[Row]:
    """Yield a row for each condition and bin of the information ratio."""
    for result in results:
        record = result.record()
        yield from rows(result, {name: record[name] for name in (*BY_RATIO, "ratio_scheduled")})


def rows(result: ConditionResult, columns: dict[str, list[float]]) -> Iterator[Row]:
    """Yield the rows of a table under one condition."""
    for values in zip(*columns.values(), strict=True):
        yield result.condition.columns | dict(zip(columns, values, strict=True))
