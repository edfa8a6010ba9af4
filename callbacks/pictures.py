"""Pictures of validation results."""

from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter, ScalarFormatter


def accuracy_by_glimpse(rows: list[dict[str, Any]], path: Path) -> None:
    """Top-1 and mean confidence against the number of glimpses, a line for every resolution and scan, as a PNG.

    Args:
        rows: with resolution, scan, step, top1 and confidence.
        path: of the PNG.
    """
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    cells = list(dict.fromkeys((row["resolution"], row["scan"]) for row in rows))
    scans = list(dict.fromkeys(scan for _, scan in cells))
    resolutions = sorted({resolution for resolution, _ in cells})
    shades = colormaps["viridis"].resampled(len(resolutions) + 1)
    styles = ("-", "--", ":", "-.")
    for axes, quantity, title in zip(panels, ("top1", "confidence"), ("top-1", "mean confidence"), strict=True):
        for resolution, scan in cells:
            points = [
                (row["step"], row[quantity]) for row in rows if (row["resolution"], row["scan"]) == (resolution, scan)
            ]
            axes.plot(
                *zip(*points, strict=True),
                color=shades(resolutions.index(resolution)),
                linestyle=styles[scans.index(scan) % len(styles)],
                marker="o",
                markersize=3.5,
                label=f"{resolution} px" if len(scans) == 1 else f"{resolution} px, {scan}",
            )
        axes.set(title=title, xlabel="glimpses seen", xscale="log", ylim=(0, 1.02))
        axes.set_xticks(sorted({row["step"] for row in rows}))
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.minorticks_off()
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.grid(color="0.9")
        axes.spines[["top", "right"]].set_visible(False)
    panels[1].legend(title="canvas side", frameon=False, loc="lower right")
    figure.savefig(path, dpi=120)
