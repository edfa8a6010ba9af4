"""The trajectory that an image is given before anything of it is seen, under every name that a scan may have."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mambaeye.batch import CANVAS, POLICY
from mambaeye.errors import InputError
from mambaeye.geometry.box import Box, PatchSize, patch_sides, start_range
from mambaeye.geometry.coverage import information_ratio
from mambaeye.geometry.scans import scan_pattern

AXES = 2
"""Axes of an image, and of a position on it: (row, col)."""
CLIP_AXES = 3
"""Axes of a clip, and of a position on it: (frame, row, col)."""
FALLBACK = "sobol"
"""The plan where a policy leads: it spreads evenly after any number of glimpses."""
TrainScan = str | dict[str, float]
"""Name or import path of the scan pattern that trajectories follow, or of several, each with its share."""


def require_scans(scans: Sequence[str]) -> None:
    """Refuse scans that there are not.

    Args:
        scans: names or import paths of scan patterns, or POLICY.

    Raises:
        InputError: there is no such pattern, or none is given.
    """
    if not scans:
        raise InputError("data.scans is empty: give at least one")
    for scan in scans:
        if scan != POLICY:
            scan_pattern(scan)


def require_train_scan(scan: TrainScan) -> None:
    """Refuse scan patterns that there are not, and shares that are none.

    Raises:
        InputError: there is no such pattern, or none is given; a share is not positive.
    """
    if not scan:
        raise InputError("data.train_scan is empty: give a scan, or several with their shares, {random: 1, varied: 3}")
    shares = {scan: 1.0} if isinstance(scan, str) else scan
    for name, share in shares.items():
        if not 0 < share < float("inf"):
            raise InputError(f"data.train_scan has {name} with share {share}: give shares of more than 0")
    require_scans([*shares])


def draw_scan(scan: TrainScan, rng: np.random.Generator) -> str:
    """Return the scan pattern that a trajectory follows; of several, one is drawn by their shares."""
    if isinstance(scan, str):
        return scan
    shares = np.array([*scan.values()])
    return [*scan][rng.choice(len(shares), p=shares / shares.sum())]


def without_edge(box: Box, canvas: tuple[int, ...], patch_size: PatchSize) -> Box:
    """Return the part of an image that ends a glimpse's side less one before its canvas does: what the authors scan.

    Their evaluation takes the side of a glimpse off the canvas, as if what is left were to hold starts, and off that
    again, as if it were to hold pixels: so the last patch_size - 1 rows and columns of a canvas never show.

    Args:
        box: the image's place on its canvas.
        canvas: sides of the canvas, in pixels.
        patch_size: sides of a glimpse in pixels; where the image has room for one, so has the part.
    """
    lengths = patch_sides(patch_size, box.axes)
    sides = (
        max(min(side, length), min(side, whole - length + 1 - first))
        for first, side, whole, length in zip(box.start, box.size, canvas, lengths, strict=True)
    )
    return Box(*box.start, *sides)


def plan(scan: str, area: Box, patch_size: PatchSize, num_glimpses: int, rng: np.random.Generator) -> np.ndarray:
    """Return where the glimpses of an image shall fall: (T, K) int32.

    Args:
        scan: name or import path of a scan pattern; POLICY for what policies may fall back on; CANVAS for the area's
            first start alone, where an encoder takes the canvas.
        area: what the glimpses are to fall on, the image or its canvas.
        patch_size: sides of a glimpse in pixels.
        num_glimpses: T.
        rng: decides everything random.

    Raises:
        InputError: the scan gives positions that it must not.
    """
    if scan == CANVAS:
        first, _ = start_range(area, patch_size)
        return np.tile(first, (num_glimpses, 1))
    return scan_pattern(FALLBACK if scan == POLICY else scan)(area, patch_size, num_glimpses, rng)


def ratio_of_plan(scan: str, positions: np.ndarray, box: Box, patch_size: PatchSize) -> Tensor:
    """Return the share of the image that its planned glimpses show: (T,) float32; 1 where an encoder takes the canvas.

    Args:
        scan: as for plan.
        positions: (T, K) integers.
        box: the image's place on its canvas.
        patch_size: sides of a glimpse in pixels.
    """
    if scan == CANVAS:
        return torch.ones(len(positions))
    return information_ratio(positions, box, patch_size).float()
