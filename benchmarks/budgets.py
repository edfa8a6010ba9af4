"""Draw which encoder answers best for which size of image and budget, from suites that compare encoders.

    python -m benchmarks.budgets [--output docs/results/budgets.png] [--sides 48 96 128] [comparison ...]

A row of panels a suite (benchmarks/suites/comparison.py), a panel a canvas side in test: top-1 against the
multiply-adds of one image's inference, those of scans and attention included (benchmarks/macs.py). What takes canvases
is a point; MambaEye and other encoders of glimpses are a line, from few glimpses to all, for every scan that they were
tested by, dotted after the first. The grey steps are the best that a budget buys. Prints the same as Markdown: for each
suite and side, the best up to each budget.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.curves import Curves
from benchmarks.equal_cost import ROOT, built
from benchmarks.lines import below
from benchmarks.macs import multiply_adds
from benchmarks.markdown import markdown
from benchmarks.results import read_entries
from benchmarks.suites import SUITES
from benchmarks.suites.suite import Claim, Suite
from benchmarks.system_tables import CANVAS, answers, views_of
from callbacks.plots.panels import save, share_axis
from mambaeye.encoders.base import GlimpseEncoder

CLAIM = "systems"
COMPARED = tuple(name for name, suite in SUITES.items() if CLAIM in suite.claims)
SHOWN = (48, 96, 128)  # canvas sides, pixels
BUDGETS = (1, 2, 4, 8, 16, 32)  # million multiply-adds
MARKERS = "os^vDPX*<>hp8dH"


class Choice(NamedTuple):
    """A way of answering for one image."""

    label: str
    """The encoder, and what it sees."""
    cost: float
    """Million multiply-adds."""
    top1: float
    """Mean over seeds."""


def choices(suite: Suite, curves: Curves, variant: str, side: int) -> dict[str, list[Choice]]:
    """Return a variant's choices at a canvas side by what it sees: its scans, or the canvas."""
    label, encoder = suite.claims[CLAIM].variants[variant], built(suite, variant)
    found: dict[str, list[Choice]] = {}
    costs: dict[int, float] = {}
    for scan, steps in views_of(curves, variant):
        for step in steps:
            size = step if isinstance(encoder, GlimpseEncoder) else side
            name = label if scan == CANVAS else f"{label}, {step} {scan}"
            if size not in costs:
                costs[size] = sum(multiply_adds(encoder, size)) / 1e6
            top1 = float(answers(curves, variant, side, scan, step).mean())
            found.setdefault(scan, []).append(Choice(name, costs[size], top1))
    return found


def best(offered: list[Choice]) -> list[Choice]:
    """Return what answers better than all that costs no more, by cost."""
    kept: list[Choice] = []
    for choice in sorted(offered, key=lambda choice: (choice.cost, -choice.top1)):
        if not kept or choice.top1 > kept[-1].top1:
            kept.append(choice)
    return kept


def panel(axes: Axes, suite: Suite, claim: Claim, curves: Curves, side: int) -> list[Choice]:
    """Draw all choices at a canvas side, and return the best."""
    offered: list[Choice] = []
    for number, (variant, label) in enumerate(claim.variants.items()):
        if not views_of(curves, variant):
            continue
        color, marker = colormaps["tab20"](number % 20), MARKERS[number % len(MARKERS)]
        for again, some in enumerate(choices(suite, curves, variant, side).values()):
            offered += some
            costs, values = [choice.cost for choice in some], [choice.top1 for choice in some]
            named = "_" if again else label  # one name in the legend
            style = {"marker": marker, "markersize": 5 if len(some) == 1 else 2.5, "linewidth": 1}
            axes.plot(costs, values, color=color, label=named, linestyle=":" if again else "-", **style)
    chosen = best(offered)
    end = max(choice.cost for choice in offered)
    steps = [*((choice.cost, choice.top1) for choice in chosen), (end, chosen[-1].top1)]
    axes.step(*zip(*steps, strict=True), where="post", color="0.75", linewidth=4, zorder=0, label="_")
    axes.set_xscale("log")
    share_axis(axes)
    return chosen


def drawn(compared: dict[str, Curves], sides: tuple[int, ...]) -> tuple[Figure, list[list[object]]]:
    """Draw the figure, and return the rows of the table."""
    figure = Figure(figsize=(3.4 * len(sides), 2.7 * len(compared) + 1), layout="constrained")
    grid = figure.subplots(len(compared), len(sides), squeeze=False, sharex=True)
    rows: list[list[object]] = []
    for (name, curves), panels in zip(compared.items(), grid, strict=True):
        suite = SUITES[name]
        for side, axes in zip(sides, panels, strict=True):
            chosen = panel(axes, suite, suite.claims[CLAIM], curves, side)
            axes.set_title(f"{name}, {side} px", fontsize=9)
            affordable = ([choice for choice in chosen if choice.cost <= most] for most in BUDGETS)
            rows.append(
                [name, side, *(f"{some[-1].label}: {100 * some[-1].top1:.1f}" if some else "" for some in affordable)]
            )
        panels[0].set_ylabel("Top-1")
    for axes in grid[-1]:
        axes.set_xlabel("million multiply-adds of an image")
    below(figure, grid[0, 0], None)
    return figure, rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suites", nargs="*", default=[*COMPARED], help=f"of {', '.join(COMPARED)} (default: all)")
    parser.add_argument("--results", type=Path, default=ROOT / "docs/results", help="folder of the suites' results")
    parser.add_argument("--output", type=Path, default=Path("budgets.png"))
    parser.add_argument("--sides", type=int, nargs="+", default=[*SHOWN], help="canvas sides, pixels")
    args = parser.parse_args()
    if unknown := set(args.suites) - set(COMPARED):
        parser.error(f"{', '.join(sorted(unknown))} compares no encoders: choose of {', '.join(COMPARED)}")
    compared = {name: Curves(read_entries(args.results / f"{name}.json")) for name in args.suites}
    figure, rows = drawn(compared, tuple(args.sides))
    save(figure, args.output)
    title = "The best (top-1, %) up to so many million multiply-adds of an image:"
    print(markdown(title, ["suite", "side", *BUDGETS], rows))


if __name__ == "__main__":
    main()
