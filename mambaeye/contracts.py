"""All that the module and callbacks read of a data module, and data module and callbacks of the module.

Lightning hands both around as their base classes; `data_of` and `model_of` say what they are.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, cast

import torch
from lightning import LightningModule, Trainer
from torch import Tensor

from mambaeye.batch import CanvasBatch, EvaluationCondition, GlimpseBatch, Takes
from mambaeye.encoders.base import Encoder
from mambaeye.evaluation.result import ValidationResult
from mambaeye.policy_learning import Lesson
from mambaeye.rollout import Rollout


class SplitSummary(NamedTuple):
    """A training or validation split in numbers."""

    samples: int
    shards: int
    streaming: bool
    """True where shards are read front to back, not by place."""


class OptimizerStep(NamedTuple):
    """Division of an optimizer step's images."""

    images: int
    """Of all processes together."""
    micro_batch: int
    """Images that a process takes at once."""
    accumulation: int
    """Micro-batches of a process that make an optimizer step."""


class DataSpec(Protocol):
    """A data module, as the module and callbacks see it. What says "after setup" is not there before."""

    num_classes: int
    patch_size: int
    tube: int
    """Frames of a glimpse, where positions have three axes."""
    channels: int
    """Channels of images."""
    axes: int
    """Axes of a position: 2 for (row, col), 3 for (frame, row, col) of clips; after setup."""
    classes: list[str]
    """Names of the classes; after setup."""
    conditions: Sequence[EvaluationCondition]
    """Conditions that validation measures; after setup."""
    canvas_range: tuple[int, int]
    """Smallest and largest canvas side in training, pixels."""
    num_workers: int
    """Loader workers a process."""
    held_out: float
    """Share of the training samples that is kept out of training."""

    @property
    def num_glimpses(self) -> int:
        """Glimpses of an image in validation; after setup."""

    @property
    def report_at(self) -> Sequence[int]:
        """Glimpse counts that validation reports after, besides powers of two and the last; after setup."""

    @property
    def protocol(self) -> Mapping[str, Any]:
        """Validation's view of an image, data.evaluate by name; after setup."""

    @property
    def optimizer_step(self) -> OptimizerStep: ...
    @property
    def largest_sample(self) -> GlimpseBatch | CanvasBatch:
        """A training batch of one image, noise of the largest size that there is; after setup for fit."""

    @property
    def train_batches(self) -> int:
        """Training batches an epoch and process."""

    @property
    def batches_left(self) -> int:
        """Training batches a process that a continued run has left of the epoch that its checkpoint was saved in."""

    @property
    def class_counts(self) -> Tensor:
        """(C,) int64: training images of every class; after setup for fit."""

    @property
    def train_split(self) -> SplitSummary: ...
    @property
    def val_split(self) -> SplitSummary: ...
    @property
    def class_sorted_shards(self) -> Sequence[str]:
        """Names of the training shards of few classes, unless samples are shuffled over all shards; after setup."""

    @property
    def train_wait(self) -> float:
        """Seconds that the last training batch took to come."""

    @property
    def waiting(self) -> bool:
        """True while this process waits for a batch."""

    @property
    def evaluation_wait(self) -> float:
        """Seconds that the batches of the last validation took to come."""

    def take_classes(self, classes: Sequence[str]) -> None:
        """Give labels the meaning that they have for a checkpoint: its class names, in its order; after setup."""

    @property
    def skipped_files(self) -> int:
        """Files among those to predict that have no extension of an image, or of a clip."""

    @property
    def streams(self) -> bool:
        """True where clips are predicted as they arrive."""


class ModelSpec(Protocol):
    """The module, as data module and callbacks see it."""

    encoder: Encoder
    classes: list[str]
    """Names of the classes; empty where they are not known."""
    result: ValidationResult | None
    """Result of the last validation; None before the first, and during a sanity check."""
    schedule_steps: tuple[int, float]
    """Optimizer steps of the warm-up, and in all."""

    @property
    def takes(self) -> Takes:
        """The input that the data module must hand over in training."""

    @property
    def has_policy(self) -> bool: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def backend(self) -> str:
        """The encoder's backend, in words."""

    def training_flops(self, batch: GlimpseBatch | CanvasBatch) -> int:
        """Floating-point operations of forward and backward for one image of such a batch, measured."""

    def kept_bytes(self, batch: GlimpseBatch | CanvasBatch) -> int:
        """Return the bytes that a training step holds at once for the backward pass of such a batch, counted."""

    def per_step_loss(self, batch: GlimpseBatch | CanvasBatch, images: int) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, confidence and information ratio of a batch's first images after every answer: (images, A) each."""

    def rollout(self, batch: CanvasBatch, images: int, num_glimpses_at_once: int | None = None) -> Rollout:
        """Walk a batch's first images as validation does."""

    def lesson(self, batch: CanvasBatch) -> Lesson | None:
        """Return what the policy expects on its own walks over a batch, and what comes; None if it values nothing."""


def limited(batches: int, limit: int | float) -> int:
    """Return how many of an epoch's batches a limit leaves: so many at most, or a share of them."""
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)


def data_of(trainer: Trainer) -> DataSpec:
    """Return the trainer's data module."""
    return cast(DataSpec, trainer.datamodule)  # type: ignore[attr-defined]


def model_of(pl_module: LightningModule) -> ModelSpec:
    """Return the module as what it is."""
    return cast(ModelSpec, pl_module)
