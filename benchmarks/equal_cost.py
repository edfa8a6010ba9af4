"""Tables of top-1 at equal operations of inference, from a suite's encoders and its results.

Operations are matrix products, convolutions and attention, two a multiply-add, as mambaeye/flops.py counts them; the
recurrence of S6 is no matrix product, and is left out.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.curves import Curves
from benchmarks.macs import features_of
from benchmarks.markdown import markdown, percent
from benchmarks.suites.suite import Claim, Suite
from benchmarks.system_tables import CANVAS, EVALUATION, answers, system_tables, views_of
from mambaeye.encoders.base import Encoder

ROOT = Path(__file__).parents[1]
FLAG = "model.encoder."


def built(suite: Suite, variant: str) -> Encoder:
    """Build a variant's encoder for ten classes, without values: on the meta device."""
    settings: dict[str, Any] = {"class_path": "MambaEye"}
    for path in suite.configs_of(variant):
        described = yaml.safe_load((ROOT / path).read_text())["model"]["encoder"]
        if "class_path" in described:
            settings = {"class_path": described["class_path"], **described["init_args"]}
        else:
            settings |= described
    changes = suite.variants[variant].items()
    settings |= {key.removeprefix(FLAG): yaml.safe_load(value) for key, value in changes if key.startswith(FLAG)}
    name = settings.pop("class_path")
    (system,) = (c for c in Encoder.defined_subclasses() if c.__name__ == name)
    with torch.device("meta"):
        encoder: Encoder = system(num_classes=10, **settings)
    return encoder


def operations(encoder: Encoder, size: int) -> int:
    """Count the operations of inference for one image: on a canvas of that side, or of so many glimpses."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        encoder.logits(features_of(encoder, size))
    return int(counter.get_total_flops())


def affordable(encoder: Encoder, most: int, length: int) -> int:
    """Return the largest number of glimpses, of at least 1 and up to a length, that take no more operations."""
    enough, beyond = 1, length + 1
    while beyond - enough > 1:
        middle = (enough + beyond) // 2
        enough, beyond = (middle, beyond) if operations(encoder, middle) <= most else (enough, middle)
    return enough


def between(curves: Curves, variant: str, side: int, scan: str, count: int) -> np.ndarray:
    """Return top-1 after so many glimpses, by seed: (seeds,); linear in the logarithm between those measured."""
    steps = dict(views_of(curves, variant))[scan]
    low, high = max(step for step in steps if step <= count), min(step for step in steps if step >= count)
    share = np.log(count / low) / np.log(high / low) if low < high else 0.0
    first, second = (answers(curves, variant, side, scan, step) for step in (low, high))
    return first + share * (second - first)


def cost_tables(suite: Suite, claim: Claim, curves: Curves) -> Iterator[tuple[str, str]]:
    """Tabulate each that takes canvases, and the first variant after as many glimpses as cost the same at one side."""
    sides = curves.resolutions(EVALUATION)
    first = next(iter(claim.variants))
    glimpsing, scans = built(suite, first), [scan for scan, _ in views_of(curves, first)]
    rows: list[list[object]] = []
    for variant, label in claim.variants.items():
        views = views_of(curves, variant)
        if [scan for scan, _ in views] != [CANVAS]:
            continue
        most = operations(built(suite, variant), suite.side)
        count = affordable(glimpsing, most, claim.at)
        cells = []
        for side in sides:
            own = answers(curves, variant, side, CANVAS, views[0][1][-1])
            others = (between(curves, first, side, scan, count) for scan in scans)
            cells.append(" / ".join(map(percent, (own, *others))))
        rows.append([label, f"{most / 1e6:.1f}", count, *cells])
    by = " / ".join(["its own", *(f"by {scan}" for scan in scans)])
    cost = f"equal operations of inference at {suite.side} pixels"
    title = f"Top-1 (%) at {cost}, {by} glimpses of {claim.variants[first]}, by canvas side in test (pixels):"
    yield "equal_cost", markdown(title, ["", f"MFLOPs at {suite.side}", "glimpses", *sides], rows)


def compared_tables(suite: Suite, claim: Claim, curves: Curves) -> Iterator[tuple[str, str]]:
    """Tabulate all variants by canvas side, and then those that take canvases at equal cost."""
    yield from system_tables(suite, claim, curves)
    yield from cost_tables(suite, claim, curves)
