"""Parts that all plots share: panels in a grid, axes, colours, and saving a figure to a file."""

import gc
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, PercentFormatter

from mambaeye.atomic import atomic_write
from mambaeye.evaluation.result import ConditionResult

Color = tuple[float, float, float, float]
Item = TypeVar("Item")

COLUMNS = 4
FEW_COLUMNS = 2  # of what is legible at TensorBoard's default size
PANEL = (2.6, 2.4)  # inches
MARGIN = 0.65  # inches on the left, for the labels
LEGEND = 1.6  # inches on the right


def grid(panels: int, columns: int = COLUMNS, beside: float = 0.15, wspace: float = 0.12) -> tuple[Figure, list[Axes]]:
    """Return a figure and its panels; its margins are fixed, for fitting them costs time.

    Args:
        panels: how many.
        columns: at most so many in a row.
        beside: inches to the right of the panels.
        wspace: room between panels as a share of their width.
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


def legend_beside(figure: Figure, axes: Axes) -> None:
    """Put one panel's legend to the right of all panels."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="center right", frameon=False, fontsize=8)


def legend_within(axes: Axes, loc: Literal["upper left", "lower right"]) -> None:
    """Put one panel's legend into a corner of it."""
    axes.legend(frameon=False, fontsize=8, loc=loc)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG."""
    with atomic_write(path) as partial:
        figure.savefig(partial, dpi=120, format="png")


@contextmanager
def garbage_kept_young() -> Iterator[None]:
    """Draw without garbage collection, and collect quickly afterwards.

    A figure's objects refer to each other. Those that a collection meets while they live wait for a collection of
    everything that Python holds, torch included, which takes a third of a second and comes every dozen figures.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
            gc.collect(0)


def shades(colormap: str, number: int, start: float = 0.0, stop: float = 0.9) -> list[Color]:
    """Return so many colours of a colormap, evenly between two of its places."""
    red, green, blue, alpha = colormaps[colormap](np.linspace(start, stop, number)).T.tolist()
    return list(zip(red, green, blue, alpha, strict=True))


def colored(items: Sequence[Item]) -> Iterator[tuple[Item, Color]]:
    """Yield items, each with a colour of its own."""
    return zip(items, shades("viridis", len(items)), strict=True)


def by_scan(results: Sequence[ConditionResult]) -> dict[str, list[ConditionResult]]:
    """Return the results of each scan, and of clips of several lengths each of these."""
    scans = dict.fromkeys(result.condition.series for result in results)
    return {scan: [result for result in results if result.condition.series == scan] for scan in scans}


def marker_of(steps: Sequence[int]) -> str:
    """Return the marker of a curve over these steps: a line through a single point would not be visible."""
    return "" if len(steps) > 1 else "."


def glimpse_axis(axes: Axes, num_glimpses: int) -> None:
    """Make x glimpses seen, on a logarithmic scale with some powers of two."""
    axes.set(xlabel="glimpses seen", xscale="log")
    powers = [1 << k for k in range(num_glimpses.bit_length())]
    axes.xaxis.set_major_locator(FixedLocator(powers[:: math.ceil(len(powers) / 7)]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter("{x:g}")


def share_axis(axes: Axes, *others: Axis) -> None:
    """Make y, and other axes, shares of 1; with few ticks, for text is what takes long to draw."""
    axes.set_ylim(0, 1.02)
    for axis in (axes.yaxis, *others):
        axis.set_major_locator(FixedLocator((0, 0.25, 0.5, 0.75, 1)))
        axis.set_major_formatter(PercentFormatter(1))
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    small_labels(axes)


def small_labels(axes: Axes) -> None:
    """Use sizes that fit a panel, and numbers along y at the left of the figure alone."""
    place = axes.get_subplotspec()
    axes.tick_params(labelsize=7, labelleft=place is None or place.is_first_col())
    axes.xaxis.label.set_fontsize(8)
    axes.yaxis.label.set_fontsize(8)
