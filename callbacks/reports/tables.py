"""A validation as tables: on the console, in Markdown and as CSV."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.table import Table

from mambaeye.atomic import atomic_write
from mambaeye.evaluation.result import ConditionResult, Row, ValidationResult

AS_GOOD = 0.005  # top-1 that exiting early may cost


class TextTable(NamedTuple):
    """A table in words and numbers, whatever shows it."""

    title: str
    headings: list[str]
    lines: list[list[str]]


def accuracy_table(result: ValidationResult, most: int | None = None) -> TextTable:
    """Return top-1 by glimpses under every condition; after the last one top-5, mean confidence and ECE. All in %.

    Args:
        result: of the validation.
        most: glimpse counts at most, the last one among them; null for all that are reported.
    """
    first = result.conditions[0]
    steps = first.report_at
    while most and len(steps) > most:
        steps = steps[::-2][::-1]
    lines = []
    for condition in result.conditions:
        last = condition.at(steps[-1])
        shares = [*(condition["top1"][condition.at(step)] for step in steps)]
        shares += [condition[metric][last] for metric in ("top5", "confidence", "ece")]
        lines.append([*sides_and_scan(condition), *(f"{100 * share:.1f}" for share in shares)])
    title = f"Top-1 (%) after so many glimpses, {first.samples[first.at(steps[-1])]} images"
    return TextTable(title, ["side", "scan", *map(str, steps), "top-5", "sure", "ECE"], lines)


def early_exit_table(result: ValidationResult) -> TextTable:
    """Return what exiting early saves under every condition.

    For each rule: the threshold that takes the fewest glimpses while top-1 stays within half a point of the last
    glimpse's, and how many that are on average.
    """
    last = result.conditions[0].steps[-1]
    rules = list(dict.fromkeys(exited.rule for exited in result.early_exit))
    lines = []
    for condition in result.conditions:
        top1 = condition["top1"][-1]
        line = [*sides_and_scan(condition), f"{100 * top1:.1f}"]
        for rule in rules:
            good = [
                exited
                for exited in result.early_exit
                if exited.condition == condition.condition
                and exited.rule == rule
                and exited.metrics["top1"] >= top1 - AS_GOOD
            ]
            best = min(good, key=lambda exited: exited.glimpses, default=None)
            line += [f"{best.threshold:g}", f"{best.glimpses:.1f}"] if best else ["-", "-"]
        lines.append(line)
    headings = ["side", "scan", f"at {last}", *(name for rule in rules for name in (rule[:4], "took"))]
    title = f"Early exit within half a point of top-1 at {last}: threshold, glimpses on average"
    return TextTable(title, headings, lines)


def sides_and_scan(result: ConditionResult) -> tuple[str, str]:
    """Return a condition's resolution and what else it has, as a table shows them."""
    return str(result.condition.resolution), result.condition.series


def on_console(table: TextTable) -> Table:
    """Return a table for the console."""
    shown = Table(title=table.title, box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for heading in table.headings:
        shown.add_column(heading, justify="left" if heading == "scan" else "right", no_wrap=True)
    for line in table.lines:
        shown.add_row(*line)
    return shown


def markdown(table: TextTable) -> str:
    """Return a table in Markdown."""
    rule = [":--" if heading == "scan" else "--:" for heading in table.headings]
    rows = (table.headings, rule, *table.lines)
    return "\n".join([f"{table.title}:", "", *(f"| {' | '.join(row)} |" for row in rows)]) + "\n"


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """Write rows as a CSV file; what a row does not have stays empty."""
    columns = dict.fromkeys(name for row in rows for name in row)
    with atomic_write(path) as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(columns))
        writer.writeheader()
        writer.writerows(rows)
