"""The selective scan against its recurrence step by step, in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mambaeye.errors import InputError
from mambaeye.ops import kernel_selection, kernels, s6
from mambaeye.ops.s6 import selective_scan


def step_by_step(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    state = x.new_zeros(x.shape[0], *A.shape)  # (B, K, E, N)
    outputs = []
    for t in range(x.shape[1]):
        added = (dt[:, t] * x[:, t]).unsqueeze(-1) * B[:, t].unsqueeze(-2)
        state = torch.exp(dt[:, t].unsqueeze(-1) * A) * state + added
        outputs.append((state * C[:, t].unsqueeze(-2)).sum(-1) + D * x[:, t])
    return torch.stack(outputs, dim=1) if outputs else torch.empty_like(x)


def arguments(
    batch: int, steps: int, directions: int, channels: int, states: int, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    draw = torch.Generator().manual_seed(steps)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64).to(dtype)

    x, dt = normal(batch, steps, directions, channels), normal(batch, steps, directions, channels).exp()
    A = -normal(directions, channels, states).exp()
    B, C = normal(batch, steps, directions, states), normal(batch, steps, directions, states)
    return [t.requires_grad_() for t in (x, dt, A, B, C, normal(directions, channels))]


@settings(deadline=None, max_examples=40)
@given(
    batch=st.integers(0, 3),
    steps=st.integers(0, 20),
    directions=st.integers(1, 4),
    chunk=st.none() | st.integers(1, 21),
    at_once=st.sampled_from([1, 100, 2**20]),
)
def test_values_and_gradients_are_those_of_the_recurrence(
    batch: int, steps: int, directions: int, chunk: int | None, at_once: int
) -> None:
    """Whatever is computed at once: chunks of any length, and any part of the images."""
    given_at_once, s6.AT_ONCE = s6.AT_ONCE, at_once
    tensors = arguments(batch, steps, directions, 3, 2)
    try:
        y = selective_scan(*tensors, chunk=chunk)
        upstream = torch.cos(torch.arange(y.numel(), dtype=y.dtype)).view_as(y)
        gradients = torch.autograd.grad(y, tensors, upstream)
    finally:
        s6.AT_ONCE = given_at_once
    expected = step_by_step(*tensors)
    torch.testing.assert_close(y, expected, atol=1e-12, rtol=1e-10)
    if steps:
        theirs = torch.autograd.grad(expected, tensors, upstream, allow_unused=True)
        for mine, other in zip(gradients, theirs, strict=True):
            torch.testing.assert_close(mine, other, atol=1e-11, rtol=1e-9)


@pytest.mark.parametrize("chunk", [1, 2, 5])
def test_gradients_are_numerical_ones(chunk: int) -> None:
    assert torch.autograd.gradcheck(lambda *t: selective_scan(*t, chunk=chunk), arguments(2, 5, 2, 2, 2))


def test_float32_stays_near_float64_over_a_thousand_steps() -> None:
    tensors = arguments(1, 1000, 2, 8, 16)
    y = selective_scan(*(t.float() for t in tensors))
    torch.testing.assert_close(y.double(), step_by_step(*tensors), atol=1e-4, rtol=1e-4)


def test_a_long_forgetting_step_leaves_nothing_and_no_nan() -> None:
    x, dt, A, B, C, D = (t.detach() for t in arguments(1, 9, 1, 4, 4, torch.float32))
    dt[:, 4] = 1e4
    y = selective_scan(x, dt, A, B, C, D)
    assert y.isfinite().all()
    changed = x.clone()
    changed[:, :4] += 1
    assert selective_scan(changed, dt, A, B, C, D)[:, 4:].equal(y[:, 4:])


def test_few_states_are_kept_for_the_backward_pass() -> None:
    """Of 1024 steps the states between 32 chunks: 1 / 32 of all."""
    kept: list[int] = []
    tensors = arguments(1, 1024, 1, 64, 16, torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        selective_scan(*tensors)
    assert sum(kept) < 1024 * 64 * 16 / 3


def test_directions_do_not_see_each_other() -> None:
    tensors = arguments(2, 11, 3, 4, 2)
    together = selective_scan(*tensors)
    x, dt, A, B, C, D = tensors
    for k in range(3):
        one = slice(k, k + 1)
        alone = selective_scan(x[:, :, one], dt[:, :, one], A[one], B[:, :, one], C[:, :, one], D[one])
        torch.testing.assert_close(alone, together[:, :, one])


def test_the_kernel_is_not_for_the_cpu() -> None:
    assert kernel_selection.select_scan("auto", torch.empty(0)) is None
    assert kernel_selection.select_scan("torch", torch.empty(0)) is None
    with pytest.raises(InputError, match="cannot run torch.float32 on cpu"):
        kernel_selection.select_scan("cuda", torch.empty(0))


@pytest.mark.cuda
@pytest.mark.parametrize(("steps", "directions"), [(1, 1), (65, 2), (300, 4)])
def test_the_kernel_computes_the_same_on_a_gpu(steps: int, directions: int) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU")
    try:
        scan = kernels.load_scan()
    except ImportError as error:
        pytest.skip(kernel_selection.missing(error))
    tensors = [t.detach().cuda().requires_grad_() for t in arguments(2, steps, directions, 32, 16, torch.float32)]
    y, expected = scan(*tensors), selective_scan(*tensors)
    torch.testing.assert_close(y, expected, atol=1e-3, rtol=1e-3)
    upstream = torch.randn_like(y)
    pairs = zip(
        torch.autograd.grad(y, tensors, upstream), torch.autograd.grad(expected, tensors, upstream), strict=True
    )
    for mine, other in pairs:
        torch.testing.assert_close(mine, other, atol=1e-2 * float(other.abs().max()), rtol=1e-2)
