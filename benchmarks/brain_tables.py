"""Tables of the claim about regions of the brain (benchmarks/suites/brain.py)."""

from collections.abc import Iterator

import numpy as np

from benchmarks.curves import Curves
from benchmarks.markdown import markdown, percent
from benchmarks.suites.suite import Claim, Suite
from benchmarks.system_tables import CANVAS, system_tables

SETS = {"few": "right half", "resolutions": "right half", "rasters": "right half", "other": "other brain"}
ALL = 125  # cubes of a canvas of the suite's side


def brain_tables(suite: Suite, claim: Claim, curves: Curves) -> Iterator[tuple[str, str]]:
    """Tabulate top-1 by canvas side, and at one of them on either set of volumes by scan and glimpses."""
    yield from system_tables(suite, claim, curves)
    steps = (1, 8, claim.at, ALL)
    rows: dict[tuple[str, str, str], dict[int, object]] = {}
    for variant, label in claim.variants.items():
        for evaluation, of in SETS.items():
            for scan in curves.scans(evaluation):
                found = [curves.measured.get((variant, s, evaluation, suite.side, scan)) for s in suite.seeds]
                known = [condition for condition in found if condition]
                for step in known[0]["steps"] if known else ():
                    values = np.array([curve["top1"][curve["steps"].index(step)] for curve in known])
                    column = ALL if scan == CANVAS else step
                    rows.setdefault((label, of, scan), {})[column] = percent(values)
    title = f"Top-1 (%) at {suite.side} voxels, after so many cubes of 8; a canvas has {ALL}:"
    lines = [[*row, *(cells.get(step, "") for step in steps)] for row, cells in rows.items()]
    yield "sets", markdown(title, ["", "of", "by", *steps], lines)
