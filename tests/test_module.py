from types import SimpleNamespace

import pytest
import torch
from largest import Largest
from scenes import canvases_of, glimpses_of

from mambaeye.batch import POLICY, EvaluationCondition
from mambaeye.encoders.mambaeye import MambaEye
from mambaeye.errors import InputError
from mambaeye.evaluation.metrics import MetricsConfig, StepMetrics
from mambaeye.evaluation.sums import ConditionSums
from mambaeye.geometry.patches import cut_from_canvases
from mambaeye.loss import LOGITS_AT_ONCE, scheduled_cross_entropy
from mambaeye.module import ClassifierModule

SIZES = {"patch_size": 2, "dim": 8, "depth": 1, "d_state": 4, "headdim": 4, "move_embedding_dim": 4}


def module_of(classes: int, num_glimpses: int = 1, config: MetricsConfig | None = None) -> ClassifierModule:
    """Return a module that validates under one condition."""
    module = ClassifierModule(MambaEye(num_classes=classes, **SIZES))
    data = SimpleNamespace(conditions=[EvaluationCondition(40, "random")])
    module.__dict__["_trainer"] = SimpleNamespace(datamodule=data)
    module.sums.append(ConditionSums(data.conditions[0], classes, num_glimpses, config or MetricsConfig()))
    return module


@torch.no_grad()
def test_validation_goes_through_pieces() -> None:
    """The metrics are those of all logits, which are never held at once; nor are the patches."""
    images, num_glimpses, classes = 3, 700, 5000  # of so many classes there is no confusion matrix
    torch.manual_seed(0)
    module, batch = module_of(classes, num_glimpses), canvases_of(images, num_glimpses, 2, classes)
    with Largest() as largest:
        module.validation_step(batch, 0)
    assert largest.numbers <= LOGITS_AT_ONCE < images * num_glimpses * classes
    positions = batch.scene.positions
    patches = cut_from_canvases(batch.scene.canvases, positions, 2)
    whole = StepMetrics(num_glimpses)
    whole.update(module.encoder(patches, positions), batch.labels, batch.information_ratio, batch.valid)
    expected = whole.compute()
    for name, value in module.sums[0].by_step.compute().items():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-5, equal_nan=True)


@pytest.mark.parametrize("num_glimpses", [257, 8192])
@torch.no_grad()
def test_what_a_validation_holds_does_not_grow_with_the_glimpses(num_glimpses: int) -> None:
    torch.manual_seed(0)
    module, batch = module_of(10, num_glimpses, MetricsConfig(every_step=1)), canvases_of(2, num_glimpses, 2, 10)
    with Largest() as largest:
        module.validation_step(batch, 0)
    assert largest.numbers < 300_000


@torch.no_grad()
def test_a_rollout_of_the_first_images_is_what_the_whole_sequence_gives() -> None:
    torch.manual_seed(0)
    module, batch = module_of(7), canvases_of(4, 600, 2, 7)
    steps = list(module.rollout(batch, 3))
    patches = torch.cat([step.patches for step in steps], dim=1)
    positions = batch.scene.positions[:3]
    assert patches.equal(cut_from_canvases(batch.scene.canvases[:3], positions, 2))
    logits = torch.cat([step.logits for step in steps], dim=1)
    torch.testing.assert_close(logits, module.encoder(patches, positions))
    ratio = torch.cat([step.information_ratio for step in steps], dim=1)
    assert ratio.equal(batch.information_ratio[:3])


def test_losses_step_by_step_are_those_of_the_first_images() -> None:
    torch.manual_seed(0)
    module, batch = module_of(5), glimpses_of(4, 9, 2, 5)
    losses, confidence, ratio = module.per_step_loss(batch, 3)
    assert losses.shape == confidence.shape == ratio.shape == (3, 9)
    assert not losses.requires_grad
    assert ratio.equal(batch.information_ratio[:3])
    some = batch.first(3)
    logits = module.encoder(some.patches, some.positions)
    mixed = {"partner_labels": some.partner_labels, "label_shares": some.label_shares}
    for step in range(9):
        expected = scheduled_cross_entropy(
            logits[:, step : step + 1], some.labels, some.information_ratio[:, step : step + 1], **mixed
        )
        torch.testing.assert_close(losses[:, step].mean(), expected)


def test_canvases_without_a_policy_are_a_users_mistake() -> None:
    module, batch = module_of(5), canvases_of(2, 9, 2, 5)
    with pytest.raises(InputError, match=f"data.train_scan has {POLICY}, and the model has no policy: give"):
        module.training_step(batch, 0)
