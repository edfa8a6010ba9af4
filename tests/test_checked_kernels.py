"""Kernels are compared with plain torch at their first use: stand-ins that are right, and wrong in one way each."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from mambaeye.errors import InputError
from mambaeye.ops.add_norm import add_norm
from mambaeye.ops.checked_kernels import CheckedKernels, CheckedScan
from mambaeye.ops.kernels import in_place
from mambaeye.ops.mamba2 import Mamba2, MixerState
from mambaeye.ops.s6 import selective_scan

Spoil = Callable[[Tensor], Tensor]


class StandIn:
    """Computes what the kernels should, in plain torch, and counts; then spoils it."""

    def __init__(self, spoil: Spoil = lambda y: y, spoil_state: Spoil = lambda h: h) -> None:
        self.spoil, self.spoil_state, self.calls = spoil, spoil_state, 0

    def add_norm(self, x: Tensor, residual: Tensor | None, norm: nn.RMSNorm) -> tuple[Tensor, Tensor]:
        self.calls += 1
        y, residual = add_norm(x, residual, norm)
        return self.spoil(y), residual

    def mix(
        self, mixer: Mamba2, u: Tensor, state: MixerState | None, lengths: Tensor | None = None
    ) -> tuple[Tensor, MixerState | None]:
        self.calls += 1
        y, after = mixer(u, state, lengths)
        if state is None:
            return self.spoil(y), None
        after = MixerState(after.conv, self.spoil_state(after.ssm))
        if in_place(u, lengths):
            for part, new in zip(state, after, strict=True):
                part.copy_(new)
            return self.spoil(y), state
        return self.spoil(y), after


class WrongGradient(torch.autograd.Function):
    """The identity with a gradient that is half of what it should be."""

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        return y.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient / 2


SPOILS: dict[str, Spoil] = {
    "scaled": lambda y: y * 1.1,
    "not finite": lambda y: torch.where(torch.arange(y.shape[1])[:, None] == 2, torch.nan, y),
    "late": lambda y: y.roll(1, dims=1),
    "its gradient": WrongGradient.apply,
}


@pytest.fixture
def mixer() -> Mamba2:
    torch.manual_seed(0)
    return Mamba2(16, 8, 4, 2, 8)


def sequence(batch: int, steps: int, seed: int = 0) -> Tensor:
    return torch.randn(batch, steps, 16, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("batch", "steps"), [(1, 1), (3, 5), (4, 320)])
def test_right_kernels_are_compared_once_and_then_used(mixer: Mamba2, batch: int, steps: int) -> None:
    stand_in = StandIn()
    checked = CheckedKernels(stand_in, insist=True)
    for seed in range(3):
        u = sequence(batch, steps, seed)
        torch.testing.assert_close(checked.mix(mixer, u, None)[0], mixer(u, None)[0])
    assert stand_in.calls == 1 + 3


@pytest.mark.parametrize("spoil", SPOILS.values(), ids=[*SPOILS])
def test_a_wrong_kernel_is_given_up_with_one_sentence(mixer: Mamba2, spoil: Spoil) -> None:
    stand_in = StandIn(spoil)
    checked, u = CheckedKernels(stand_in, insist=False), sequence(3, 6)
    with pytest.warns(UserWarning, match="Mamba2 kernels for whole sequences do not compute .* goes on in plain torch"):
        y, state = checked.mix(mixer, u, None)
    assert state is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again, _ = checked.mix(mixer, u, None)
    assert y.equal(mixer(u, None)[0])
    assert again.equal(y)
    assert stand_in.calls == 1


@pytest.mark.parametrize("spoil", SPOILS.values(), ids=[*SPOILS])
def test_a_wrong_kernel_ends_a_run_that_insists_on_it(mixer: Mamba2, spoil: Spoil) -> None:
    with pytest.raises(InputError, match=r"in torch.float32 .*\(values are off by .*gradients by .*kernels torch"):
        CheckedKernels(StandIn(spoil), insist=True).mix(mixer, sequence(2, 5), None)


def test_a_wrong_state_is_found(mixer: Mamba2) -> None:
    checked = CheckedKernels(StandIn(spoil_state=torch.zeros_like), insist=True)
    with pytest.raises(InputError, match="Mamba2 kernels for chunks"):
        checked.mix(mixer, sequence(2, 5), mixer.initial_state(2))


@torch.no_grad()
@pytest.mark.parametrize("wrong", [False, True])
def test_single_glimpses_change_their_state_in_place_whatever_computes_them(mixer: Mamba2, wrong: bool) -> None:
    checked = CheckedKernels(StandIn(SPOILS["scaled"]) if wrong else StandIn(), insist=False)
    u, whole = sequence(2, 7), mixer(sequence(2, 7), None)[0]
    state, steps = mixer.initial_state(2), []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for t in range(7):
            y, after = checked.mix(mixer, u[:, t : t + 1], state)
            assert after is state
            steps.append(y)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole)


def test_each_way_of_use_is_compared_by_itself(mixer: Mamba2) -> None:
    stand_in, u = StandIn(), sequence(2, 4)
    checked = CheckedKernels(stand_in, insist=True)
    with torch.no_grad():
        checked.mix(mixer, u, None)
        checked.mix(mixer, u, mixer.initial_state(2))
        checked.mix(mixer, u[:, :1], mixer.initial_state(2))
    checked.mix(mixer, u, None)
    with torch.autocast("cpu", torch.bfloat16):
        checked.mix(mixer, u, None)
    assert [use.dtype for use in checked.checks.passed].count(torch.bfloat16) == 1
    assert len(checked.checks.passed) == 5


def test_weights_that_are_not_finite_accuse_no_kernel(mixer: Mamba2) -> None:
    checked = CheckedKernels(StandIn(), insist=True)
    weight = mixer.in_proj.weight.detach().clone()
    with torch.no_grad():
        mixer.in_proj.weight[0] = torch.nan
    checked.mix(mixer, sequence(1, 3), None)
    assert not checked.checks.passed
    with torch.no_grad():
        mixer.in_proj.weight.copy_(weight)
    checked.mix(mixer, sequence(1, 3), None)
    assert [*checked.checks.passed.values()] == [True]


def test_a_comparison_leaves_gradients_and_random_numbers_alone(mixer: Mamba2) -> None:
    before = torch.get_rng_state()
    CheckedKernels(StandIn(), insist=True).mix(mixer, sequence(2, 4), None)
    assert all(parameter.grad is None for parameter in mixer.parameters())
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize("with_residual", [False, True])
def test_a_wrong_norm_is_given_up(with_residual: bool) -> None:
    norm, x = nn.RMSNorm(16), sequence(2, 5)
    residual = sequence(2, 5, seed=1) if with_residual else None
    with pytest.warns(UserWarning, match="the fused norms do not compute"):
        got = CheckedKernels(StandIn(SPOILS["late"]), insist=False).add_norm(x, residual, norm)
    for one, other in zip(got, add_norm(x, residual, norm), strict=True):
        assert one.equal(other)


@pytest.mark.parametrize("wrong", [False, True])
def test_the_selective_scan_is_compared_too(wrong: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x, dt = (torch.rand(3, 9, 2, 8, generator=generator).requires_grad_() for _ in range(2))
    B, C = (torch.randn(3, 9, 2, 4, generator=generator) for _ in range(2))
    A, D = -torch.rand(2, 8, 4, generator=generator), torch.ones(2, 8)
    calls = []

    def scan(*arguments: Tensor) -> Tensor:
        calls.append(len(arguments))
        return selective_scan(*arguments) * (1.5 if wrong else 1.0)

    checked = CheckedScan(scan, insist=False)
    if wrong:
        with pytest.warns(UserWarning, match="selective scan's kernels do not"):
            y = checked(x, dt, A, B, C, D)
    else:
        y = checked(x, dt, A, B, C, D)
    assert y.equal(selective_scan(x, dt, A, B, C, D))
    assert len(calls) == (1 if wrong else 2)
