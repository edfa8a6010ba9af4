"""Encoders as the harness knows them: a new system is a subclass of one of these, in a file of its own.

GlimpseEncoder takes cut-out glimpses and where they were; CausalEncoder does so with a state that never grows, and
answers after every glimpse; CanvasEncoder takes whole canvases and answers once; DenseEncoder is one that sees a grid
of patches, as published networks for images do. train.py finds an encoder by its class name (or import path), and what
its constructor takes become flags.

Shapes: B images, T glimpses, A answers, K axes of a position, P... the sides of a glimpse, C channels, D feature width.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from mambaeye.batch import CanvasBatch, GlimpseBatch, Takes
from mambaeye.configurable import Configurable
from mambaeye.errors import InputError
from mambaeye.geometry.box import glimpse_sides
from mambaeye.ops.dense import normalise, pad_to_patches, take_out
from mambaeye.ops.features import Features, recorded
from mambaeye.ops.precision import wide_linear

State = Any
"""Tensors with the images along their first axis, in any nest of tuples, lists and dictionaries."""
Tree = TypeVar("Tree")


class PublishedWeights(NamedTuple):
    """Published weights in our terms."""

    settings: dict[str, Any]
    """Constructor arguments, as the shapes tell."""
    tensors: dict[str, Tensor]
    """The state dict, by our names."""


class Encoded(NamedTuple):
    """A training batch as an encoder sees it, with what it wants of training besides right answers."""

    features: Tensor
    """(B, A, D), what the head sees."""
    penalty: Tensor | None = None
    """Added to the loss, a scalar."""
    curves: Mapping[str, Tensor] = {}
    """Scalars by name, to be logged as train_encoder/NAME."""


class Encoder(Configurable, ABC):
    """A system: images in, features out, and a linear head that turns these into class logits.

    A subclass takes num_classes (and, if it takes glimpses, patch_size) among its constructor's arguments: the command
    line states these once for model and data. All arguments must be plain values, or have plain defaults.

    Attributes:
        head: feature width -> classes, with a bias. The loss goes through it piece by piece, and answers by `logits`.
    """

    takes: ClassVar[Takes]
    """The input that it takes in training."""
    axes: int = 2
    """Axes of the images that it looks at: 3 for clips."""
    channels: int = 3
    """Channels of the images that it looks at."""
    published_as: ClassVar[str | None] = None
    """Name of the layout that from_published knows, as load_published takes it; None if it knows none."""
    head: nn.Linear

    @property
    def num_classes(self) -> int:
        """Return the number of classes that the head tells apart."""
        return self.head.out_features

    @property
    def feature_dim(self) -> int:
        """Return the width of what the head sees."""
        return self.head.in_features

    @abstractmethod
    def encode(self, batch: GlimpseBatch | CanvasBatch) -> Tensor:
        """Return what the head sees of a training batch: (B, A, D)."""

    def encode_for_training(self, batch: GlimpseBatch | CanvasBatch) -> Encoded:
        """Return what encode does, and a penalty and curves of the encoder's own: by default none."""
        return Encoded(self.encode(batch))

    @abstractmethod
    def answers_at(self, num_glimpses: int) -> Tensor:
        """Return the glimpse counts after which it answers, of so many: (A,) int64, increasing, the last one last."""

    def looks_at(self, axes: int) -> bool:
        """Tell whether it looks at data whose positions have so many axes: 2 of images, 3 of clips."""
        return axes == self.axes

    def logits(self, features: Tensor) -> Tensor:
        """Return the head's answers to features, (..., D) -> (..., classes): in float32 or wider in any precision."""
        return wide_linear(features, self.head.weight, self.head.bias)

    def feature_modules(self) -> tuple[Sequence[nn.Module], nn.Module]:
        """Return what forward_features reads: the blocks or stages whose outputs are features, the first one first;
        and the final norm, which takes what the last of them returns (nn.Identity() if there is none).

        Raises:
            InputError: the encoder does not say.
        """
        raise InputError(f"{type(self).__name__} gives no features by stages: it defines no feature_modules")

    def extra_places(self, tokens: int) -> Sequence[int]:
        """Return where class tokens and registers are among so many patches or glimpses: by default nowhere."""
        return ()

    def _stages(self, every_stage: bool, see: Callable[[], Tensor]) -> tuple[Tensor, list[Tensor]]:
        """Return what the head sees, and what the last stage or every one returns, and last that behind the norm."""
        modules, norm = self.feature_modules()
        asked = modules if every_stage else modules[-1:]
        with recorded(asked) as outputs:
            pooled = see()
        assert len(outputs) == len(asked), "a stage runs once"
        return pooled, [*outputs, norm(outputs[-1].to(self.head.weight.dtype))]

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that weight decay must not touch: by default norms, biases and scalars."""
        return {name for name, parameter in self.named_parameters() if parameter.ndim < 2}

    def backend(self, device: torch.device) -> str:
        """Return what it runs on there, in words."""
        return f"plain torch on {device.type}"

    @classmethod
    def from_published(cls, tensors: Mapping[str, Tensor], where: str) -> "PublishedWeights | None":
        """Return what a state dict in the layout of the system's authors holds; None if it is in another layout.

        Args:
            tensors: by the authors' names.
            where: the file, for messages.

        Raises:
            InputError: it is in the authors' layout, and something is wrong with it.
        """
        return None

    @classmethod
    def from_published_for(
        cls, tensors: Mapping[str, Tensor], where: str, settings: Mapping[str, Any]
    ) -> "PublishedWeights | None":
        """Return what from_published does, and what is laid out otherwise and can be taken over where this encoder is
        named.

        Args:
            tensors: as for from_published.
            where: likewise.
            settings: arguments of the constructor that are given, which shapes may not tell.

        Raises:
            InputError: as from_published; or a setting cannot be.
        """
        return cls.from_published(tensors, where)

    @classmethod
    def settings_in(cls, tensors: Mapping[str, Tensor]) -> dict[str, Any] | None:
        """Return the constructor's arguments that a state dict's names and shapes tell; None where they do not."""
        return None


class GlimpseEncoder(Encoder):
    """Takes glimpses and their positions; answers once, after the last one, unless it says otherwise."""

    takes = "glimpses"
    patch_size: int
    """Side of a glimpse along rows and columns, pixels."""
    tube: int = 1
    """Frames of a glimpse, where positions have three axes."""

    @property
    def glimpse(self) -> tuple[int, ...]:
        """Return the sides of a glimpse along every axis, pixels."""
        return glimpse_sides(self.patch_size, self.tube, self.axes)

    @abstractmethod
    def features(self, patches: Tensor, positions: Tensor) -> Tensor:
        """Return what the head sees.

        Args:
            patches: (B, T, C, P...) uint8 or uint16, all of whose range is [0, 1]; or floating in [0, 1].
            positions: (B, T, K) integers, the first pixel of each glimpse on its canvas.

        Returns:
            (B, A, D).
        """

    def forward(self, patches: Tensor, positions: Tensor) -> Tensor:
        """Return the logits of all answers, (B, A, classes). Arguments as for features."""
        return self.logits(self.features(patches, positions))

    def forward_features(self, patches: Tensor, positions: Tensor, every_stage: bool = False) -> Features:
        """Return the features of every glimpse, behind the last block or every one. Arguments as for features."""
        pooled, outputs = self._stages(every_stage, lambda: self.features(patches, positions))
        places = self.extra_places(patches.shape[1])
        *stages, (last, extra) = (take_out(output, places) for output in outputs)
        return Features(pooled, last, extra, tuple(stage for stage, _ in stages), positions)

    def encode(self, batch: GlimpseBatch | CanvasBatch) -> Tensor:
        assert isinstance(batch, GlimpseBatch)
        return self.features(batch.patches, batch.positions)

    def answers_at(self, num_glimpses: int) -> Tensor:
        return torch.tensor([num_glimpses])


class CausalEncoder(GlimpseEncoder):
    """Answers after every glimpse from those up to it alone, and can go on from a carried state of constant size.

    The whole sequence at once, any split of it into chunks, and single glimpses give the same answers.
    """

    @abstractmethod
    def initial_state(self, batch_size: int) -> State:
        """Return the state of so many images of which nothing was seen."""

    @abstractmethod
    def stream_features(self, patches: Tensor, positions: Tensor, state: State) -> tuple[Tensor, State]:
        """Return what the head sees of the next chunk, (B, T, D), and the state to go on from; T from 1 up."""

    def stream(self, patches: Tensor, positions: Tensor, state: State) -> tuple[Tensor, State]:
        """Return the logits after every glimpse of the next chunk, (B, T, classes), and the state to go on from."""
        features, state = self.stream_features(patches, positions, state)
        return self.logits(features), state

    def answers_at(self, num_glimpses: int) -> Tensor:
        return torch.arange(1, num_glimpses + 1)


class CanvasEncoder(Encoder):
    """Takes whole canvases of any size and answers once. It normalises pixels itself."""

    takes = "canvas"

    @abstractmethod
    def features(self, canvases: Tensor) -> Tensor:
        """Return what the head sees, (B, D), of canvases (B, H, W, C) uint8 or uint16; of clips, (B, T, H, W, C)."""

    def forward(self, canvases: Tensor) -> Tensor:
        """Return the logits, (B, classes), of canvases (B, H, W, C) uint8."""
        return self.logits(self.features(canvases))

    def forward_features(self, canvases: Tensor, every_stage: bool = False) -> Features:
        """Return the map of features, behind the last stage or every one, of canvases as for features.

        Maps show the canvas with its padding, if the encoder pads it.
        """
        pooled, outputs = self._stages(every_stage, lambda: self.features(canvases))
        sides = canvases.shape[1:-1]
        *stages, (last, extra) = (self.as_map(output, sides) for output in outputs)
        return Features(pooled, last, extra, tuple(stage for stage, _ in stages))

    def as_map(self, output: Tensor, sides: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """Return the map (B, D, R, C) that a stage makes of canvases of these sides, and its extra tokens (B, E, D).

        By default the stage returns such a map, and has none.
        """
        return output, None

    def encode(self, batch: GlimpseBatch | CanvasBatch) -> Tensor:
        assert isinstance(batch, CanvasBatch)
        return self.features(batch.scene.pixels)[:, None]

    def answers_at(self, num_glimpses: int) -> Tensor:
        return torch.tensor([num_glimpses])


class DenseEncoder(CanvasEncoder):
    """Sees a canvas as a grid of square patches, its pixels normalised.

    Three channels are by ImageNet's mean and standard deviation, others to [-1, 1].

    Sides that patches do not cover exactly are padded with black at the bottom and on the right.
    """

    patch: int
    """Side of a patch in pixels: the encoder's own number, for data.patch_size is of glimpses."""
    stride: int
    """Pixels from one patch to the next."""

    @abstractmethod
    def image_features(self, images: Tensor) -> Tensor:
        """Return what the head sees, (B, D), of normalised images (B, C, H, W) that patches cover exactly."""

    def features(self, canvases: Tensor) -> Tensor:
        """Return what the head sees, (B, D), of canvases (B, H, W, C) uint8 or uint16."""
        return self.image_features(normalise(pad_to_patches(canvases, self.patch, self.stride), self.head.weight.dtype))

    def as_map(self, output: Tensor, sides: Sequence[int]) -> tuple[Tensor, Tensor | None]:
        """Return the map (B, D, R, C) and the extra tokens of a sequence (B, L, D), or of a grid (B, R, C, D)."""
        if output.ndim == 4:
            return output.permute(0, 3, 1, 2), None
        rows, cols = (1 + math.ceil(max(0, side - self.patch) / self.stride) for side in sides)
        patches, extra = take_out(output, self.extra_places(rows * cols))
        return patches.mT.unflatten(2, (rows, cols)), extra

    def network(self, images: Tensor) -> Tensor:
        """Return the logits, (B, classes), as the authors' network does: of images (B, 3, H, W), normalised already.

        Raises:
            InputError: patches do not cover them exactly.
        """
        return self.logits(self.image_features(images))


def select_rows(state: Tree, index: Tensor) -> Tree:
    """Return the state of some of the images: every tensor's entries at the index along its first axis."""
    if isinstance(state, Tensor):
        return cast(Tree, state[index])
    if isinstance(state, dict):
        return cast(Tree, {name: select_rows(part, index) for name, part in state.items()})
    if isinstance(state, tuple) and hasattr(state, "_fields"):
        return cast(Tree, type(state)(*(select_rows(part, index) for part in state)))
    if isinstance(state, list | tuple):
        return cast(Tree, type(state)(select_rows(part, index) for part in state))
    assert state is None, f"a state holds tensors, not {type(state).__name__}"
    return state
