"""Pictures of claims about clips (benchmarks/suites/video.py)."""

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from benchmarks.curves import Curves
from benchmarks.lines import below, line
from benchmarks.suites.suite import Claim, Suite
from benchmarks.system_tables import answers, views_of
from benchmarks.video_tables import evaluations_in, titled
from callbacks.plots.panels import glimpse_axis, share_axis

STYLES = ("-", "--")  # of a variant's first scan and of its second


def draw_video(suite: Suite, claim: Claim, curves: Curves) -> Figure:
    """Draw top-1 by glimpses in the first evaluation, and of the last answer in all, dashed by the second scan."""
    figure = Figure(figsize=(9.6, 4.4), layout="constrained")
    names, shades = evaluations_in(suite, curves), colormaps["tab10"]
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(4, min(4, len(names))))
    first, names = names[0], by_length(names)
    for number, (variant, label) in enumerate(claim.variants.items()):
        measured = [name for name in names if curves.seeds(variant, name)]
        for (scan, steps), style in zip(views_of(curves, variant, first), STYLES, strict=False):
            of_steps = [answers(curves, variant, suite.side, scan, step, first) for step in steps]
            label_here = label if style == STYLES[0] else f"{label}, {scan}"
            if len(steps) > 1:
                line(left, steps, np.stack(of_steps, axis=1), shades(number), label_here, style)
            shown = [(name, dict(views_of(curves, variant, name)).get(scan)) for name in measured]
            lasts = [
                (names.index(name), answers(curves, variant, suite.side, scan, known[-1], name))
                for name, known in shown
                if known
            ]
            places = [place for place, _ in lasts]
            line(right, places, np.stack([values for _, values in lasts], axis=1), shades(number), label_here, style)
    glimpse_axis(left, claim.at)
    left.set_title(titled(first), fontsize=9)
    left.set_ylabel("Top-1")
    right.set_title("last answer", fontsize=9)
    right.set_xticks(range(len(names)), [titled(name) for name in names])
    for axes in (left, right):
        share_axis(axes)
    below(figure, right, None)
    return figure


def by_length(names: list[str]) -> list[str]:
    """Return evaluations from few frames to many; as they are if that is not what they differ in."""
    lengths = [name.removeprefix("frames_") for name in names]
    return (
        sorted(names, key=lambda name: int(name.removeprefix("frames_"))) if all(map(str.isdigit, lengths)) else names
    )
