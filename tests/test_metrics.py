import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from commands import start
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

from mambaeye.errors import InputError
from mambaeye.evaluation.metrics import MetricsConfig, StepMetrics, kept_steps, powers_of_two


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


@given(length=st.integers(1, 9000), every=st.integers(1, 600))
def test_kept_steps(length: int, every: int) -> None:
    steps = kept_steps(length, every)
    assert steps[: min(length, every)] == list(range(1, min(length, every) + 1))
    assert set(powers_of_two(length)) <= set(steps)
    assert steps[-1] == length
    gaps = [b - a for a, b in pairwise(steps)]
    assert all(0 < gap <= max(1, step / every + 0.5) for step, gap in zip(steps, gaps, strict=False))


def test_few_steps_are_kept_of_long_sequences() -> None:
    assert len(kept_steps(4096, 256)) < 1000  # TensorBoard shows 1000 points of a curve
    assert len(kept_steps(8192, 256)) < 1200


@pytest.mark.parametrize("config", [MetricsConfig(), MetricsConfig(every_step=4096)], ids=["default", "every step"])
def test_a_validation_of_4096_steps_needs_few_megabytes(config: MetricsConfig) -> None:
    metric = StepMetrics(4096, config)

    def size() -> int:
        return sum(getattr(metric, name).nbytes for name in metric._defaults)

    before = size()
    assert before <= 64e6
    metric.update(torch.randn(3, 4096, 5), torch.zeros(3, dtype=torch.long), torch.rand(3, 4096), torch.ones(3) > 0)
    assert size() == before


def some(images: int, length: int, classes: int, scale: float = 2.0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, labels, information ratios, and which rows count: about four in five."""
    generator = torch.Generator().manual_seed(images)
    logits = scale * torch.randn(images, length, classes, generator=generator)
    labels = torch.randint(classes, (images,), generator=generator)
    ratio = torch.rand(images, length, generator=generator).cumsum(1).div_(length)
    return logits, labels, ratio, torch.rand(images, generator=generator) < 0.8


@pytest.mark.parametrize("scale", [1.0, 3.0, 40.0])
@pytest.mark.parametrize("classes", [3, 20])
def test_equal_to_torchmetrics_at_every_step(classes: int, scale: float) -> None:
    """In batches, with rows left out; at the largest scale many a confidence is exactly 1."""
    length = 6
    metric = StepMetrics(length)
    logits, labels, ratio, valid = some(500, length, classes, scale)
    for rows in torch.arange(500).split(160):
        metric.update(logits[rows], labels[rows], ratio[rows], valid[rows])
    result = metric.compute()
    assert result["steps"].tolist() == list(range(1, length + 1))
    certain = 0
    for step in range(length):
        kept, target = logits[valid, step], labels[valid]
        assert result["samples"][step] == valid.sum()
        for name, k in (("top1", 1), ("top5", min(5, classes))):
            expected = multiclass_accuracy(kept, target, num_classes=classes, average="micro", top_k=k)
            torch.testing.assert_close(result[name][step].float(), expected)
        probabilities = kept.softmax(-1)
        certain += int((probabilities == 1).sum())
        for name, norm in (("ece", "l1"), ("mce", "max")):
            expected = multiclass_calibration_error(probabilities, target, num_classes=classes, n_bins=15, norm=norm)
            torch.testing.assert_close(result[name][step].float(), expected, atol=1e-6, rtol=1e-5)
    assert (certain > 0) == (scale == 40.0)


def test_means_are_those_of_the_definitions() -> None:
    logits, labels, ratio, valid = some(91, 5, 7)
    metric = StepMetrics(5)
    metric.update(logits, labels, ratio, valid)
    result = metric.compute()
    p, y = logits[valid].double().softmax(-1), torch.nn.functional.one_hot(labels[valid], 7).double()[:, None]
    expected = {
        "confidence": p.amax(-1),
        "true_class_probability": (p * y).sum(-1),
        "nll": -(p.log() * y).sum(-1),
        "brier": (p - y).square().sum(-1),
        "information_ratio": ratio[valid].double(),
    }
    for name, values in expected.items():
        torch.testing.assert_close(result[name], values.mean(0), atol=1e-6, rtol=1e-6)


def test_confidence_against_information_ratio() -> None:
    logits, labels, ratio, valid = some(300, 4, 5)
    ratio[:, -1] = 1.0
    metric = StepMetrics(4)
    metric.update(logits, labels, ratio, valid)
    result = metric.compute()
    confidence, predicted = logits[valid].softmax(-1).max(-1)
    ratio, correct = ratio[valid], (predicted == labels[valid, None]).float()
    assert result["ratio_count"].sum() == ratio.numel()
    for place in range(20):
        inside = (ratio >= place / 20) & ((ratio < (place + 1) / 20) | (place == 19))
        assert result["ratio_count"][place] == inside.sum()
        for name, values in (("mean", ratio), ("confidence", confidence), ("top1", correct)):
            got = result[f"ratio_{name}"][place].float()
            torch.testing.assert_close(got, values[inside].mean(), equal_nan=True, atol=1e-5, rtol=1e-5)


@given(cuts=st.sets(st.integers(1, 39), max_size=5), every=st.integers(1, 50))
def test_pieces_of_the_sequence_add_up(cuts: set[int], every: int) -> None:
    """Whatever the pieces and whichever steps are kept, what is kept is what the whole has there."""
    logits, labels, ratio, valid = some(9, 40, 4)
    whole, pieces = StepMetrics(40), StepMetrics(40, MetricsConfig(every_step=every))
    whole.update(logits, labels, ratio, valid)
    edges = [0, *sorted(cuts), 40]
    for first, last in pairwise(edges):
        pieces.update(logits[:, first:last], labels, ratio[:, first:last], valid, first)
    everything, kept = whole.compute(), pieces.compute()
    at = kept["steps"] - 1
    for name in ("samples", "top1", "top5", "confidence", "nll", "brier", "ece", "adaptive_ece", "bin_count"):
        torch.testing.assert_close(kept[name], everything[name][at], atol=1e-12, rtol=1e-12)


def test_a_batch_of_padding_counts_nothing() -> None:
    metric = StepMetrics(2)
    broken = torch.full((3, 2, 4), torch.nan)
    metric.update(broken, torch.zeros(3, dtype=torch.long), torch.zeros(3, 2), torch.zeros(3, dtype=torch.bool))
    assert all(getattr(metric, name).sum() == 0 for name in metric._defaults)
    assert metric.compute()["top1"].isnan().all()


def test_a_model_that_diverged_is_counted_and_shown() -> None:
    metric = StepMetrics(2)
    broken = torch.full((3, 2, 4), torch.nan)
    metric.update(broken, torch.zeros(3, dtype=torch.long), torch.zeros(3, 2), torch.ones(3, dtype=torch.bool))
    result = metric.compute()
    assert result["samples"].tolist() == [3, 3]
    assert result["nll"].isnan().all()


def test_mistakes() -> None:
    with pytest.raises(InputError, match="model.metrics.every_step is 0: give at least 1"):
        MetricsConfig(every_step=0)


def main(rank: int, folder: Path) -> None:
    """One of two processes: its part of the batches, the second's filled up with rows that do not count."""
    torch.distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=2)
    logits, labels, ratio, valid = some(101, 70, 6)
    metric = StepMetrics(70, MetricsConfig(every_step=32))
    for rows in torch.arange(101).split(30)[rank::2]:
        metric.update(logits[rows], labels[rows], ratio[rows], valid[rows])
    result = metric.compute()
    if rank == 0:
        torch.save(result, folder / "result.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.long
def test_two_processes_give_the_numbers_of_one(tmp_path: Path) -> None:
    ranks = [start([str(tmp_path), str(rank)], script=Path(__file__)) for rank in (0, 1)]
    said = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    together = torch.load(tmp_path / "result.pt", weights_only=True)
    alone = StepMetrics(70, MetricsConfig(every_step=32))
    alone.update(*some(101, 70, 6))
    expected = alone.compute()
    assert together.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(together[name], value, atol=1e-9, rtol=0, equal_nan=True)


if __name__ == "__main__":
    main(int(sys.argv[2]), Path(sys.argv[1]))
