"""Metrics by step: how right, how sure and how well calibrated the model is after each glimpse."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassConfusionMatrix

from mambaeye.batch import EvaluationCondition
from mambaeye.errors import InputError
from mambaeye.evaluation.calibration import (
    FINE,
    coarse,
    equal_mass,
    expected_error,
    fine_edges,
    maximum_error,
)
from mambaeye.evaluation.result import BINS, BY_RATIO, METRICS, ConditionResult
from mambaeye.ops.precision import wide

TOP = 5
MOST_CLASSES = 4096  # whose confusion matrix is 128 MiB for every condition
RATIO_BINS = 20
RATIO_SUMS = ("ratio_mean", "ratio_confidence", "ratio_true_class_probability")

MEANS = ("true_class_probability", "nll", "brier", "information_ratio")  # over answers, of sums


@dataclass(frozen=True)
class MetricsConfig:
    """Settings of what validation keeps of every step."""

    every_step: int = 256
    """Every step up to this many glimpses is kept; beyond, steps 1/256 (one in this many) of their length apart."""
    bins: int = 15
    """Confidence bins of equal width for the calibration errors."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise InputError(f"model.metrics.{name} is {value}: give at least 1")


def powers_of_two(num_glimpses: int) -> list[int]:
    """Return glimpse counts to report: 1, 2, 4, ... and the last."""
    return [*(1 << k for k in range((num_glimpses - 1).bit_length())), num_glimpses]


def reported_steps(num_glimpses: int, report_at: Iterable[int], answers_at: Iterable[int] | None = None) -> list[int]:
    """Return the glimpse counts that make rows: powers of two, others that are asked for, and the last.

    Args:
        num_glimpses: T.
        report_at: asked for.
        answers_at: glimpse counts after which there are answers; all by default.
    """
    wanted = {*powers_of_two(num_glimpses), *report_at}
    return sorted(wanted & set(range(1, num_glimpses + 1) if answers_at is None else answers_at))


def kept_steps(num_glimpses: int, every_step: int, report_at: Iterable[int] = ()) -> list[int]:
    """Return the glimpse counts to keep: all up to every_step, then a geometric series; and what is reported."""
    kept, step = {*powers_of_two(num_glimpses), *report_at}, 0
    while step < num_glimpses:
        kept.add(step := max(step + 1, round(step * (1 + 1 / every_step))))
    return sorted(step for step in kept if step <= num_glimpses)


class StepMetrics(Metric):
    """Accuracy, confidence and calibration after every kept glimpse, as sums that are divided once.

    States have a fixed size, 24 bytes a fine confidence bin and step, and add up over batches, pieces of the sequence
    and ranks, so several processes give the numbers of one.

    Args:
        num_glimpses: T, glimpses of an image.
        config: which steps are kept, and how finely.
        report_at: glimpse counts that are kept besides.
        answers_at: glimpse counts after which there are answers; all by default.
    """

    full_state_update = False
    kept: Tensor
    top5: Tensor
    bin_count: Tensor
    bin_confidence: Tensor
    bin_correct: Tensor
    ratio_count: Tensor

    def __init__(
        self,
        num_glimpses: int,
        config: MetricsConfig = MetricsConfig(),
        report_at: Iterable[int] = (),
        answers_at: Iterable[int] | None = None,
    ) -> None:
        super().__init__()
        self.bins = config.bins
        answered = set(range(1, num_glimpses + 1) if answers_at is None else answers_at)
        self.steps = [step for step in kept_steps(num_glimpses, config.every_step, report_at) if step in answered]
        self.register_buffer("kept", torch.tensor(self.steps), persistent=False)
        kept, fine = len(self.steps), FINE * config.bins + 1
        states = {
            "top5": ((kept,), torch.long),
            **dict.fromkeys(MEANS, ((kept,), torch.float64)),
            "bin_count": ((kept, fine), torch.long),
            "bin_confidence": ((kept, fine), torch.float64),
            "bin_correct": ((kept, fine), torch.long),
            "ratio_count": ((RATIO_BINS,), torch.long),
            "ratio_top1": ((RATIO_BINS,), torch.long),
            **{
                f"ratio_{name}": ((RATIO_BINS,), torch.float64)
                for name in ("mean", "confidence", "true_class_probability")
            },
        }
        for name, (shape, dtype) in states.items():
            self.add_state(name, torch.zeros(shape, dtype=dtype), dist_reduce_fx="sum")

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> nn.Module:
        """Go to a device with the module; a module that is made narrower, as for bf16-true, leaves the sums wide."""
        return super()._apply(lambda tensor: tensor.to(fn(tensor.new_empty(0)).device), exclude_state)

    def update(
        self, logits: Tensor, labels: Tensor, information_ratio: Tensor, valid: Tensor, first_step: int = 0
    ) -> None:
        """Add a batch, or a piece of its sequence.

        Args:
            logits: (B, t, C), of t steps from first_step on.
            labels: (B,).
            information_ratio: (B, t), r_t of the same steps.
            valid: (B,) bool; rows that are False are not counted.
            first_step: index of the piece's first step in the trajectory, from 0.
        """
        first, last = (bisect_right(self.steps, first_step + offset) for offset in (0, logits.shape[1]))
        if first == last:
            return
        rows = slice(first, last)
        picked = self.kept[rows] - 1 - first_step  # (k,)
        logits = logits[:, picked].to(wide(logits.dtype))  # (B, k, C)
        ratio = information_ratio[:, picked]  # (B, k)
        top = best_classes(logits)  # (B, k, 5)
        hits = top == labels[:, None, None]
        label = labels[:, None, None].expand(*ratio.shape, 1)
        of_label = logits.gather(-1, label).squeeze(-1)
        nll = logits.logsumexp(-1) - of_label
        probabilities = logits.softmax(-1)
        confidence = probabilities.gather(-1, top[..., :1]).squeeze(-1)  # (B, k)
        right = probabilities.gather(-1, label).squeeze(-1)
        brier = probabilities.square_().sum(-1) - 2 * right + 1
        counted = valid[:, None].expand_as(ratio)
        correct, fives = hits[..., 0] & counted, hits.any(-1) & counted

        self.top5[rows] += fives.sum(0)
        for name, values in zip(MEANS, (right, nll, brier, ratio), strict=True):
            getattr(self, name)[rows] += values.double().where(counted, 0).sum(0)

        edges = fine_edges(self.bins, confidence.dtype, confidence.device)
        fine = torch.bucketize(confidence, edges, right=True) - 1  # (B, k)
        fine += torch.arange(len(picked), device=fine.device) * len(edges)  # as an index into (k, F + 1)
        by_bin = {"bin_count": counted, "bin_confidence": confidence, "bin_correct": correct}
        for name, values in by_bin.items():
            state = getattr(self, name)
            state[rows] += sums_by_index(fine, values, counted, state[rows])

        scheduled = (ratio * RATIO_BINS).long().clamp(max=RATIO_BINS - 1)  # (B, k)
        by_ratio = {"count": counted, "top1": correct, "mean": ratio}
        by_ratio |= {"confidence": confidence, "true_class_probability": right}
        for name, values in by_ratio.items():
            state = getattr(self, f"ratio_{name}")
            state += sums_by_index(scheduled, values, counted, state)

    def compute(self) -> dict[str, Tensor]:
        """Return everything after every kept glimpse, float64 unless said otherwise; a step without images is NaN.

        Returns:
            steps and samples (K,) int64: glimpse counts, and images counted there.
            top1, top5, confidence, true_class_probability (K,): shares of images whose class was the first or among the
            first five; means of the largest probability and of that of the right class.
            nll, brier (K,): means of -log p[y], and of sum_c (p[c] - [c = y])^2, in [0, 2].
            information_ratio (K,): mean r_t.
            ece, mce, adaptive_ece (K,): see mambaeye/evaluation/calibration.py.
            bin_edges (M + 1,): lower edges of the confidence bins, the last of which is a confidence of exactly 1.
            bin_count int64, bin_confidence, bin_top1 (K, M + 1): answers, their mean confidence and accuracy (NaN
            without answers).
            ratio_count (R,) int64, ratio_mean, ratio_confidence, ratio_true_class_probability, ratio_top1 (R,): the
            same by information ratio, in R bins of equal width, over all kept steps.
        """
        samples = self.bin_count.sum(-1)  # (K,)
        fine = (self.bin_count, self.bin_confidence, self.bin_correct.double())
        count, confidence, correct = (coarse(sums) for sums in fine)  # (K, M + 1)
        curves = {
            "steps": torch.tensor(self.steps),
            "samples": samples,
            "top1": correct.sum(-1) / samples,
            "top5": self.top5.double() / samples,
            "confidence": confidence.sum(-1) / samples,
        }
        curves |= {name: getattr(self, name) / samples for name in MEANS}
        curves["ece"] = expected_error(count, confidence, correct)
        curves["mce"] = maximum_error(count, confidence, correct)
        curves["adaptive_ece"] = expected_error(*equal_mass(*fine))
        curves["bin_edges"] = torch.linspace(0, 1, self.bins + 1, dtype=torch.float64)
        curves |= {"bin_count": count, "bin_confidence": confidence / count, "bin_top1": correct / count}
        curves["ratio_count"] = self.ratio_count
        for name in (*RATIO_SUMS, "ratio_top1"):
            curves[name] = getattr(self, name).double() / self.ratio_count
        return {name: value.cpu() for name, value in curves.items()}

    def finish(self) -> dict[str, Tensor]:
        """Compute, then begin anew; every curve keeps its axis, which torchmetrics takes from what has one entry."""
        curves = {name: torch.atleast_1d(value) for name, value in self.compute().items()}
        self.reset()
        return curves


class ConfusionMetric(MulticlassConfusionMatrix):
    """Confusion matrix of C classes: (C, C) int64, which adds up over batches and ranks."""

    def __init__(self, classes: int) -> None:
        super().__init__(classes, validate_args=False)

    def update(self, logits: Tensor, labels: Tensor, valid: Tensor) -> None:  # type: ignore[override]  # for rows
        """Add the answers of a batch, logits (B, C); rows that are not valid are not counted.

        torchmetrics' own picks the rows that count, and a GPU is waited for until it knows how many there are.
        """
        answers = best_classes(logits.to(wide(logits.dtype)))[:, 0]
        self.confmat += sums_by_index(labels * len(self.confmat) + answers, valid, valid, self.confmat)

    def finish(self) -> Tensor:
        """Compute, then begin anew."""
        confusion: Tensor = self.compute().cpu()
        self.reset()
        return confusion


def best_classes(logits: Tensor) -> Tensor:
    """Return the likeliest classes, best first, five at most: (..., C) -> (..., min(5, C)) int64."""
    return logits.topk(min(TOP, logits.shape[-1]), dim=-1).indices


def condition_result(
    condition: EvaluationCondition,
    curves: Mapping[str, Tensor],
    num_classes: int,
    report_at: Iterable[int],
    confusion: Tensor | None = None,
) -> ConditionResult:
    """Return what was computed under one condition as its result.

    Args:
        condition: that it was computed under.
        curves: by StepMetrics.
        num_classes: C.
        report_at: the steps that make rows.
        confusion: (C, C), by ConfusionMetric; None where there are too many classes.
    """
    steps = curves["steps"].tolist()
    return ConditionResult(
        condition=condition,
        num_classes=num_classes,
        steps=steps,
        report_at=[step for step in report_at if step in steps],
        samples=curves["samples"].numpy(),
        metrics={name: curves[name].numpy() for name in METRICS},
        bin_edges=curves["bin_edges"].numpy(),
        bins={name: curves[name].numpy() for name in BINS},
        by_ratio={name: curves[name].numpy() for name in BY_RATIO},
        confusion=None if confusion is None else confusion.numpy(),
    )


def sums_by_index(index: Tensor, values: Tensor, counted: Tensor, like: Tensor) -> Tensor:
    """Add up the values that are counted, each to the entry that its flat index names, in a tensor like the last."""
    sums = torch.zeros_like(like).flatten()
    return sums.index_add_(0, index.flatten(), values.to(like.dtype).where(counted, 0).flatten()).view_as(like)
