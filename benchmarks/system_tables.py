"""Tables of claims about several encoders (benchmarks/suites/comparison.py)."""

from collections.abc import Iterator

import numpy as np

from benchmarks.curves import Curves
from benchmarks.markdown import markdown, percent
from benchmarks.suites.suite import Claim, Suite

EVALUATION = "resolutions"


def last(curves: Curves, variant: str, side: int, scan: str) -> np.ndarray:
    """Return top-1 of a variant's last answer at a canvas side, by the seeds that there are: (seeds,)."""
    seeds = curves.seeds(variant, EVALUATION)
    return np.array([curves.measured[variant, seed, EVALUATION, side, scan]["top1"][-1] for seed in seeds])


def scans_of(curves: Curves, variant: str) -> list[str]:
    """Return the scans that a variant was measured by, in their own order; "canvas" of one that takes canvases."""
    keys = (key for key in curves.measured if (key[0], key[2]) == (variant, EVALUATION))
    return list(dict.fromkeys(key[4] for key in keys))


def system_tables(suite: Suite, claim: Claim, curves: Curves) -> Iterator[tuple[str, str]]:
    """Tabulate top-1 of the last answer by canvas side in test, a line for each variant and scan."""
    sides = curves.resolutions(EVALUATION)
    rows: list[list[object]] = [
        [label, scan, *(percent(last(curves, variant, side, scan)) for side in sides)]
        for variant, label in claim.variants.items()
        for scan in scans_of(curves, variant)
    ]
    yield "canvas", markdown("Top-1 (%) by canvas side in test (pixels):", ["", "sees", *sides], rows)
