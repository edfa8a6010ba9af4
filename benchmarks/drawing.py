"""Draw a suite's results (benchmarks/results.py), from their entries alone.

Lines are means over seeds, bands go from the smallest to the largest.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.curves import Curves, Entry
from benchmarks.hierarchy_drawing import draw_hierarchy
from benchmarks.learned_drawing import draw_fixed, draw_led, draw_offered, draw_stopping, draw_variants_led
from benchmarks.lines import below, line
from benchmarks.suites.suite import Claim, Suite
from benchmarks.system_drawing import draw_systems
from benchmarks.tables import BY_RESOLUTION, QUANTITIES, shift_columns
from benchmarks.video_drawing import draw_video
from callbacks.plots.panels import glimpse_axis, save, share_axis


def draw(suite: Suite, entries: list[Entry], path: Path) -> None:
    """Draw each claim that has results, into <path>-<claim>.png."""
    curves = Curves(entries)
    for name, claim in suite.claims.items():
        if any(curves.seeds(variant, suite.measured[name][0]) for variant in claim.variants):
            save(PICTURES[name](suite, claim, curves), path.with_name(f"{path.name}-{name}.png"))


def colors(claim: Claim) -> dict[str, tuple[float, ...]]:
    """Return a colour for each variant."""
    shades = colormaps["viridis"](np.linspace(0, 0.85, len(claim.variants)))
    return dict(zip(claim.variants, map(tuple, shades), strict=True))


def over_glimpses(claim: Claim, curves: Curves, quantities: tuple[str, ...], legend: str | None = None) -> Figure:
    """Draw a row of panels per quantity, a panel per canvas side: against glimpses in test, a line per variant."""
    sides, steps = curves.resolutions(BY_RESOLUTION), curves.steps(BY_RESOLUTION)
    figure = Figure(figsize=(2.3 * len(sides) + 0.4, 2.3 * len(quantities) + 0.5), layout="constrained")
    grid = figure.subplots(len(quantities), len(sides), squeeze=False, sharex=True)
    for quantity, panels in zip(quantities, grid, strict=True):
        for side, axes in zip(sides, panels, strict=True):
            for variant, color in colors(claim).items():
                values = curves.of(variant, BY_RESOLUTION, side, name=quantity)
                line(axes, steps, values, color, claim.variants[variant])
            glimpse_axis(axes, steps[-1])
            share_axis(axes)
            if quantity == "ece":
                axes.set_ylim(0, 0.6)
            if quantity == quantities[0]:
                axes.set_title(f"{side} px", fontsize=9)
        panels[0].set_ylabel(QUANTITIES[quantity])
    below(figure, grid[0, 0], legend)
    return figure


def draw_loss(suite: Suite, claim: Claim, curves: Curves) -> Figure:
    """Draw top-1 and ECE against glimpses."""
    return over_glimpses(claim, curves, ("top1", "ece"))


def draw_lengths(suite: Suite, claim: Claim, curves: Curves) -> Figure:
    """Draw top-1 against glimpses in test."""
    return over_glimpses(claim, curves, ("top1",), "glimpses in training")


def against_canvas(axes: Axes, claim: Claim, curves: Curves) -> None:
    """Draw top-1 by canvas side, a line per variant."""
    sides = curves.resolutions(BY_RESOLUTION)
    for variant, color in colors(claim).items():
        values = [curves.at(claim.at, variant, BY_RESOLUTION, side) for side in sides]
        line(axes, sides, np.stack(values, axis=1), color, claim.variants[variant])
    axes.set(xlabel="canvas side in test, pixels", ylabel=f"Top-1 after {claim.at} glimpses", xticks=sides)
    share_axis(axes)


def draw_canvases(suite: Suite, claim: Claim, curves: Curves) -> Figure:
    """Draw top-1 by canvas side in test."""
    figure = Figure(figsize=(4.4, 3.2), layout="constrained")
    axes = figure.subplots()
    against_canvas(axes, claim, curves)
    below(figure, axes, "canvas side in training")
    return figure


def draw_coordinates(suite: Suite, claim: Claim, curves: Curves) -> Figure:
    """Draw top-1 by canvas side, and by shift."""
    figure = Figure(figsize=(7.6, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    against_canvas(left, claim, curves)
    shifts = shift_columns(suite, curves)
    for variant, color in colors(claim).items():
        values = [curves.at(claim.at, variant, name, suite.side) for name in shifts.values()]
        line(right, [*range(len(shifts))], np.stack(values, axis=1), color, claim.variants[variant])
    right.set_xticks(range(len(shifts)), [*map(str, shifts)])
    right.set(xlabel=f"shift at {suite.side} pixels, pixels both ways")
    share_axis(right)
    below(figure, left, None)
    return figure


def draw_scans(suite: Suite, claim: Claim, curves: Curves) -> Figure:
    """Draw matrices of top-1, training pattern by test pattern, a panel per canvas side."""
    return by_pattern(claim, curves, "scans")


def draw_paths(suite: Suite, claim: Claim, curves: Curves) -> Figure:
    """Draw matrices of top-1, training by test pattern, a panel per canvas side."""
    return by_pattern(claim, curves, "paths")


def by_pattern(claim: Claim, curves: Curves, evaluation: str) -> Figure:
    """Draw matrices of top-1, variant by test pattern, two panels a row, each of a canvas side."""
    sides, scans = curves.resolutions(evaluation), curves.scans(evaluation)
    trained = [v for v in claim.variants if curves.seeds(v, evaluation)]
    rows = -(-len(sides) // 2)
    figure = Figure(figsize=(12.8, rows * (0.4 * len(trained) + 1.6)), layout="constrained")
    panels = figure.subplots(rows, 2, squeeze=False).ravel()
    for axes in panels[len(sides) :]:
        axes.set_axis_off()
    for side, axes in zip(sides, panels, strict=False):
        means = [[curves.at(claim.at, v, evaluation, side, scan=scan).mean() for scan in scans] for v in trained]
        matrix = np.array(means)  # (training, test)
        axes.imshow(100 * matrix, cmap="viridis", vmin=0, vmax=100, aspect="auto")
        for (row, col), value in np.ndenumerate(100 * matrix):
            color = "black" if value > 60 else "white"
            axes.text(col, row, f"{value:.0f}", ha="center", va="center", fontsize=7, color=color)
        axes.set_xticks(range(len(scans)), scans, rotation=60, ha="right", rotation_mode="anchor", fontsize=8)
        axes.set_yticks(range(len(trained)), [claim.variants[v] for v in trained], fontsize=8)
        axes.set_xlabel("in test", fontsize=8)
        axes.set_ylabel("in training", fontsize=8)
        axes.set_title(f"Top-1 (%) at {side} px after {claim.at} glimpses, mean over seeds", fontsize=9)
        axes.spines[:].set_visible(False)
    return figure


PICTURES: dict[str, Callable[[Suite, Claim, Curves], Figure]] = {
    "loss": draw_loss,
    "coordinates": draw_coordinates,
    "canvases": draw_canvases,
    "lengths": draw_lengths,
    "scans": draw_scans,
    "paths": draw_paths,
    "fixed": draw_fixed,
    "led": draw_led,
    "stopping": draw_stopping,
    "sights": draw_variants_led,
    "tried": draw_variants_led,
    "offered": draw_offered,
    "directions": draw_systems,
    "hierarchy": draw_hierarchy,
    "brain": draw_systems,
    "systems": draw_systems,
    "controls": draw_systems,
    "time": draw_video,
    "whole_clips": draw_video,
}
