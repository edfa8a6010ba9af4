"""Stopping early, against a loop over images and glimpses."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics.functional.classification import multiclass_calibration_error

from mambaeye.errors import InputError
from mambaeye.evaluation.early_exit import EarlyExitConfig, EarlyExitMetrics, EarlyExitState, Rule

RULES = [
    Rule("confidence", 0.5),
    Rule("confidence", 0.9),
    Rule("confidence", 1.0),
    Rule("stable", 1),
    Rule("stable", 3),
    Rule("stable", 40),
    Rule("entropy", 1.0),
    Rule("entropy", 0.2),
    Rule("value", 0.1),
    Rule("value", -0.5),
]


def a_walk(images: int, length: int, classes: int, seed: int = 0) -> Tensor:
    """Logits that drift, so that classes stay for a while and confidence comes and goes: (B, T, C)."""
    torch.manual_seed(seed)
    return torch.randn(images, length, classes, dtype=torch.float64).cumsum(1)


def values_of(logits: Tensor) -> Tensor:
    """Return values as a policy might expect them: anything, and nothing in the end; (..., T, C) -> (..., T)."""
    values = logits[..., 0].sin()
    values[..., -1] = float("nan")
    return values


def answers_to(rules: list[Rule], logits: Tensor, pieces: list[int]) -> EarlyExitState:
    answers = EarlyExitState(rules, len(logits), logits)
    for piece, value in zip(logits.split(pieces, dim=1), values_of(logits).split(pieces, dim=1), strict=True):
        answers.update(piece, value=value)
    return answers


def stops_at(rule: Rule, logits: Tensor) -> int | None:
    """The first step at which one image's rule is met, by its definition: (T, C) -> index."""
    for step in range(len(logits)):
        p = logits[step].softmax(-1)
        if rule.kind == "confidence":
            met = p.max() >= rule.threshold
        elif rule.kind == "entropy":
            met = -(p * p.log()).sum() <= rule.threshold
        elif rule.kind == "value":
            met = values_of(logits)[step] <= rule.threshold
        else:
            last = logits[max(0, step + 1 - int(rule.threshold)) : step + 1].argmax(-1).tolist()
            met = len(last) == rule.threshold and len(set(last)) == 1
        if met:
            return step
    return None


@settings(max_examples=25)
@given(pieces=st.lists(st.integers(1, 20), min_size=1, max_size=5), images=st.integers(1, 4), seed=st.integers(0, 99))
def test_answers_are_those_of_the_definition_in_any_pieces(pieces: list[int], images: int, seed: int) -> None:
    logits = a_walk(images, sum(pieces), 4, seed)
    answers = answers_to(RULES, logits, pieces)
    for image in range(images):
        for place, rule in enumerate(RULES):
            step = stops_at(rule, logits[image])
            assert bool(answers.done[image, place]) == (step is not None)
            last = sum(pieces) - 1 if step is None else step
            assert answers.glimpses[image, place] == last + 1
            assert answers.logits[image, place].equal(logits[image, last])


def test_images_that_are_done_can_be_left_out() -> None:
    """Images that go on without them are answered as it would be with them."""
    logits = a_walk(6, 30, 4)
    together, alone = EarlyExitState(RULES, 6, logits), EarlyExitState(RULES, 6, logits)
    some = torch.tensor([1, 4])
    values = values_of(logits)
    together.update(logits[:, :11], value=values[:, :11])
    alone.update(logits[:, :11], value=values[:, :11])
    together.update(logits[:, 11:], value=values[:, 11:])
    rest = alone.rows(some)
    rest.update(logits[some, 11:], value=values[some, 11:])
    for name in ("done", "glimpses", "logits"):
        assert getattr(rest, name).equal(getattr(together, name)[some])


def test_metrics_by_rule() -> None:
    logits = a_walk(200, 50, 4)
    torch.manual_seed(1)
    labels, ratio, valid = torch.randint(4, (200,)), torch.rand(200, 50).cumsum(1) / 50, torch.rand(200) < 0.8
    metrics = EarlyExitMetrics(RULES, bins=15)
    for rows in torch.arange(200).split(70):
        metrics.update(answers_to(RULES, logits[rows], [20, 30]), labels[rows], ratio[rows], valid[rows])
    found = metrics.compute()
    counted = valid.nonzero().flatten().tolist()
    for place, rule in enumerate(RULES):
        steps = [stops_at(rule, logits[image]) for image in counted]
        at = [49 if step is None else step for step in steps]
        given = torch.stack([logits[image, step] for image, step in zip(counted, at, strict=True)]).softmax(-1)
        mean_ratio = sum(float(ratio[image, step]) for image, step in zip(counted, at, strict=True)) / len(counted)
        expected = {
            "samples": len(counted),
            "glimpses": sum(at) / len(at) + 1,
            "stopped": sum(step is not None for step in steps) / len(steps),
            "top1": float((given.argmax(-1) == labels[valid]).double().mean()),
            "confidence": float(given.amax(-1).mean()),
            "nll": float(-given[torch.arange(len(counted)), labels[valid]].log().mean()),
            "ece": float(multiclass_calibration_error(given, labels[valid], num_classes=4, n_bins=15)),
            "information_ratio": mean_ratio,
        }
        assert {name: float(found[name][place]) for name in expected} == pytest.approx(expected, abs=1e-6), rule


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"confidence": (0.5, 0.0)}, "model.early_exit.confidence has 0.0: give confidences above 0 and up to 1"),
        ({"confidence": (1.01,)}, "model.early_exit.confidence has 1.01: give"),
        ({"confidence": (float("nan"),)}, "model.early_exit.confidence has nan: give"),
        ({"stable": (0,)}, "model.early_exit.stable has 0: give at least 1 glimpse"),
        ({"entropy": (0.0,)}, "model.early_exit.entropy has 0.0: give an entropy above 0, in nats"),
        ({"value": (0.1, float("nan"))}, "model.early_exit.value has nan: give a drop in cross entropy, in nats, such"),
        ({"value": (float("-inf"),)}, "model.early_exit.value has -inf: give a drop in cross entropy"),
    ],
)
def test_thresholds_that_say_nothing(arguments: dict[str, tuple[float, ...]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        EarlyExitConfig(**arguments)


def test_a_confidence_of_one_is_a_threshold() -> None:
    logits = torch.tensor([[[0.0, 1.0], [0.0, 1e4]]])
    answers = answers_to([Rule("confidence", 1.0)], logits, [1, 1])
    assert answers.done.all()
    assert answers.glimpses.item() == 2
