"""Pictures of validations, drawn from their records (callbacks/reports/records.py)."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

from mambaeye.atomic import atomic_write

Record = dict[str, Any]
Color = tuple[float, ...]

COLUMNS = 4
PANEL = (2.6, 2.4)  # inches
MARGIN = 0.65  # inches on the left, for the labels
LEGEND = 1.6  # inches on the right
BESIDE = {"loc": "center right", "frameon": False, "fontsize": 8}


def accuracy_and_confidence(records: list[Record]) -> Figure:
    """Top-1 and mean confidence against glimpses, a panel a cell, with the gap between them shaded."""
    figure, panels = grid(len(records))
    for axes, (record, color) in zip(panels, colored(records), strict=True):
        steps, top1, confidence = record["steps"], numbers(record["top1"]), numbers(record["confidence"])
        axes.plot(steps, top1, color=color, label="top-1")
        axes.plot(steps, confidence, color=color, linestyle="--", label="confidence")
        axes.fill_between(steps, top1, confidence, color=color, alpha=0.25, linewidth=0)
        axes.set_title(cell_name(record), fontsize=9)
        glimpse_axis(axes, steps[-1])
        share_axis(axes)
    panels[0].legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def reliability(records: list[Record]) -> Figure:
    """Top-1 against confidence after a few budgets, a panel each, a row a scan; a point is a bin, its area the bin's
    share.

    Lines leave out bins with less than one answer in a hundred: their accuracy is chance.
    """
    columns, scans = len(records[0]["reliability"]), by_scan(records)
    figure, panels = grid(columns * len(scans), columns, beside=LEGEND)
    for row, (scan, of_scan) in enumerate(scans.items()):
        for place, axes in enumerate(panels[row * columns : (row + 1) * columns]):
            axes.plot((0, 1), (0, 1), color="0.6", linewidth=0.8)
            for record, color in colored(of_scan):
                bins = record["reliability"][place]
                count, confidence, top1 = (numbers(bins[name]) for name in ("bin_count", "bin_confidence", "bin_top1"))
                some, sizes = count > count.sum() / 100, 150 * count / max(1, count.sum())
                axes.plot(confidence[some], top1[some], color=color, linewidth=1, label=f"{record['resolution']} px")
                axes.scatter(confidence, top1, sizes, color=color, alpha=0.7, linewidth=0, clip_on=False, zorder=3)
            step = records[0]["reliability"][place]["step"]
            of = f"{scan}, " if len(scans) > 1 else "after "
            axes.set_title(f"{of}{step} glimpse{'s' if step > 1 else ''}", fontsize=9)
            axes.set(xlim=(0, 1.02), xlabel="confidence", ylabel="top-1" if place == 0 else None)
            share_axis(axes, axes.xaxis)
    figure.legend(*panels[0].get_legend_handles_labels(), **BESIDE)
    return figure


def against_information_ratio(records: list[Record]) -> Figure:
    """Confidence by information ratio, a row a scan; dotted, what training aims at for the right class."""
    titles = {"ratio_true_class_probability": "confidence, right class", "ratio_confidence": "confidence"}
    scans = by_scan(records)
    figure, panels = grid(len(titles) * len(scans), len(titles), beside=LEGEND)
    rows = [(scan, of_scan, name) for scan, of_scan in scans.items() for name in titles]
    for axes, (scan, of_scan, name) in zip(panels, rows, strict=True):
        axes.plot((0, 1), (1 / records[0]["num_classes"], 1), color="0.3", linestyle=":", label="target")
        for record, color in colored(of_scan):
            ratio, label = numbers(record["ratio_mean"]), f"{record['resolution']} px"
            axes.plot(ratio, numbers(record[name]), color=color, marker=".", linewidth=1, label=label)
        axes.set_title(f"{scan}: {titles[name]}" if len(scans) > 1 else titles[name], fontsize=9)
        axes.set(xlim=(0, 1.02), xlabel="information ratio")
        share_axis(axes, axes.xaxis)
    figure.legend(*panels[0].get_legend_handles_labels(), **BESIDE)
    return figure


def ece_by_epoch(history: list[Record]) -> Figure:
    """ECE by glimpse and epoch as heat maps, a cell beside the other: the records of one validation after another."""
    steps = history[-1]["steps"]
    history = [record for record in history if record["steps"] == steps]  # a continued run may keep others
    cells = list(dict.fromkeys(cell_name(record) for record in history))
    figure = Figure(figsize=(len(cells) * PANEL[0] + LEGEND, PANEL[1]), dpi=100)
    axes = figure.add_axes((0.05, 0.2, 0.85, 0.66))  # one pair for all: text and axes are what takes long to draw
    ticks: dict[float, int] = {}
    for place, cell in enumerate(cells):
        of_cell = [record for record in history if cell_name(record) == cell]
        edges = place + np.linspace(0, 0.95, len(of_cell) + 1)
        table = np.stack([numbers(record["ece"]) for record in of_cell], axis=1)  # (steps, epochs)
        image = axes.pcolormesh(edges, [*steps, steps[-1] + 1], table, vmin=0, vmax=0.5, cmap="magma_r")
        axes.text(place + 0.475, 1.03, cell, transform=axes.get_xaxis_transform(), ha="center", fontsize=9)
        middles = (edges[:-1] + edges[1:]) / 2
        some = sorted({0, len(of_cell) // 2, len(of_cell) - 1})
        ticks |= {middles[epoch]: of_cell[epoch]["epoch"] for epoch in some}
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.set(xlabel="epoch", ylabel="glimpses seen")
    axes.spines[:].set_visible(False)
    small_labels(axes)
    bar = figure.colorbar(image, cax=figure.add_axes((0.925, 0.2, 0.01, 0.66)))
    bar.ax.tick_params(labelsize=7)
    bar.set_label("ECE", fontsize=8)
    return figure


def training_curves(records: list[Record]) -> Figure:
    """Loss by glimpse position, confidence by information ratio, gradient norm and speed against optimizer steps."""
    figure, panels = grid(4, wspace=0.3)
    names = {
        "loss by glimpse position": "train_loss_by_glimpse/",
        "confidence by information ratio": "train_confidence_by_information_ratio/",
        "gradient norm": "train/gradient_norm",
        "images a second": "throughput/images_per_second",
    }
    for axes, (title, prefix) in zip(panels, names.items(), strict=True):
        curves = list(dict.fromkeys(name for record in records for name in record if name.startswith(prefix)))
        for name, color in zip(curves, colormaps["plasma"](np.linspace(0, 0.85, len(curves))), strict=True):
            points = [(record["optimizer_step"], record[name]) for record in records if record.get(name) is not None]
            axes.plot(*zip(*points, strict=True), color=color, linewidth=1)
            beside = {"xytext": (3, 0), "textcoords": "offset points", "va": "center"}
            axes.annotate(name.removeprefix(prefix), points[-1], **beside, color=color, fontsize=7)
        axes.set_title(title, fontsize=9)
        axes.set(xlabel="optimizer step", ylim=(0, None))
        axes.grid(color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
        small_labels(axes)
        axes.tick_params(labelleft=True)
    return figure


def grid(panels: int, columns: int = COLUMNS, beside: float = 0.15, wspace: float = 0.12) -> tuple[Figure, list[Axes]]:
    """A figure with that many panels, and inches beside them; its margins are fixed: fitting them costs time.

    wspace is the room between panels as a share of their width.
    """
    columns = min(panels, columns)
    rows = math.ceil(panels / columns)
    width, height = columns * PANEL[0] + beside, rows * PANEL[1]
    figure = Figure(figsize=(width, height), dpi=100)
    figure.subplots_adjust(
        left=MARGIN / width,
        right=1 - beside / width,
        bottom=0.45 / height,
        top=1 - 0.3 / height,
        wspace=wspace,
        hspace=0.5,
    )
    return figure, [figure.add_subplot(rows, columns, place + 1) for place in range(panels)]


def save(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG."""
    with atomic_write(path) as partial:
        figure.savefig(partial, dpi=120, format="png")


def colored(records: list[Record]) -> Iterator[tuple[Record, Color]]:
    """Records, each with the colour of its cell."""
    shades = colormaps["viridis"](np.linspace(0, 0.9, len(records)))
    return zip(records, map(tuple, shades), strict=True)


def by_scan(records: list[Record]) -> dict[str, list[Record]]:
    """The records of each scan."""
    scans = dict.fromkeys(record["scan"] for record in records)
    return {scan: [record for record in records if record["scan"] == scan] for scan in scans}


def cell_name(record: Record) -> str:
    """What a cell is called in a picture."""
    return f"{record['resolution']} px, {record['scan']}"


def numbers(values: list[float | None]) -> np.ndarray:
    """Numbers of a record as an array, NaN where there is none."""
    return np.array(values, dtype=float)


def glimpse_axis(axes: Axes, length: int) -> None:
    """Glimpses seen, along x, on a logarithmic scale with some powers of two."""
    axes.set(xlabel="glimpses seen", xscale="log")
    powers = [1 << k for k in range(length.bit_length())]
    axes.xaxis.set_major_locator(FixedLocator(powers[:: math.ceil(len(powers) / 7)]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")


def share_axis(axes: Axes, *others: Axis) -> None:
    """Shares of 1, along y and along other axes; few ticks, for text is what takes long to draw."""
    axes.set_ylim(0, 1.02)
    for axis in (axes.yaxis, *others):
        axis.set_major_locator(FixedLocator((0, 0.25, 0.5, 0.75, 1)))
        axis.set_major_formatter(PercentFormatter(1))
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    small_labels(axes)


def small_labels(axes: Axes) -> None:
    """Sizes that fit a panel; numbers along y at the left of the figure alone."""
    place = axes.get_subplotspec()
    axes.tick_params(labelsize=7, labelleft=place is None or place.is_first_col())
    axes.xaxis.label.set_size(8)
    axes.yaxis.label.set_size(8)
