"""The chunked recurrence against the naive one, step by step in float64."""

import pytest
import torch
from torch import Tensor

from mambaeye.ops.mamba2 import Mamba2, MixerState
from mambaeye.ops.ssd import ssd, ssd_step


def arguments(batch: int, steps: int, heads: int, headdim: int, d_state: int, decay: float = 3.0) -> list[Tensor]:
    """Random x, dt, A, B, C, D and state in float64 that want gradients."""
    torch.manual_seed(steps)
    shapes = [(batch, steps, heads, headdim), (batch, steps, heads), (heads,), *[(batch, steps, d_state)] * 2, (heads,)]
    x, dt, A, B, C, D = (torch.randn(shape, dtype=torch.float64) for shape in shapes)
    state = torch.randn(batch, heads, headdim, d_state, dtype=torch.float64)
    return [t.requires_grad_() for t in (x, dt.abs().detach(), (-decay * A.abs()).detach(), B, C, D, state)]


def naive(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """The definition, one step after another, with einsum."""
    outputs = []
    for t in range(x.shape[1]):
        decay = torch.exp(dt[:, t] * A)
        state = state * decay[..., None, None] + torch.einsum("bh,bhp,bn->bhpn", dt[:, t], x[:, t], B[:, t])
        outputs.append(torch.einsum("bhpn,bn->bhp", state, C[:, t]) + D[:, None] * x[:, t])
    return torch.stack(outputs, dim=1), state


@pytest.mark.parametrize(
    ("steps", "chunk"), [(1, 64), (2, 64), (63, 64), (64, 64), (65, 64), (130, 64), (7, 3), (8, 1), (5, 100)]
)
def test_values_and_gradients_are_the_naive_recurrence(steps: int, chunk: int) -> None:
    inputs = arguments(2, steps, 3, 4, 5)
    results, expected = ssd(*inputs, chunk=chunk), naive(*inputs)
    weights = [torch.randn_like(t) for t in expected]
    gradients = torch.autograd.grad(results, inputs, weights)
    torch.testing.assert_close(results, expected, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(gradients, torch.autograd.grad(expected, inputs, weights), atol=1e-9, rtol=1e-9)


def test_gradients_by_finite_differences() -> None:
    assert torch.autograd.gradcheck(lambda *inputs: ssd(*inputs, chunk=3), arguments(1, 5, 2, 2, 3))


def test_gradient_when_only_the_state_or_only_the_output_matters() -> None:
    inputs = arguments(2, 9, 2, 3, 4)
    for kept in (0, 1):
        gradients = torch.autograd.grad(ssd(*inputs, chunk=4)[kept].sum(), inputs, allow_unused=True)
        expected = torch.autograd.grad(naive(*inputs)[kept].sum(), inputs, allow_unused=True)
        for got, want in zip(gradients, expected, strict=True):
            torch.testing.assert_close(torch.zeros(()) if got is None else got.sum().float(),
                                       torch.zeros(()) if want is None else want.sum().float())  # fmt: skip


def test_strong_decay_neither_overflows_nor_hides_the_present() -> None:
    """exp(s_i - s_j) for j > i overflows in float32; the mask must win over infinity."""
    inputs = [t.detach().float().requires_grad_() for t in arguments(1, 64, 2, 4, 4, decay=1e4)]
    y, state = ssd(*inputs)
    expected, _ = naive(*[t.detach().double() for t in inputs])
    torch.testing.assert_close(y.double(), expected, atol=1e-4, rtol=1e-4)
    gradients = torch.autograd.grad(y.sum() + state.sum(), inputs)
    assert all(g.isfinite().all() for g in gradients)


def test_one_step_is_the_naive_step() -> None:
    x, dt, A, B, C, D, state = arguments(2, 1, 3, 4, 5)
    y, after = ssd_step(x[:, 0], dt[:, 0], A, B[:, 0], C[:, 0], D, state)
    expected, expected_after = naive(x, dt, A, B, C, D, state)
    torch.testing.assert_close((y, after), (expected[:, 0], expected_after))


@pytest.mark.parametrize("chunk_of", [1, 4, 9])
def test_padding_behind_the_steps_that_count_changes_neither_outputs_nor_state(chunk_of: int) -> None:
    torch.manual_seed(0)
    mixer = Mamba2(16, 8, 4, 2, 8).double()
    lengths = torch.tensor([0, 1, 2, 5, 9]).clamp(max=chunk_of)
    before = MixerState(*(torch.randn_like(part) for part in mixer.initial_state(5)))
    u = torch.randn(5, chunk_of, 16, dtype=torch.float64)
    y, after = mixer(u, before, lengths)
    for row, length in enumerate(lengths.tolist()):
        state = MixerState(*(part[row : row + 1] for part in before))
        if length:
            alone, state = mixer(u[row : row + 1, :length], state)
            torch.testing.assert_close(y[row, :length], alone[0])
        for padded, alone in zip(after, state, strict=True):
            torch.testing.assert_close(padded[row : row + 1], alone)
    assert all(torch.autograd.grad(y[0].sum(), mixer.in_proj.weight)[0].isfinite().flatten())
