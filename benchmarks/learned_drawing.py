"""Pictures of the claims about a learned scan (benchmarks/suites/learned_scan.py): a panel a canvas side."""

from collections.abc import Iterable

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from benchmarks.curves import Curves
from benchmarks.learned_tables import ARMS, STOPPED, Arm, offered
from benchmarks.lines import below, line
from benchmarks.suites.suite import Claim, Suite
from callbacks.plots.panels import glimpse_axis, share_axis

STYLES = {"random": ":", "sobol": "--"}


def draw_fixed(suite: Suite, claim: Claim, curves: Curves) -> Figure:
    """Draw what co-training does to random (dotted) and Sobol's glimpses (dashed)."""
    arms = [
        Arm(variant, "fixed", scan, f"{title}, {label}")
        for scan, title in (("random", "random"), ("sobol", "Sobol"))
        for variant, label in claim.variants.items()
    ]
    shades = colormaps["viridis"](np.linspace(0, 0.85, len(claim.variants)))
    return over_glimpses(arms, [tuple(shade) for shade in (*shades, *shades)], curves)


def draw_led(suite: Suite, claim: Claim, curves: Curves) -> Figure:
    """Draw learned scans beside fixed ones."""
    return over_glimpses(ARMS, spread("turbo", ARMS), curves)


def draw_variants_led(suite: Suite, claim: Claim, curves: Curves) -> Figure:
    """Draw several policies."""
    arms = [Arm(variant, "led", "learned", label) for variant, label in claim.variants.items()]
    return over_glimpses(arms, spread("viridis", arms), curves)


def draw_offered(suite: Suite, claim: Claim, curves: Curves) -> Figure:
    """Draw one policy with several numbers of candidates."""
    (variant,) = claim.variants
    arms = [Arm(variant, name, "learned", f"{number} candidates") for name, number in offered(suite).items()]
    return over_glimpses(arms, spread("viridis", arms), curves)


def draw_stopping(suite: Suite, claim: Claim, curves: Curves) -> Figure:
    """Draw top-1 against the glimpses that images take on average, a line per scan and rule, a dot per threshold."""
    (variant,) = claim.variants
    sides = curves.resolutions("stopping")
    figure = Figure(figsize=(2.6 * len(sides) + 0.4, 3.4), layout="constrained")
    (panels,) = figure.subplots(1, len(sides), squeeze=False)
    shades = dict(zip(STOPPED, colormaps["turbo"](np.linspace(0.05, 0.9, len(STOPPED))), strict=True))
    for side, axes in zip(sides, panels, strict=True):
        for (scan, rule), label in STOPPED.items():
            tried = curves.exits(variant, "stopping", side, scan, rule)
            if len(tried):
                glimpses, top1 = tried.mean(0).T  # over seeds
                order = np.argsort(glimpses)
                axes.plot(
                    glimpses[order], top1[order], color=shades[scan, rule], label=label, marker=".", linewidth=1.2
                )
        glimpse_axis(axes, curves.steps("stopping")[-1])
        share_axis(axes)
        axes.set_title(f"{side} px", fontsize=9)
    panels[0].set_ylabel("Top-1")
    below(figure, panels[0], None)
    return figure


def spread(name: str, arms: list[Arm]) -> list[tuple[float, ...]]:
    """Return as many colours of a map as there are arms."""
    return [tuple(shade) for shade in colormaps[name](np.linspace(0.05, 0.9, len(arms)))]


def over_glimpses(arms: list[Arm], shades: Iterable[tuple[float, ...]], curves: Curves) -> Figure:
    """Draw top-1 against glimpses, a panel per canvas side, a line per arm."""
    shown = [(arm, shade) for arm, shade in zip(arms, shades, strict=True) if curves.seeds(arm.variant, arm.evaluation)]
    sides = curves.resolutions(shown[0][0].evaluation)
    figure = Figure(figsize=(2.6 * len(sides) + 0.4, 3.4), layout="constrained")
    (panels,) = figure.subplots(1, len(sides), squeeze=False)
    for side, axes in zip(sides, panels, strict=True):
        for arm, shade in shown:
            steps, values = curves.steps(arm.evaluation), curves.of(arm.variant, arm.evaluation, side, scan=arm.scan)
            line(axes, steps, values, shade, arm.title, STYLES.get(arm.scan, "-"))
        glimpse_axis(axes, steps[-1])
        share_axis(axes)
        axes.set_title(f"{side} px", fontsize=9)
    panels[0].set_ylabel("Top-1")
    below(figure, panels[0], None)
    return figure
