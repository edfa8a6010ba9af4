"""Early exit, drawn: accuracy against the glimpses that it takes."""

import numpy as np
from matplotlib.figure import Figure

from callbacks.plots.panels import LEGEND, glimpse_axis, grid, legend_beside, marker_of, share_axis
from mambaeye.evaluation.result import ValidationResult

RULES = {"confidence": "tab:orange", "stable": "tab:green", "entropy": "tab:purple", "value": "tab:blue"}


def early_exit(result: ValidationResult, metric: str, title: str) -> Figure:
    """Draw a metric of the answers under each rule against the glimpses that these take on average.

    A panel is a condition, a line a rule, a point a threshold; black, with the same number of glimpses for all images.

    Args:
        result: of a validation that tried rules.
        metric: one of METRICS that is a share of 1.
        title: what it is called.
    """
    figure, panels = grid(len(result.conditions), beside=LEGEND)
    for axes, condition in zip(panels, result.conditions, strict=True):
        steps = condition.steps
        axes.plot(steps, condition[metric], color="black", marker=marker_of(steps), linewidth=1, label="fixed number")
        for rule, color in RULES.items():
            points = [
                (exited.glimpses, exited.metrics[metric])
                for exited in result.early_exit
                if exited.condition == condition.condition and exited.rule == rule
            ]
            if points:
                axes.plot(*np.array(sorted(points)).T, color=color, marker=".", linewidth=1, label=rule)
        glimpse_axis(axes, steps[-1])
        axes.set_xlabel("glimpses, on average")
        share_axis(axes)
        axes.set_title(f"{condition.title}: {title}", fontsize=9)
    legend_beside(figure, panels[0])
    return figure
