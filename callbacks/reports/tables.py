"""A validation's rows as tables, for the console and in Markdown: each a title, headings and lines."""

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

AS_GOOD = 0.005  # top-1 that an answer given early may cost

Row = dict[str, Any]


def accuracy_table(rows: list[Row], most: int | None = None) -> tuple[str, list[str], list[list[str]]]:
    """Top-1 by glimpses for every canvas side and scan; after the last one top-5, mean confidence and ECE. All in %.

    Title, headings and lines; at most so many glimpse counts if a number is given, up to the last.
    """
    steps = sorted({row["step"] for row in rows})
    while most and len(steps) > most:
        steps = steps[::-2][::-1]
    lines = []
    for resolution, scan in cells(rows):
        cell = {row["step"]: row for row in rows if (row["resolution"], row["scan"]) == (resolution, scan)}
        last = cell[steps[-1]]
        shares = [*(cell[step]["top1"] for step in steps), last["top5"], last["confidence"], last["ece"]]
        lines.append([str(resolution), scan, *(f"{100 * share:.1f}" for share in shares)])
    headings = ["side", "scan", *map(str, steps), "top-5", "sure", "ECE"]
    return f"Top-1 (%) after so many glimpses, {rows[0]['samples']} images", headings, lines


def early_table(rows: list[Row], early: list[Row]) -> tuple[str, list[str], list[list[str]]]:
    """What stopping early saves: for each rule, the threshold that takes the fewest glimpses while top-1 stays within
    half a point of the last glimpse's, and how many that are on average. Title, headings and lines."""
    last = max(row["step"] for row in rows)
    kinds = list(dict.fromkeys(row["rule"] for row in early))
    lines = []
    for resolution, scan in cells(rows):
        here = (resolution, scan)
        whole = next(row for row in rows if (row["resolution"], row["scan"], row["step"]) == (*here, last))
        line = [str(resolution), scan, f"{100 * whole['top1']:.1f}"]
        for kind in kinds:
            good = [
                row
                for row in early
                if (row["resolution"], row["scan"], row["rule"]) == (*here, kind)
                and row["top1"] >= whole["top1"] - AS_GOOD
            ]
            best = min(good, key=lambda row: row["glimpses"], default=None)
            line += [f"{best['threshold']:g}", f"{best['glimpses']:.1f}"] if best else ["-", "-"]
        lines.append(line)
    headings = ["side", "scan", f"at {last}", *(name for kind in kinds for name in (kind[:4], "took"))]
    return f"Stopping early within half a point of top-1 at {last}: threshold, glimpses on average", headings, lines


def cells(rows: list[Row]) -> list[tuple[int, str]]:
    """The cells that rows are of."""
    return list(dict.fromkeys((row["resolution"], row["scan"]) for row in rows))


def on_console(title: str, headings: list[str], lines: list[list[str]]) -> Table:
    """A table for the console."""
    table = Table(title=title, box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "scan" else "right", no_wrap=True)
    for line in lines:
        table.add_row(*line)
    return table


def markdown(title: str, headings: list[str], lines: list[list[str]]) -> str:
    """The same in Markdown."""
    rule = [":--" if heading == "scan" else "--:" for heading in headings]
    return "\n".join([f"{title}:", "", *(f"| {' | '.join(line)} |" for line in (headings, rule, *lines))]) + "\n"
