"""Pictures of claims about hierarchies (benchmarks/suites/hierarchy.py): many encoders that differ by little."""

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from benchmarks.curves import Curves
from benchmarks.lines import below
from benchmarks.suites.suite import Claim, Suite
from benchmarks.system_tables import EVALUATION, answers, tabulated, views_of

APART = 0.22  # of a row's height, between lengths


def draw_hierarchy(suite: Suite, claim: Claim, curves: Curves) -> Figure:
    """Draw top-1 under the first scan: a panel a canvas side, a row a variant, a colour a number of glimpses.

    Small dots are seeds, and a large one is their mean.
    """
    names = [name for name in suite.evaluations if curves.steps(name)]
    variants = [variant for variant in claim.variants if any(views_of(curves, variant, name) for name in names)]
    found = {(variant, name): views_of(curves, variant, name)[:1] for variant in variants for name in names}
    lengths = sorted({step for views in found.values() for _, steps in views for step in tabulated(steps)})
    shades = dict(zip(lengths, colormaps["viridis"](np.linspace(0, 0.85, len(lengths))), strict=True))
    sides = curves.resolutions(EVALUATION)
    figure = Figure(figsize=(2.1 * len(sides) + 2.4, 0.3 * len(variants) + 1.0), layout="constrained")
    panels = figure.subplots(1, len(sides), sharey=True, squeeze=False)[0]
    for side, axes in zip(sides, panels, strict=True):
        for (variant, name), views in found.items():
            row = variants.index(variant)
            for scan, steps in views:
                for step in tabulated(steps):
                    values = answers(curves, variant, side, scan, step, name)
                    place = row + APART * (lengths.index(step) - (len(lengths) - 1) / 2)
                    axes.plot(values, [place] * len(values), "o", color=shades[step], markersize=2, alpha=0.6)
                    axes.plot(values.mean(), place, "o", color=shades[step], markersize=5)
        axes.set_title(f"{side} px", fontsize=9)
        axes.grid(axis="x", alpha=0.4)
        axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.tick_params(labelsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    for step, shade in shades.items():
        panels[0].plot([], [], "o", color=shade, label=f"{step} glimpses")
    panels[0].set_yticks(range(len(variants)), [claim.variants[variant] for variant in variants])
    panels[0].invert_yaxis()
    below(figure, panels[0], None)
    return figure
