"""Make tables of a suite's results (benchmarks/results.py), from their entries alone.

Seeds are summed up as mean and standard deviation. Differences are taken seed by seed, between runs that share their
order of samples.
"""

from collections.abc import Callable, Iterator

import numpy as np

from benchmarks.brain_tables import brain_tables
from benchmarks.curves import Curves, Entry
from benchmarks.equal_cost import compared_tables
from benchmarks.learned_tables import fixed_tables, led_tables, offered_tables, stopping_tables, variants_led
from benchmarks.markdown import markdown, percent
from benchmarks.suites.suite import Claim, Suite
from benchmarks.system_tables import every_length, system_tables
from benchmarks.video_tables import video_tables

BY_RESOLUTION = "resolutions"
"""The evaluation that has every canvas side."""
QUANTITIES = {"top1": "Top-1", "ece": "ECE"}


def tables(suite: Suite, entries: list[Entry]) -> dict[str, str]:
    """Return Markdown by name, each with a title line above it, of claims that have results."""
    curves = Curves(entries)
    made: dict[str, str] = {}
    for name, claim in suite.claims.items():
        if any(curves.seeds(variant, suite.measured[name][0]) for variant in claim.variants):
            made |= {f"{name}-{part}": text for part, text in TABLES[name](suite, claim, curves)}
    return made


def loss_tables(suite: Suite, claim: Claim, curves: Curves) -> Iterator[tuple[str, str]]:
    """Tabulate top-1 and ECE by canvas and glimpse, and what the first variant has more than the second."""
    first, second = claim.variants
    steps = curves.steps(BY_RESOLUTION)[::-1][::2][::-1]  # every second power of two, the last among them
    for quantity, word in QUANTITIES.items():
        rows: list[list[object]] = []
        for side in curves.resolutions(BY_RESOLUTION):
            for variant, label in claim.variants.items():
                of_steps = [curves.at(step, variant, BY_RESOLUTION, side, name=quantity) for step in steps]
                rows.append([side, label, *map(percent, of_steps)])
            more = [curves.at(step, first, BY_RESOLUTION, side, name=quantity, less=second) for step in steps]
            rows.append([side, "*difference*", *(percent(values, "+") for values in more)])
        title = f"{word} (%) by canvas side, after so many glimpses:"
        yield quantity, markdown(title, ["side", "trained with", *steps], rows)


def by_canvas(claim: Claim, curves: Curves) -> tuple[list[object], list[list[object]]]:
    """Tabulate top-1 of every variant at every canvas side: heading and rows."""
    sides = curves.resolutions(BY_RESOLUTION)
    rows = [
        [label, *(percent(curves.at(claim.at, variant, BY_RESOLUTION, side)) for side in sides)]
        for variant, label in claim.variants.items()
    ]
    return sides, rows


def canvas_tables(suite: Suite, claim: Claim, curves: Curves) -> Iterator[tuple[str, str]]:
    """Tabulate top-1 by canvas in training and in test."""
    sides, rows = by_canvas(claim, curves)
    title = f"Top-1 (%) after {claim.at} glimpses, by canvas side in test (pixels):"
    yield "canvas", markdown(title, ["canvas side in training", *sides], rows)


def shift_columns(suite: Suite, curves: Curves) -> dict[int, str]:
    """Return evaluations by shift in pixels, those that there are; no shift is in the evaluation by resolution."""
    names = [name for name in suite.evaluations if name.startswith("shift_") and curves.steps(name)]
    return {0: BY_RESOLUTION} | {int(name.removeprefix("shift_")): name for name in names}


def coordinate_tables(suite: Suite, claim: Claim, curves: Curves) -> Iterator[tuple[str, str]]:
    """Tabulate top-1 by canvas side, and by shift at one of them, and what the first variant has more."""
    sides, rows = by_canvas(claim, curves)
    first, second = claim.variants
    more = [curves.at(claim.at, first, BY_RESOLUTION, side, less=second) for side in sides]
    rows.append(["*difference*", *(percent(values, "+") for values in more)])
    title = f"Top-1 (%) after {claim.at} glimpses, by canvas side (pixels):"
    yield "canvas", markdown(title, ["told", *sides], rows)
    shifts = shift_columns(suite, curves)
    rows = [
        [label, *(percent(curves.at(claim.at, v, name, suite.side)) for name in shifts.values())]
        for v, label in claim.variants.items()
    ]
    title = f"Top-1 (%) at {suite.side} pixels after {claim.at} glimpses, shifted by so many pixels both ways:"
    yield "shift", markdown(title, ["told", *shifts], rows)


def length_tables(suite: Suite, claim: Claim, curves: Curves) -> Iterator[tuple[str, str]]:
    """Tabulate top-1 by glimpses in training and in test, and by canvas side."""
    steps = [step for step in curves.steps(BY_RESOLUTION) if step >= 4]
    rows = [
        [side, label, *(percent(curves.at(step, variant, BY_RESOLUTION, side)) for step in steps)]
        for side in curves.resolutions(BY_RESOLUTION)
        for variant, label in claim.variants.items()
    ]
    title = "Top-1 (%) by canvas side and glimpses in training, after so many glimpses in test:"
    yield "top1", markdown(title, ["side", "in training", *steps], rows)


def scan_tables(suite: Suite, claim: Claim, curves: Curves) -> Iterator[tuple[str, str]]:
    """Tabulate top-1 of every training pattern on itself, on those that draw, and over all."""
    for side in curves.resolutions("scans"):
        rows = []
        for variant, label in claim.variants.items():
            tested = {scan: curves.at(claim.at, variant, "scans", side, scan=scan) for scan in curves.scans("scans")}
            if len(tested[label]):
                others = np.stack([values for scan, values in tested.items() if scan != label])  # (patterns, seeds)
                drawn = [percent(tested[scan]) for scan in ("random", "sobol", "random_grid")]
                rows.append([label, percent(tested[label]), *drawn, percent(others.mean(0)), percent(others.min(0))])
        heading = ["in training", "on itself", "on random", "on sobol", "on random_grid", "mean of the others", "worst"]
        title = f"Top-1 (%) at {side} pixels after {claim.at} glimpses:"
        yield str(side), markdown(title, heading, rows)


def path_tables(suite: Suite, claim: Claim, curves: Curves) -> Iterator[tuple[str, str]]:
    """Tabulate top-1 on random glimpses, over all patterns and on each seed's worst, by canvas side in test."""
    for step in (claim.at, claim.at // 4):
        rows: list[list[object]] = []
        for side in curves.resolutions("paths"):
            for variant, label in claim.variants.items():
                tested = {scan: curves.at(step, variant, "paths", side, scan=scan) for scan in curves.scans("paths")}
                if not len(tested["random"]):
                    continue
                patterns = np.stack([*tested.values()])  # (patterns, seeds)
                worst = min(tested, key=lambda scan: tested[scan].mean())
                rows.append(
                    [side, label, percent(tested["random"]), percent(patterns.mean(0)), percent(patterns.min(0)), worst]
                )
        title = f"Top-1 (%) after {step} glimpses, by canvas side in test (pixels):"
        heading = ["side", "in training", "on random", "mean of the patterns", "worst", "worst on average"]
        yield str(step), markdown(title, heading, rows)


TABLES: dict[str, Callable[[Suite, Claim, Curves], Iterator[tuple[str, str]]]] = {
    "loss": loss_tables,
    "coordinates": coordinate_tables,
    "canvases": canvas_tables,
    "lengths": length_tables,
    "scans": scan_tables,
    "paths": path_tables,
    "fixed": fixed_tables,
    "led": led_tables,
    "stopping": stopping_tables,
    "sights": variants_led,
    "tried": variants_led,
    "offered": offered_tables,
    "directions": system_tables,
    "hierarchy": every_length,
    "brain": brain_tables,
    "systems": compared_tables,
    "controls": system_tables,
    "time": video_tables,
    "whole_clips": video_tables,
}
