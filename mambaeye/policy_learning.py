"""Learning where to look: walks over images, on which a policy sees what glimpses at some places would bring.

At every step of a walk the encoder takes a glimpse at each of some places from a copy of its state: random ones and the
policy's choice. The drop in the cross entropy of its answer is what the policy's network is regressed on; then the walk
goes on from one of them.

Shapes: B images, T glimpses, t steps at which something is learnt, n places tried at each, K axes, C classes.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambaeye.batch import CanvasBatch, GlimpseBatch
from mambaeye.encoders.base import CausalEncoder, Encoder, State, select_rows
from mambaeye.errors import InputError
from mambaeye.geometry.box import PatchSize
from mambaeye.geometry.candidates import keyed_uniform
from mambaeye.geometry.coverage import Coverage
from mambaeye.geometry.patches import cut_from_canvases
from mambaeye.loss import step_losses
from mambaeye.policies.base import Observation, Policy, ValuePolicy
from mambaeye.rollout import Rollout, Step

WALKS, PICKS = 1, 2  # purposes of draws; the policy's own are 0


@dataclass(frozen=True)
class PolicyLearning:
    """Settings of a policy that learns values, where data.train_scan has learned."""

    frozen: float = 0.5
    """Share of all optimizer steps, the first ones, in which only the policy learns; the encoder too from then on."""
    glimpses: int = 12
    """Glimpses of a walk that it learns on, at most; from there a trajectory goes on as planned."""
    candidates: int = 4
    """Places that are tried at every glimpse of a walk, random ones and the one that the policy would choose; each
    costs a glimpse of the encoder."""
    random_walks: tuple[float, float] = (0.5, 0.3)
    """Share of walks that are random, in the beginning and in the end."""
    random_picks: float = 0.2
    """Share of random glimpses in the other walks, which go where the policy expects most."""

    def __post_init__(self) -> None:
        name = "model.policy_learning"
        for share in ("frozen", "random_picks"):
            if not 0 <= getattr(self, share) <= 1:
                raise InputError(f"{name}.{share} is {getattr(self, share)}: give a share from 0 to 1")
        if not all(0 <= share <= 1 for share in self.random_walks):
            raise InputError(f"{name}.random_walks is {list(self.random_walks)}: give two shares from 0 to 1")
        if self.candidates < 2:
            raise InputError(f"{name}.candidates is {self.candidates}: give at least 2, a random one and the best")
        if self.glimpses < 2:
            raise InputError(f"{name}.glimpses is {self.glimpses}: give at least 2, for the first is given")


class Lesson(NamedTuple):
    """Records of walks over a batch: t = T' - 1 steps, T' glimpses of a walk."""

    predicted: Tensor
    """(B, t, n): what the policy expected of each place that was tried, with its gradient; the last is its choice."""
    actual: Tensor
    """(B, t, n): the drop in cross entropy that a glimpse there brought."""
    picked: Tensor
    """(B, t) int64: the one that the walk went on with, the first or the last."""
    positions: Tensor
    """(B, T, K) int64: the walks, and then the plan."""
    information_ratio: Tensor
    """(B, T) float32: share of the image that was seen after each of these."""

    def loss(self, valid: Tensor) -> Tensor:
        """Return the smooth L1 loss of what was expected, averaged over valid images, (B,) bool: a scalar."""
        error = F.smooth_l1_loss(self.predicted, self.actual, reduction="none").mean((1, 2))  # (B,)
        return (error * valid).sum() / valid.sum().clamp(min=1)

    def curves(self, valid: Tensor) -> dict[str, Tensor]:
        """Return scalars over valid images, (B,) bool, by name.

        expected, actual: of the policy's choices, what was expected and what came; random: what came of random places;
        correlation: of what was expected with what came, over all.
        """
        predicted, actual = self.predicted.detach()[valid], self.actual[valid]  # (b, t, n) each
        return {
            "expected": predicted[..., -1].mean(),
            "actual": actual[..., -1].mean(),
            "random": actual[..., :-1].mean(),
            "correlation": torch.stack((predicted.flatten(), actual.flatten())).corrcoef()[0, 1],
        }


def walk(
    encoder: CausalEncoder, policy: ValuePolicy, batch: CanvasBatch, config: PolicyLearning, progress: float
) -> Lesson:
    """Walk over a batch, and see at every glimpse what each candidate would bring. The encoder gets no gradient.

    All draws depend on the scene's seeds and the glimpse alone.

    Args:
        encoder: on the device of the batch.
        policy: what learns.
        batch: of training.
        config: how.
        progress: share of the training that is over.

    Raises:
        InputError: trajectories have but one glimpse.
    """
    scene, size = batch.scene, encoder.glimpse
    if scene.positions.shape[1] < 2:
        raise InputError("data.train.num_glimpses is 1, and a policy decides from the second on: give at least 2")
    planned = scene.positions.long()
    images, num_glimpses = planned.shape[:2]
    image = torch.arange(images, device=planned.device)
    coverage = Coverage(scene.canvases.shape[1:-1], scene.boxes, size)
    taken = planned[:, :1]  # (B, 1, K), and longer by one at every step
    answers, state = trial(encoder, scene.pixels, taken, encoder.initial_state(images))
    features, ratios = answers[:, 0], [coverage.add(taken)]
    first, last = config.random_walks
    is_random = keyed_uniform(scene.seeds, (WALKS,), 1)[:, 0] < first + (last - first) * progress  # (B,)
    predicted, actual, picked = [], [], []
    for step in range(1, min(config.glimpses, num_glimpses)):
        logits = encoder.logits(features).detach()
        seen = Observation(step, features, logits, coverage, taken, planned, scene.seeds, size)
        tried = to_try(policy, seen, config.candidates)  # (B, n, K)
        predicted.append(policy.gains(seen, tried))  # before anything more is shown
        answers, states = trial(encoder, scene.pixels, tried, state)
        drop = cross_entropy(encoder, features[:, None], batch) - cross_entropy(encoder, answers, batch)
        at_random = is_random | (keyed_uniform(scene.seeds, (PICKS, step), 1)[:, 0] < config.random_picks)
        pick = torch.where(at_random, 0, config.candidates - 1)  # (B,)
        features, state = answers[image, pick], select_rows(states, image * config.candidates + pick)
        chosen = tried[image, pick][:, None]  # (B, 1, K)
        taken = torch.cat((taken, chosen), dim=1)
        ratios.append(coverage.add(chosen))
        actual.append(drop)
        picked.append(pick)
    rest = planned[:, taken.shape[1] :]
    ratios.append(coverage.add(rest))
    return Lesson(
        predicted=torch.stack(predicted, dim=1),
        actual=torch.stack(actual, dim=1),
        picked=torch.stack(picked, dim=1),
        positions=torch.cat((taken, rest), dim=1),
        information_ratio=torch.cat(ratios, dim=1),
    )


@torch.no_grad()
def to_try(policy: ValuePolicy, seen: Observation, count: int) -> Tensor:
    """Return random places, and last the one of the policy's candidates that it expects most of: (B, count, K)."""
    offered = policy.candidates(seen, max(count, policy.offered))
    best = policy.gains(seen, offered).argmax(1)  # (B,)
    return torch.cat((offered[:, : count - 1], offered.take_along_dim(best[:, None, None], dim=1)), dim=1)


@torch.no_grad()
def trial(encoder: CausalEncoder, canvases: Tensor, places: Tensor, state: State) -> tuple[Tensor, State]:
    """Take one glimpse at each of some places, all from the same state of their image.

    Args:
        encoder: on the device of the canvases.
        canvases: (B, S..., C) uint8.
        places: (B, n, K) integers.
        state: of B images.

    Returns:
        What the head sees after each, (B, n, D), and B n states, the places of an image side by side.
    """
    images, places_each = places.shape[:2]
    index = torch.arange(images, device=places.device).repeat_interleave(places_each)  # (B n,)
    patches = cut_from_canvases(canvases, places, encoder.glimpse).flatten(0, 1)[:, None]  # (B n, 1, C, P, ...)
    features, states = encoder.stream_features(patches, places.flatten(0, 1)[:, None], select_rows(state, index))
    return features.view(images, places_each, -1), states


@torch.no_grad()
def cross_entropy(encoder: CausalEncoder, features: Tensor, batch: CanvasBatch) -> Tensor:
    """Return the cross entropy of the answers to features with the labels, mixed ones too: (B, n, D) -> (B, n)."""
    logits = encoder.logits(features)  # (B, n, C)
    return step_losses(logits, batch.labels, logits[..., 0], "none", batch.partner_labels, batch.label_shares)


def glimpses_of(batch: CanvasBatch, lesson: Lesson, patch_size: PatchSize) -> GlimpseBatch:
    """Return what the encoder is to learn from: the walks where a policy leads, elsewhere what was planned."""
    led = batch.scene.led[:, None]
    positions = torch.where(led[..., None], lesson.positions, batch.scene.positions.long())
    ratio = torch.where(led, lesson.information_ratio, batch.information_ratio)
    patches = cut_from_canvases(batch.scene.canvases, positions, patch_size)
    mixed = (batch.labels, batch.partner_labels, batch.label_shares)
    return GlimpseBatch(patches, positions, ratio, *mixed, batch.keys, batch.valid)


@torch.no_grad()
def glimpses_under(encoder: Encoder, policy: Policy, batch: CanvasBatch) -> GlimpseBatch:
    """Return the glimpses that a policy takes of a batch, where it leads, as it would in validation."""
    seen = [seen_in(step) for step in Rollout(encoder, batch.scene, policy)]
    patches, positions, ratio = (torch.cat(parts, dim=1) for parts in zip(*seen, strict=True))
    mixed = (batch.labels, batch.partner_labels, batch.label_shares)
    return GlimpseBatch(patches, positions, ratio, *mixed, batch.keys, batch.valid)


def seen_in(step: Step) -> tuple[Tensor, Tensor, Tensor]:
    """Return the patches, positions and information ratios of a step under a policy."""
    assert step.patches is not None
    assert step.information_ratio is not None
    return step.patches, step.positions, step.information_ratio


def with_gradients_of(loss: Tensor, parts: Iterable[nn.Module]) -> Tensor:
    """Return the loss with a gradient of zero for parts that it does not depend on: DDP waits for all gradients."""
    return loss + sum(0 * each.sum() for part in parts for each in part.parameters() if each.requires_grad)
