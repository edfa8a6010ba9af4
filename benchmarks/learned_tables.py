"""Tables of the claims about a learned scan (benchmarks/suites/learned_scan.py)."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.curves import Curves
from benchmarks.markdown import markdown, percent
from benchmarks.suites.suite import Claim, Suite

POWERS = (1, 2, 4, 8, 16, 32, 64)
SOME, EARLY = (4, 16, 64), (2, 4, 8)
REACHED = 0.9  # top-1 that glimpses are counted to
QUANTILE = 1.96  # of a normal distribution: 95% lie within so many deviations


class Arm(NamedTuple):
    """A trained variant under one scan."""

    variant: str
    evaluation: str
    scan: str
    title: str


CONTROLS = [
    Arm("control", "fixed", scan, f"{title}, control")
    for scan, title in (("random", "random"), ("varied", "varied"), ("random_grid", "random grid"), ("sobol", "Sobol"))
]
SOBOL = CONTROLS[-1]
BLIND = Arm("blind", "led", "learned", "content-blind, frozen")
FROZEN = Arm("frozen", "led", "learned", "learned, frozen")
LEARNED = Arm("learned", "led", "learned", "learned, co-trained")
ARMS = [*CONTROLS, BLIND, FROZEN, LEARNED]
PAIRS = [
    (LEARNED, SOBOL),
    (FROZEN, SOBOL),
    (FROZEN, Arm("base", "fixed", "sobol", "Sobol, before")),
    (FROZEN, BLIND),
    (Arm("learned", "fixed", "sobol", "Sobol, co-trained"), SOBOL),
    (Arm("learned", "fixed", "random", "random, co-trained"), CONTROLS[0]),
]


def fixed_tables(suite: Suite, claim: Claim, curves: Curves) -> Iterator[tuple[str, str]]:
    """Tabulate what co-training does to random and Sobol's glimpses."""
    rows: list[list[object]] = []
    for side in curves.resolutions("fixed"):
        for scan, title in (("random", "random"), ("sobol", "Sobol")):
            for variant, label in claim.variants.items():
                of_steps = [curves.at(step, variant, "fixed", side, scan=scan) for step in SOME]
                rows.append([side, title, label, *map(percent, of_steps)])
    yield "top1", markdown("Top-1 (%) after so many glimpses:", ["side", "scan", "encoder", *SOME], rows)


def led_tables(suite: Suite, claim: Claim, curves: Curves) -> Iterator[tuple[str, str]]:
    """Tabulate top-1 by scan, the area under it, glimpses to reach 90%, and differences image by image."""
    rows: list[list[object]] = []
    for side in curves.resolutions("led"):
        for arm in ARMS:
            values = curves.of(arm.variant, arm.evaluation, side, scan=arm.scan)  # (seeds, steps)
            steps = curves.steps(arm.evaluation)
            if len(values):
                of_steps = [percent(values[:, steps.index(step)]) for step in POWERS]
                reached = summed(glimpses_to(values, steps))
                rows.append([side, arm.title, *of_steps, percent(area(values, steps)), reached])
    heading = ["side", "scan, encoder", *POWERS, "mean over log2", f"glimpses to {REACHED:.0%}"]
    yield "top1", markdown("Top-1 (%) after so many glimpses:", heading, rows)
    rows = []
    for side in curves.resolutions("led"):
        for one, other in PAIRS:
            cells = [paired(curves, one, other, side, step) for step in POWERS[1:]]
            rows.append([side, f"{one.title} - {other.title}", *cells])
    title = "Difference in points, paired by image: mean, its 95% interval over images, and the seeds' range:"
    if any(cell for row in rows for cell in row[2:]):
        yield "paired", markdown(title, ["side", "difference", *POWERS[1:]], rows)


def area(values: np.ndarray, steps: list[int]) -> np.ndarray:
    """Return the mean of top-1 over log2 of the glimpses, by the trapezoidal rule: (seeds, steps) -> (seeds,)."""
    logs = np.log2(steps)
    return np.trapezoid(values, logs, axis=1) / (logs[-1] - logs[0])


def glimpses_to(values: np.ndarray, steps: Sequence[float], share: float = REACHED) -> np.ndarray:
    """Return the first number of glimpses after which top-1 is so high, interpolated linearly; nan for never."""
    found = []
    for curve in values:  # (steps,) of a seed
        reached = np.flatnonzero(curve >= share)
        if not len(reached):
            found.append(np.nan)
        elif (at := reached[0]) == 0:
            found.append(steps[0])
        else:
            found.append(float(np.interp(share, curve[at - 1 : at + 1], steps[at - 1 : at + 1])))
    return np.array(found)


def summed(found: np.ndarray) -> str:
    """Format a number of glimpses over seeds; nan for a seed that has none."""
    if np.isnan(found).any():
        return "never" if np.isnan(found).all() else f"{np.isfinite(found).sum()} of {len(found)} seeds do"
    return f"{found.mean():.1f}" if len(found) == 1 else f"{found.mean():.1f} ± {found.std(ddof=1):.1f}"


def paired(curves: Curves, one: Arm, other: Arm, side: int, step: int) -> str:
    """Format the difference of two arms, seed by seed and image by image."""
    ours = curves.correct(step, one.variant, one.evaluation, side, one.scan)
    theirs = curves.correct(step, other.variant, other.evaluation, side, other.scan)
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return ""
    by_seed = 100.0 * np.stack([ours[seed].astype(float) - theirs[seed] for seed in seeds])  # (seeds, N)
    by_image = by_seed.mean(0)
    half = QUANTILE * by_image.std(ddof=1) / np.sqrt(len(by_image))
    low, high = by_seed.mean(1).min(), by_seed.mean(1).max()
    return f"{by_image.mean():+.1f} ± {half:.1f} ({low:+.1f} to {high:+.1f})"


def variants_led(suite: Suite, claim: Claim, curves: Curves) -> Iterator[tuple[str, str]]:
    """Tabulate top-1 of several policies, and the area under it."""
    rows: list[list[object]] = []
    steps = curves.steps("led")
    for side in curves.resolutions("led"):
        for variant, label in claim.variants.items():
            values = curves.of(variant, "led", side, scan="learned")
            if len(values):
                of_steps = [percent(values[:, steps.index(step)]) for step in EARLY]
                rows.append([side, label, *of_steps, percent(area(values, steps))])
    title = TITLES[next(name for name, own in suite.claims.items() if own is claim)]
    yield "top1", markdown("Top-1 (%) after so many glimpses:", ["side", title, *EARLY, "mean over log2"], rows)


TITLES = {"sights": "it sees", "tried": "tried at a glimpse"}


def offered_tables(suite: Suite, claim: Claim, curves: Curves) -> Iterator[tuple[str, str]]:
    """Tabulate top-1 by the number of candidates in test."""
    rows: list[list[object]] = []
    (variant,) = claim.variants
    for side in curves.resolutions("led"):
        for name, number in offered(suite).items():
            steps, values = curves.steps(name), curves.of(variant, name, side, scan="learned")
            if len(values):
                of_steps = [percent(values[:, steps.index(step)]) for step in EARLY]
                rows.append([side, number, *of_steps, percent(area(values, steps))])
    heading = ["side", "candidates", *EARLY, "mean over log2"]
    yield "top1", markdown("Top-1 (%) after so many glimpses:", heading, rows)


def offered(suite: Suite) -> dict[str, int]:
    """Return the number of candidates by evaluation, the smallest first."""
    numbers = {"led": 64} | {name: int(name.rpartition("_")[2]) for name in suite.measured["offered"] if "_" in name}
    return dict(sorted(numbers.items(), key=lambda item: item[1]))


STOPPED = {  # rules by scan, and what they are called
    ("random", "confidence"): "random, confidence",
    ("sobol", "confidence"): "Sobol, confidence",
    ("sobol", "stable"): "Sobol, stable",
    ("learned", "confidence"): "learned, confidence",
    ("learned", "stable"): "learned, stable",
    ("learned", "value"): "learned, value",
}
TARGETS = (0.7, 0.8, 0.9, 0.95)


def stopping_tables(suite: Suite, claim: Claim, curves: Curves) -> Iterator[tuple[str, str]]:
    """Tabulate the glimpses that images take on average, each until a rule is met, by the top-1 that they reach."""
    rows: list[list[object]] = []
    (variant,) = claim.variants
    for side in curves.resolutions("stopping"):
        for (scan, rule), label in STOPPED.items():
            tried = curves.exits(variant, "stopping", side, scan, rule)  # (seeds, thresholds, 2)
            if len(tried) and tried[..., 1].max() >= TARGETS[0]:
                rows.append([side, label, *(of_targets(tried, target) for target in TARGETS)])
    if rows:
        title = "Glimpses on average, each image until the rule is met, to reach a top-1 of:"
        yield "glimpses", markdown(title, ["side", "scan, rule", *(f"{target:.0%}" for target in TARGETS)], rows)


def of_targets(tried: np.ndarray, target: float) -> str:
    """Format the glimpses that a rule takes to reach a top-1, interpolated between thresholds."""
    found = np.array([fewest(*seed.T, target) for seed in tried])
    return summed(found)


def fewest(glimpses: np.ndarray, top1: np.ndarray, target: float) -> float:
    """Return the fewest glimpses, interpolated linearly between thresholds, at which top-1 is so high; nan for none."""
    order = np.argsort(glimpses)
    return float(glimpses_to(top1[order][None], glimpses[order].tolist(), target)[0])
