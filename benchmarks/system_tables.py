"""Tables of claims about several encoders (benchmarks/suites/comparison.py)."""

from collections.abc import Iterator

import numpy as np

from benchmarks.curves import Curves
from benchmarks.markdown import markdown, percent
from benchmarks.suites.suite import Claim, Suite

EVALUATION = "resolutions"
CANVAS = "canvas"  # what takes whole canvases has for its scan
SHORTER = (16, 4)  # parts of the length at which answers are tabulated, too


def answers(curves: Curves, variant: str, side: int, scan: str, step: int, evaluation: str = EVALUATION) -> np.ndarray:
    """Return top-1 of a variant at a canvas side after so many glimpses, by the seeds that there are: (seeds,)."""
    found = []
    for seed in curves.seeds(variant, evaluation):
        condition = curves.measured[variant, seed, evaluation, side, scan]
        found.append(condition["top1"][condition["steps"].index(step)])
    return np.array(found)


def views_of(curves: Curves, variant: str, evaluation: str = EVALUATION) -> list[tuple[str, list[int]]]:
    """Return the scans that a variant was measured by, in their own order, and when it answered, increasing."""
    found: dict[str, list[int]] = {}
    for key, condition in curves.measured.items():
        if (key[0], key[2]) == (variant, evaluation):
            found.setdefault(key[4], condition["steps"])
    return [*found.items()]


def tabulated(steps: list[int]) -> list[int]:
    """Return the last of these numbers of glimpses, and those that are the SHORTER parts of it, increasing."""
    return [step for step in steps if step in (*(steps[-1] // part for part in SHORTER), steps[-1])]


def by_canvas(claim: Claim, curves: Curves, evaluation: str = EVALUATION) -> str:
    """Tabulate top-1 by canvas side in test, a line for each variant and scan, and for fewer glimpses of it."""
    sides = curves.resolutions(evaluation)
    rows: list[list[object]] = []
    for variant, label in claim.variants.items():
        for scan, steps in views_of(curves, variant, evaluation):
            for step in tabulated(steps):
                seen = scan if scan == CANVAS else f"{step} {scan}"
                of_sides = (percent(answers(curves, variant, side, scan, step, evaluation)) for side in sides)
                rows.append([label, seen, *of_sides])
    return markdown("Top-1 (%) by canvas side in test (pixels):", ["", "sees", *sides], rows)


def system_tables(suite: Suite, claim: Claim, curves: Curves) -> Iterator[tuple[str, str]]:
    """Tabulate the evaluation of several canvas sides."""
    yield "canvas", by_canvas(claim, curves)


def every_length(suite: Suite, claim: Claim, curves: Curves) -> Iterator[tuple[str, str]]:
    """Tabulate every evaluation that has results, each of another number of glimpses, by canvas side."""
    for evaluation in suite.evaluations:
        if curves.steps(evaluation):
            yield evaluation, by_canvas(claim, curves, evaluation)
