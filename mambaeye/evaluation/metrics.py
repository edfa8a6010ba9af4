"""Metrics by step: how right, how sure and how well calibrated the model is after each glimpse."""

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics import Metric

from mambaeye.errors import InputError
from mambaeye.evaluation.calibration import (
    FINE,
    coarse,
    equal_mass,
    expected_error,
    fine_edges,
    maximum_error,
)

TOP = 5
RATIO_BINS = 20

MEANS = ("true_class_probability", "nll", "brier", "information_ratio")


@dataclass(frozen=True)
class MetricsConfig:
    """What validation keeps of every step."""

    every_step: int = 256
    """Every step up to this many glimpses is kept; beyond, steps 1/256 (one in this many) of their length apart."""
    bins: int = 15
    """Confidence bins of equal width for the calibration errors."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise InputError(f"model.metrics.{name} is {value}: give at least 1")


def powers_of_two(length: int) -> list[int]:
    """Glimpse counts to report: 1, 2, 4, ... and the last."""
    return [*(1 << k for k in range((length - 1).bit_length())), length]


def kept_steps(length: int, every_step: int, budgets: Iterable[int] = ()) -> list[int]:
    """Glimpse counts to keep: all up to every_step, then a geometric series; powers of two, budgets and the last."""
    kept, step = {*powers_of_two(length), *budgets}, 0
    while step < length:
        kept.add(step := max(step + 1, round(step * (1 + 1 / every_step))))
    return sorted(step for step in kept if step <= length)


class StepMetrics(Metric):
    """Accuracy, confidence and calibration after every kept glimpse, as sums that are divided once.

    States have a fixed size, 24 bytes a fine confidence bin and step, and add up over batches, pieces of the sequence
    and ranks, so several processes give the numbers of one.

    Args:
        length: T, glimpses an image.
        config: which steps are kept, and how finely.
        budgets: glimpse counts that are kept besides.
    """

    full_state_update = False
    top5: Tensor
    bin_count: Tensor
    bin_confidence: Tensor
    bin_correct: Tensor

    def __init__(self, length: int, config: MetricsConfig = MetricsConfig(), budgets: Iterable[int] = ()) -> None:
        super().__init__()
        self.bins = config.bins
        self.steps = kept_steps(length, config.every_step, budgets)
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
        picked = torch.tensor(self.steps[rows], device=logits.device) - 1 - first_step  # (k,)
        logits = logits[:, picked].to(torch.promote_types(logits.dtype, torch.float32))  # (B, k, C)
        ratio = information_ratio[:, picked]  # (B, k)
        top = logits.topk(min(TOP, logits.shape[-1]), dim=-1).indices  # (B, k, 5), best first
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

        edges = fine_edges(self.bins, confidence.dtype).to(confidence.device)
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
        """Everything after every kept glimpse, float64 unless said otherwise; a step without images is NaN.

        Returns:
            steps and samples (K,) int64: glimpse counts, and images counted there.
            top1, top5, confidence, true_class_probability (K,): shares of images whose class was the first or among the first
            five; means of the largest probability and of that of the right class.
            nll, brier (K,): means of -log p[y], and of sum_c (p[c] - [c = y])^2, in [0, 2].
            information_ratio (K,): mean r_t.
            ece, mce, adaptive_ece (K,): see mambaeye/evaluation/calibration.py.
            bin_edges (M + 1,): lower edges of the confidence bins, the last of which is a confidence of exactly 1.
            bin_count int64, bin_confidence, bin_top1 (K, M + 1): answers, their mean confidence and accuracy (NaN
            without answers).
            ratio_count (R,) int64, ratio_mean, ratio_confidence, ratio_true_class_probability, ratio_top1 (R,): the same by
            information ratio, in R bins of equal width, over all kept steps.
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
        for name in ("mean", "confidence", "true_class_probability", "top1"):
            curves[f"ratio_{name}"] = getattr(self, f"ratio_{name}").double() / self.ratio_count
        return {name: value.cpu() for name, value in curves.items()}


def sums_by_index(index: Tensor, values: Tensor, counted: Tensor, like: Tensor) -> Tensor:
    """Sums of the values that are counted by the entry of a tensor that their index (flat) says, as that tensor."""
    sums = torch.zeros_like(like).flatten()
    return sums.index_add_(0, index.flatten(), values.to(like.dtype).where(counted, 0).flatten()).view_as(like)
