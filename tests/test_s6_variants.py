"""VideoMambaPro's changes to the selective scan against recurrences step by step, in float64."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_s6 import arguments
from torch import Tensor

from mambaeye.ops.s6 import selective_scan
from mambaeye.ops.s6_block import S6Mixer, both_ways
from mambaeye.ops.s6_variants import from_first_input, without_own

OPTIONS = [(masked, residual) for masked in (False, True) for residual in (False, True)]


def step_by_step(tensors: list[Tensor], masked: list[int], residual: bool) -> Tensor:
    """One direction and step after the other, from x, dt, A, B, C and D as selective_scan takes them."""
    x, dt, A, B, C, D = tensors
    sequences = []
    for k in range(x.shape[2]):
        state = torch.zeros_like(x[:, 0, k]).unsqueeze(-1).expand(-1, -1, A.shape[-1])  # (B, E, N)
        if residual:
            state = x[:, 0, k].unsqueeze(-1).expand_as(state)
        steps = []
        for t in range(x.shape[1]):
            carried = (dt[:, t, k].unsqueeze(-1) * A[k]).exp() * state
            state = carried + (dt[:, t, k] * x[:, t, k]).unsqueeze(-1) * B[:, t, k].unsqueeze(1)
            read = carried if k in masked else state
            steps.append((read * C[:, t, k].unsqueeze(1)).sum(-1) + D[k] * x[:, t, k])
        sequences.append(torch.stack(steps, dim=1))
    return torch.stack(sequences, dim=2)


@settings(deadline=None, max_examples=30)
@given(
    batch=st.integers(1, 2),
    steps=st.integers(1, 12),
    directions=st.integers(1, 3),
    chunk=st.none() | st.integers(1, 5),
    residual=st.booleans(),
    data=st.data(),
)
def test_values_and_gradients_are_those_of_the_recurrence(
    batch: int, steps: int, directions: int, chunk: int | None, residual: bool, data: st.DataObject
) -> None:
    masked = data.draw(st.lists(st.integers(0, directions - 1), unique=True))
    tensors = arguments(batch, steps, directions, 3, 2)

    def scan(*given_tensors: Tensor) -> Tensor:
        return selective_scan(*given_tensors, chunk=chunk)

    x, dt, A, B, C, D = tensors
    y = without_own((from_first_input(scan) if residual else scan)(x, dt, A, B, C, D), x, dt, B, C, masked)
    expected = step_by_step(tensors, masked, residual)
    torch.testing.assert_close(y, expected, atol=1e-11, rtol=1e-9)
    upstream = torch.cos(torch.arange(y.numel(), dtype=y.dtype)).view_as(y)
    pairs = zip(
        torch.autograd.grad(y, tensors, upstream),
        torch.autograd.grad(expected, tensors, upstream, allow_unused=True, materialize_grads=True),
        strict=True,
    )
    for mine, other in pairs:
        torch.testing.assert_close(mine, other, atol=1e-10, rtol=1e-8)


def test_a_masked_step_reads_of_its_own_input_the_skip_alone() -> None:
    """And of those before it all. The state's start reaches all steps, the first one too."""
    x, dt, A, B, C, D = (t.detach() for t in arguments(1, 6, 1, 3, 2))
    changed = x.clone()
    changed[:, 3] += 1
    before, after = (
        without_own(selective_scan(inputs, dt, A, B, C, D), inputs, dt, B, C, [0]) for inputs in (x, changed)
    )
    moved = after - before
    torch.testing.assert_close(moved[:, 3], D.expand_as(moved[:, 3]))
    assert moved[:, :3].abs().max() < 1e-12
    assert moved[:, 4:].abs().min() > 0
    torch.testing.assert_close(before[:, 0], D * x[:, 0])
    started = from_first_input(selective_scan)(x, dt, A, B, C, D)
    assert (started - selective_scan(x, dt, A, B, C, D)).abs().min() > 0


def mixed(mixer: S6Mixer, u: Tensor, masked: bool, residual: bool) -> Tensor:
    """A mixer's output by the equations, one direction of the sequence after the other."""
    x, z = (u @ mixer.in_proj.weight.T).chunk(2, dim=-1)
    rank, state, _ = mixer.sizes
    total = torch.zeros_like(x)
    for k, backwards in enumerate((False, True)):
        way = x.flip(1) if backwards else x
        taps = mixer.conv_weight.shape[-1]
        padded = F.pad(way, (0, 0, taps - 1, 0))
        way = sum(padded[:, w : w + way.shape[1]] * mixer.conv_weight[k, :, w] for w in range(taps))
        way = F.silu(way + mixer.conv_bias[k])
        dt, B, C = (way @ mixer.x_proj[k].T).split((rank, state, state), dim=-1)
        dt = F.softplus(dt @ mixer.dt_weight[k].T + mixer.dt_bias[k])
        one = [t.unsqueeze(2) for t in (way, dt)]
        tensors = [*one, -mixer.A_log[k : k + 1].exp(), B.unsqueeze(2), C.unsqueeze(2), mixer.D[k : k + 1]]
        y = step_by_step(tensors, [0] if masked and backwards else [], residual)[:, :, 0]
        total = total + (y.flip(1) if backwards else y)
    return (total * F.silu(z)) @ mixer.out_proj.weight.T


@pytest.mark.parametrize(("masked", "residual"), OPTIONS)
@torch.no_grad()
def test_a_mixer_adds_both_ways_as_the_equations_say(masked: bool, residual: bool) -> None:
    torch.manual_seed(0)
    backwards = (1,) if masked else ()
    mixer = S6Mixer(8, 2, 1, d_state=3, divide=False, masked=backwards, residual_state=residual).double()
    u = torch.randn(2, 7, 8, dtype=torch.float64)
    torch.testing.assert_close(mixer(u, both_ways(7)), mixed(mixer, u, masked, residual))


@pytest.mark.parametrize(("masked", "residual"), OPTIONS)
@torch.no_grad()
def test_float32_stays_near_float64_over_a_thousand_steps(masked: bool, residual: bool) -> None:
    tensors = [t.detach() for t in arguments(1, 1000, 1, 4, 8)]
    narrow = [t.float() for t in tensors]
    scan = from_first_input(selective_scan) if residual else selective_scan
    y = scan(*narrow)
    if masked:
        y = without_own(y, narrow[0], narrow[1], narrow[3], narrow[4], [0])
    expected = step_by_step(tensors, [0] if masked else [], residual)
    torch.testing.assert_close(y.double(), expected, atol=1e-4, rtol=1e-4)


def test_four_combinations_are_four_mixers() -> None:
    torch.manual_seed(0)
    state = S6Mixer(8, 2, 1, d_state=3).state_dict()
    u, outputs = torch.randn(1, 5, 8), []
    for masked, residual in OPTIONS:
        mixer = S6Mixer(8, 2, 1, d_state=3, masked=(1,) if masked else (), residual_state=residual)
        mixer.load_state_dict(state)
        outputs.append(mixer(u, both_ways(5)))
    for i, one in enumerate(outputs):
        assert not any(one.allclose(other) for other in outputs[:i])
