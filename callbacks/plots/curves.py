"""Accuracy and confidence against glimpses, condition by condition; what training logged against its steps."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from callbacks.plots.panels import (
    COLUMNS,
    FEW_COLUMNS,
    colored,
    glimpse_axis,
    grid,
    legend_within,
    marker_of,
    shades,
    share_axis,
    small_labels,
)
from mambaeye.evaluation.result import ConditionResult, Row


def accuracy_and_confidence(results: Sequence[ConditionResult], small: bool = False) -> Figure:
    """Draw top-1 and mean confidence against glimpses, a panel a condition, with the gap between them shaded.

    Args:
        results: of the conditions.
        small: legible at TensorBoard's default size, with two panels in a row.
    """
    figure, panels = grid(len(results), FEW_COLUMNS if small else COLUMNS)
    for axes, (result, color) in zip(panels, colored(results), strict=True):
        steps, top1, confidence = result.steps, result["top1"], result["confidence"]
        axes.plot(steps, top1, color=color, marker=marker_of(steps), label="top-1")
        axes.plot(steps, confidence, color=color, marker=marker_of(steps), linestyle="--", label="confidence")
        axes.fill_between(steps, top1, confidence, color=color, alpha=0.25, linewidth=0)
        axes.set_title(result.title, fontsize=9)
        glimpse_axis(axes, steps[-1])
        share_axis(axes)
    legend_within(panels[0], "lower right")
    return figure


def training_curves(lines: Sequence[Row]) -> Figure:
    """Draw loss by glimpse position, confidence by information ratio, gradient norm and speed, by optimizer step.

    Args:
        lines: of curves.jsonl, of the kind training; what is not in them is left out.
    """
    figure, panels = grid(4, wspace=0.3)
    prefixes = {
        "loss by glimpse position": "train_loss_by_glimpse/",
        "confidence by information ratio": "train_confidence_by_information_ratio/",
        "gradient norm": "train/gradient_norm",
        "images a second": "throughput/images_per_second",
    }
    for axes, (title, prefix) in zip(panels, prefixes.items(), strict=True):
        names = list(dict.fromkeys(name for line in lines for name in line if name.startswith(prefix)))
        for name, color in zip(names, shades("plasma", len(names), stop=0.85), strict=True):
            points = [(line["optimizer_step"], line[name]) for line in lines if line.get(name) is not None]
            if not points:
                continue
            axes.plot(*zip(*points, strict=True), color=color, linewidth=1)
            axes.annotate(
                name.removeprefix(prefix),
                points[-1],
                xytext=(3, 0),
                textcoords="offset points",
                va="center",
                color=color,
                fontsize=7,
            )
        axes.set_title(title, fontsize=9)
        axes.set(xlabel="optimizer step", ylim=(0, None))
        axes.grid(color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
        small_labels(axes)
        axes.tick_params(labelleft=True)
    return figure
