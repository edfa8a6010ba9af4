"""Pictures of claims about several encoders (benchmarks/suites/comparison.py)."""

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from benchmarks.curves import Curves
from benchmarks.lines import below, line
from benchmarks.suites.suite import Claim, Suite
from benchmarks.system_tables import EVALUATION, answers, views_of
from callbacks.plots.panels import share_axis


def draw_systems(suite: Suite, claim: Claim, curves: Curves) -> Figure:
    """Draw top-1 of the last answer by canvas side in test, a line a variant, dashed by scans after its first."""
    figure = Figure(figsize=(7.6, 5.0), layout="constrained")
    axes, sides = figure.subplots(), curves.resolutions(EVALUATION)
    shades = colormaps["tab10" if len(claim.variants) <= 10 else "tab20"]
    for number, (variant, label) in enumerate(claim.variants.items()):
        for again, (scan, steps) in enumerate(views_of(curves, variant)):
            values = np.stack([answers(curves, variant, side, scan, steps[-1]) for side in sides], axis=1)
            name = f"{label}, {scan}" if again else label
            line(axes, sides, values, shades(number % shades.N), name, "--" if again else "-")
    axes.set(xlabel="canvas side in test, pixels", ylabel="Top-1", xticks=sides)
    share_axis(axes)
    below(figure, axes, None)
    return figure
