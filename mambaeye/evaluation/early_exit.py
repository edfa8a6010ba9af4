"""Early exit: when to stop taking glimpses of an image, and what is answered by then.

A rule is met after the first glimpse at which

    confidence    the largest probability is at least the threshold (tau);
    stable        the predicted class has been the same for that many glimpses in a row (k);
    entropy       the prediction's entropy, in nats, is at most the threshold (h);
    value         the drop in cross entropy, in nats, that the policy expects of its best candidate for the next
                  glimpse is at most the threshold (g).

An image that never meets it is answered after its last glimpse. After that nothing is expected.

Shapes: B images, t steps of a piece of the sequence, K rules, C classes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from mambaeye.batch import EvaluationCondition
from mambaeye.errors import InputError
from mambaeye.evaluation.metrics import MetricsConfig, StepMetrics
from mambaeye.evaluation.result import METRICS, EarlyExitResult
from mambaeye.ops.precision import wide
from mambaeye.policies.base import Policy, ValuePolicy

Kind = Literal["confidence", "stable", "entropy", "value"]
AT_MOST = ("entropy", "value")  # kinds whose score must not be above the threshold


class Rule(NamedTuple):
    """When to stop."""

    kind: Kind
    threshold: float

    def check(self, name: str) -> None:
        """Refuse a threshold that cannot be met, or says nothing; name says where it was given.

        Raises:
            InputError: tau outside (0, 1], k below 1, h not above 0, g not finite.
        """
        if self.kind == "confidence" and not 0 < self.threshold <= 1:
            raise InputError(f"{name} has {self.threshold}: give confidences above 0 and up to 1")
        if self.kind == "stable" and self.threshold < 1:
            raise InputError(f"{name} has {self.threshold}: give at least 1 glimpse")
        if self.kind == "entropy" and not self.threshold > 0:
            raise InputError(f"{name} has {self.threshold}: give an entropy above 0, in nats")
        if self.kind == "value" and not math.isfinite(self.threshold):
            raise InputError(f"{name} has {self.threshold}: give a drop in cross entropy, in nats, such as 0.01")


@dataclass(frozen=True)
class ExitCriteria:
    """When to stop looking at an image before its last glimpse: as soon as one of these is met; null for never."""

    confidence: float | None = None
    """Stop when the largest probability is at least this (tau)."""
    stable: int | None = None
    """Stop when the predicted class has been the same for so many glimpses in a row (k)."""
    entropy: float | None = None
    """Stop when the prediction's entropy, in nats, is at most this (h)."""
    value: float | None = None
    """Stop when a policy that estimates values expects of the next glimpse to lower the cross entropy by at most this,
    in nats (g); only under the scan learned."""

    def __post_init__(self) -> None:
        for rule in self.rules:
            rule.check(f"model.exit_criteria.{rule.kind}")

    @property
    def rules(self) -> list[Rule]:
        """Return the rules that are given."""
        return [Rule(kind, getattr(self, kind)) for kind in get_args(Kind) if getattr(self, kind) is not None]


@dataclass(frozen=True)
class EarlyExitConfig:
    """Rules for exiting early that validation tries, all in one pass."""

    confidence: tuple[float, ...] = (0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8, 0.825, 0.85, 0.875, 0.9, 0.95, 0.99)
    """Stop when the largest probability is at least this (tau)."""
    stable: tuple[int, ...] = (2, 4, 8, 16, 32, 64, 128)
    """Stop when the predicted class has been the same for so many glimpses in a row (k)."""
    entropy: tuple[float, ...] = (2.0, 1.5, 1.0, 0.7, 0.5, 0.3, 0.2, 0.1, 0.05)
    """Stop when the prediction's entropy, in nats, is at most this (h)."""
    value: tuple[float, ...] = ()
    """Stop when a policy that estimates values expects of the next glimpse to lower the cross entropy by at most this,
    in nats (g); left out under other scans than learned. None unless given, for then the policy works after every
    glimpse, also after those that it leads."""

    def __post_init__(self) -> None:
        for rule in self.rules:
            rule.check(f"model.early_exit.{rule.kind}")

    @property
    def rules(self) -> list[Rule]:
        """Return all rules, one kind after the other."""
        return [Rule(kind, threshold) for kind in get_args(Kind) for threshold in getattr(self, kind)]


def go_by_value(rules: Sequence[Rule]) -> bool:
    """Tell whether one of the rules goes by what a policy expects."""
    return any(rule.kind == "value" for rule in rules)


def rules_under(rules: Sequence[Rule], policy: Policy | None) -> list[Rule]:
    """Return those of the rules that can be tried under a policy, None for fixed scans."""
    return [rule for rule in rules if rule.kind != "value" or isinstance(policy, ValuePolicy)]


def require_value(criteria: ExitCriteria, policy: Policy | None) -> None:
    """Refuse to go by values where there are none.

    Raises:
        InputError: criteria have one, and no policy that estimates values leads.
    """
    if criteria.value is not None and not isinstance(policy, ValuePolicy):
        raise InputError(
            "model.exit_criteria.value goes by what a policy such as LearnedScan expects, and none leads here: give "
            "--data.scans [learned] and a checkpoint with such a policy, or leave it out"
        )


class EarlyExitState:
    """Answers to some images under each rule, gathered from the logits of piece after piece of the sequence.

    Attributes:
        done: (B, K) bool, whether the rule was met.
        glimpses: (B, K) int64, how many were taken: until the rule was met, or so far.
    """

    def __init__(self, rules: Sequence[Rule], images: int, like: Tensor) -> None:
        """Begin with so many images; like has the logits' last axis, dtype and device."""
        self.rules = rules
        self.done = like.new_zeros(images, len(rules), dtype=torch.bool)
        self.glimpses = like.new_zeros(images, len(rules), dtype=torch.long)
        self.when_done = like.new_zeros(images, len(rules), like.shape[-1])
        self.latest = like.new_zeros(images, like.shape[-1])
        self.seen = 0
        self.predicted = like.new_full((images,), -1, dtype=torch.long)
        self.run = like.new_zeros(images, dtype=torch.long)  # glimpses in a row that predicted that class

    @property
    def logits(self) -> Tensor:
        """Return the answers after these glimpses: (B, K, C)."""
        return torch.where(self.done[..., None], self.when_done, self.latest[:, None])

    def update(self, logits: Tensor, first: int | None = None, value: Tensor | None = None) -> None:
        """Take the next piece of the sequence.

        Args:
            logits: (B, t, C).
            first: its first step's index, if some were left out.
            value: (B, t), what the policy expects of the next glimpse; None if no rule goes by it.
        """
        self.seen = self.seen if first is None else first
        scores = self._scores(logits)
        if value is not None:
            scores["value"] = value
        met = torch.stack([self._met(rule, scores) for rule in self.rules], dim=-1)  # (B, t, K)
        now = met.any(1) & ~self.done  # (B, K): met for the first time; masks and no indices, which a GPU is waited for
        step = met.int().argmax(1)  # (B, K)
        image = torch.arange(len(step), device=step.device)[:, None]
        self.when_done = torch.where(now[..., None], logits[image, step], self.when_done)
        taken = torch.where(now, self.seen + step + 1, self.seen + logits.shape[1])
        self.glimpses = torch.where(self.done, self.glimpses, taken)
        self.done = self.done | now
        self.latest, self.seen = logits[:, -1], self.seen + logits.shape[1]

    def _scores(self, logits: Tensor) -> dict[str, Tensor]:
        """Return what rules go by, after every glimpse: (B, t) each."""
        logs = logits.to(wide(logits.dtype)).log_softmax(-1)
        largest, predicted = logs.max(-1)
        before = torch.cat((self.predicted[:, None], predicted[:, :-1]), dim=1)
        step = torch.arange(logits.shape[1], device=logits.device)
        change = torch.where(predicted != before, step, -1).cummax(1).values  # the last one, -1 for none in this piece
        run = torch.where(change >= 0, step - change + 1, self.run[:, None] + step + 1)
        self.predicted, self.run = predicted[:, -1], run[:, -1]
        return {"confidence": largest.exp(), "stable": run, "entropy": -(logs.exp() * logs).sum(-1)}

    @staticmethod
    def _met(rule: Rule, scores: dict[str, Tensor]) -> Tensor:
        score = scores[rule.kind]
        return score <= rule.threshold if rule.kind in AT_MOST else score >= rule.threshold

    def rows(self, index: Tensor) -> "EarlyExitState":
        """Return the state of some of the images, to go on with: index is what a tensor takes along its first axis."""
        some = EarlyExitState(self.rules, 0, self.latest)
        for name in ("done", "glimpses", "when_done", "latest", "predicted", "run"):
            setattr(some, name, getattr(self, name)[index])
        some.seen = self.seen
        return some


class EarlyExitMetrics(StepMetrics):
    """StepMetrics of answers under a rule instead of after a step; and the glimpses that these took.

    Args:
        rules: K of them.
        bins: confidence bins of equal width for the calibration errors.
    """

    glimpses: Tensor
    stopped: Tensor

    def __init__(self, rules: Sequence[Rule], bins: int) -> None:
        super().__init__(len(rules), MetricsConfig(every_step=len(rules), bins=bins))
        self.rules = list(rules)
        for name in ("glimpses", "stopped"):
            self.add_state(name, torch.zeros(len(rules), dtype=torch.long), dist_reduce_fx="sum")

    def update(  # type: ignore[override]  # other arguments than StepMetrics', as torchmetrics expects of every metric
        self, state: EarlyExitState, labels: Tensor, information_ratio: Tensor, valid: Tensor, first_step: int = 0
    ) -> None:
        """Add a batch.

        Args:
            state: of B images that have been taken to their ends.
            labels: (B,).
            information_ratio: (B, A), after every answer.
            valid: (B,) bool; rows that are False are not counted.
            first_step: index of the first answer's glimpse in the trajectory, from 0.
        """
        ratio = information_ratio.gather(1, state.glimpses - 1 - first_step)
        super().update(state.logits, labels, ratio, valid)
        self.glimpses += state.glimpses.where(valid[:, None], 0).sum(0)
        self.stopped += (state.done & valid[:, None]).sum(0)

    def compute(self) -> dict[str, Tensor]:
        """Return what StepMetrics does, by rule instead of by step (`steps` counts the rules), and (K,) float64 each:

        glimpses: how many were taken, on average; stopped: the share of images that met the rule.
        """
        curves = super().compute()
        for name in ("glimpses", "stopped"):
            curves[name] = getattr(self, name).cpu().double() / curves["samples"]
        return curves

    def results(self, condition: EvaluationCondition) -> list[EarlyExitResult]:
        """Compute, then begin anew; return a result for each rule."""
        curves = self.finish()
        return [
            EarlyExitResult(
                condition=condition,
                rule=rule.kind,
                threshold=rule.threshold,
                glimpses=float(curves["glimpses"][at]),
                stopped=float(curves["stopped"][at]),
                samples=int(curves["samples"][at]),
                metrics={name: float(curves[name][at]) for name in METRICS},
            )
            for at, rule in enumerate(self.rules)
        ]
