"""Tensors made on the wrong device, and places where a GPU would be waited for: found without one.

The meta device stands for a GPU: it computes nothing, and what needs a value raises there: .item(), .tolist(), indices
by a mask. A mode raises where an operation takes tensors of two devices.
"""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from elsewhere import DEVICE, OnElsewhere
from scenes import canvases_of, glimpses_of
from test_conformance import CLASSES, VARIANTS, build, named
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

from callbacks.reports.training_curves import TrainingCurves
from callbacks.run.nonfinite import NonFiniteGuard
from mambaeye.batch import CanvasBatch, EvaluationCondition, GlimpseBatch
from mambaeye.blocks import checkpoint_blocks
from mambaeye.encoders.base import CanvasEncoder, CausalEncoder, Encoder, GlimpseEncoder
from mambaeye.encoders.hnet import HNet
from mambaeye.evaluation.early_exit import EarlyExitConfig
from mambaeye.evaluation.sums import ConditionSums
from mambaeye.module import ClassifierModule
from mambaeye.optim import OptimizerConfig, build_optimizer, set_fused
from mambaeye.policies.learned import LearnedScan
from mambaeye.policy_learning import PolicyLearning, walk
from mambaeye.rollout import Rollout

IMAGES, GLIMPSES, SIDE = 3, 7, 16
Variant = tuple[type[Encoder], dict[str, object]]
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)  # from one device to another on purpose


class OneDevice(TorchDispatchMode):
    """Raises where an operation takes tensors of two devices, and where a copy to another one is waited for.

    A number, which has no axis, may be on the CPU.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [part for part in tree_iter((args, kwargs)) if isinstance(part, Tensor)]
        devices = {tensor.device.type for tensor in tensors if tensor.ndim}
        if len(devices) > 1 and func not in COPIES:
            raise RuntimeError(f"{func} takes tensors of two devices: {[(t.device.type, *t.shape) for t in tensors]}")
        result = func(*args, **(kwargs or {}))
        if func in COPIES and not kwargs.get("non_blocking"):
            moved = {tensor.device.type for tensor in (*tensors, result) if tensor.ndim}
            assert len(moved) < 2, f"{func} waits for a copy of {[(t.device.type, *t.shape) for t in tensors]}"
        return result


@pytest.fixture
def one_device() -> Iterator[None]:
    with OneDevice():
        yield


def away(tree: Any, device: str | torch.device = "meta") -> Any:
    return tree_map_only(Tensor, lambda tensor: tensor.to(device, non_blocking=True), tree)


def encoder_of(variant: Variant) -> Encoder:
    system, changes = variant
    return build(system, **changes).to("meta", non_blocking=True)


def training_batch(encoder: Encoder) -> GlimpseBatch | CanvasBatch:
    make = canvases_of if isinstance(encoder, CanvasEncoder) else glimpses_of
    return away(make(IMAGES, GLIMPSES, SIDE, CLASSES))


@pytest.mark.long
@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("variant", VARIANTS, ids=named)
def test_a_training_step_keeps_to_its_device_and_waits_for_nothing(
    variant: Variant, again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss, gradients and the guard on its way to a fused optimizer, with blocks computed again or not; the curves."""
    module = ClassifierModule(encoder_of(variant))
    encoder, batch = module.encoder, training_batch(module.encoder)
    if again:
        checkpoint_blocks(encoder)
    loss = module._encoder_loss(batch)
    guard, optimizer = NonFiniteGuard("last.ckpt"), build_optimizer([encoder], OptimizerConfig())
    set_fused(optimizer, True)
    monkeypatch.setattr("callbacks.run.nonfinite.scaler_of", lambda trainer: None)
    guard.on_before_backward(None, module, loss)
    loss.backward()
    guard.on_before_optimizer_step(None, module, optimizer)
    made = (loss, optimizer.found_inf, *(parameter.grad for parameter in encoder.parameters()))
    assert all(part.device.type == "meta" for part in (*made, *module.per_step_loss(batch, 2)))


class Logging:
    """A trainer in 32-true, at a step that logs."""

    def __init__(self) -> None:
        self.precision_plugin = self
        self.forward_context = torch.enable_grad


@pytest.mark.usefixtures("one_device")
def test_training_curves_wait_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ClassifierModule(encoder_of(VARIANTS[0]))
    logged: dict[str, Tensor] = {}
    monkeypatch.setattr(module, "log", logged.__setitem__)
    monkeypatch.setattr("callbacks.reports.training_curves.logs_now", lambda trainer, batch_idx: True)
    TrainingCurves(2).on_train_batch_end(Logging(), module, None, training_batch(module.encoder), 0)
    assert len(logged) > 5
    assert all(value.device.type == "meta" for value in logged.values())


# with registers a state is asked for its phase, and a hierarchy for how much is kept: these wait
@pytest.mark.parametrize("variant", [v for v in VARIANTS if not v[1] and v[0] is not HNet], ids=named)
@torch.no_grad()
def test_validation_keeps_to_its_device_and_waits_for_nothing(variant: Variant) -> None:
    encoder, batch = encoder_of(variant), away(canvases_of(IMAGES, GLIMPSES, SIDE, CLASSES))
    rules = [rule for rule in EarlyExitConfig().rules if rule.kind != "value" and isinstance(encoder, CausalEncoder)]
    answers_at = encoder.answers_at(GLIMPSES).tolist()
    sums = ConditionSums(EvaluationCondition(40, "random"), CLASSES, GLIMPSES, answers_at=answers_at, rules=rules)
    sums.to("meta", non_blocking=True)
    for at_once in (1, 3, GLIMPSES):
        with OneDevice():
            results = sums.update(Rollout(encoder, batch.scene, None, batch.information_ratio, at_once), batch)
        assert all(part.device.type == "meta" for part in results.values())


@pytest.mark.usefixtures("one_device")
def test_a_policys_walk_keeps_to_its_device() -> None:
    encoder, policy = encoder_of(VARIANTS[0]), LearnedScan(candidates=4, dim=8)
    policy.suit(encoder.feature_dim, CLASSES, 2)
    policy.to("meta", non_blocking=True)
    batch = away(canvases_of(IMAGES, GLIMPSES, SIDE, CLASSES))
    lesson = walk(encoder, policy, batch, PolicyLearning(), 0.5)
    assert all(part.device.type == "meta" for part in lesson if isinstance(part, Tensor))
    for step in Rollout(encoder, batch.scene, policy, None, 3):
        assert step.logits.device.type == "meta"


@pytest.mark.usefixtures("one_device")
@pytest.mark.parametrize("variant", VARIANTS, ids=named)
def test_a_wrong_device_and_a_wait_would_be_found(variant: Variant) -> None:
    encoder = encoder_of(variant)
    batch = training_batch(encoder)
    if isinstance(encoder, GlimpseEncoder):
        wrong = batch._replace(positions=torch.zeros(IMAGES, GLIMPSES, 2, dtype=torch.long))
        with pytest.raises(RuntimeError, match="takes tensors of two devices"):
            encoder.encode(wrong)
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        float(encoder.encode(batch).detach().sum())


@pytest.fixture
def gpu() -> Iterator[None]:
    """A GPU on which whatever waits for it raises."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU")
    yield
    torch.cuda.set_sync_debug_mode("default")


def steps_of(encoder: Encoder, device: torch.device) -> Iterator[ConditionSums]:
    """Take a training step and validate a batch, again and again, and yield what validation has summed up."""
    module = ClassifierModule(encoder.to(device))
    optimizer, guard = build_optimizer([encoder], OptimizerConfig()), NonFiniteGuard("last.ckpt")
    set_fused(optimizer, True)
    make = canvases_of if isinstance(encoder, CanvasEncoder) else glimpses_of
    training, validation = (away(made(IMAGES, GLIMPSES, SIDE, CLASSES), device) for made in (make, canvases_of))
    rules = [rule for rule in EarlyExitConfig().rules if rule.kind != "value" and isinstance(encoder, CausalEncoder)]
    answers_at = encoder.answers_at(GLIMPSES).tolist()
    sums = ConditionSums(EvaluationCondition(40, "random"), CLASSES, GLIMPSES, answers_at=answers_at, rules=rules)
    sums.to(device)
    while True:
        loss = module._encoder_loss(training)
        guard.on_before_backward(None, module, loss)
        loss.backward()
        guard.on_before_optimizer_step(None, module, optimizer)
        if device.type == "cuda":  # torch fuses on no device that is not there
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            rollout = Rollout(encoder, validation.scene, None, validation.information_ratio, 3)
            sums.update(rollout, validation)
        yield sums


# HNet counts what it keeps, and on the meta device takes a number instead
@pytest.mark.long
@pytest.mark.parametrize("variant", [variant for variant in VARIANTS if variant[0] is not HNet], ids=named)
def test_with_values_a_training_step_and_validation_wait_for_nothing(
    variant: Variant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Constants that are copied there once are copied in a first round, which may wait."""
    monkeypatch.setattr("callbacks.run.nonfinite.scaler_of", lambda trainer: None)
    system, changes = variant
    with OnElsewhere() as device:
        steps = steps_of(build(system, **changes), DEVICE)
        next(steps)
        device.waits.clear()
        sums = next(steps)
        assert not device.waits
        answered = len(build(system, **changes).answers_at(GLIMPSES))
        assert sums.by_step.bin_count.sum().item() == 2 * (IMAGES - 1) * answered
        assert len(device.waits) == 1


@pytest.mark.cuda
@pytest.mark.usefixtures("gpu")
def test_on_a_gpu_a_training_step_and_validation_wait_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Constants that are copied there once are copied in a first round, which may wait."""
    monkeypatch.setattr("callbacks.run.nonfinite.scaler_of", lambda trainer: None)
    steps = steps_of(build(VARIANTS[0][0], kernels="torch"), torch.device("cuda"))
    for mode in ("default", "error"):
        torch.cuda.set_sync_debug_mode(mode)
        sums = next(steps)
    torch.cuda.set_sync_debug_mode("default")
    assert sums.by_step.bin_count.sum().item() == 2 * (IMAGES - 1) * GLIMPSES
