"""Stopping by what a policy expects, against a plain loop that asks it after every glimpse of one image at a time."""

import math
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from lightning import Trainer
from scenes import scene_of
from torch import Tensor

from datamodules.datamodule import ShardDataModule
from datamodules.loading.config import LoaderConfig
from datamodules.views.evaluate import EvaluateView
from mambaeye.batch import Scene
from mambaeye.encoders.mambaeye import MambaEye
from mambaeye.errors import InputError
from mambaeye.evaluation import prediction
from mambaeye.evaluation.early_exit import EarlyExitConfig, ExitCriteria, Rule
from mambaeye.geometry.coverage import Coverage
from mambaeye.geometry.patches import cut_from_canvases
from mambaeye.module import ClassifierModule
from mambaeye.policies.base import Observation
from mambaeye.policies.fixed import FixedScan
from mambaeye.policies.learned import LearnedScan
from mambaeye.rollout import Rollout

IMAGES, GLIMPSES, SIDE, CLASSES = 4, 9, 4, 10
SIZES = {"dim": 8, "depth": 1, "d_state": 4, "headdim": 4, "move_embedding_dim": 4}


def both(patch_size: int = SIDE, **settings: float) -> tuple[MambaEye, LearnedScan]:
    torch.manual_seed(0)
    encoder = MambaEye(num_classes=CLASSES, patch_size=patch_size, **SIZES).eval()
    policy = LearnedScan(**{"candidates": 5, "dim": 12, "leads": 4, "hand_over": -math.inf, **settings})
    policy.suit(encoder.feature_dim, CLASSES, 2)
    torch.nn.init.normal_(policy.gain[-1].weight)  # so that expectations differ
    return encoder, policy


class Walked(NamedTuple):
    """One image, glimpse by glimpse."""

    positions: Tensor
    """(T, 2)."""
    values: Tensor
    """(T - 1,)."""
    logits: Tensor
    """(T, C)."""


@torch.no_grad()
def walk(encoder: MambaEye, policy: LearnedScan, scene: Scene, image: int) -> Walked:
    """Take one image alone, every prefix of its glimpses from the first on; the policy is asked after each."""
    one = scene.rows(slice(image, image + 1))
    planned = one.positions.long()
    positions, values = planned[:, :1], []
    for step in range(1, planned.shape[1]):
        coverage = Coverage(one.canvases.shape[1:-1], one.boxes, encoder.patch_size)
        coverage.add(positions)
        patches = cut_from_canvases(one.canvases, positions, encoder.patch_size)
        features = encoder.features(patches, positions)[:, -1]
        known = (features, encoder.logits(features), coverage, positions, planned, one.seeds, encoder.patch_size)
        seen = Observation(step, *known)
        offered = policy.candidates(seen, policy.offered)
        gains = policy.gains(seen, offered)[0].tolist()
        values.append(max(gains))
        leads = step < policy.leads and values[-1] >= policy.hand_over
        following = offered[:, gains.index(values[-1])] if leads else planned[:, step]
        positions = torch.cat((positions, following[:, None]), dim=1)
    patches = cut_from_canvases(one.canvases, positions, encoder.patch_size)
    return Walked(positions[0], torch.tensor(values), encoder(patches, positions)[0])


@pytest.mark.parametrize("at_once", [1, 2, 100])
@torch.no_grad()
def test_steps_say_what_the_policy_expects_also_when_it_leads_no_more(at_once: int) -> None:
    (encoder, policy), scene = both(), scene_of(IMAGES, GLIMPSES, SIDE)
    plain = list(Rollout(encoder, scene, policy, at_once=at_once))
    valued = list(Rollout(encoder, scene, policy, at_once=at_once, valued=True))
    assert all(step.value is None for step in plain)
    for ours, theirs in zip(valued, plain, strict=True):
        for name in ("positions", "information_ratio", "logits"):
            assert getattr(ours, name).equal(getattr(theirs, name))
    values, positions = (torch.cat([getattr(step, name) for step in valued], dim=1) for name in ("value", "positions"))
    assert values[:, -1].isnan().all()
    followed = (positions == scene.positions).all(-1)
    assert followed[:, 4:].all()
    assert not followed[:, 1:4].all()
    for image in range(IMAGES):
        alone = walk(encoder, policy, scene, image)
        assert positions[image].equal(alone.positions)
        torch.testing.assert_close(values[image, :-1], alone.values)


@torch.no_grad()
def test_the_policy_is_asked_once_a_glimpse(monkeypatch: pytest.MonkeyPatch) -> None:
    (encoder, policy), scene, asked = both(), scene_of(IMAGES, GLIMPSES, SIDE), []
    gains = policy.gains
    monkeypatch.setattr(policy, "gains", lambda seen, places: asked.append(seen.step) or gains(seen, places))
    list(Rollout(encoder, scene, policy, valued=True))
    assert asked == [*range(1, GLIMPSES)]
    asked.clear()
    list(Rollout(encoder, scene, policy))
    assert asked == [1, 2, 3]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.3, 1.0])
def test_predictions_stop_where_a_loop_does(share: float) -> None:
    """At a threshold that such a share of all expectations do not pass."""
    (encoder, policy), scene = both(), scene_of(IMAGES, GLIMPSES, SIDE)
    alone = [walk(encoder, policy, scene, image) for image in range(IMAGES)]
    every = torch.cat([one.values for one in alone]).sort().values
    between = [every[0] - 1, *(every[1:] + every[:-1]) / 2, every[-1] + 1]
    threshold = float(between[round(share * len(every))])
    with torch.no_grad():
        told = prediction.predict(encoder, scene, policy, [Rule("stable", 6), Rule("value", threshold)])
    for one, found in zip(alone, told, strict=True):
        end, why = GLIMPSES, "budget"
        for step in range(GLIMPSES, 0, -1):  # from the last, so that the first of all stays
            last = one.logits[max(0, step - 6) : step].argmax(-1).tolist()
            if step < GLIMPSES and one.values[step - 1] <= threshold:
                end, why = step, "value"
            if len(last) == 6 and len(set(last)) == 1:
                end, why = step, "stable"
        assert (found.glimpses, found.stopped) == (end, why)
        assert found.positions.equal(one.positions[:end])
        best = one.logits[end - 1].softmax(-1).topk(5)
        torch.testing.assert_close(found.probabilities, best.values)


def test_validation_tries_it_under_the_scan_that_has_it(data_dir: Path) -> None:
    encoder, policy = both(16)
    data = ShardDataModule(
        *[str(data_dir / "digits" / "val")] * 2,
        resolutions=(32,),
        scans=("random", "learned"),
        evaluate=EvaluateView(num_glimpses=6),
        loader=LoaderConfig(batch_size=12, num_workers=0),
    )
    thresholds = (-0.2, 0.1, 0.4)
    rules = EarlyExitConfig(confidence=(), stable=(3,), entropy=(), value=thresholds)
    module, batches = ClassifierModule(encoder, policy, early_exit=rules), []
    trainer = Trainer(
        accelerator="cpu", limit_val_batches=1, logger=False, enable_progress_bar=False, enable_checkpointing=False
    )
    validate = ClassifierModule.validation_step
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClassifierModule, "validation_step", lambda *known: batches.append(known[1]) or validate(*known))
        trainer.validate(module, data, verbose=False)
    found = {(exited.condition.scan, exited.rule, exited.threshold): exited for exited in module.result.early_exit}
    assert [*found] == [
        ("random", "stable", 3),
        ("learned", "stable", 3),
        *(("learned", "value", h) for h in thresholds),
    ]
    led = [batch for batch in batches if data.conditions[batch.condition].scan == "learned"]
    alone = [
        walk(encoder, policy, batch.scene, image) for batch in led for image in batch.valid.nonzero().flatten().tolist()
    ]
    for threshold in thresholds:
        exited = found["learned", "value", threshold]
        ends = [next((at + 1 for at, value in enumerate(one.values) if value <= threshold), 6) for one in alone]
        assert exited.samples == len(alone) > 1
        assert exited.glimpses == pytest.approx(sum(ends) / len(ends))
        stopped = sum(bool((one.values <= threshold).any()) for one in alone)
        assert exited.stopped == pytest.approx(stopped / len(alone))


@pytest.mark.parametrize("threshold", [math.nan, math.inf])
def test_thresholds_are_numbers(threshold: float) -> None:
    with pytest.raises(
        InputError, match=f"^model.exit_criteria.value has {threshold}: give a drop in cross entropy, in"
    ):
        ExitCriteria(value=threshold)


@pytest.mark.parametrize(("policy", "scan"), [(None, "random"), (FixedScan(), "learned"), (LearnedScan(), "random")])
def test_predict_wants_a_policy_that_expects_something(
    policy: LearnedScan | FixedScan | None, scan: str, data_dir: Path, tmp_path: Path
) -> None:
    encoder, _ = both(16)
    (tmp_path / "a.png").touch()
    module = ClassifierModule(encoder, policy, exit_criteria=ExitCriteria(value=0.1))
    data = ShardDataModule(
        *[str(data_dir / "digits" / "val")] * 2, resolutions=(32,), scans=(scan,), images=str(tmp_path)
    )
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    with pytest.raises(
        InputError, match="^model.exit_criteria.value goes by what a policy such as LearnedScan expects"
    ):
        trainer.predict(module, data)
