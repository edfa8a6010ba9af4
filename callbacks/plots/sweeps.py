"""Pictures that set resolutions, scans and budgets side by side, drawn from records (callbacks/reports/records.py)."""

from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from callbacks.plots.curves import (
    BESIDE,
    LEGEND,
    Color,
    Record,
    by_scan,
    cell_name,
    colored,
    glimpse_axis,
    grid,
    numbers,
    share_axis,
)
from callbacks.reports.records import budgets

RULES = {"confidence": "tab:orange", "stable": "tab:green", "entropy": "tab:purple"}


def accuracy_by_glimpse(records: list[Record]) -> Figure:
    """Top-1 against glimpses. Of one scan, all resolutions and beside it mean confidence; of several, a panel a
    resolution."""
    if len(by_scan(records)) > 1:
        return accuracy_by_resolution_and(records, "steps")
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, name, title in zip(panels, ("top1", "confidence"), ("top-1", "mean confidence"), strict=True):
        for record, color in colored(records):
            axes.plot(record["steps"], numbers(record[name]), color=color, label=cell_name(record))
        glimpse_axis(axes, records[0]["steps"][-1])
        share_axis(axes)
        axes.set_title(title)
    panels[1].legend(title="canvas side", frameon=False, loc="lower right")
    return figure


def accuracy_by_area(records: list[Record]) -> Figure:
    """Top-1 against the share of the image that was seen, a panel a resolution."""
    return accuracy_by_resolution_and(records, "information_ratio")


def accuracy_by_resolution_and(records: list[Record], against: str) -> Figure:
    """Top-1 against something of every step, a panel a resolution and a line a scan."""
    colors = scan_colors(records)
    resolutions = list(dict.fromkeys(record["resolution"] for record in records))
    figure, panels = grid(len(resolutions), beside=LEGEND)
    for axes, resolution in zip(panels, resolutions, strict=True):
        for record in records:
            if record["resolution"] == resolution:
                color, scan = colors[record["scan"]], record["scan"]
                axes.plot(numbers(record[against]), numbers(record["top1"]), color=color, linewidth=1, label=scan)
        if against == "steps":
            glimpse_axis(axes, records[0]["steps"][-1])
            share_axis(axes)
        else:
            axes.set(xlim=(0, 1.02), xlabel="share of the image seen")
            share_axis(axes, axes.xaxis)
        axes.set_title(f"{resolution} px", fontsize=9)
    figure.legend(*panels[0].get_legend_handles_labels(), **BESIDE)
    return figure


def accuracy_by_resolution(records: list[Record]) -> Figure:
    """Top-1 against resolution after a few budgets, a panel each, a line a scan."""
    colors = scan_colors(records)
    steps = budgets(records[0]["steps"])
    figure, panels = grid(len(steps), beside=LEGEND)
    for axes, step in zip(panels, steps, strict=True):
        at = records[0]["steps"].index(step)
        for scan, of_scan in by_scan(records).items():
            points = sorted((record["resolution"], record["top1"][at]) for record in of_scan)
            sides, top1 = np.array(points, dtype=float).T
            axes.plot(sides, top1, color=colors[scan], marker=".", linewidth=1, label=scan)
        resolution_axis(axes, sorted({record["resolution"] for record in records}))
        share_axis(axes)
        axes.set_title(f"after {step} glimpse{'s' if step > 1 else ''}", fontsize=9)
    figure.legend(*panels[0].get_legend_handles_labels(), **BESIDE)
    return figure


def stopping(records: list[Record], rows: list[dict[str, Any]], name: str, title: str) -> Figure:
    """Something of the answers under rules for stopping early against the glimpses that these take on average, a panel
    a cell; black, with the same budget for all images."""
    figure, panels = grid(len(records), beside=LEGEND)
    for axes, record in zip(panels, records, strict=True):
        axes.plot(record["steps"], numbers(record[name]), color="black", linewidth=1, label="fixed budget")
        for rule, color in RULES.items():
            points = [
                (row["glimpses"], row[name])
                for row in rows
                if (row["resolution"], row["scan"], row["rule"]) == (record["resolution"], record["scan"], rule)
            ]
            if points:
                axes.plot(*np.array(sorted(points)).T, color=color, marker=".", linewidth=1, label=rule)
        glimpse_axis(axes, record["steps"][-1])
        axes.set_xlabel("glimpses, on average")
        share_axis(axes)
        axes.set_title(f"{cell_name(record)}: {title}", fontsize=9)
    figure.legend(*panels[0].get_legend_handles_labels(), **BESIDE)
    return figure


def scan_colors(records: list[Record]) -> dict[str, Color]:
    """A colour for each scan."""
    scans = list(by_scan(records))
    return dict(zip(scans, colormaps["turbo"](np.linspace(0.05, 0.95, len(scans))), strict=True))


def resolution_axis(axes: Axes, sides: list[int]) -> None:
    """Canvas sides along x, on a logarithmic scale, as many of them named as fit."""
    axes.set(xlabel="canvas side, pixels", xscale="log")
    axes.xaxis.set_major_locator(FixedLocator(sides[:: -(-len(sides) // 5)]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")
