"""Looking at images, glimpse after glimpse, until it is enough.

Shapes: B images, T glimpses, t of them at once, C classes, K of them reported, F steps that are kept.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mambaeye.encoders.mambaeye import MambaEye
from mambaeye.evaluation.early_exit import EarlyExitState, Rule
from mambaeye.geometry.box import Box
from mambaeye.geometry.coverage import share_seen
from mambaeye.geometry.patches import cut_from_canvases

AT_ONCE = 256  # glimpses
AT_ONCE_IF_STOPPING = 32  # that is, glimpses that are taken in vain for each image: 16 on average
NUMBERS = 1 << 24  # probabilities at once
TOP = 5
STEPS_AN_OCTAVE = 8  # that are kept: 45 or so of 256
NEVER = Rule("confidence", math.inf)


class Prediction(NamedTuple):
    """What one image is taken for, and how that came about."""

    glimpses: int
    """How many were taken."""
    stopped: str
    """The rule that was met first, or budget."""
    information_ratio: float
    """Share of the image's pixels that these glimpses show."""
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


def predict(
    encoder: MambaEye, canvases: Tensor, positions: Tensor, boxes: Sequence[Box], rules: Sequence[Rule]
) -> list[Prediction]:
    """Take glimpses of each image until one of the rules is met, or there are no more.

    Images that are done are dropped with their canvases and states, and cost nothing more.

    Args:
        encoder: in evaluation, on the device of the rest.
        canvases: (B, H, W, 3) uint8.
        positions: (B, T, 2) integers, T from 1 up.
        boxes: B places of images on their canvases.
        rules: any of which ends an image; none for all glimpses of all.
    """
    images = max(1, NUMBERS // (AT_ONCE * encoder.config.num_classes))
    return [
        prediction
        for first in range(0, len(canvases), images)
        for prediction in _predict(
            encoder,
            canvases[first : first + images],
            positions[first : first + images],
            boxes[first : first + images],
            rules,
        )
    ]


def _predict(
    encoder: MambaEye, canvases: Tensor, positions: Tensor, boxes: Sequence[Box], rules: Sequence[Rule]
) -> list[Prediction]:
    """The same for as many images as there is memory for."""
    images, length = positions.shape[:2]
    patch_size, classes = encoder.config.patch_size, encoder.config.num_classes
    at_once = AT_ONCE_IF_STOPPING if rules else AT_ONCE
    steps = kept_steps(length)
    confidence, by_step = torch.empty(images, length), torch.empty(images, len(steps), classes)
    state = encoder.initial_state(images)
    answers = EarlyExitState(rules or [NEVER], images, torch.empty(0, classes, device=canvases.device))
    going = torch.arange(images)  # the images that are not done
    predictions: dict[int, Prediction] = {}
    for first in range(0, length, at_once):
        chunk = positions[:, first : first + at_once]  # (b, t, 2), of the images that are going
        logits, state = encoder.stream(cut_from_canvases(canvases, chunk, patch_size), chunk, state)
        logits = logits.float()
        answers.look(logits)
        probabilities = logits.softmax(-1)  # (b, t, C)
        seen = first + chunk.shape[1]
        confidence[going, first:seen] = probabilities.amax(-1).cpu()
        here = (steps > first) & (steps <= seen)
        by_step[going[:, None], here.nonzero().T] = probabilities[:, steps[here] - first - 1].cpu()

        done = answers.done.any(1).cpu() | (seen == length)
        for row in done.nonzero().flatten().tolist():
            image = int(going[row])
            glimpses, stopped, final = _answer(answers, row)
            starts = positions[row, :glimpses].cpu().numpy()
            ratio = share_seen(starts, boxes[image], patch_size)
            top = final.topk(min(TOP, classes))
            before = steps < glimpses
            kept = torch.cat((by_step[image, before], final[None]))[:, top.indices]  # (F, K)
            at = torch.cat((steps[before], torch.tensor([glimpses])))
            predictions[image] = Prediction(
                glimpses, stopped, ratio, top.indices, top.values, confidence[image, :glimpses].clone(), at, kept
            )
        if done.all():
            break
        if done.any():
            left = (~done).nonzero().flatten()
            going, there = going[left], left.to(canvases.device)
            canvases, positions = canvases[there], positions[there]
            state, answers = state.rows(there), answers.rows(there)
    return [predictions[image] for image in range(images)]


def _answer(answers: EarlyExitState, row: int) -> tuple[int, str, Tensor]:
    """How many glimpses an image took, why it stopped, and the probabilities (C,) that it stopped with."""
    done, glimpses = answers.done[row].cpu(), answers.glimpses[row].cpu()
    if done.any():
        earliest = int(torch.where(done, glimpses, glimpses.max() + 1).argmin())
        stopped = answers.rules[earliest].kind
    else:
        earliest, stopped = 0, "budget"
    return int(glimpses[earliest]), stopped, answers.logits[row, earliest].softmax(-1).cpu()


def kept_steps(length: int) -> Tensor:
    """Some of the numbers 1 .. length, the more the smaller: all of the first, evenly spaced on a logarithmic scale."""
    octaves = torch.arange(math.floor(STEPS_AN_OCTAVE * math.log2(length)) + 1) / STEPS_AN_OCTAVE
    return torch.cat(((2**octaves).round().long(), torch.tensor([length]))).unique()
