"""Why scans differ: what happens to an encoder's states, and how its gaze moves, condition beside condition.

Shapes: S kept steps, L layers, H heads, R bins of the rows moved, and as many of the columns.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, PercentFormatter

from callbacks.plots.panels import Color, shades
from mambaeye.evaluation.result import ConditionResult

ROWS = {
    "norm": "|state|",
    "written": "|written|",
    "change": "change of state",
    "decay": "decay exp(dt A)",
    "left": "left at the end",
}
LOGARITHMIC = ("norm", "written", "change")
PANEL = (2.45, 1.3)  # inches
MOVES = 2.1  # inches, the height of the panels of moves
LEFT, TOP, BOTTOM = 0.75, 0.5, 0.45  # inches around the panels


class ConditionDiagnosis(NamedTuple):
    """What happened under one condition, as means over images."""

    result: ConditionResult
    images: int
    by_step: Mapping[str, np.ndarray]
    """(S, L) by name: the keys of ROWS, decay and left as means over heads; norm_sd over images, decay_sd over heads;
    left_least and left_most, the extremes of left over heads."""
    means: Mapping[str, np.ndarray]
    """(L,) by name, over all glimpses: norm, change, written, decay."""
    memory: np.ndarray
    """(L, H): how many glimpses the state holds in the end, as if it held them undiminished: left, summed over all."""
    moves: np.ndarray
    """(R, R): which share of the moves falls into each bin."""
    moves_beyond_training: float
    """Share of the moves that are larger than any in training."""

    @property
    def title(self) -> str:
        """Return what the condition is called, and how it ends."""
        return f"{self.result.title}: {100 * self.result['top1'][-1]:.1f}%"


class TrainingMoves(NamedTuple):
    """Moves of training, for comparison."""

    edges: np.ndarray
    """(R + 1,) of the bins that moves along an axis fall into, pixels."""
    shares: np.ndarray
    """(R, R): which share of the moves is expected in each bin."""


def diagnosis_figure(conditions: Sequence[ConditionDiagnosis], training: TrainingMoves) -> Figure:
    """Draw a column a condition: top-1, moves (training's in outline), and layer by layer what the states do."""
    columns, heights = len(conditions), [PANEL[1], MOVES, *[PANEL[1]] * len(ROWS)]
    width, height = LEFT + columns * PANEL[0], TOP + sum(heights) + BOTTOM
    figure = Figure(figsize=(width, height), dpi=100)
    layers = len(conditions[0].memory)
    colors = shades("viridis", layers, stop=0.85)
    tops = TOP + np.cumsum([0, *heights])
    first: dict[str, Axes] = {}
    for place, condition in enumerate(conditions):
        left = (LEFT + place * PANEL[0]) / width
        for name, top, tall in zip(("top1", "moves", *ROWS), tops, heights, strict=False):
            inner = PANEL[0] * 0.9, tall - (0.55 if name == "moves" else 0.16)
            box = (left, 1 - (top + inner[1]) / height, inner[0] / width, inner[1] / height)
            axes = figure.add_axes(box, sharex=first.get(name), sharey=first.get(name))
            first.setdefault(name, axes)
            if name == "moves":
                draw_moves(axes, condition, training)
            elif name == "top1":
                draw_top1(axes, condition.result)
            else:
                draw_layers(axes, name, condition, colors)
            axes.tick_params(labelsize=7, labelleft=place == 0)
        figure.text(left + PANEL[0] * 0.45 / width, 1 - 0.32 / height, condition.title, ha="center", fontsize=9)
    for name, axes in first.items():
        axes.set_ylabel({"top1": "top-1", "moves": "rows moved"}.get(name) or ROWS[name], fontsize=8)
    some = sorted({0, layers // 2, layers - 1})
    handles = [Line2D([], [], color=colors[layer], label=f"layer {layer + 1}") for layer in some]
    first["norm"].legend(handles=handles, loc="lower right", frameon=False, fontsize=7, labelspacing=0.2)
    first["moves"].text(
        0.02,
        0.03,
        "training: 50%, 95%",
        color="tab:orange",
        fontsize=7,
        transform=first["moves"].transAxes,
        bbox={"facecolor": "white", "linewidth": 0, "pad": 1},
    )
    return figure


def draw_top1(axes: Axes, result: ConditionResult) -> None:
    """Draw top-1 against glimpses."""
    axes.plot(result.steps, result["top1"], color="black", linewidth=1)
    axes.set_ylim(0, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    finish(axes, labelled=False)


def draw_layers(axes: Axes, name: str, condition: ConditionDiagnosis, colors: Sequence[Color]) -> None:
    """Draw one quantity against glimpses, a line a layer; of what is left, the extremes of all heads shaded."""
    steps = condition.result.steps
    for layer, color in enumerate(colors):
        axes.plot(steps, condition.by_step[name][:, layer], color=color, linewidth=1)
    if name in LOGARITHMIC:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(NullLocator())
    if name == "left":
        least, most = condition.by_step["left_least"].min(1), condition.by_step["left_most"].max(1)
        axes.fill_between(steps, least, most, color="0.92", linewidth=0)
        axes.set_xlabel("glimpse", fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylim(0, 1.02)
    finish(axes, labelled=name == "left")


def finish(axes: Axes, labelled: bool) -> None:
    """Add a grid; name glimpse counts in the last row alone."""
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelbottom=labelled)


def draw_moves(axes: Axes, condition: ConditionDiagnosis, training: TrainingMoves) -> None:
    """Draw moves by bin, larger dots for more, rows downwards; outlined, where a half and 95% of training's are."""
    middles = (training.edges[:-1] + training.edges[1:]) / 2
    row, col = condition.moves.nonzero()
    sizes = 150 * condition.moves[row, col] ** 0.7  # so that rare moves are still to be seen
    axes.scatter(middles[col], middles[row], sizes, color="tab:blue", alpha=0.7, linewidth=0, clip_on=False)
    ranked = np.sort(training.shares.ravel())[::-1]
    levels = [ranked[np.searchsorted(ranked.cumsum(), inside)] for inside in (0.95, 0.5)]
    if levels[0] < levels[1]:
        axes.contour(middles, middles, training.shares, levels=levels, colors="tab:orange", linewidths=(0.7, 1.2))
    first, last = training.edges[[0, -1]]
    axes.set(xlim=(first, last), ylim=(last, first))
    axes.set_xlabel("columns moved", fontsize=8, labelpad=1)
    if beyond := condition.moves_beyond_training:
        text = f"{100 * beyond:.0f}% beyond training's"
        axes.text(0.98, 0.03, text, transform=axes.transAxes, ha="right", fontsize=7)
