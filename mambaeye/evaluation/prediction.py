"""Looking at images, glimpse after glimpse, until it is enough.

Shapes: B images, b of them that are still looked at, T glimpses, t of them at once, C classes, K of them reported, F
steps that are kept.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mambaeye.batch import Scene
from mambaeye.encoders.base import Encoder, GlimpseEncoder
from mambaeye.evaluation.early_exit import EarlyExitState, Rule, go_by_value
from mambaeye.geometry.box import Box
from mambaeye.geometry.coverage import information_ratio, share_seen
from mambaeye.policies.base import Policy
from mambaeye.rollout import GLIMPSES_AT_ONCE, Rollout
from mambaeye.temperature import Temperature

AT_ONCE_IF_STOPPING = 32  # so that 16 glimpses of an image are wasted, on average
NUMBERS = 1 << 24  # probabilities at once
TOP = 5
STEPS_AN_OCTAVE = 8  # that are kept: 45 or so of 256
NEVER = Rule("confidence", math.inf)


class Prediction(NamedTuple):
    """The answer to one image, and how it came about."""

    glimpses: int
    """Number of glimpses that were taken."""
    stopped: str
    """The rule that was met first, or budget."""
    information_ratio: float
    """Share of the image's pixels that these glimpses show; 1 where the encoder took the whole image."""
    classes: Tensor
    """(K,) the likeliest classes in the end, the likeliest first."""
    probabilities: Tensor
    """(K,) float32, of these classes."""
    confidence: Tensor
    """(glimpses,) float32, the largest probability after every glimpse."""
    steps: Tensor
    """(F,) glimpses seen, the last ones among them."""
    by_step: Tensor
    """(F, K) float32, the probabilities of these classes after so many."""
    positions: Tensor
    """(glimpses, axes) int64: where they were."""


def predict(
    encoder: Encoder,
    scene: Scene,
    policy: Policy | None,
    rules: Sequence[Rule],
    temperature: Temperature | None = None,
) -> list[Prediction]:
    """Take glimpses of each image until one of the rules is met, or there are no more.

    Images that are done are dropped with their canvases and states, and cost nothing more.

    Args:
        encoder: in evaluation, on the device of the scene.
        scene: B images, with T planned glimpses from 1 up.
        policy: decides where to look; None follows the plan.
        rules: any of which ends an image; none for all glimpses of all. One of values wants a ValuePolicy.
        temperature: that confidence is tempered by; None for as it is.
    """
    images = max(1, NUMBERS // (GLIMPSES_AT_ONCE * encoder.num_classes))
    return [
        prediction
        for first in range(0, len(scene.canvases), images)
        for prediction in _predict(encoder, scene.rows(slice(first, first + images)), policy, rules, temperature)
    ]


def _predict(
    encoder: Encoder, scene: Scene, policy: Policy | None, rules: Sequence[Rule], temperature: Temperature | None
) -> list[Prediction]:
    """Predict as many images as there is memory for."""
    at_once = AT_ONCE_IF_STOPPING if rules else GLIMPSES_AT_ONCE
    ratio = None
    if temperature is not None and not isinstance(scene.canvases, Tensor):  # too large for a map of what was seen
        assert isinstance(encoder, GlimpseEncoder)
        ratio = information_ratio(scene.positions.cpu(), scene.boxes.cpu(), encoder.glimpse).float()
        ratio = ratio.to(scene.positions.device)
    walk = Rollout(encoder, scene, policy, ratio, at_once, temperature, go_by_value(rules))
    images, num_glimpses, classes = len(scene.canvases), walk.num_glimpses, encoder.num_classes
    steps = kept_steps(num_glimpses)
    asked_once = len(encoder.answers_at(num_glimpses)) == 1
    steps = steps[-1:] if asked_once else steps
    like = torch.empty(0, classes, dtype=torch.float32, device=scene.canvases.device)  # the default may be bf16
    confidence = torch.empty(images, num_glimpses, dtype=torch.float32)
    by_step = torch.empty(images, len(steps), classes, dtype=torch.float32)
    state = EarlyExitState(rules or [NEVER], images, like)
    going = torch.arange(images)  # the images that are not done
    taken: list[Tensor] = []  # (b, t, axes)
    predictions: dict[int, Prediction] = {}
    for step in walk:
        logits = step.logits.float()
        state.update(logits, step.first, step.value)
        probabilities = logits.softmax(-1)  # (b, t, C)
        taken.append(step.positions.long().cpu())
        seen = step.first + logits.shape[1]
        confidence[going, step.first : seen] = probabilities.amax(-1).cpu()
        here = (steps > step.first) & (steps <= seen)
        by_step[going[:, None], here.nonzero().T] = probabilities[:, steps[here] - step.first - 1].cpu()

        done = state.done.any(1).cpu() | (seen == num_glimpses)
        for row in done.nonzero().flatten().tolist():
            image = int(going[row])
            glimpses, stopped, logits = _answer(state, row)
            final = logits.softmax(-1)
            positions = torch.cat([chunk[row] for chunk in taken])[:glimpses]
            top = logits.topk(min(TOP, classes)).indices  # not of probabilities, which two may share
            before = steps < glimpses
            predictions[image] = Prediction(
                glimpses=glimpses,
                stopped=stopped,
                information_ratio=_ratio(encoder, positions, scene.boxes[image]),
                classes=top,
                probabilities=final[top],
                confidence=confidence[image, glimpses - 1 if asked_once else 0 : glimpses].clone(),
                steps=torch.cat((steps[before], torch.tensor([glimpses]))),
                by_step=torch.cat((by_step[image, before], final[None]))[:, top],  # (F, K)
                positions=positions,
            )
        if done.all():
            break
        if done.any():
            left = (~done).nonzero().flatten()
            going, taken = going[left], [chunk[left] for chunk in taken]
            there = left.to(scene.canvases.device)
            walk.keep(there)
            state = state.rows(there)
    return [predictions[image] for image in range(images)]


def _ratio(encoder: Encoder, positions: Tensor, box: Tensor) -> float:
    """Return the share of an image that was seen."""
    if not isinstance(encoder, GlimpseEncoder):
        return 1.0
    return share_seen(np.asarray(positions), Box(*box.tolist()), encoder.glimpse)


def _answer(state: EarlyExitState, row: int) -> tuple[int, str, Tensor]:
    """Return how many glimpses an image took, why it stopped, and the logits (C,) that it stopped with."""
    done, glimpses = state.done[row].cpu(), state.glimpses[row].cpu()
    if done.any():
        earliest = int(torch.where(done, glimpses, glimpses.max() + 1).argmin())
        stopped: str = state.rules[earliest].kind
    else:
        earliest, stopped = 0, "budget"
    return int(glimpses[earliest]), stopped, state.logits[row, earliest].cpu()


def kept_steps(num_glimpses: int) -> Tensor:
    """Return some of 1 .. num_glimpses, the more the smaller: all of the first, then evenly on a logarithmic scale."""
    count = math.floor(STEPS_AN_OCTAVE * math.log2(num_glimpses)) + 1
    octaves = torch.arange(count, dtype=torch.float32) / STEPS_AN_OCTAVE
    return torch.cat(((2**octaves).round().long(), torch.tensor([num_glimpses]))).unique()
