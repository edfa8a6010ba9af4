"""Draw every scan pattern, and time it.

    python -m benchmarks.scans --output docs/scans.png [--varied docs/varied.png] [--rounds 99]

The picture: one pass of 16-pixel glimpses over a box with odd sides, a dot for each one's centre and a line on to the
next, coloured by step; the first glimpse is outlined. Of patterns without a grid, as many glimpses. The second
picture has draws of varied.

Prints one JSON line: the median milliseconds that 8192 positions on a 1536x1536 box take, by pattern, in one thread as
in a loader's worker.
"""

import argparse
import json
from pathlib import Path
from statistics import median
from time import perf_counter

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from mambaeye.geometry.box import Box
from mambaeye.geometry.orders import hilbert_curve
from mambaeye.geometry.scans import SCANS, Scan, varied

PATCH_SIZE = 16
SHOWN = Box(0, 0, 155, 203)
ONE_PASS = 10 * 13
COLORS = colormaps["plasma"].resampled(256)(np.linspace(0, 0.93, 256))  # without the yellow that white swallows
"""By step, first to last."""


def draw(axes: Axes, name: str, scan: Scan, seed: int = 0) -> None:
    """Draw one pattern's path over the box."""
    centres = scan(SHOWN, PATCH_SIZE, ONE_PASS, np.random.default_rng(seed))[:, ::-1] + PATCH_SIZE / 2  # (T, 2): x, y
    colors = COLORS[np.linspace(0, 255, ONE_PASS).astype(int)]
    far = np.linalg.norm(np.diff(centres, axis=0), axis=1) > 1.5 * PATCH_SIZE
    hops = far.mean() > 0.25  # then the dots' colors tell the order, and lines would cover them
    lines = LineCollection(
        np.stack((centres[:-1], centres[1:]), axis=1),
        colors=colors[:-1],
        linewidths=np.where(far | hops, 0.4, 2.2),
        alpha=0.4 if hops else 1,
    )
    axes.add_patch(Rectangle((0, 0), SHOWN.width, SHOWN.height, facecolor="0.965", edgecolor="0.6", linewidth=0.8))
    axes.add_collection(lines)
    axes.scatter(*centres.T, s=30 if hops else 9, c=colors, linewidths=0, zorder=3)
    outline_first(axes, centres[0] - PATCH_SIZE / 2)
    axes.set_title(name, family="monospace", fontsize=11)


def outline_first(axes: Axes, corner: tuple[float, float]) -> None:
    """Outline the first glimpse, given its top left corner (x, y)."""
    axes.add_patch(
        Rectangle(corner, PATCH_SIZE, PATCH_SIZE, facecolor="none", edgecolor="black", linewidth=1.4, zorder=4)
    )


def draw_key(axes: Axes) -> None:
    """Draw what the outline and the colors mean."""
    outline_first(axes, (20, 34))
    axes.text(48, 42, "the first glimpse", va="center", fontsize=11)
    axes.imshow(COLORS[None, :, :3], extent=(20, 183, 92, 76), aspect="auto")
    axes.text(20, 100, "first", va="top", fontsize=11)
    axes.text(183, 100, "last", va="top", ha="right", fontsize=11)


def panels(rows: int, columns: int) -> tuple[Figure, list[Axes]]:
    """Return a figure of small pictures of the box, still empty."""
    figure = Figure(figsize=(2.5 * columns, 2.1 * rows), layout="constrained")
    grid = figure.subplots(rows, columns).ravel().tolist()
    for axes in grid:
        axes.set(xlim=(-2, SHOWN.width + 2), ylim=(SHOWN.height + 2, -2), aspect="equal")
        axes.set_axis_off()
    return figure, grid


def draw_all(path: Path) -> None:
    """Draw every pattern as a small picture, and the key, into one PNG."""
    columns = 5
    figure, grid = panels(len(SCANS) // columns + 1, columns)
    for axes, (name, scan) in zip(grid, SCANS.items(), strict=False):
        draw(axes, name, scan)
    draw_key(grid[len(SCANS)])
    save(figure, path)


def draw_varied(path: Path) -> None:
    """Draw fifteen draws of varied into one PNG."""
    figure, grid = panels(3, 5)
    for seed, axes in enumerate(grid):
        draw(axes, f"seed {seed}", varied, seed)
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, pil_kwargs={"optimize": True})


def milliseconds(scan: Scan, rounds: int) -> float:
    """Return the median milliseconds that 8192 positions on a large image take."""
    times = []
    for number in range(rounds):
        hilbert_curve.cache_clear()
        rng = np.random.default_rng(number)
        start = perf_counter()
        scan(Box(0, 0, 1536, 1536), PATCH_SIZE, 8192, rng)
        times.append((perf_counter() - start) * 1e3)
    return round(median(times), 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="the picture to write, a .png")
    parser.add_argument("--varied", type=Path, help="the picture of varied paths to write, a .png")
    parser.add_argument("--rounds", type=int, default=99, help="how often each pattern is timed")
    args = parser.parse_args()
    torch.set_num_threads(1)
    draw_all(args.output)
    if args.varied:
        draw_varied(args.varied)
    print(json.dumps({name: milliseconds(scan, args.rounds) for name, scan in SCANS.items()}))


if __name__ == "__main__":
    main()
