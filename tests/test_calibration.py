"""Calibration errors of predictors whose calibration is known, and against brute force."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mambaeye.evaluation.calibration import (
    FINE,
    coarse,
    equal_mass,
    expected_error,
    fine_edges,
    maximum_error,
)
from mambaeye.evaluation.metrics import StepMetrics

CLASSES = 4


def logits_of_confidence(confidence: Tensor) -> Tensor:
    """Logits whose softmax is that confidence for class 0 and the rest in equal parts: (n,) -> (n, 1, CLASSES)."""
    rest = ((1 - confidence) / (CLASSES - 1)).expand(CLASSES - 1, -1)
    return torch.cat((confidence[None], rest)).T.log()[:, None]


@pytest.mark.parametrize("excess", [0.0, 0.1, 0.25])
def test_a_predictor_of_known_calibration(excess: float) -> None:
    """Right as often as it says, less the excess: by construction exactly so, confidence by confidence.

    1000 answers at each confidence, the first 1000 (confidence - excess) of them right.
    """
    levels = torch.arange(0.5, 1.0, 0.01, dtype=torch.float64)  # (50,)
    confidence = levels.repeat_interleave(1000)
    right = torch.arange(1000).repeat(len(levels)) < ((levels - excess) * 1000).round().repeat_interleave(1000)
    labels = torch.where(right, 0, 1)
    metric = StepMetrics(1)
    metric.update(logits_of_confidence(confidence), labels, torch.ones(len(labels), 1), torch.ones(len(labels)) > 0)
    result = metric.compute()
    for name in ("ece", "mce", "adaptive_ece"):
        assert result[name].item() == pytest.approx(excess, abs=1e-9)
    answers = result["bin_count"][0] > 0
    gap = (result["bin_confidence"] - result["bin_top1"])[0, answers]
    torch.testing.assert_close(gap, torch.full_like(gap, excess), atol=1e-9, rtol=0)
    assert result["confidence"] - result["top1"] == pytest.approx(excess, abs=1e-9)


def sums(confidence: np.ndarray, correct: np.ndarray, bins: int) -> tuple[Tensor, Tensor, Tensor]:
    """Counts, confidences and right answers by fine bin, one answer after another."""
    edges = fine_edges(bins, torch.float64).numpy()
    table = np.zeros((3, len(edges)))
    for p, hit in zip(confidence, correct, strict=True):
        table[:, np.flatnonzero(edges <= p)[-1]] += (1, p, hit)
    return tuple(torch.from_numpy(row) for row in table)


@pytest.mark.parametrize("bins", [1, 7, 10, 15])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_coarse_edges_are_torchmetrics(bins: int, dtype: torch.dtype) -> None:
    edges = fine_edges(bins, dtype)
    assert edges[::FINE].equal(torch.linspace(0, 1, bins + 1, dtype=dtype))
    assert (edges.diff() > 0).all()


@given(
    answers=st.lists(st.tuples(st.one_of(st.floats(0, 1), st.just(1.0)), st.booleans()), min_size=1, max_size=60),
    bins=st.integers(1, 20),
)
def test_errors_by_brute_force(answers: list[tuple[float, bool]], bins: int) -> None:
    confidence, correct = (np.array(column, dtype=float) for column in zip(*answers, strict=True))
    by_bin = tuple(coarse(x) for x in sums(confidence, correct, bins))
    edges = [*torch.linspace(0, 1, bins + 1, dtype=torch.float64).tolist(), np.inf]
    gaps, shares = [], []
    for low, high in pairwise(edges):
        inside = (low <= confidence) & (confidence < high)
        if inside.any():
            gaps.append(abs(correct[inside].mean() - confidence[inside].mean()))
            shares.append(inside.mean())
    assert expected_error(*by_bin).item() == pytest.approx(np.dot(gaps, shares), abs=1e-12)
    assert maximum_error(*by_bin).item() == pytest.approx(max(gaps), abs=1e-12)


def test_equal_mass_groups() -> None:
    """On a smooth distribution groups hold equal parts, and the error is that of answers sorted and cut in 15."""
    rng = np.random.default_rng(0)
    confidence = np.sort(rng.beta(3, 2, 30_000))
    correct = rng.random(30_000) < confidence**2
    count, of_group, right = equal_mass(*sums(confidence, correct, 15))
    assert count.sum() == 30_000
    assert of_group.sum() == pytest.approx(confidence.sum())
    np.testing.assert_allclose(count / 30_000, 1 / 15, atol=0.02)  # a fine bin holds up to 1.5%
    parts = np.array_split(np.arange(30_000), 15)
    expected = sum(abs(correct[part].sum() - confidence[part].sum()) for part in parts) / 30_000
    assert expected_error(count, of_group, right).item() == pytest.approx(expected, abs=2e-3)


@given(st.lists(st.integers(0, 50), min_size=FINE * 3 + 1, max_size=FINE * 3 + 1))
def test_equal_mass_groups_lose_nothing_and_are_off_by_at_most_a_bin(counts: list[int]) -> None:
    count = torch.tensor(counts)
    groups, _, _ = equal_mass(count, count.double(), count)
    assert groups.sum() == count.sum()
    assert (groups - count.sum() / 3).amax() <= count.amax() + 1e-9
