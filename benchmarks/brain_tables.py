"""Tables of the claim about regions of the brain (benchmarks/suites/brain.py)."""

from collections.abc import Iterator

import numpy as np

from benchmarks.curves import Curves
from benchmarks.markdown import markdown, percent
from benchmarks.suites.suite import Claim, Suite
from benchmarks.system_tables import CANVAS, system_tables

SETS = {"resolutions": "right half", "rasters": "right half", "other": "other brain"}


def brain_tables(suite: Suite, claim: Claim, curves: Curves) -> Iterator[tuple[str, str]]:
    """Tabulate top-1 by canvas side, and at one of them on either set of volumes by scan and glimpses."""
    yield from system_tables(suite, claim, curves)
    rows: dict[tuple[str, str, str], list[object]] = {}
    for variant, label in claim.variants.items():
        for evaluation, of in SETS.items():
            seeds = curves.seeds(variant, evaluation)
            for scan in curves.scans(evaluation):
                found = [curves.measured.get((variant, seed, evaluation, suite.side, scan)) for seed in seeds]
                known = [condition for condition in found if condition]
                steps = [1] if scan == CANVAS else [1, 8, claim.at, 125]
                if known:
                    by_step = [[curve["top1"][curve["steps"].index(step)] for curve in known] for step in steps]
                    cells = [percent(np.array(values)) for values in by_step]
                    rows[label, of, scan] = [label, of, scan, *[""] * (4 - len(cells)), *cells]
    title = f"Top-1 (%) at {suite.side} voxels, after 1, 8, {claim.at} and 125 cubes of 8; VideoMamba sees all 125:"
    yield "sets", markdown(title, ["", "of", "by", 1, 8, claim.at, 125], [*rows.values()])
