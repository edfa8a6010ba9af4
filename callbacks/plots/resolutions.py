"""Accuracy with resolutions, scans and glimpse counts side by side."""

from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from callbacks.plots.panels import (
    LEGEND,
    Color,
    by_scan,
    colored,
    glimpse_axis,
    grid,
    legend_beside,
    marker_of,
    shades,
    share_axis,
)
from callbacks.plots.wording import counted
from mambaeye.evaluation.result import ConditionResult, budgets_among, spread_steps

ROOM = 1.1  # left of the smallest and right of the largest side


def accuracy_by_glimpse(results: Sequence[ConditionResult]) -> Figure:
    """Draw top-1 against glimpses.

    Of one scan, all resolutions, and beside it mean confidence; of several, a panel a resolution.
    """
    if len(by_scan(results)) > 1:
        figure, panels = panel_by_resolution(results, lambda result: result.steps)
        for axes in panels:
            glimpse_axis(axes, results[0].steps[-1])
            share_axis(axes)
        return figure
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    for axes, name, title in zip(
        figure.subplots(1, 2, sharey=True), ("top1", "confidence"), ("top-1", "mean confidence"), strict=True
    ):
        for result, color in colored(results):
            marker = marker_of(result.steps)
            axes.plot(result.steps, result[name], color=color, marker=marker, label=result.title)
        glimpse_axis(axes, results[0].steps[-1])
        share_axis(axes)
        axes.set_title(title)
    figure.axes[1].legend(title="canvas side", frameon=False, loc="lower right")
    return figure


def accuracy_by_area(results: Sequence[ConditionResult]) -> Figure:
    """Draw top-1 against the share of the image that was seen, a panel a resolution."""
    figure, panels = panel_by_resolution(results, lambda result: result["information_ratio"])
    for axes in panels:
        axes.set(xlim=(0, 1.02), xlabel="share of the image seen")
        share_axis(axes, axes.xaxis)
    return figure


def panel_by_resolution(
    results: Sequence[ConditionResult], x: Callable[[ConditionResult], Sequence[float] | np.ndarray]
) -> tuple[Figure, list[Axes]]:
    """Return a figure of top-1 against something of every step, a panel a resolution and a line a scan."""
    colors = scan_colors(results)
    resolutions = list(dict.fromkeys(result.condition.resolution for result in results))
    figure, panels = grid(len(resolutions), beside=LEGEND)
    for axes, resolution in zip(panels, resolutions, strict=True):
        for result in results:
            if result.condition.resolution == resolution:
                scan, marker = result.condition.series, marker_of(result.steps)
                axes.plot(x(result), result["top1"], color=colors[scan], marker=marker, linewidth=1, label=scan)
        axes.set_title(f"{resolution} px", fontsize=9)
    legend_beside(figure, panels[0])
    return figure, panels


def accuracy_by_resolution(results: Sequence[ConditionResult]) -> Figure:
    """Draw top-1 against resolution after a few glimpse counts, a panel each, a line a scan."""
    colors = scan_colors(results)
    steps = spread_steps(results[0].steps)
    figure, panels = grid(len(steps), beside=LEGEND)
    for axes, step in zip(panels, steps, strict=True):
        for scan, of_scan in by_scan(results).items():
            points = sorted((result.condition.resolution, result["top1"][result.at(step)]) for result in of_scan)
            sides, top1 = np.array(points, dtype=float).T
            axes.plot(sides, top1, color=colors[scan], marker=".", linewidth=1, label=scan)
        resolution_axis(axes, sorted({result.condition.resolution for result in results}))
        share_axis(axes)
        axes.set_title(f"after {counted(step, 'glimpse')}", fontsize=9)
    legend_beside(figure, panels[0])
    return figure


def accuracy_by_length(results: Sequence[ConditionResult]) -> Figure:
    """Draw top-1 of clips against their frames after a few glimpse counts, a panel each, a line a resolution and scan.

    Args:
        results: of several numbers of frames.
    """
    steps = spread_steps(results[0].steps)
    lines: dict[str, list[ConditionResult]] = {}
    for result in results:
        lines.setdefault(result.condition._replace(frames=None).title, []).append(result)
    figure, panels = grid(len(steps), beside=LEGEND)
    for axes, step in zip(panels, steps, strict=True):
        for (title, of_line), color in colored([*lines.items()]):
            points = sorted((result.condition.frames, result["top1"][result.at(step)]) for result in of_line)
            axes.plot(*np.array(points, dtype=float).T, color=color, marker=".", linewidth=1, label=title)
        resolution_axis(axes, sorted({result.condition.frames or 0 for result in results}))
        axes.set_xlabel("frames")
        share_axis(axes)
        axes.set_title(f"after {counted(step, 'glimpse')}", fontsize=9)
    legend_beside(figure, panels[0])
    return figure


def token_budgets(results: Sequence[ConditionResult], trained: tuple[int, int]) -> Figure:
    """Draw top-1 against resolution at fixed numbers of glimpses, a line each and a panel a scan.

    Args:
        results: of several resolutions.
        trained: smallest and largest canvas side in training, pixels: shaded.
    """
    scans, budgets = by_scan(results), budgets_among(results[0].steps)
    sides = sorted({result.condition.resolution for result in results})
    figure, panels = grid(len(scans), beside=LEGEND)
    for axes, (scan, of_scan) in zip(panels, scans.items(), strict=True):
        axes.axvspan(*trained, color="tab:blue", alpha=0.12, linewidth=1, label="sides in training")
        for budget, color in colored(budgets):
            points = sorted((result.condition.resolution, result["top1"][result.at(budget)]) for result in of_scan)
            axes.plot(*np.array(points, dtype=float).T, color=color, marker=".", label=counted(budget, "glimpse"))
        resolution_axis(axes, sides)
        share_axis(axes)
        axes.set_xlim(sides[0] / ROOM, sides[-1] * ROOM)
        axes.set_title(f"{scan}: top-1", fontsize=9)
    legend_beside(figure, panels[0])
    return figure


def scan_colors(results: Sequence[ConditionResult]) -> dict[str, Color]:
    """Return a colour for each scan."""
    scans = list(by_scan(results))
    return dict(zip(scans, shades("turbo", len(scans), 0.05, 0.95), strict=True))


def resolution_axis(axes: Axes, sides: list[int]) -> None:
    """Make x canvas sides, on a logarithmic scale, as many of them named as fit."""
    axes.set_xlabel("canvas side, pixels")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(sides[:: -(-len(sides) // 5)]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")
