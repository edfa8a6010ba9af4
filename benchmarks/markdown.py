"""Tables of results in Markdown."""

import numpy as np


def percent(values: np.ndarray, sign: str = "") -> str:
    """Format the mean of some seeds, and their standard deviation, in %."""
    if not len(values):
        return ""
    mean = f"{100 * values.mean():{sign}.1f}"
    return mean if len(values) == 1 else f"{mean} ± {100 * values.std(ddof=1):.1f}"


def markdown(title: str, heading: list[object], rows: list[list[object]]) -> str:
    """Format a title line and a table below it."""
    lines = [heading, ["---"] * len(heading), *rows]
    return title + "\n\n" + "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
