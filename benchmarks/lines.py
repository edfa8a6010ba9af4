"""Lines of results in panels, over seeds: the mean, and from the smallest to the largest shaded."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

LINES = 4  # of a legend that a picture's own height has room for

Color = tuple[float, ...]


def line(axes: Axes, x: list[int], values: np.ndarray, color: Color, label: str, style: str = "-") -> None:
    """Draw the mean over seeds, with smallest to largest shaded: values (seeds, points)."""
    if values.size:
        axes.plot(x, values.mean(0), color=color, label=label, marker=".", linewidth=1.2, linestyle=style)
        axes.fill_between(x, values.min(0), values.max(0), color=color, alpha=0.2, linewidth=0)


def below(figure: Figure, axes: Axes, title: str | None) -> None:
    """Add one legend for all panels, in as many columns as there is room for, and room below for its lines."""
    labels = axes.get_legend_handles_labels()[1]
    width = 0.6 + 0.06 * max(map(len, labels), default=0)  # of a column, inches, about
    columns = min(4, max(1, int(figure.get_figwidth() / width)))
    lines = -(-len(labels) // columns)
    figure.set_figheight(figure.get_figheight() + 0.17 * max(0, lines - LINES))
    where = {"loc": "outside lower center", "ncols": columns, "frameon": False}
    figure.legend(*axes.get_legend_handles_labels(), title=title, **where, fontsize=8, title_fontsize=8)
