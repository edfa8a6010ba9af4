"""A scan that learns where to look: a small network says what a glimpse at each of some places would bring.

The value of a place is regressed on what glimpses in training brought (Gadgil, Covert and Lee, "Estimating conditional
mutual information for dynamic feature selection", 2024, there for features): see mambaeye.policy_learning.

Shapes: B images, n candidate places, K axes of a position, D feature width, C classes, W the network's width.
"""

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambaeye.errors import InputError
from mambaeye.geometry.candidates import uniform_starts
from mambaeye.ops.precision import wide
from mambaeye.policies.base import Observation, ValuePolicy

BLOCKS = 16  # along each axis, that coverage is pooled to
OCTAVES = 4  # of sines and cosines of a place
CANDIDATES = 0  # purpose of its draws
LARGEST = 4096  # size; so that a file with larger ones is refused and not tried

Sight = Literal["features", "posterior", "coverage"]
"""The encoder's features; its posterior and entropy; which parts of the image, and of a candidate, were shown."""

SIGHTS: frozenset[Sight] = frozenset(get_args(Sight))


class LearnedScan(ValuePolicy):
    """Looks at the candidate that it expects most of; where nothing is expected to help, at the planned place.

    It sees the encoder's features and posterior, what was covered, and of a candidate its place, never its pixels.
    Everything spatial is in units of the image's box, so that it goes for any size. The first glimpse is the planned
    one.

    Args:
        candidates: Places to choose from at every glimpse, uniform ones and the planned one.
        leads: Glimpses after which the planned places are taken, whatever is expected.
        hand_over: Drop in cross entropy, in nats, below which the planned place is taken instead.
        dim: Width of the network.
        sees: What it is told besides places, sides and the number of glimpses; without features and posterior it
            cannot tell images apart.
        feature_dim: Width of the encoder's features; null for the encoder's own, as for the two below.
        num_classes: Number of classes that the encoder tells apart.
        axes: Axes of a position.
    """

    def __init__(
        self,
        candidates: int = 64,
        leads: int = 8,
        hand_over: float = 0.0,
        dim: int = 96,
        sees: tuple[Sight, ...] = get_args(Sight),
        feature_dim: int | None = None,
        num_classes: int | None = None,
        axes: int | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("candidates", candidates), ("leads", leads), ("dim", dim)):
            if not 1 <= value <= LARGEST:
                raise InputError(f"model.policy.{name} is {value}: give a number from 1 to {LARGEST}")
        if math.isnan(hand_over):
            raise InputError("model.policy.hand_over is nan: give a drop in cross entropy, in nats, such as 0.01")
        self.offered, self.leads, self.hand_over, self.dim = candidates, leads, hand_over, dim
        self.sees = frozenset(sees)
        self.sizes = {"feature_dim": feature_dim, "num_classes": num_classes, "axes": axes}

    def suit(self, feature_dim: int, num_classes: int, axes: int) -> None:
        encoders = {"feature_dim": feature_dim, "num_classes": num_classes, "axes": axes}
        for name, value in encoders.items():
            if self.sizes[name] not in (None, value):
                raise InputError(
                    f"the policy was built for an encoder of {name} {self.sizes[name]}, and this one's is {value}: "
                    f"train a new one from --model.init_from, or leave out --model.policy.{name}"
                )
        self.settings |= encoders
        widths = {"features": feature_dim, "posterior": num_classes + 1, "coverage": BLOCKS**axes}
        of_context = 1 + axes + sum(widths[sight] for sight in self.sees)
        of_place = axes * (2 + 2 * OCTAVES) + ("coverage" in self.sees)
        self.context = nn.Sequential(nn.Linear(of_context, self.dim), nn.SiLU(), nn.Linear(self.dim, self.dim))
        self.place = nn.Linear(of_place, self.dim, bias=False)
        self.gain = nn.Sequential(nn.SiLU(), nn.Linear(self.dim, self.dim // 2), nn.SiLU())
        self.gain.append(nn.Linear(self.dim // 2, 1))

    @torch.no_grad()
    def act(self, seen: Observation, count: int) -> Tensor:
        """Return the next position, (B, 1, K), or as many as are wanted, (B, count, K), where it leads no more."""
        if seen.step >= self.leads:
            return seen.planned[:, seen.step : seen.step + count]
        planned = seen.planned[:, seen.step : seen.step + 1]  # (B, 1, K)
        if seen.features is None:
            return planned
        places, gains = self.best(seen)
        return torch.where((gains >= self.hand_over)[:, None, None], places[:, None], planned)

    def candidates(self, seen: Observation, count: int) -> Tensor:
        """Return uniform places on the box, drawn by seed and step, and the planned one: (B, count, K)."""
        key = CANDIDATES, seen.step
        uniform = uniform_starts(seen.coverage.boxes, seen.patch_size, seen.seeds, key, count - 1)
        return torch.cat((uniform, seen.planned[:, seen.step : seen.step + 1]), dim=1)

    def gains(self, seen: Observation, candidates: Tensor) -> Tensor:
        return self.gains_in(context_of(seen, self.sees), seen, candidates)

    def gains_in(self, known: Tensor, seen: Observation, candidates: Tensor) -> Tensor:
        """Return what gains does, given what context_of returns."""
        context = self.context(known.to(self.place.weight.dtype))  # (B, W)
        place = self.place(places_of(seen, candidates, self.sees).to(self.place.weight.dtype))  # (B, n, W)
        gains: Tensor = self.gain(context[:, None] + place).squeeze(-1)
        return gains.to(wide(gains.dtype))


def context_of(seen: Observation, sees: frozenset[Sight] = SIGHTS, octaves: Tensor | None = None) -> Tensor:
    """Return what is known of each image, whatever the candidate: (B, D + C + 2 + K + BLOCKS^K) float32 or wider.

    Of what it sees, normalised features, log posterior, and its entropy as a share of the largest; log2 of the
    glimpses and of the box's sides in glimpses; and the share of each block of the box that was covered.

    Args:
        seen: what is known.
        sees: what of it is told.
        octaves: (B, 1), log2 of the glimpses, for a graph in which they are not a constant; by default the step's.
    """
    assert seen.features is not None
    assert seen.logits is not None
    features, logits = (part.detach().to(wide(part.dtype)) for part in (seen.features, seen.logits))
    sides = seen.coverage.boxes.chunk(2, dim=1)[1]  # (B, K)
    parts = []
    if "features" in sees:
        parts.append(F.layer_norm(features, features.shape[-1:]))
    if "posterior" in sees:
        logs = logits.log_softmax(-1)
        entropy = -(logs.exp() * logs).sum(-1, keepdim=True) / math.log(max(2, logs.shape[-1]))
        parts += [logs.clamp(min=-10) / 10, entropy]
    if octaves is None:
        octaves = torch.full_like(logits[:, :1], math.log2(seen.step))
    parts += [octaves / 4, (sides / seen.coverage.sides).log2() / 4]
    if "coverage" in sees:
        parts.append(seen.coverage.in_blocks(BLOCKS).flatten(1))
    return torch.cat([part.to(logits.dtype) for part in parts], dim=1)


def places_of(seen: Observation, candidates: Tensor, sees: frozenset[Sight] = SIGHTS) -> Tensor:
    """Return what is known of candidate places: (B, n, K (2 + 2 OCTAVES) + 1) float32.

    The glimpse's centre on the box from -1 to 1, sines and cosines of it at OCTAVES octaves, the move from the last
    glimpse in units of half the box, and if it sees coverage the share of its pixels that would be new.
    """
    edge, side = (part[:, None].float() for part in seen.coverage.boxes.chunk(2, dim=1))  # (B, 1, K) each
    centre = (candidates + seen.coverage.sides / 2 - edge) / side * 2 - 1
    octaves = math.pi * 2.0 ** torch.arange(OCTAVES, device=centre.device)
    angles = (centre[..., None] * octaves).flatten(2)  # (B, n, K OCTAVES)
    parts = [centre, angles.sin(), angles.cos(), (candidates - seen.positions[:, -1:]) / side * 2]
    if "coverage" in sees:
        parts.append((seen.coverage.new_pixels(candidates) / seen.coverage.sides.prod())[..., None])
    return torch.cat(parts, dim=-1)
