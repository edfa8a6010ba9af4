"""Tables of claims about clips (benchmarks/suites/video.py): by evaluation, and by glimpses."""

from collections.abc import Iterator

from benchmarks.curves import Curves
from benchmarks.markdown import markdown, percent
from benchmarks.suites.suite import Claim, Suite
from benchmarks.system_tables import CANVAS, answers, views_of


def evaluations_in(suite: Suite, curves: Curves) -> list[str]:
    """Return the evaluations that have results, in the suite's order."""
    return [name for name in suite.evaluations if curves.steps(name)]


def titled(evaluation: str) -> str:
    """Return an evaluation's name as a heading has it."""
    return evaluation.replace("_", " ")


def video_tables(suite: Suite, claim: Claim, curves: Curves) -> Iterator[tuple[str, str]]:
    """Tabulate top-1 of the last answer by evaluation, and top-1 by glimpses in the first one."""
    names = evaluations_in(suite, curves)
    rows: list[list[object]] = []
    for variant, label in claim.variants.items():
        scans = dict.fromkeys(scan for name in names for scan, _ in views_of(curves, variant, name))
        for scan in scans:
            lasts = [dict(views_of(curves, variant, name)).get(scan) for name in names]
            last = [
                percent(answers(curves, variant, suite.side, scan, steps[-1], name)) if steps else ""
                for name, steps in zip(names, lasts, strict=True)
            ]
            rows.append([label, scan, *last])
    yield "last", markdown("Top-1 (%) of the last answer:", ["", "sees", *map(titled, names)], rows)

    first, by_step = names[0], []
    steps = [step for step in curves.steps(first) if step <= claim.at]
    for variant, label in claim.variants.items():
        for scan, answered in views_of(curves, variant, first):
            if scan != CANVAS and len(answered) > 1:
                values = (percent(answers(curves, variant, suite.side, scan, step, first)) for step in steps)
                by_step.append([label, scan, *values])
    if by_step:
        yield (
            "glimpses",
            markdown(f"Top-1 (%), {titled(first)}, after so many glimpses:", ["", "sees", *steps], by_step),
        )
