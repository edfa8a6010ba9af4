"""The learned scan: what it sees and what it is taught, against one image, one place and one glimpse at a time."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scenes import canvases_of, scene_of

from mambaeye.batch import CanvasBatch, Scene
from mambaeye.encoders.mambaeye import MambaEye
from mambaeye.errors import InputError
from mambaeye.geometry.coverage import Coverage, information_ratio
from mambaeye.geometry.patches import cut_from_canvases
from mambaeye.module import ClassifierModule
from mambaeye.policies.base import Observation
from mambaeye.policies.learned import BLOCKS, OCTAVES, LearnedScan, context_of, places_of
from mambaeye.policy_learning import PolicyLearning, glimpses_of, walk
from mambaeye.rollout import Rollout

SIDE, CLASSES, IMAGES = 4, 5, 3
SIZES = {"patch_size": SIDE, "dim": 8, "depth": 2, "d_state": 4, "headdim": 4, "move_embedding_dim": 4}
CONFIG = PolicyLearning(glimpses=6, candidates=3)


def both(**settings: float) -> tuple[MambaEye, LearnedScan]:
    torch.manual_seed(0)
    encoder = MambaEye(num_classes=CLASSES, **SIZES)
    policy = LearnedScan(**{"candidates": 9, "dim": 12, "hand_over": -math.inf, **settings})
    policy.suit(encoder.feature_dim, CLASSES, 2)
    return encoder, policy


def observed(step: int = 3) -> Observation:
    """Return what is known after some glimpses of images that lie differently on canvases, one narrower than those."""
    torch.manual_seed(step)
    scene = scene_of(IMAGES, 9, SIDE)
    boxes = torch.tensor([[2, 3, 36, 41], [0, 0, 40, 50], [10, 20, 3, 17]], dtype=torch.int32)
    coverage = Coverage((40, 50), boxes, SIDE)
    positions = scene.positions[:, :step].long()
    coverage.add(positions)
    known = torch.randn(IMAGES, 8), torch.randn(IMAGES, CLASSES)
    return Observation(step, *known, coverage, positions, scene.positions.long(), scene.seeds, SIDE)


def rows(seen: Observation, index: slice) -> Observation:
    some = {name: part[index] for name, part in seen._asdict().items() if isinstance(part, torch.Tensor)}
    every = torch.arange(IMAGES)[index]
    return seen._replace(coverage=seen.coverage.rows(every), **some)


def test_places_are_seen_as_numpy_has_them() -> None:
    _, policy = both()
    seen = observed()
    offered = policy.candidates(seen, 7)
    found = places_of(seen, offered).numpy()
    assert found.shape == (IMAGES, 7, 2 * (2 + 2 * OCTAVES) + 1)
    for image in range(IMAGES):
        edge, side = np.split(seen.coverage.boxes[image].numpy().astype(float), 2)
        for place, row in zip(offered[image].numpy(), found[image], strict=True):
            centre = 2 * (place + SIDE / 2 - edge) / side - 1
            angles = np.array([[math.pi * 2**octave * axis for octave in range(OCTAVES)] for axis in centre]).ravel()
            move = 2 * (place - seen.positions[image, -1].numpy()) / side
            shown = np.zeros((40, 50), bool)
            for row_at, col_at in seen.positions[image].numpy():
                shown[row_at : row_at + SIDE, col_at : col_at + SIDE] = True
            own = np.zeros_like(shown)
            first, last = edge.astype(int), (edge + side).astype(int)
            own[first[0] : last[0], first[1] : last[1]] = True
            here = (slice(place[0], place[0] + SIDE), slice(place[1], place[1] + SIDE))
            new = (own & ~shown)[here].sum() / SIDE**2
            expected = np.concatenate((centre, np.sin(angles), np.cos(angles), move, [new]))
            np.testing.assert_allclose(row, expected, atol=1e-4)


def test_the_context_is_as_numpy_has_it() -> None:
    seen = observed(step=5)
    found = context_of(seen).numpy()
    assert found.shape == (IMAGES, 8 + CLASSES + 2 + 2 + BLOCKS**2)
    for image in range(IMAGES):
        features = seen.features[image].double().numpy()
        logits = seen.logits[image].double().numpy()
        posterior = np.exp(logits) / np.exp(logits).sum()
        entropy = -(posterior * np.log(posterior)).sum() / np.log(CLASSES)
        sides = seen.coverage.boxes[image, 2:].numpy()
        numbers = [entropy, np.log2(5) / 4, *np.log2(sides / SIDE) / 4]
        normalised = (features - features.mean()) / np.sqrt(features.var() + 1e-5)
        expected = np.concatenate((normalised, np.log(posterior) / 10, numbers))
        np.testing.assert_allclose(found[image, : -(BLOCKS**2)], expected, atol=1e-5)
        (top, left, height, width) = seen.coverage.boxes[image].tolist()
        mask = seen.coverage.seen[image, top : top + height, left : left + width]
        pooled = F.adaptive_avg_pool2d(mask[None].float(), BLOCKS)
        np.testing.assert_allclose(found[image, -(BLOCKS**2) :], pooled.flatten(), atol=1e-5)


@torch.no_grad()
def test_it_goes_where_it_expects_most_and_hands_over_where_that_is_too_little() -> None:
    _, policy = both()
    seen = observed()
    offered = policy.candidates(seen, 9)
    gains = policy.gains(seen, offered)
    best = offered[torch.arange(IMAGES), gains.argmax(1)]
    assert policy.act(seen, 1).equal(best[:, None])
    expects_most = int(gains.amax(1).argmax())
    policy.hand_over = float(gains.max())
    followed = policy.act(seen, 1)[:, 0]
    assert followed[expects_most].equal(best[expects_most])
    for image in {*range(IMAGES)} - {expects_most}:
        assert followed[image].equal(seen.planned[image, 3])
    policy.leads, policy.hand_over = 3, -math.inf
    assert policy.act(seen, 1).equal(seen.planned[:, 3:4])
    assert policy.act(seen, 4).equal(seen.planned[:, 3:7])
    first = seen._replace(step=0, features=None, logits=None)
    assert policy.act(first, 1).equal(seen.planned[:, :1])


@torch.no_grad()
@pytest.mark.parametrize(
    ("sees", "told"),
    [((), "nothing"), (("coverage",), "coverage"), (("posterior",), "logits"), (("features",), "features")],
)
def test_what_it_does_not_see_changes_nothing(sees: tuple[str, ...], told: str) -> None:
    _, policy = both(sees=sees)
    seen = observed()
    offered = policy.candidates(seen, 9)
    before = policy.gains(seen, offered)
    more = rows(seen, slice(None))
    more.coverage.add(offered[:, :2])
    other = {
        "features": seen._replace(features=seen.features.flip(1)),
        "logits": seen._replace(logits=seen.logits.flip(1)),
        "coverage": more,
    }
    changed = {name for name, known in other.items() if not policy.gains(known, offered).equal(before)}
    assert changed == {told} - {"nothing"}


@torch.no_grad()
def test_images_do_not_depend_on_those_beside_them() -> None:
    _, policy = both()
    seen = observed()
    offered = policy.candidates(seen, 9)
    for image in range(IMAGES):
        alone = rows(seen, slice(image, image + 1))
        assert policy.candidates(alone, 9).equal(offered[image : image + 1])
        torch.testing.assert_close(
            policy.gains(alone, offered[image : image + 1])[0], policy.gains(seen, offered)[image]
        )


@torch.no_grad()
def test_a_rollout_stays_on_the_canvas_for_any_box() -> None:
    encoder, policy = both()
    scene = scene_of(IMAGES, 9, SIDE)
    scene = scene._replace(boxes=torch.tensor([[2, 3, 36, 41], [0, 0, 40, 50], [10, 20, 3, 17]], dtype=torch.int32))
    steps = list(Rollout(encoder, scene, policy))
    positions = torch.cat([step.positions for step in steps], dim=1)
    assert positions[:, 0].equal(scene.positions[:, 0].long())
    assert (positions >= 0).all()
    assert (positions + SIDE <= torch.tensor([40, 50])).all()
    assert len(positions[0].unique(dim=0)) > 5
    assert positions[:, 8:].equal(scene.positions[:, 8:].long())
    assert not positions[:, 7].equal(scene.positions[:, 7].long())
    unled = Scene(*scene)._replace(led=torch.tensor([True, False, True]))
    followed = torch.cat([step.positions for step in Rollout(encoder, unled, policy)], dim=1)
    assert followed[1].equal(scene.positions[1].long())
    assert followed[[0, 2]].equal(positions[[0, 2]])


@pytest.mark.parametrize(("at_once", "firsts"), [(4, [0, 1, 2, 3, 7]), (100, [0, 1, 2, 3])])
@torch.no_grad()
def test_what_follows_the_glimpses_that_it_leads_comes_in_chunks(at_once: int, firsts: list[int]) -> None:
    encoder, policy = both(leads=3)
    scene = scene_of(IMAGES, 9, SIDE)
    chunks, single = (list(Rollout(encoder, scene, policy, at_once=number)) for number in (at_once, 1))
    assert [step.first for step in chunks] == firsts
    assert [step.first for step in single] == [*range(9)]
    for name in ("positions", "patches", "information_ratio"):
        ours, theirs = (torch.cat([getattr(step, name) for step in steps], dim=1) for steps in (chunks, single))
        assert ours.equal(theirs)
    ours, theirs = (torch.cat([step.logits for step in steps], dim=1) for steps in (chunks, single))
    torch.testing.assert_close(ours, theirs)


def test_what_is_taught_is_what_a_glimpse_brings() -> None:
    """Every place of every image and step alone, from the first glimpse on, without a carried state."""
    encoder, policy = both()
    batch = canvases_of(IMAGES, 9, SIDE, CLASSES)
    lesson = walk(encoder, policy, batch, CONFIG, progress=0.5)
    assert lesson.predicted.shape == lesson.actual.shape == (IMAGES, 5, 3)
    assert set(lesson.picked.unique().tolist()) == {0, 2}
    coverage = Coverage((40, 50), batch.scene.boxes, SIDE)
    with torch.no_grad():
        for step in range(1, 6):
            positions = lesson.positions[:, :step]
            coverage.add(positions[:, -1:])
            so_far = encoder.features(cut_from_canvases(batch.scene.canvases, positions, SIDE), positions)[:, -1]
            known = (so_far, encoder.logits(so_far), coverage, positions, batch.scene.positions.long())
            seen = Observation(step, *known, batch.scene.seeds, SIDE)
            offered = policy.candidates(seen, 9)
            best = offered[torch.arange(IMAGES), policy.gains(seen, offered).argmax(1)]
            for image in range(IMAGES):
                tried = torch.stack((*offered[image, :2], best[image]))  # random ones, and the policy's choice
                assert lesson.positions[image, step].equal(tried[lesson.picked[image, step - 1]])
                for number, place in enumerate(tried):
                    drop = entropy_of(encoder, batch, image, positions[image])
                    drop -= entropy_of(encoder, batch, image, torch.cat((positions[image], place[None])))
                    torch.testing.assert_close(lesson.actual[image, step - 1, number], drop, atol=1e-5, rtol=1e-4)
                    expected = policy.gains(rows(seen, slice(image, image + 1)), place[None, None])
                    torch.testing.assert_close(lesson.predicted[image, step - 1, number].detach(), expected[0, 0])


def entropy_of(encoder: MambaEye, batch: CanvasBatch, image: int, positions: torch.Tensor) -> torch.Tensor:
    """The cross entropy of the answer after these glimpses of one image, with its two labels by their shares."""
    patches = cut_from_canvases(batch.scene.canvases[image : image + 1], positions[None], SIDE)
    logits = encoder(patches, positions[None])[0, -1]
    share = batch.label_shares[image]
    target = share * F.one_hot(batch.labels[image], CLASSES)
    target = target + (1 - share) * F.one_hot(batch.partner_labels[image], CLASSES)
    return F.cross_entropy(logits, target)


def test_a_walk_then_follows_the_plan_and_its_ratio_is_exact() -> None:
    encoder, policy = both()
    batch = canvases_of(IMAGES, 9, SIDE, CLASSES)
    lesson = walk(encoder, policy, batch, CONFIG, progress=0.0)
    assert lesson.positions[:, 6:].equal(batch.scene.positions[:, 6:].long())
    expected = information_ratio(lesson.positions, batch.scene.boxes, SIDE).float()
    torch.testing.assert_close(lesson.information_ratio, expected)
    led = torch.tensor([True, False, True])
    glimpses = glimpses_of(batch._replace(scene=batch.scene._replace(led=led)), lesson, SIDE)
    assert glimpses.positions[led].equal(lesson.positions[led])
    assert glimpses.positions[~led].equal(batch.scene.positions[~led].long())
    assert glimpses.information_ratio[~led].equal(batch.information_ratio[~led])
    assert glimpses.patches.equal(cut_from_canvases(batch.scene.canvases, glimpses.positions, SIDE))


@torch.no_grad()
def test_walks_depend_on_their_seeds_alone() -> None:
    encoder, policy = both()
    batch = canvases_of(8, 9, SIDE, CLASSES)
    whole = walk(encoder, policy, batch, CONFIG, progress=0.5)
    torch.manual_seed(99)
    part = walk(encoder, policy, batch.first(3), CONFIG, progress=0.5)
    assert part.positions.equal(whole.positions[:3])
    torch.testing.assert_close(part.actual, whole.actual[:3])
    other = batch._replace(scene=batch.scene._replace(seeds=batch.scene.seeds + 100))
    assert not walk(encoder, policy, other, CONFIG, progress=0.5).positions.equal(whole.positions)


@torch.no_grad()
def test_random_walks_and_picks_have_their_shares() -> None:
    encoder, policy = both()
    batch = canvases_of(400, 3, SIDE, CLASSES)
    for progress, picks, expected in ((0.0, 0.0, 0.6), (0.5, 0.0, 0.4), (1.0, 0.0, 0.2), (1.0, 0.5, 0.6)):
        config = PolicyLearning(candidates=2, random_walks=(0.6, 0.2), random_picks=picks)
        picked = walk(encoder, policy, batch, config, progress).picked
        assert abs((picked == 0).float().mean() - expected) < 0.07


def test_the_loss_leaves_out_rows_that_do_not_count() -> None:
    encoder, policy = both()
    batch = canvases_of(IMAGES, 9, SIDE, CLASSES)
    lesson = walk(encoder, policy, batch, CONFIG, progress=0.0)
    error = lesson.predicted[1:] - lesson.actual[1:]
    expected = torch.where(error.abs() < 1, error**2 / 2, error.abs() - 0.5).mean()
    torch.testing.assert_close(lesson.loss(batch.valid), expected)
    curves = lesson.curves(batch.valid)
    both_sides = lesson.predicted[1:].detach().flatten().numpy(), lesson.actual[1:].flatten().numpy()
    assert curves["correlation"].item() == pytest.approx(np.corrcoef(*both_sides)[0, 1], abs=1e-4)
    assert curves["expected"].item() == pytest.approx(lesson.predicted[1:, :, 2].mean().item(), abs=1e-6)
    assert curves["random"].item() == pytest.approx(lesson.actual[1:, :, :2].mean().item(), abs=1e-6)
    assert lesson.loss(torch.zeros(IMAGES, dtype=torch.bool)) == 0


def test_no_gradient_of_a_lesson_reaches_the_encoder() -> None:
    encoder, policy = both()
    batch = canvases_of(IMAGES, 9, SIDE, CLASSES)
    walk(encoder, policy, batch, CONFIG, progress=0.0).loss(batch.valid).backward()
    assert all(parameter.grad is None for parameter in encoder.parameters())
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in policy.parameters())


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"candidates": 0}, "model.policy.candidates is 0: give a number from 1 to 4096"),
        ({"leads": 0}, "model.policy.leads is 0: give a number from 1 to 4096"),
        ({"dim": 10**9}, "model.policy.dim is 1000000000: give a number from 1 to 4096"),
        ({"hand_over": math.nan}, "model.policy.hand_over is nan: give a drop in cross entropy, in nats, such as 0.01"),
    ],
    ids=str,
)
def test_settings_that_cannot_be(settings: dict, sentence: str) -> None:
    with pytest.raises(InputError, match=f"^{sentence}$"):
        LearnedScan(**settings)


@pytest.mark.parametrize(("name", "value"), [("feature_dim", 9), ("num_classes", 3), ("axes", 3)])
def test_a_policy_for_another_encoder_is_refused(name: str, value: int) -> None:
    encoder = MambaEye(num_classes=CLASSES, **SIZES)
    with pytest.raises(InputError, match=f"^the policy was built for an encoder of {name} {value}, and this one's is"):
        ClassifierModule(encoder, LearnedScan(**{name: value}))


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"frozen": 1.5}, "frozen is 1.5: give a share"),
        ({"random_picks": -0.1}, "random_picks is -0.1: give a share"),
        ({"random_walks": (0.5, 2.0)}, r"random_walks is \[0.5, 2.0\]: give two shares"),
        ({"candidates": 1}, "candidates is 1: give at least 2"),
        ({"glimpses": 1}, "glimpses is 1: give at least 2"),
    ],
    ids=str,
)
def test_learning_that_cannot_be(settings: dict, what: str) -> None:
    with pytest.raises(InputError, match=f"^model.policy_learning.{what}"):
        PolicyLearning(**settings)


def test_one_glimpse_teaches_nothing() -> None:
    encoder, policy = both()
    with pytest.raises(InputError, match="^data.train.num_glimpses is 1, and a policy decides from the second on"):
        walk(encoder, policy, canvases_of(2, 1, SIDE, CLASSES), CONFIG, progress=0.0)
