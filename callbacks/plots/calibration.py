"""Calibration, drawn: reliability, confidence by the share of the image seen, and ECE over a training run."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from callbacks.plots.panels import (
    FEW_COLUMNS,
    LEGEND,
    MARGIN,
    PANEL,
    by_scan,
    colored,
    grid,
    legend_beside,
    legend_within,
    share_axis,
    small_labels,
)
from callbacks.plots.wording import counted
from mambaeye.evaluation.result import ConditionResult, spread_steps

HEAT_MAP = 1.0  # inches that a condition's is wide: four of them are legible at TensorBoard's default size


class EpochECE(NamedTuple):
    """ECE by glimpse, as one validation of a training run measured it under one condition."""

    epoch: int
    title: str
    """Of the condition."""
    steps: list[int]
    """Glimpse counts."""
    ece: np.ndarray
    """(S,) floating, after each of them."""


def reliability(results: Sequence[ConditionResult], small: bool = False) -> Figure:
    """Draw top-1 against confidence after a few glimpse counts, a panel each, a row a scan.

    A point is a bin, its area the bin's share. Lines leave out bins with less than one answer in a hundred: their
    accuracy is chance.

    Args:
        results: of the conditions.
        small: legible at TensorBoard's default size, with two panels in a row.
    """
    steps, scans = spread_steps(results[0].steps), by_scan(results)
    number = len(steps) * len(scans)
    figure, panels = grid(number, FEW_COLUMNS) if small else grid(number, len(steps), beside=LEGEND)
    places = [(scan, of_scan, step) for scan, of_scan in scans.items() for step in steps]
    for axes, (scan, of_scan, step) in zip(panels, places, strict=True):
        axes.plot((0, 1), (0, 1), color="0.6", linewidth=0.8)
        for result, color in colored(of_scan):
            at = result.at(step)
            count, confidence, top1 = (result.bins[name][at] for name in ("bin_count", "bin_confidence", "bin_top1"))
            some, sizes = count > count.sum() / 100, 150 * count / max(1, count.sum())
            label = f"{result.condition.resolution} px"
            axes.plot(confidence[some], top1[some], color=color, linewidth=1, label=label)
            axes.scatter(confidence, top1, sizes, color=color, alpha=0.7, linewidth=0, clip_on=False, zorder=3)
        axes.set_title(f"{scan}, {counted(step, 'glimpse')}" if len(scans) > 1 else f"after {counted(step, 'glimpse')}")
        axes.title.set_fontsize(9)
        axes.set(xlim=(0, 1.02), xlabel="confidence", ylabel="top-1" if step == steps[0] else None)
        share_axis(axes, axes.xaxis)
    legend_within(panels[0], "upper left") if small else legend_beside(figure, panels[0])
    return figure


def confidence_by_information_ratio(results: Sequence[ConditionResult], small: bool = False) -> Figure:
    """Draw confidence by information ratio, a row a scan; dotted, what training aims at for the right class.

    Args:
        results: of the conditions.
        small: legible at TensorBoard's default size.
    """
    titles = {"ratio_true_class_probability": "confidence, right class", "ratio_confidence": "confidence"}
    scans = by_scan(results)
    number = len(titles) * len(scans)
    figure, panels = grid(number, len(titles)) if small else grid(number, len(titles), beside=LEGEND)
    places = [(scan, of_scan, name) for scan, of_scan in scans.items() for name in titles]
    for axes, (scan, of_scan, name) in zip(panels, places, strict=True):
        axes.plot((0, 1), (1 / results[0].num_classes, 1), color="0.3", linestyle=":", label="target")
        for result, color in colored(of_scan):
            ratio, label = result.by_ratio["ratio_mean"], f"{result.condition.resolution} px"
            axes.plot(ratio, result.by_ratio[name], color=color, marker=".", linewidth=1, label=label)
        axes.set_title(f"{scan}: {titles[name]}" if len(scans) > 1 else titles[name], fontsize=9)
        axes.set(xlim=(0, 1.02), xlabel="information ratio")
        share_axis(axes, axes.xaxis)
    legend_within(panels[0], "upper left") if small else legend_beside(figure, panels[0])
    return figure


def ece_by_epoch(history: Sequence[EpochECE]) -> Figure:
    """Draw ECE by glimpse and epoch as heat maps, a condition beside the other.

    Args:
        history: one validation after another. Those that kept other steps than the last are left out.
    """
    steps = history[-1].steps
    history = [entry for entry in history if entry.steps == steps]
    titles = list(dict.fromkeys(entry.title for entry in history))
    width = len(titles) * HEAT_MAP + LEGEND
    figure = Figure(figsize=(width, PANEL[1]), dpi=100)
    # one pair of axes for all: text and axes are what takes long to draw
    axes = figure.add_axes((MARGIN / width, 0.2, len(titles) * HEAT_MAP / width, 0.66))
    ticks: dict[float, int] = {}
    for place, title in enumerate(titles):
        entries = [entry for entry in history if entry.title == title]
        edges = place + np.linspace(0, 0.95, len(entries) + 1)
        table = np.stack([entry.ece for entry in entries], axis=1).astype(float)  # (steps, epochs)
        image = axes.pcolormesh(edges, [*steps, steps[-1] + 1], table, vmin=0, vmax=0.5, cmap="magma_r")
        axes.text(place + 0.475, 1.03, title, transform=axes.get_xaxis_transform(), ha="center", fontsize=9)
        middles = (edges[:-1] + edges[1:]) / 2
        some = sorted({0, len(entries) // 2, len(entries) - 1})
        ticks |= {middles[at]: entries[at].epoch for at in some}
    axes.set_yscale("log", base=2)
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xticks(list(ticks), [str(epoch) for epoch in ticks.values()])
    axes.set(xlabel="epoch", ylabel="glimpses seen")
    axes.spines[:].set_visible(False)
    small_labels(axes)
    bar = figure.colorbar(image, cax=figure.add_axes((1 - 0.85 / width, 0.2, 0.12 / width, 0.66)))
    bar.ax.tick_params(labelsize=7)
    bar.set_label("ECE", fontsize=8)
    return figure
