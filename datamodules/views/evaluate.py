"""Images for validation: each is decoded once and then looked at under every condition (paper section 4.2)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch

from datamodules.transforms.images import fit_on_canvas
from datamodules.views.keys import Key, policy_seed
from datamodules.views.plan import AXES, plan, ratio_of_plan
from datamodules.views.samples import row_of, scene_of
from mambaeye.batch import CANVAS, POLICY, CanvasBatch, EvaluationCondition, Takes
from mambaeye.errors import InputError
from mambaeye.geometry.box import Box


@dataclass(frozen=True)
class EvaluateView:
    """How validation looks at an image."""

    num_glimpses: int = 64
    """Glimpses an image (T), in predict too; an encoder of canvases takes none."""
    report_at: tuple[int, ...] = ()
    """Glimpse counts that validation reports after, besides powers of two and the last."""
    shift: tuple[int, int] = (0, 0)
    """Rows and columns by which images lie further down and right, on canvases larger by as much."""

    def __post_init__(self) -> None:
        if self.num_glimpses < 1:
            raise InputError(f"data.evaluate.num_glimpses is {self.num_glimpses}: give at least 1")
        for count in self.report_at:
            if not 1 <= count <= self.num_glimpses:
                raise InputError(
                    f"data.evaluate.report_at has {count}: give glimpse counts from 1 to "
                    f"data.evaluate.num_glimpses, {self.num_glimpses}"
                )
        if min(self.shift) < 0:
            raise InputError(f"data.evaluate.shift is {list(self.shift)}: give rows and columns of at least 0 pixels")


def require_resolutions(resolutions: Sequence[int], patch_size: int) -> None:
    """Refuse canvases on which no glimpse fits.

    Raises:
        InputError: a canvas is smaller than a glimpse, or none is given.
    """
    if not resolutions:
        raise InputError("data.resolutions is empty: give at least one")
    for resolution in resolutions:
        if resolution < patch_size:
            raise InputError(
                f"data.resolutions has {resolution}, less than a glimpse of {patch_size} pixels: "
                f"give canvas sides of at least data.patch_size"
            )


def evaluation_conditions(
    resolutions: Sequence[int], scans: Sequence[str], takes: Takes, has_policy: bool
) -> tuple[EvaluationCondition, ...]:
    """Return what validation measures: every scan at every resolution, or canvases of each where an encoder takes them.

    Args:
        resolutions: canvas sides in pixels.
        scans: names or import paths of scan patterns, or POLICY.
        takes: what the encoder takes.
        has_policy: whether the model has a policy.

    Raises:
        InputError: a policy is asked for that is not there.
    """
    if takes == "canvas":
        return tuple(EvaluationCondition(resolution, CANVAS) for resolution in dict.fromkeys(resolutions))
    if POLICY in scans and not has_policy:
        raise InputError(f"data.scans has {POLICY}, and the model has none: give --model.policy")
    return tuple(EvaluationCondition(resolution, scan) for resolution in resolutions for scan in scans)


class DecodedSample(NamedTuple):
    """A decoded sample."""

    sample_id: int
    """In its index; negative for one that only fills up a batch."""
    key: str
    label: int
    image: np.ndarray | None
    """(H, W, 3) uint8; None for a filler, and for a sample that cannot be read."""


FILLER = DecodedSample(-1, "", 0, None)


@dataclass(frozen=True)
class EvaluationCanvases:
    """Puts images on canvases under every condition, with trajectories that are the same on every pass."""

    conditions: Sequence[EvaluationCondition]
    patch_size: int
    num_glimpses: int
    """T."""
    shift: tuple[int, int] = (0, 0)
    """Rows and columns by which images lie further down and right on their canvases."""

    def __call__(self, samples: list[DecodedSample], key: Key) -> Iterator[CanvasBatch]:
        """Yield the samples of a batch, condition by condition: CanvasBatches without their first axis.

        What a scan draws depends on the key, the resolution and the sample's id alone.
        """
        for resolution, group in groupby(enumerate(self.conditions), lambda numbered: numbered[1].resolution):
            placed = [self._place(sample, resolution) for sample in samples]
            for condition, (_, scan) in group:
                for sample, (canvas, box) in zip(samples, placed, strict=True):
                    drawn = (*key, resolution, sample.sample_id)
                    yield self._sample(sample, canvas, box, scan, condition, drawn)

    def _place(self, sample: DecodedSample, resolution: int) -> tuple[np.ndarray, Box]:
        image = np.zeros((1, 1, 3), np.uint8) if sample.image is None else sample.image
        return fit_on_canvas(image, resolution, self.shift)

    def _sample(
        self, sample: DecodedSample, canvas: np.ndarray, box: Box, scan: str, condition: int, key: Key
    ) -> CanvasBatch:
        if sample.image is None:
            positions, ratio, seed = np.zeros((self.num_glimpses, AXES), np.int32), torch.zeros(self.num_glimpses), 0
        else:
            positions = plan(scan, box, self.patch_size, self.num_glimpses, np.random.default_rng(key))
            ratio, seed = ratio_of_plan(scan, positions, box, self.patch_size), policy_seed(key)
        row = row_of(sample.key, sample.image is not None, sample.label, sample.label)
        return CanvasBatch(scene_of(canvas, box, positions, seed), ratio, *row, condition)
