import pytest
import torch
from torchmetrics.functional.classification import multiclass_accuracy

from mambaeye.metrics import StepMetrics, powers_of_two


@pytest.mark.parametrize(
    ("length", "steps"),
    [
        (1, [1]),
        (2, [1, 2]),
        (3, [1, 2, 3]),
        (8, [1, 2, 4, 8]),
        (9, [1, 2, 4, 8, 9]),
        (4096, [1 << k for k in range(13)]),
    ],
)
def test_reported_steps(length: int, steps: list[int]) -> None:
    assert powers_of_two(length) == steps


@pytest.mark.parametrize("classes", [3, 20])
def test_equal_to_torchmetrics_at_every_step_with_rows_left_out(classes: int) -> None:
    torch.manual_seed(0)
    metric, length = StepMetrics(6), 6
    logits, labels = torch.randn(50, length, classes), torch.randint(classes, (50,))
    valid = torch.rand(50) < 0.8
    for rows in torch.arange(50).split(16):
        metric.update(logits[rows], labels[rows], valid[rows])
    result = metric.compute()
    assert result["samples"] == valid.sum()
    for step in range(length):
        kept, target = logits[valid, step], labels[valid]
        for name, k in (("top1", 1), ("top5", min(5, classes))):
            expected = multiclass_accuracy(kept, target, num_classes=classes, average="micro", top_k=k)
            torch.testing.assert_close(result[name][step].float(), expected)
        torch.testing.assert_close(result["confidence"][step].float(), kept.softmax(-1).max(-1).values.mean())


def test_sums_of_two_processes_are_those_of_one() -> None:
    torch.manual_seed(1)
    logits, labels, valid = torch.randn(20, 3, 4), torch.randint(4, (20,)), torch.ones(20, dtype=torch.bool)
    whole, *parts = (StepMetrics(3) for _ in range(3))
    whole.update(logits, labels, valid)
    for part, rows in zip(parts, (slice(0, 7), slice(7, 20)), strict=True):
        part.update(logits[rows], labels[rows], valid[rows])
    for name in whole._defaults:
        assert whole._reductions[name] is parts[0]._reductions[name] is not None
        torch.testing.assert_close(getattr(parts[0], name) + getattr(parts[1], name), getattr(whole, name))


def test_a_batch_of_padding_counts_nothing() -> None:
    metric = StepMetrics(2)
    metric.update(torch.randn(3, 2, 4), torch.zeros(3, dtype=torch.long), torch.zeros(3, dtype=torch.bool))
    assert metric.samples == 0
    assert metric.top1.sum() == metric.confidence.sum() == 0
