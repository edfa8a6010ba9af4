"""Lines of results in panels, over seeds: the mean, and from the smallest to the largest shaded."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Color = tuple[float, ...]


def line(axes: Axes, x: list[int], values: np.ndarray, color: Color, label: str, style: str = "-") -> None:
    """Draw the mean over seeds, with smallest to largest shaded: values (seeds, points)."""
    if values.size:
        axes.plot(x, values.mean(0), color=color, label=label, marker=".", linewidth=1.2, linestyle=style)
        axes.fill_between(x, values.min(0), values.max(0), color=color, alpha=0.2, linewidth=0)


def below(figure: Figure, axes: Axes, title: str | None) -> None:
    """Add one legend for all panels."""
    where = {"loc": "outside lower center", "ncols": 4, "frameon": False}
    figure.legend(*axes.get_legend_handles_labels(), title=title, **where, fontsize=8, title_fontsize=8)
