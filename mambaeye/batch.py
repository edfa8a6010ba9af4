"""Batches, from the data to the model: glimpse sequences, or whole canvases with the trajectories planned on them.

Shapes: B images, T glimpses, K axes of a position (2: row, col), P patch side, C channels, S... the sides of a canvas.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol, Self

import torch
from torch import Tensor

Takes = Literal["glimpses", "canvas"]
"""The input that an encoder takes in training."""
POLICY = "learned"
"""The scan name that leaves every glimpse to the model's own policy."""
REMEDY = "give --model.policy, or a checkpoint with a trained one (docs/learned-scan.md)"
"""Remedy in messages where that scan is asked for and the model has no policy."""
CANVAS = "canvas"
"""The scan name of encoders that take whole canvases."""


class GlimpseBatch(NamedTuple):
    """B trajectories of T glimpses each, cut out already: what encoders of glimpses train on.

    The same tuple without its first axis is one sample; torch's default collation stacks samples into a batch.
    """

    patches: Tensor
    """(B, T, C, P, ...) uint8; uint16 of images of 16 bits."""
    positions: Tensor
    """(B, T, K) int32: each glimpse's first pixel on the canvas, (row, col)."""
    information_ratio: Tensor
    """(B, T) float32: share of the image's own pixels seen by glimpses 0..t."""
    labels: Tensor
    """(B,) int64: index into the class list."""
    partner_labels: Tensor
    """(B,) int64: the label of the image that was mixed in (mixup, CutMix)."""
    label_shares: Tensor
    """(B,) float32: the label's share of the target, 1 where nothing was mixed in; the rest is the partner's."""
    keys: list[str]
    """B sample keys, as in the shards."""
    valid: Tensor
    """(B,) bool: False for rows that only fill up a batch and must not be counted."""

    def first(self, images: int) -> "GlimpseBatch":
        """Return the batch of the first images alone."""
        return GlimpseBatch(
            self.patches[:images],
            self.positions[:images],
            self.information_ratio[:images],
            self.labels[:images],
            self.partner_labels[:images],
            self.label_shares[:images],
            self.keys[:images],
            self.valid[:images],
        )


class Regions(Protocol):
    """Canvases that are nowhere as a whole: there are glimpses, or they are read. Not in training."""

    @property
    def shape(self) -> Sequence[int]:
        """Return (B, S..., C)."""

    @property
    def device(self) -> torch.device:
        """Return the device that glimpses are on."""

    def __len__(self) -> int: ...
    def __getitem__(self, rows: Any, /) -> Self: ...
    def cut(self, positions: Tensor, sides: Sequence[int]) -> Tensor:
        """Return the glimpses at positions (B, T, K), (B, T, C, P...) of these sides; see cut_from_canvases."""


class Scene(NamedTuple):
    """B canvases of one size, where the image lies on each, and the trajectory that a fixed scan planned there.

    Patches are cut as they are needed, so a scene does not grow with T by more than the positions.
    """

    canvases: Tensor | Regions
    """(B, S..., C) uint8, (B, H, W, 3) RGB; or of other channels, and uint16 of images of 16 bits."""
    boxes: Tensor
    """(B, 2 K) int32: the image's first pixel, then its sides: (row, col, height, width); see Box."""
    positions: Tensor
    """(B, T, K) int32: each glimpse's first pixel on the canvas, every glimpse wholly on it."""
    seeds: Tensor
    """(B,) int64: what random draws of a policy depend on; the same whenever the image is looked at in this way."""
    led: Tensor
    """(B,) bool: whether a policy, if there is one, leads; otherwise the planned trajectory is followed."""

    def rows(self, index: Tensor | slice) -> "Scene":
        """Return the scene of some of the images: index is what a tensor takes along its first axis."""
        canvases, *others = self
        return Scene(canvases[index], *(part[index] for part in others))

    @property
    def pixels(self) -> Tensor:
        """Return the canvases, which must be there as a whole."""
        assert isinstance(self.canvases, Tensor), "a policy or an encoder of canvases sees no regions"
        return self.canvases


class CanvasBatch(NamedTuple):
    """B whole images: what validation looks at, and what encoders of canvases and policies train on.

    The same tuple without its first axis is one sample.
    """

    scene: Scene
    information_ratio: Tensor
    """(B, T) float32: share of the image's own pixels seen by glimpses 0..t of the planned trajectory."""
    labels: Tensor
    """(B,) int64: index into the class list."""
    partner_labels: Tensor
    """(B,) int64, as in GlimpseBatch."""
    label_shares: Tensor
    """(B,) float32, as in GlimpseBatch."""
    keys: list[str]
    """B sample keys, as in the shards."""
    valid: Tensor
    """(B,) bool: False for rows that only fill up a batch and must not be counted."""
    condition: int
    """Index of the evaluation condition that the whole batch belongs to; 0 in training."""

    def first(self, images: int) -> "CanvasBatch":
        """Return the batch of the first images alone."""
        return CanvasBatch(
            self.scene.rows(slice(images)),
            self.information_ratio[:images],
            self.labels[:images],
            self.partner_labels[:images],
            self.label_shares[:images],
            self.keys[:images],
            self.valid[:images],
            self.condition,
        )


class ImageFile(NamedTuple):
    """All that is known of an image file besides its pixels."""

    path: str
    size: tuple[int, ...] = (0, 0)
    """(height, width) in pixels, as the file has it."""
    frames: int = 1
    """Pictures in the file; the first one is the image. Of a clip, its frames."""
    first: int | None = None
    """Of a clip, the first frame that is looked at, from 0."""
    error: str | None = None
    """Why there is no image, in a sentence."""


class FileBatch(NamedTuple):
    """B images from files, on canvases of one size.

    Or no image at all: of a file that cannot be read, and of one that waits for the next batch.
    """

    scene: Scene | None
    """Each canvas is the image alone, or the image with black around it."""
    files: list[ImageFile]
    """B of them; or one with an error; or none."""


class TubeBatch(NamedTuple):
    """The next frames of a clip that is looked at as it arrives, as many as a glimpse has; or that it has ended."""

    scene: Scene | None
    """Of these frames alone, (1, F, H, W, 3); its positions are of the whole clip. None at the end."""
    frame: int
    """The first of them, from 0: more than the last one before them, but for the last ones of a clip."""
    file: ImageFile
    """With the number of frames so far; at the end, with what went wrong, if something did."""


class EvaluationCondition(NamedTuple):
    """One way of looking at every validation image."""

    resolution: int
    """Canvas side in pixels."""
    scan: str
    """Name of the scan, as in data.scans; CANVAS where the encoder takes whole canvases."""
    frames: int | None = None
    """Of clips that are validated at several lengths: frames of the canvas."""

    @property
    def name(self) -> str:
        """Return the name in metrics and charts: 48_random; of several lengths 16x48_random, of 16 frames."""
        return f"{'' if self.frames is None else f'{self.frames}x'}{self.resolution}_{self.scan}"

    @property
    def title(self) -> str:
        """Return the title in plots."""
        return f"{self.resolution} px, {self.series}"

    @property
    def series(self) -> str:
        """Return what it has besides its resolution, in words: a line of a plot over resolutions."""
        return self.scan if self.frames is None else f"{self.scan}, {self.frames} frames"

    @property
    def columns(self) -> dict[str, str | int]:
        """Return it as part of a table's row: resolution, scan, and frames where there are several lengths."""
        told: dict[str, str | int] = {"resolution": self.resolution, "scan": self.scan}
        return told if self.frames is None else told | {"frames": self.frames}
