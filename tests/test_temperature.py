"""The temperature: its fit against another optimizer, its answers against float64, and checkpoints that lie."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scenes import scene_of
from scipy.optimize import minimize
from torch import Tensor, nn

from mambaeye.calibrating import calibration_steps, measured
from mambaeye.encoders.base import CanvasEncoder, GlimpseEncoder
from mambaeye.encoders.mambaeye import MambaEye
from mambaeye.errors import InputError
from mambaeye.evaluation.early_exit import Rule
from mambaeye.evaluation.prediction import predict
from mambaeye.geometry.coverage import information_ratio
from mambaeye.policies.base import Observation, Policy
from mambaeye.rollout import Rollout
from mambaeye.temperature import SeenAnswers, Temperature, fit_temperature, log_side, temperature_in

SIDES = (32, 64)
KNOWN = Temperature((-1.2, -0.5, 1.6, 1.9, 0.4), SIDES)
HOT = Temperature((2.0, -0.5, 1.6, 0.0, 0.0), SIDES)  # no answer is sure
PATCH, CLASSES = 4, 5


def log_t(ratio: Any, glimpses: Any, side: Any, found: Temperature = KNOWN) -> Any:
    """log T by its formula, in float64."""
    w = found.coefficients
    below, above = np.maximum(0, np.log2(found.sides[0] / side)), np.maximum(0, np.log2(side / found.sides[1]))
    return w[0] + w[1] * ratio + w[2] * np.log2(glimpses) / 8 + w[3] * below + w[4] * above


def answers_of(number: int, seed: int = 0, known: Temperature = KNOWN) -> SeenAnswers:
    """Answers that are right as often as they are sure, once they are over the known temperature."""
    rng = np.random.default_rng(seed)
    ratio, glimpses, side = rng.random(number), rng.integers(1, 65, number), rng.choice([24, 32, 48, 64, 96], number)
    tempered = rng.normal(0, 2, (number, CLASSES))
    share = np.exp(tempered) / np.exp(tempered).sum(1, keepdims=True)
    labels = (share.cumsum(1) < rng.random((number, 1))).sum(1)
    logits = tempered * np.exp(log_t(ratio, glimpses, side, known))[:, None]
    tensors = (logits, labels, ratio, glimpses, np.log2(side))
    return SeenAnswers(*map(torch.from_numpy, tensors))


def mean_nll(answers: SeenAnswers, w: np.ndarray) -> float:
    logits, labels, ratio, glimpses, sides = (part.numpy() for part in answers)
    z = logits / np.exp(log_t(ratio, glimpses, 2**sides, Temperature(tuple(w), SIDES)))[:, None]
    z = z - z.max(1, keepdims=True)
    return float((np.log(np.exp(z).sum(1)) - z[np.arange(len(z)), labels]).mean())


@pytest.mark.parametrize("seed", [0, 1])
def test_the_fit_is_another_optimizers(seed: int) -> None:
    answers = answers_of(400, seed)
    found = fit_temperature(answers, SIDES)
    other = minimize(lambda w: mean_nll(answers, w), np.zeros(5), method="BFGS", options={"gtol": 1e-8})
    assert mean_nll(answers, np.array(found.coefficients)) == pytest.approx(other.fun, abs=1e-10)
    assert found.coefficients == pytest.approx(other.x, abs=1e-4)
    assert measured(answers, found).nll == pytest.approx(other.fun, abs=1e-6)


def test_a_known_temperature_is_found_again() -> None:
    answers = answers_of(60_000)
    found = fit_temperature(answers, SIDES)
    assert found.coefficients == pytest.approx(KNOWN.coefficients, abs=0.1)
    after = measured(answers, found)
    right = (answers.logits.argmax(1) == answers.labels).double().mean().item()
    assert after.confidence == pytest.approx(right, abs=0.005)


def test_what_does_not_vary_has_no_coefficient() -> None:
    answers = answers_of(500)
    once = answers._replace(glimpses=torch.full((500,), 64), log_side=torch.full((500,), 5.0))
    found = fit_temperature(once, SIDES)
    assert found.coefficients[2:] == (0, 0, 0)
    assert found.coefficients[1] != 0


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda answers: answers._replace(logits=answers.logits * float("nan")), "not finite numbers"),
        (lambda answers: answers._replace(logits=torch.zeros_like(answers.logits)), "train it first"),
        (lambda answers: answers._replace(logits=-answers.logits), "train it first"),
    ],
    ids=["diverged", "silent", "always wrong"],
)
def test_answers_that_nothing_can_be_learnt_from_are_refused(wrong: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        fit_temperature(wrong(answers_of(500)), SIDES)


@given(seed=st.integers(0, 999), scale=st.sampled_from([1e-6, 1.0, 1e4]), offset=st.floats(-5, 5))
def test_the_order_of_the_first_is_kept_and_so_are_ties(seed: int, scale: float, offset: float) -> None:
    """Among neighbouring floats, too, that one division could round to the same."""
    draw = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, 7, CLASSES, generator=draw) * scale
    nearest = torch.nextafter(logits.amax(-1), torch.tensor(-torch.inf))
    logits[..., 3] = torch.where(logits.argmax(-1) == 3, logits[..., 3], nearest)
    logits[0, 0] = 1.0
    found = Temperature((offset, 0.3, -2.0, 1.0, 1.0), SIDES)
    boxes = torch.tensor([[0, 0, 20, 30], [0, 0, 90, 80]])
    tempered = found.tempered(logits, torch.rand(2, 7, generator=draw), 3, boxes)
    assert tempered.argmax(-1).equal(logits.argmax(-1))
    level = logits == logits.amax(-1, keepdim=True)
    assert (tempered == tempered.amax(-1, keepdim=True)).equal(level)


def test_tempered_answers_are_the_formulas() -> None:
    scene = scene_of(3, 6, PATCH, (40, 90))
    ratio, logits = torch.rand(3, 6), torch.randn(3, 6, CLASSES)
    side = torch.tensor([math.sqrt(float(box[2] * box[3])) for box in scene.boxes])
    expected = log_t(ratio.double().numpy(), np.arange(11, 17), side.double().numpy()[:, None])
    probabilities = (logits.double() / torch.from_numpy(np.exp(expected))[..., None]).softmax(-1)
    tempered = KNOWN.tempered(logits, ratio, 10, scene.boxes)
    torch.testing.assert_close(tempered.softmax(-1).double(), probabilities, rtol=0, atol=1e-6)
    assert log_side(scene.boxes).tolist() == pytest.approx(side.log2().tolist(), abs=1e-6)


def encoder_of() -> MambaEye:
    torch.manual_seed(0)
    encoder = MambaEye(
        num_classes=CLASSES, patch_size=PATCH, dim=8, depth=1, d_state=4, headdim=4, move_embedding_dim=4
    )
    encoder.head.weight.data *= 30
    return encoder.eval()


class Corner(Policy):
    """Looks where it last saw, and a pixel on; notes the answers that it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.logits: list[Tensor | None] = []

    def act(self, seen: Observation, count: int) -> Tensor:
        self.logits.append(seen.logits)
        return seen.planned[:, seen.step : seen.step + min(count, 2)] // 2


@pytest.mark.parametrize("at_once", [1, 4, 100])
@pytest.mark.parametrize("led", [False, True])
@torch.no_grad()
def test_the_walk_tempers_by_what_it_has_seen_whoever_counts(led: bool, at_once: int) -> None:
    encoder, scene = encoder_of(), scene_of(3, 10, PATCH)
    plain_policy, policy = (Corner() if led else None for _ in range(2))
    plain = list(Rollout(encoder, scene, plain_policy, None, at_once))
    steps = list(Rollout(encoder, scene, policy, None, at_once, KNOWN))
    logits, tempered = (torch.cat([step.logits for step in walk], 1) for walk in (plain, steps))
    positions = torch.cat([step.positions for step in plain], 1)
    ratio = information_ratio(positions, scene.boxes, PATCH).float()
    expected = KNOWN.tempered(logits, ratio, 0, scene.boxes)
    torch.testing.assert_close(tempered, expected, rtol=1e-5, atol=1e-5)
    if led:
        assert plain_policy is not None
        assert policy is not None
        for ours, theirs in zip(policy.logits[1:], plain_policy.logits[1:], strict=True):
            assert ours.equal(theirs)  # answers as they are
    else:
        known = list(Rollout(encoder, scene, None, ratio, at_once, KNOWN))
        assert torch.cat([step.logits for step in known], 1).equal(tempered)


class Once(GlimpseEncoder):
    """Answers once, by the mean of what it saw."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.patch_size, self.head = PATCH, nn.Linear(3, CLASSES)

    def features(self, patches: Tensor, positions: Tensor) -> Tensor:
        return patches.float().mean((-1, -2, 1))[:, None]


class Whole(CanvasEncoder):
    """Answers by the mean colour."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.head = nn.Linear(3, CLASSES)

    def features(self, canvases: Tensor) -> Tensor:
        return canvases.float().mean((1, 2))


@pytest.mark.parametrize(("encoder", "seen"), [(Once(), None), (Whole(), 1.0)], ids=["glimpses", "canvas"])
@torch.no_grad()
def test_encoders_that_answer_once_are_tempered_too(encoder: Once | Whole, seen: float | None) -> None:
    scene = scene_of(3, 10, PATCH)
    (plain,) = Rollout(encoder, scene)
    (step,) = Rollout(encoder, scene, temperature=KNOWN)
    exact = information_ratio(scene.positions, scene.boxes, PATCH)[:, -1:].float()
    ratio = exact if seen is None else torch.full((3, 1), seen)
    torch.testing.assert_close(step.logits, KNOWN.tempered(plain.logits, ratio, 9, scene.boxes))
    (known,) = Rollout(encoder, scene, None, ratio, temperature=KNOWN)
    assert known.logits.equal(step.logits)


@torch.no_grad()
def test_predict_stops_by_tempered_answers_and_names_the_same_class() -> None:
    encoder, scene = encoder_of(), scene_of(6, 70, PATCH)
    steps = list(Rollout(encoder, scene, None, None, temperature=HOT))
    confidence = torch.cat([step.logits for step in steps], 1).softmax(-1).amax(-1)  # (6, 70)
    threshold = float(confidence.amax(1).median())
    before, after = (predict(encoder, scene, None, [], found) for found in (None, HOT))
    for plain, tempered in zip(before, after, strict=True):
        assert plain.classes.tolist() == tempered.classes.tolist()
    assert {found.stopped for found in predict(encoder, scene, None, [Rule("confidence", threshold)], HOT)} == {
        "confidence",
        "budget",
    }
    for image, found in enumerate(predict(encoder, scene, None, [Rule("confidence", threshold)], HOT)):
        met = (confidence[image] >= threshold).nonzero().flatten().tolist()
        assert found.glimpses == (met[0] + 1 if met else 70)
        torch.testing.assert_close(found.confidence, confidence[image, : found.glimpses], rtol=0, atol=1e-5)


def test_it_goes_through_a_file_as_plain_numbers() -> None:
    assert temperature_in(KNOWN.saved()) == KNOWN
    assert KNOWN.saved() == {"coefficients": list(KNOWN.coefficients), "sides": [32, 64]}


GOOD = KNOWN.saved()


@pytest.mark.parametrize(
    "saved",
    [
        None,
        [1.0],
        {},
        GOOD | {"sides": [64, 32]},
        GOOD | {"sides": [0, 32]},
        GOOD | {"sides": [32, 2**40]},
        GOOD | {"sides": [32.0, 64.0]},
        GOOD | {"coefficients": [0.0] * 4},
        GOOD | {"coefficients": [0.0] * 4 + [float("nan")]},
        GOOD | {"coefficients": [0.0] * 4 + [float("inf")]},
        GOOD | {"coefficients": [0.0] * 4 + [1e9]},
        GOOD | {"coefficients": [0.0] * 4 + ["rm -rf"]},
        GOOD | {"coefficients": torch.zeros(5)},
    ],
    ids=str,
)
def test_what_no_fit_gives_is_refused(saved: Any) -> None:
    with pytest.raises(InputError, match="temperature is damaged, or not of train.py calibrate") as refused:
        temperature_in(saved)
    assert "\n" not in str(refused.value)


@given(st.integers(1, 5000))
def test_glimpse_counts_are_two_an_octave_and_the_last(num_glimpses: int) -> None:
    steps = calibration_steps(num_glimpses)
    assert steps == sorted(set(steps))
    assert steps[-1] == num_glimpses
    inner = steps[:-1]
    assert all(count & (count - 1) == 0 or (count % 3 == 0 and (count // 3) & (count // 3 - 1) == 0) for count in inner)
    assert len(steps) <= 2 * num_glimpses.bit_length()
    assert calibration_steps(64) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64]
