"""What travels from the data to the model: glimpse sequences in training, canvases and positions after it."""

from typing import NamedTuple

from torch import Tensor

from mambaeye.geometry.box import Box


class GlimpseBatch(NamedTuple):
    """A batch of B trajectories of T glimpses each.

    The same tuple without its first axis is one sample; torch's default collation stacks samples into a batch.
    """

    patches: Tensor
    """(B, T, 3, P, P) uint8, RGB."""
    positions: Tensor
    """(B, T, 2) int32: (row, col) of each glimpse's top-left pixel on the canvas."""
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


class CanvasBatch(NamedTuple):
    """A batch of B images, whole, and where their T glimpses fall: what validation cuts its patches from, by and by.

    So a batch does not grow with T by more than the positions.
    """

    canvases: Tensor
    """(B, H, W, 3) uint8, RGB."""
    positions: Tensor
    """(B, T, 2) int32: (row, col) of each glimpse's top-left pixel on the canvas, every glimpse wholly on it."""
    information_ratio: Tensor
    """(B, T) float32: share of the image's own pixels seen by glimpses 0..t."""
    labels: Tensor
    """(B,) int64: index into the class list."""
    keys: list[str]
    """B sample keys, as in the shards."""
    valid: Tensor
    """(B,) bool: False for rows that only fill up a batch and must not be counted."""
    cell: Tensor
    """(B,) int64: which cell of the validation table they belong to; the same for all."""


class ImageFile(NamedTuple):
    """What is known of an image file besides its pixels."""

    path: str
    size: tuple[int, int] = (0, 0)
    """(height, width) in pixels, as the file has it."""
    frames: int = 1
    """Pictures in the file; the first one is the image."""
    box: Box | None = None
    """The image's place on its canvas."""
    error: str | None = None
    """Why there is no image, in a sentence."""


class FileBatch(NamedTuple):
    """B images from files on canvases of one size, and where their T glimpses would fall.

    Or no image at all: of a file that cannot be read, and of one that waits for the next batch.
    """

    canvases: Tensor | None
    """(B, H, W, 3) uint8, RGB: each the image alone, or with black around it."""
    positions: Tensor | None
    """(B, T, 2) int32: (row, col) of each glimpse's top-left pixel on the canvas, every glimpse wholly on it."""
    files: list[ImageFile]
    """B of them; or one with an error; or none."""


class Cell(NamedTuple):
    """One cell of a validation table."""

    resolution: int
    """Canvas side in pixels."""
    scan: str
    """Name of the scan pattern, a key of mambaeye.geometry.scans.SCANS."""
