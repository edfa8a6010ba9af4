"""Metrics by step: how right and how sure the model is after each glimpse."""

import torch
from torch import Tensor
from torchmetrics import Metric

TOP = 5


def powers_of_two(length: int) -> list[int]:
    """Glimpse counts to report: 1, 2, 4, ... and the last."""
    return [*(1 << k for k in range((length - 1).bit_length())), length]


class StepMetrics(Metric):
    """Top-1, top-5 and mean confidence after every glimpse, kept as sums and divided once.

    States have a fixed size and add up over batches and ranks, so several processes give the numbers of one.

    Args:
        length: T, glimpses an image.
    """

    full_state_update = False
    samples: Tensor
    top1: Tensor
    top5: Tensor
    confidence: Tensor

    def __init__(self, length: int) -> None:
        super().__init__()
        self.add_state("samples", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")
        for name, dtype in (("top1", torch.long), ("top5", torch.long), ("confidence", torch.float64)):
            self.add_state(name, torch.zeros(length, dtype=dtype), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor, valid: Tensor) -> None:
        """Add a batch.

        Args:
            logits: (B, T, C).
            labels: (B,).
            valid: (B,) bool; rows that are False are not counted.
        """
        logits, labels = logits[valid].float(), labels[valid]
        top = logits.topk(min(TOP, logits.shape[-1]), dim=-1).indices  # (B, T, 5), best first
        hits = top == labels[:, None, None]
        self.samples += len(labels)
        self.top1 += hits[..., 0].sum(0)
        self.top5 += hits.any(-1).sum(0)
        self.confidence += logits.softmax(-1).amax(-1).double().sum(0)

    def compute(self) -> dict[str, Tensor]:
        """Means after every glimpse: samples (scalar), top1, top5 and confidence, each (T,) float64."""
        return {
            "samples": self.samples,
            "top1": self.top1 / self.samples.double(),
            "top5": self.top5 / self.samples.double(),
            "confidence": self.confidence / self.samples,
        }
