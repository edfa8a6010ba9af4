"""Pictures of the places that a policy takes, and of what it expects and gets there, resolution by resolution.

Shapes: B images, T glimpses, t places that were tried, R parts along each side of an image.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from callbacks.plots.panels import colored, glimpse_axis, marker_of, share_axis
from mambaeye.evaluation.result import ConditionResult

PARTS = 32  # R
SHOWN = (1, 2, 3, 4, 6, 8, 12)  # glimpses with a heat map of their own, as far as there are so many
PANEL = 1.55  # inches
WIDE = 2.6  # inches, of the panels with curves
GAP = 0.3  # inches, for the numbers of the last one
GROUPS = 12  # of what was expected, each with as many places


class Gaze(NamedTuple):
    """The policy's glimpses of some images at one resolution, and what came of them."""

    positions: np.ndarray
    """(B, T, 2) integers: (row, col) of each glimpse's first pixel, of the walk alone."""
    boxes: np.ndarray
    """(B, 4) integers: the images' places, see Box."""
    patch_size: int
    """Side of a glimpse, pixels."""
    expected: np.ndarray
    """(t,): drop in cross entropy that was expected of each place that was tried, in nats."""
    actual: np.ndarray
    """(t,): what it was."""

    @property
    def correlation(self) -> float:
        """Return the correlation of what was expected with what came."""
        return float(np.corrcoef(self.expected, self.actual)[0, 1])

    def heat(self, glimpse: int) -> np.ndarray:
        """Return the share of images of which that glimpse, counted from 1, shows each part: (R, R) in [0, 1]."""
        heat = np.zeros((PARTS, PARTS))
        for (row, col), (top, left, height, width) in zip(self.positions[:, glimpse - 1], self.boxes, strict=True):
            ends = ((row - top, height), (col - left, width))
            edges = [(PARTS * start / side, PARTS * (start + self.patch_size) / side) for start, side in ends]
            shown = [slice(max(0, round(low)), max(0, round(high))) for low, high in edges]
            heat[tuple(shown)] += 1
        return heat / len(self.positions)


def gaze_figure(gazes: Sequence[tuple[Gaze, Sequence[ConditionResult]]]) -> Figure:
    """Draw a row a resolution: accuracy of all scans, where some glimpses fell, and expected against actual gain.

    Args:
        gazes: each with the results of all scans at its resolution.
    """
    shown = [glimpse for glimpse in SHOWN if glimpse <= gazes[0][0].positions.shape[1]]
    widths = [WIDE, *[PANEL] * len(shown), GAP, WIDE]
    figure = Figure(figsize=(sum(widths) + 0.6, 0.4 + (PANEL + 0.75) * len(gazes)), dpi=100)
    room = {"left": 0.05, "right": 0.99, "top": 0.93, "bottom": 0.1, "hspace": 0.5, "wspace": 0.25}
    grid = figure.add_gridspec(len(gazes), len(widths), width_ratios=widths, **room)
    for row, (gaze, results) in enumerate(gazes):
        draw_accuracy(figure.add_subplot(grid[row, 0]), results)
        heats = [gaze.heat(glimpse) for glimpse in shown]
        brightest = max(float(heat.max()) for heat in heats)
        for place, (glimpse, heat) in enumerate(zip(shown, heats, strict=True)):
            axes = figure.add_subplot(grid[row, 1 + place])
            axes.imshow(heat, cmap="magma", vmin=0, vmax=brightest, extent=(0, 1, 1, 0))
            axes.set(xticks=(), yticks=())
            axes.set_title(f"glimpse {glimpse}", fontsize=8)
        draw_gains(figure.add_subplot(grid[row, len(widths) - 1]), gaze)
    return figure


def draw_accuracy(axes: Axes, results: Sequence[ConditionResult]) -> None:
    """Draw top-1 against glimpses, a line a scan."""
    for result, color in colored(results):
        label = result.condition.scan
        axes.plot(result.steps, result["top1"], label=label, color=color, marker=marker_of(result.steps), linewidth=1)
    glimpse_axis(axes, results[0].steps[-1])
    share_axis(axes)
    axes.tick_params(labelleft=True)
    axes.set_title(f"top-1, {results[0].condition.resolution} px", fontsize=8)
    axes.legend(fontsize=7, frameon=False, loc="lower right")


def draw_gains(axes: Axes, gaze: Gaze) -> None:
    """Draw what came against what was expected: every place that was tried, and means of as many each."""
    axes.scatter(gaze.expected, gaze.actual, s=1, color="0.75", linewidth=0, rasterized=True)
    groups = np.array_split(np.argsort(gaze.expected), min(GROUPS, len(gaze.expected)))
    means = ([values[group].mean() for group in groups] for values in (gaze.expected, gaze.actual))
    axes.plot(*means, ".-", color="tab:red", linewidth=1)
    low, high = np.quantile(gaze.expected, (0.001, 0.999))
    axes.plot((low, high), (low, high), color="black", linewidth=0.7, linestyle="--")
    axes.set_ylim(*np.quantile(gaze.actual, (0.005, 0.995)))
    axes.set_xlabel("expected drop in cross entropy, nats", fontsize=7)
    axes.set_title(f"actual drop, correlation {gaze.correlation:.2f}", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
