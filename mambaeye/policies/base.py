"""Policies as the harness knows them: each says where the next glimpses fall. A new one is a subclass in its own file.

Shapes: B images, n glimpses that are decided at once, K axes of a position, D feature width.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from torch import Tensor

from mambaeye.configurable import Configurable
from mambaeye.geometry.box import PatchSize
from mambaeye.geometry.coverage import Coverage


class Best(NamedTuple):
    """The place that a policy expects most of, among those that it may choose from."""

    places: Tensor
    """(B, K) int64."""
    gains: Tensor
    """(B,): the drop in cross entropy that is expected there, in nats."""


class Observation(NamedTuple):
    """All that a policy may take into account when it decides."""

    step: int
    """Glimpses taken so far."""
    features: Tensor | None
    """(B, D): the encoder's after the last glimpse; None before the first."""
    logits: Tensor | None
    """(B, classes): its answer after the last glimpse; None before the first."""
    coverage: Coverage
    """Pixels of the canvases that the glimpses so far have shown, and the images' boxes."""
    positions: Tensor
    """(B, step, K) int64: where those glimpses were."""
    planned: Tensor
    """(B, T, K) int64: the trajectory that the data's fixed scan would take."""
    seeds: Tensor
    """(B,) int64: what random draws must depend on, besides the step."""
    patch_size: PatchSize
    """Sides of a glimpse, pixels."""
    best: Best | None = None
    """The best candidate of a policy that estimates values, where the walk has asked for it already."""


class Policy(Configurable, ABC):
    """Says where the next glimpses of some images fall, from what was seen of them so far."""

    @abstractmethod
    def act(self, seen: Observation, count: int) -> Tensor:
        """Return the positions of the next glimpses: (B, n, K) integers, every glimpse wholly on its canvas.

        They are taken in one chunk, and then it is asked again. So a policy that goes by what it sees returns one, and
        one that has nothing more to decide as many as it may, which costs much less.

        Args:
            seen: what is known; batched, on the device of the canvases.
            count: n at most, from 1 up.
        """

    def suit(self, feature_dim: int, num_classes: int, axes: int) -> None:
        """Take the sizes of the encoder that it is to lead, before anything else; by default they do not matter.

        Args:
            feature_dim: D.
            num_classes: of the encoder's answers.
            axes: K.

        Raises:
            InputError: it was built for another encoder.
        """

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters that weight decay must not touch: by default norms, biases and scalars."""
        return {name for name, parameter in self.named_parameters() if parameter.ndim < 2}


class ValuePolicy(Policy):
    """Goes where it expects the cross entropy of the encoder's answer to drop the most; see mambaeye.policy_learning.

    Attributes:
        offered: how many candidates it chooses from.
    """

    offered: int

    @abstractmethod
    def candidates(self, seen: Observation, count: int) -> Tensor:
        """Return places that the next glimpse may fall on: (B, count, K) int64, random ones, and last the planned one.

        Nothing but the observation's seeds, step, boxes and plan decides which.
        """

    @abstractmethod
    def gains(self, seen: Observation, candidates: Tensor) -> Tensor:
        """Return the drop in cross entropy, in nats, that a glimpse at each place is expected to bring: (B, n).

        Args:
            seen: what is known, of one glimpse at least; no gradient reaches it.
            candidates: (B, n, K) integers.
        """

    @torch.no_grad()
    def best(self, seen: Observation) -> Best:
        """Return the candidate for the next glimpse that it expects most of, and what it expects there.

        Args:
            seen: what is known, of one glimpse at least and before the plan's last.
        """
        if seen.best is not None:
            return seen.best
        offered = self.candidates(seen, self.offered)
        gains, best = self.gains(seen, offered).max(1)  # (B,) each
        return Best(offered.take_along_dim(best[:, None, None], dim=1)[:, 0], gains)
