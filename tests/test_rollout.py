"""The one walk: under a plan it is the whole sequence, under a policy what the policy and brute force say."""

import numpy as np
import pytest
import torch
from scenes import scene_of
from torch import Tensor, nn

from mambaeye.batch import Scene
from mambaeye.encoders.base import CanvasEncoder, GlimpseEncoder
from mambaeye.encoders.mambaeye import MambaEye
from mambaeye.errors import InputError
from mambaeye.evaluation.diagnosis import diagnose
from mambaeye.geometry.coverage import information_ratio
from mambaeye.geometry.patches import cut_from_canvases
from mambaeye.policies.base import Observation, Policy
from mambaeye.policies.fixed import FixedScan
from mambaeye.rollout import Rollout, Step

SIDE, CLASSES = 4, 5


def encoder_of(classes: int = CLASSES) -> MambaEye:
    torch.manual_seed(0)
    sizes = {"patch_size": SIDE, "dim": 8, "depth": 2, "d_state": 4, "headdim": 4, "move_embedding_dim": 4}
    return MambaEye(num_classes=classes, **sizes).eval()


class Bold(Policy):
    """Goes where the largest logit says, n glimpses at a time, and notes what it was shown."""

    def __init__(self, horizon: int = 1) -> None:
        super().__init__()
        self.horizon = horizon
        self.shown: list[Observation] = []

    def act(self, seen: Observation, count: int) -> Tensor:
        assert count >= 1
        count = min(count, self.horizon)
        self.shown.append(seen)
        start = seen.planned[:, 0] if seen.logits is None else seen.logits.argmax(-1, keepdim=True) * 3 + seen.step
        start = (start + seen.seeds[:, None]).expand(-1, 2)
        return (start[:, None] + torch.arange(count)[:, None]) % 30


def whole(steps: list[Step], name: str) -> Tensor:
    return torch.cat([getattr(step, name) for step in steps], dim=1)


@pytest.mark.parametrize("at_once", [1, 3, 100])
@pytest.mark.parametrize("policy", [None, FixedScan()], ids=["default", "fixed"])
@torch.no_grad()
def test_a_plan_is_followed_in_any_chunks(policy: Policy | None, at_once: int) -> None:
    encoder, scene = encoder_of(), scene_of(3, 10, SIDE)
    ratio = torch.rand(3, 10)
    steps = list(Rollout(encoder, scene, policy, ratio, at_once))
    assert [step.first for step in steps] == list(range(0, 10, at_once))
    patches = cut_from_canvases(scene.canvases, scene.positions, SIDE)
    assert whole(steps, "patches").equal(patches)
    assert whole(steps, "positions").equal(scene.positions)
    assert whole(steps, "information_ratio").equal(ratio)
    torch.testing.assert_close(whole(steps, "logits"), encoder(patches, scene.positions))


@pytest.mark.parametrize("horizon", [1, 4])
@torch.no_grad()
def test_a_policy_leads_and_the_ratio_is_exact(horizon: int) -> None:
    encoder, scene, policy = encoder_of(), scene_of(3, 10, SIDE), Bold(horizon)
    steps = list(Rollout(encoder, scene, policy))
    positions = whole(steps, "positions")
    assert positions.shape == (3, 10, 2)
    for at, seen in enumerate(policy.shown):  # what it was shown is what had come of its glimpses so far
        assert seen.step == at * horizon
        assert seen.positions.equal(positions[:, : seen.step])
        assert (seen.features is None) == (seen.logits is None) == (at == 0)
        assert seen.planned.equal(scene.positions.long())
    for at, step in enumerate(steps):
        bold = Bold(horizon)
        count = step.positions.shape[1]
        assert step.positions.equal(bold.act(policy.shown[at], count))
    patches = cut_from_canvases(scene.canvases, positions, SIDE)
    torch.testing.assert_close(whole(steps, "logits"), encoder(patches, positions))
    expected = information_ratio(positions, scene.boxes, SIDE)
    torch.testing.assert_close(whole(steps, "information_ratio"), expected.float())


@pytest.mark.parametrize("policy", [None, Bold()], ids=["plan", "policy"])
@torch.no_grad()
def test_those_that_are_kept_go_on_as_if_the_others_were_there(policy: Policy | None) -> None:
    encoder, scene = encoder_of(), scene_of(4, 9, SIDE)
    steps = list(Rollout(encoder, scene, policy, at_once=2))
    walk = Rollout(encoder, scene, policy, at_once=2)
    index = torch.tensor([3, 1])
    for at, step in enumerate(walk):
        kept = slice(None) if step.first < 4 else index
        torch.testing.assert_close(step.logits, steps[at].logits[kept])
        assert step.positions.equal(steps[at].positions[kept])
        if step.information_ratio is not None:
            assert step.information_ratio.equal(steps[at].information_ratio[kept])
        if step.first + step.positions.shape[1] == 4:
            walk.keep(index)


class Mean(CanvasEncoder):
    def __init__(self, num_classes: int = CLASSES) -> None:
        super().__init__()
        self.head = nn.Linear(3, num_classes)

    def features(self, canvases: Tensor) -> Tensor:
        return canvases.float().mean((1, 2))


class LastGlimpse(GlimpseEncoder):
    patch_size = SIDE

    def __init__(self, num_classes: int = CLASSES) -> None:
        super().__init__()
        self.head = nn.Linear(3, num_classes)

    def features(self, patches: Tensor, positions: Tensor) -> Tensor:
        return patches[:, -1:].float().mean((3, 4))


@torch.no_grad()
def test_encoders_without_a_state_are_asked_once() -> None:
    scene, ratio = scene_of(2, 6, SIDE), torch.rand(2, 6)
    for encoder, patches in ((Mean(), None), (LastGlimpse(), cut_from_canvases(scene.canvases, scene.positions, SIDE))):
        (step,) = Rollout(encoder, scene, None, ratio)
        assert step.first == 5
        assert step.logits.shape == (2, 1, CLASSES)
        assert step.information_ratio.equal(ratio[:, -1:])
        expected = encoder(scene.canvases)[:, None] if patches is None else encoder(patches, scene.positions)
        torch.testing.assert_close(step.logits, expected)
        with pytest.raises(InputError, match=f"{type(encoder).__name__} answers only once: choose an encoder with"):
            Rollout(encoder, scene, Bold())


def test_diagnosis_wants_recurrent_states() -> None:
    with pytest.raises(InputError, match="Mean has no recurrent states to diagnose: set --diagnosis.images 0"):
        diagnose(Rollout(Mean(), scene_of(2, 6, SIDE), at_once=1))


@torch.no_grad()
def test_gradients_do_not_reach_back_through_a_policys_choice() -> None:
    """Positions are integers: what a policy learns, it learns from a loss of its own."""
    scene = Scene(*scene_of(2, 5, SIDE))
    positions = whole(list(Rollout(encoder_of(), scene, Bold())), "positions")
    assert positions.dtype == torch.int64
    assert np.asarray(positions).min() >= 0
