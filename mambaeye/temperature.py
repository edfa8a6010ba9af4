"""A temperature that depends on what was seen: answers are divided by it, so that confidence comes to mean accuracy.

After n glimpses that show a share r of an image of side s, by a model trained on sides from s_min to s_max,

    log T = w0 + w1 r + w2 log2(n) / 8 + w3 max(0, log2(s_min / s)) + w4 max(0, log2(s / s_max)),

and answers are softmax(logits / T). `train.py calibrate` fits w to minimise the mean of -log p[y]. T is positive, so
the likeliest class stays what it is.

Shapes: B images, t answers, C classes, F features (5), N answers in all.
"""

import math
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mambaeye.errors import InputError

TEMPERATURE = "temperature"
"""Its entry in a checkpoint."""
FEATURES = 5
LARGEST = 100.0  # of a coefficient that a file may give
LONGEST_SIDE = 2**14  # pixels, likewise
MOST = math.log(64)  # of |log T|, however far from what was fitted
VARIES = 1e-6  # least deviation of a feature that is fitted
NUMBERS = 1 << 22  # float64 at once


class SeenAnswers(NamedTuple):
    """Answers with what was seen before each of them."""

    logits: Tensor
    """(N, C)."""
    labels: Tensor
    """(N,) int64."""
    ratio: Tensor
    """(N,): the information ratio."""
    glimpses: Tensor
    """(N,): how many were taken."""
    log_side: Tensor
    """(N,): log2 of the image's side in pixels."""


@dataclass(frozen=True)
class Temperature:
    """A fitted temperature; see the formula above."""

    coefficients: tuple[float, ...]
    """w0 to w4."""
    sides: tuple[int, int]
    """s_min and s_max, in pixels."""

    def tempered(self, logits: Tensor, ratio: Tensor, first: int, boxes: Tensor) -> Tensor:
        """Return the logits over the temperature, less the largest of them: (B, t, C) in their dtype.

        The largest is taken off before the division, so that no two are rounded to one that lead: an exact zero stays
        alone ahead, or with those that it was level with before.

        Args:
            logits: (B, t, C) float32 or wider.
            ratio: (B, t), the information ratio.
            first: index of the first answer's glimpse in the trajectory, from 0.
            boxes: (B, 2 K) integers, the images' places; see Box.
        """
        glimpses = torch.arange(first + 1, first + 1 + ratio.shape[1], device=ratio.device)
        log_t = self.log(ratio, glimpses, log_side(boxes)[:, None])  # (B, t)
        return (logits - logits.amax(-1, keepdim=True)) / log_t.exp()[..., None].to(logits.dtype)

    def log(self, ratio: Tensor, glimpses: Tensor, log_sides: Tensor) -> Tensor:
        """Return log T, in float32, for arguments that broadcast to one shape."""
        seen = features(ratio, glimpses.to(ratio.dtype), log_sides, self.sides)
        return (seen @ seen.new_tensor(self.coefficients)).clamp(-MOST, MOST)

    def saved(self) -> dict[str, Any]:
        """Return it as a checkpoint's entry: plain numbers in lists."""
        return {name: list(values) for name, values in asdict(self).items()}


def temperature_in(saved: Any) -> Temperature:
    """Return the temperature of a checkpoint's entry.

    Raises:
        InputError: it is none, or has numbers that no fit gives.
    """
    if not isinstance(saved, dict) or not is_fitted(saved.get("coefficients"), saved.get("sides")):
        raise InputError(
            f"the checkpoint's {TEMPERATURE} is damaged, or not of train.py calibrate: calibrate the one that it was "
            f"made of again, or give --model.calibrated false"
        )
    return Temperature(tuple(saved["coefficients"]), tuple(saved["sides"]))


def is_fitted(coefficients: Any, sides: Any) -> bool:
    """Tell whether values out of a file are such as a fit gives."""
    if not is_list(coefficients, float, FEATURES) or not is_list(sides, int, 2):
        return False
    return all(abs(value) <= LARGEST for value in coefficients) and 1 <= sides[0] <= sides[1] <= LONGEST_SIDE


def is_list(value: Any, kind: type, length: int) -> bool:
    """Tell whether a value is a list of so many of a type."""
    return isinstance(value, list) and len(value) == length and all(type(inner) is kind for inner in value)


def log_side(boxes: Tensor) -> Tensor:
    """Return log2 of the images' sides in pixels, the geometric mean of each one's: (B, 2 K) -> (B,) float32."""
    return boxes[:, boxes.shape[1] // 2 :].float().log2().mean(1)


def features(ratio: Tensor, glimpses: Tensor, log_sides: Tensor, sides: tuple[int, int]) -> Tensor:
    """Return what the temperature depends on, for arguments that broadcast to one shape: (..., F)."""
    smallest, largest = (math.log2(side) for side in sides)
    below, above = (smallest - log_sides).clamp(min=0), (log_sides - largest).clamp(min=0)
    columns = (torch.ones_like(ratio), ratio, glimpses.log2() / 8, below, above)
    return torch.stack(torch.broadcast_tensors(*columns), dim=-1)


def fit_temperature(answers: SeenAnswers, sides: tuple[int, int]) -> Temperature:
    """Return the temperature that minimises the mean of -log p[y], in float64 by LBFGS, from T = 1.

    What does not vary among the answers, as the number of glimpses of a model that answers once, gets no coefficient.

    Args:
        answers: N of them, finite.
        sides: smallest and largest in training, in pixels.

    Raises:
        InputError: the logits are not finite, or the model has learnt nothing.
    """
    if not answers.logits.isfinite().all():
        raise InputError("the model's answers are not finite numbers: calibrate a checkpoint from before it diverged")
    ratio, glimpses, log_sides = (part.double() for part in (answers.ratio, answers.glimpses, answers.log_side))
    seen = features(ratio, glimpses, log_sides, sides)  # (N, F)
    deviation = seen.std(0)
    scale = torch.where(deviation > VARIES, 1 / deviation, 0)
    centred = (seen - seen.mean(0)) * scale
    centred[:, 0] = 1
    weights = torch.zeros(FEATURES, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [weights], max_iter=200, tolerance_grad=1e-9, tolerance_change=1e-13, line_search_fn="strong_wolfe"
    )

    def closure() -> float:
        optimizer.zero_grad()
        return mean_nll(answers.logits, answers.labels, centred, weights, backward=True)

    optimizer.step(closure)
    fitted = weights.detach()
    nll = mean_nll(answers.logits, answers.labels, centred, fitted)
    shares = answers.labels.bincount().double() / len(answers.labels)
    if not nll < -torch.special.xlogy(shares, shares).sum():  # what is said without looking
        raise InputError(
            "the model knows no more of the samples than how frequent the classes are, and no temperature helps: train "
            "it first"
        )
    slopes = fitted * scale
    slopes[0] = fitted[0] - (slopes[1:] * seen.mean(0)[1:]).sum()
    return Temperature(tuple(slopes.clamp(-LARGEST, LARGEST).tolist()), sides)


def mean_nll(logits: Tensor, labels: Tensor, seen: Tensor, weights: Tensor, backward: bool = False) -> float:
    """Return the mean of -log p[y] under log T = seen @ weights, and add its gradient to that of the weights if asked.

    Args:
        logits: (N, C).
        labels: (N,).
        seen: (N, F) float64.
        weights: (F,) float64.
        backward: whether there is to be a gradient.
    """
    total = 0.0
    for rows in torch.arange(len(logits)).split(max(1, NUMBERS // logits.shape[1])):
        log_t = (seen[rows] @ weights).clamp(-MOST, MOST)
        tempered = logits[rows].double() / log_t.exp()[:, None]
        nll = torch.nn.functional.cross_entropy(tempered, labels[rows], reduction="sum") / len(logits)
        if backward:
            nll.backward()
        total += nll.item()
    return total
