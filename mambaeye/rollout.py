"""The one walk over images, glimpse by glimpse or chunk by chunk: validation, prediction, films and diagnosis use it.

Shapes: B images of a scene, b of them that are still looked at, T glimpses, t of them in a step, K axes of a position,
P... the sides of a glimpse, C channels.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mambaeye.batch import Scene
from mambaeye.encoders.base import CanvasEncoder, CausalEncoder, Encoder, GlimpseEncoder, State, select_rows
from mambaeye.errors import InputError
from mambaeye.geometry.coverage import Coverage
from mambaeye.geometry.patches import cut_from_canvases
from mambaeye.loss import LOGITS_AT_ONCE
from mambaeye.policies.base import Best, Observation, Policy, ValuePolicy
from mambaeye.policies.fixed import FixedScan
from mambaeye.temperature import Temperature

GLIMPSES_AT_ONCE = 256  # what takes memory does not grow with the number of glimpses beyond


class Step(NamedTuple):
    """Some glimpses of the images that are still looked at, and what came of them."""

    first: int
    """Index of the first answer's glimpse in the trajectory, from 0."""
    positions: Tensor
    """(b, t, K) integers."""
    patches: Tensor | None
    """(b, t, C, P, ...) uint8; None where the encoder took the canvas."""
    information_ratio: Tensor | None
    """(b, t) float32; None where neither the data nor the walk has computed it."""
    logits: Tensor
    """(b, t, classes): the answers after these glimpses, tempered if there is a temperature."""
    state: State
    """The encoder's after the last of the chunk that these glimpses are of; None where it carries none."""
    value: Tensor | None = None
    """(b, t): drop in cross entropy, in nats, that the policy expects of its best candidate after each of these
    glimpses, NaN after the trajectory's last; None where nobody asked."""


class Rollout:
    """Walks the images of a scene under a policy: iterating gives one Step after another.

    Patches are cut, and glimpses taken, chunk by chunk with a carried state, so memory does not grow with T. An encoder
    that carries none is asked once, after all glimpses. `keep` drops images in between, with their canvases and states.

    Args:
        encoder: on the device of the scene.
        scene: what to look at; its positions say how many glimpses there are.
        policy: decides where to look; by default the scene's plan is followed.
        information_ratio: (B, T), of the plan, where it is known; under another policy it is computed.
        at_once: glimpses in a chunk, at most.
        temperature: makes confidence mean accuracy, in the answers that steps have; policies see them as they are. The
            information ratio, which it depends on, is then computed if it is not known.
        valued: say after every glimpse what the policy, a ValuePolicy, expects of the next, also where it leads no
            more. That costs its network once a glimpse.

    Raises:
        InputError: a policy is to lead an encoder that answers only once.
    """

    def __init__(
        self,
        encoder: Encoder,
        scene: Scene,
        policy: Policy | None = None,
        information_ratio: Tensor | None = None,
        at_once: int = GLIMPSES_AT_ONCE,
        temperature: Temperature | None = None,
        valued: bool = False,
    ) -> None:
        assert not valued or isinstance(policy, ValuePolicy)
        policy = FixedScan() if policy is None else policy
        if not isinstance(policy, FixedScan):
            require_causal(encoder)
        self.encoder, self.scene, self.policy, self.at_once = encoder, scene, policy, at_once
        self.information_ratio, self.temperature, self.valued = information_ratio, temperature, valued
        self.led = not isinstance(policy, FixedScan)
        self.num_glimpses = scene.positions.shape[1]
        self.state: State = None
        self.seen = 0  # glimpses so far
        self.coverage: Coverage | None = None
        self.features: Tensor | None = None
        self.best: Best | None = None  # if valued, for the next glimpse
        self.taken: list[Tensor] = []  # (b, n, K) a chunk, under a policy

    def __iter__(self) -> Iterator[Step]:
        if isinstance(self.encoder, CausalEncoder):
            yield from self._walk(self.encoder)
        else:
            yield self._ask_once()

    def keep(self, index: Tensor) -> None:
        """Go on with these images alone: places among those that are still looked at."""
        self.scene = self.scene.rows(index)
        self.state = select_rows(self.state, index)
        self.features = None if self.features is None else self.features[index]
        self.best = None if self.best is None else Best(*(part[index] for part in self.best))
        self.taken = [chunk[index] for chunk in self.taken]
        if self.information_ratio is not None:
            self.information_ratio = self.information_ratio[index]
        if self.coverage is not None:
            self.coverage = self.coverage.rows(index)

    def _walk(self, encoder: CausalEncoder) -> Iterator[Step]:
        self.state = encoder.initial_state(len(self.scene.canvases))
        if self.led or self._must_count:
            self.coverage = Coverage(self.scene.canvases.shape[1:-1], self.scene.boxes, encoder.glimpse)
        while self.seen < self.num_glimpses:
            positions = self._next(encoder)
            patches = cut_from_canvases(self.scene.canvases, positions, encoder.glimpse)
            features, self.state = encoder.stream_features(patches, positions, self.state)  # (b, n, D)
            ratio, value = self._seen_in(positions, features, encoder)
            self.features = features[:, -1]
            before, self.seen = self.seen, self.seen + positions.shape[1]
            pieces = max(1, LOGITS_AT_ONCE // (len(positions) * encoder.num_classes))
            for first in range(0, positions.shape[1], pieces):
                some = slice(first, first + pieces)
                yield self._step(
                    before + first,
                    positions[:, some],
                    patches[:, some],
                    None if ratio is None else ratio[:, some],
                    encoder.logits(features[:, some]),
                    None if value is None else value[:, some],
                )

    def _next(self, encoder: CausalEncoder) -> Tensor:
        """Return the positions of the next chunk: (b, n, K)."""
        left = min(self.at_once, self.num_glimpses - self.seen)
        if not self.led:  # the plan, which nothing that is seen changes
            return self.scene.positions[:, self.seen : self.seen + left]
        observation = self._observed(self.seen, self.features, encoder)._replace(best=self.best)
        positions = self.policy.act(observation, left).long()
        assert 1 <= positions.shape[1] <= left, "a policy decides on one glimpse at least, and on as many as it may"
        followed = observation.planned[:, self.seen : self.seen + positions.shape[1]]
        positions = torch.where(self.scene.led[:, None, None], positions, followed)
        self.taken.append(positions)
        return positions

    def _observed(self, step: int, features: Tensor | None, encoder: CausalEncoder) -> Observation:
        """Return what is known after so many glimpses, the last of which left features (b, D)."""
        assert self.coverage is not None
        planned = self.scene.positions.long()
        return Observation(
            step=step,
            features=features,
            logits=None if features is None else encoder.logits(features),
            coverage=self.coverage,
            positions=torch.cat(self.taken, dim=1)[:, :step] if self.taken else planned[:, :0],
            planned=planned,
            seeds=self.scene.seeds,
            patch_size=encoder.glimpse,
        )

    def _seen_in(
        self, positions: Tensor, features: Tensor, encoder: CausalEncoder
    ) -> tuple[Tensor | None, Tensor | None]:
        """Return the information ratio after each glimpse of the next chunk, and what the policy expects: (b, n) each.

        Args:
            positions: (b, n, K).
            features: (b, n, D).
            encoder: whose features these are.
        """
        count, known = positions.shape[1], self.information_ratio
        if self.coverage is None:
            return None if known is None else known[:, self.seen : self.seen + count], None
        if not self.valued:
            return self.coverage.add(positions), None
        assert isinstance(self.policy, ValuePolicy)
        ratios, values = [], []
        for at in range(count):
            ratios.append(self.coverage.add(positions[:, at : at + 1]))
            step, self.best = self.seen + at + 1, None
            if step < self.num_glimpses:
                self.best = self.policy.best(self._observed(step, features[:, at], encoder))
            nothing = torch.full_like(ratios[-1][:, 0], math.nan)
            values.append(nothing if self.best is None else self.best.gains)
        return torch.cat(ratios, dim=1), torch.stack(values, dim=1)

    def _ask_once(self) -> Step:
        """Return the one answer of an encoder without a state."""
        positions = self.scene.positions
        ratio = None if self.information_ratio is None else self.information_ratio[:, -1:]
        if isinstance(self.encoder, CanvasEncoder):
            patches, logits = None, self.encoder(self.scene.pixels)[:, None]  # (B, 1, classes)
            ratio = torch.ones_like(logits[..., 0]) if self._must_count else ratio
        else:
            assert isinstance(self.encoder, GlimpseEncoder)
            patches = cut_from_canvases(self.scene.canvases, positions, self.encoder.glimpse)
            logits = self.encoder(patches, positions)
            if self._must_count:
                coverage = Coverage(self.scene.canvases.shape[1:-1], self.scene.boxes, self.encoder.glimpse)
                ratio = coverage.add(positions)[:, -1:]
        self.seen = self.num_glimpses
        return self._step(self.num_glimpses - 1, positions, patches, ratio, logits)

    @property
    def _must_count(self) -> bool:
        """Tell whether nobody but the walk knows what share of an image was seen, and the temperature asks for it."""
        return self.temperature is not None and self.information_ratio is None

    def _step(
        self,
        first: int,
        positions: Tensor,
        patches: Tensor | None,
        ratio: Tensor | None,
        logits: Tensor,
        value: Tensor | None = None,
    ) -> Step:
        """Return some answers, tempered if they are to be."""
        if self.temperature is not None:
            assert ratio is not None
            logits = self.temperature.tempered(logits, ratio, first, self.scene.boxes)
        return Step(first, positions, patches, ratio, logits, self.state, value)


def require_causal(encoder: Encoder) -> CausalEncoder:
    """Return the encoder as what a policy can lead.

    Raises:
        InputError: the encoder answers only once.
    """
    if not isinstance(encoder, CausalEncoder):
        raise InputError(
            f"model.policy decides glimpse by glimpse, and {type(encoder).__name__} answers only once: choose an "
            f"encoder with a carried state, such as MambaEye"
        )
    return encoder
