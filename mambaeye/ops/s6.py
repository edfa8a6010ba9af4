"""The selective scan of Mamba-1 (S6) in plain torch: chunked, with few states kept for the backward pass.

For every channel e, with N state values n and a decay of their own for each (Gu and Dao 2023, "Mamba", section 3):

    h_t[e, n] = exp(dt_t[e] A[e, n]) h_{t-1}[e, n] + dt_t[e] x_t[e] B_t[n]
    y_t[e] = sum over n of h_t[e, n] C_t[n] + D[e] x_t[e]

Unlike Mamba-2's, the decay is no number a head, so a chunk is no matrix product: states are computed one by one. They
are E N values a step, and only those between chunks are kept; the backward pass computes those within a chunk again.
So its memory grows with L / chunk + chunk states, and not with L.

Shapes: B batch, L steps, K directions (sequences with parameters of their own), E channels, N state values; b images
and Q steps at once.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from mambaeye.ops.precision import exact_products

AT_ONCE = 2**19  # values of a buffer: more are slower where they leave a processor's cache
COMPILED_CHUNK = 16  # of all lengths: a square root is nothing that is compiled for
LOG2_E = math.log2(math.e)  # exp2 is several times as fast as exp on some processors


def selective_scan(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, chunk: int | None = None
) -> Tensor:
    """Run the recurrence over L steps from a state of zeros. All tensors of one floating dtype.

    Args:
        x: (B, L, K, E) inputs.
        dt: (B, L, K, E) positive step sizes, after softplus.
        A: (K, E, N) negative.
        B: (B, L, K, N), shared by all channels of a direction.
        C: (B, L, K, N), likewise.
        D: (K, E) skip.
        chunk: steps between states that are kept; by default the square root of L, which takes the least memory.

    Returns:
        y (B, L, K, E).
    """
    if torch.compiler.is_dynamo_compiling():
        y, _ = scan(x, dt, A, B, C, chunk or COMPILED_CHUNK)
    else:
        y = _SelectiveScan.apply(x, dt, A, B, C, chunk or max(1, math.isqrt(x.shape[1])))  # type: ignore[no-untyped-call]
    return torch.addcmul(y, x, D)


class Steps(NamedTuple):
    """Arguments of some images and steps, time first: all that the recurrence does there is contiguous."""

    x: Tensor
    """(Q, b, K, E)."""
    dt: Tensor
    """(Q, b, K, E)."""
    B: Tensor
    """(Q, b, K, N)."""
    C: Tensor
    """(Q, b, K, N)."""


class _SelectiveScan(torch.autograd.Function):
    """y without its skip. States are (b, K, N, E), channels last, where operations run over the longest axis."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk: int) -> Tensor:
        """Run over x, dt (B, L, K, E), B, C (B, L, K, N) with A (K, E, N)."""
        y, starts = over_chunks(x, dt, A, B, C, chunk)
        ctx.save_for_backward(x, dt, A, B, C, starts)
        ctx.chunk = chunk  # type: ignore[attr-defined]
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of forward's arguments."""
        x, dt, A, B, C, starts = ctx.saved_tensors
        return *gradients_of_chunks(g, x, dt, A, B, C, starts, ctx.chunk), None


@exact_products()
def over_chunks(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """Return y, and the state at the start of each chunk (Z, B, K, N, E)."""
    batch, length = x.shape[:2]
    rates = A.transpose(1, 2).contiguous()  # (K, N, E)
    y = torch.empty_like(x)
    starts = x.new_zeros(-(-length // chunk), batch, *rates.shape)  # the state at the start of each chunk
    for rows in runs(batch, images_at_once(x, rates, chunk)):
        for z, at in enumerate(runs(length, chunk)):
            steps = Steps(*(t[rows, at].transpose(0, 1) for t in (x, dt, B, C)))
            _, states = recur(steps, rates, starts[z, rows])
            y[rows, at] = (steps.C.unsqueeze(-2) @ states[1:]).squeeze(-2).transpose(0, 1)
            if z + 1 < len(starts):
                starts[z + 1, rows] = states[-1]
    return y, starts


@exact_products()
def gradients_of_chunks(
    g: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, starts: Tensor, chunk: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of over_chunks' tensors.

    l_t = C_t g_t + exp(dt_{t+1} A) l_{t+1} reaches the state h_t, and l_t exp(dt_t A) h_{t-1} the product dt_t A.
    """
    rates = A.transpose(1, 2).contiguous()  # (K, N, E)
    batch, length = x.shape[:2]
    g_x, g_dt, g_B, g_C = (torch.empty_like(t) for t in (x, dt, B, C))
    g_rates = torch.zeros_like(rates)
    for rows in runs(batch, images_at_once(x, rates, chunk)):
        later: Tensor | None = None  # exp(dt A) l of the step after the chunk
        for z, at in reversed([*enumerate(runs(length, chunk))]):
            steps = Steps(*(t[rows, at].transpose(0, 1) for t in (x, dt, B, C)))
            decay, states = recur(steps, rates, starts[z, rows])
            g_y = g[rows, at].transpose(0, 1).unsqueeze(-2)  # (Q, b, K, 1, E)
            reaching = steps.C.unsqueeze(-1) * g_y  # l, (Q, b, K, N, E)
            if later is not None:
                reaching[-1] += later
            for q in range(len(reaching) - 1, 0, -1):
                reaching[q - 1].addcmul_(decay[q], reaching[q])
            # rows from the left: a product with a column from the right takes many times as long
            g_C[rows, at] = (g_y @ states[1:].transpose(-1, -2)).squeeze(-2).transpose(0, 1)
            entered = (steps.dt * steps.x).unsqueeze(-2)  # (Q, b, K, 1, E)
            g_B[rows, at] = (entered @ reaching.transpose(-1, -2)).squeeze(-2).transpose(0, 1)
            g_entered = (steps.B.unsqueeze(-2) @ reaching).squeeze(-2)  # (Q, b, K, E)
            g_x[rows, at] = (g_entered * steps.dt).transpose(0, 1)
            reaching *= decay
            later = reaching[0].clone()
            reaching *= states[:-1]  # now the gradient of dt A
            g_dt[rows, at] = torch.addcmul((reaching * rates).sum(-2), g_entered, steps.x).transpose(0, 1)
            g_rates += reaching.mul_(steps.dt.unsqueeze(-2)).sum((0, 1))
    return g_x, g_dt, g_rates.transpose(1, 2), g_B, g_C


@torch.library.custom_op("mambaeye::selective_scan", mutates_args=())
def scan(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """Run over all steps as one operation, for what is compiled; results as over_chunks', contiguous."""
    y, starts = over_chunks(x.contiguous(), dt.contiguous(), A, B, C, chunk)
    return y, starts


@scan.register_fake
def _(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    directions, inner, state = A.shape
    chunks = -(-x.shape[1] // chunk)
    return x.new_empty(x.shape), x.new_empty(chunks, x.shape[0], directions, state, inner)


@torch.library.custom_op("mambaeye::selective_scan_backward", mutates_args=())
def scan_backward(
    g: Tensor, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, starts: Tensor, chunk: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of scan's tensors."""
    g, x, dt, A, B, C = (part.contiguous() for part in (g, x, dt, A, B, C))
    gradients = gradients_of_chunks(g, x, dt, A, B, C, starts, chunk)
    return tuple(part.contiguous() for part in gradients)  # type: ignore[return-value]


@scan_backward.register_fake
def _(g: Tensor, *tensors: Any) -> tuple[Tensor, ...]:
    return tuple(part.new_empty(part.shape) for part in tensors[:5])


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.chunk = inputs
    ctx.save_for_backward(*tensors, output[1])


def _backward(ctx: Any, g: Tensor, g_starts: Tensor) -> tuple[Tensor | None, ...]:
    return *scan_backward(g, *ctx.saved_tensors, ctx.chunk), None


scan.register_autograd(_backward, setup_context=_keep)


def recur(steps: Steps, rates: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Return the decays (Q, b, K, N, E), and the states before, within and after these steps (Q + 1, b, K, N, E).

    Args:
        steps: x, dt, B and C.
        rates: A as (K, N, E).
        start: (b, K, N, E), the state before.
    """
    decay = torch.mul(steps.dt.unsqueeze(-2), rates * LOG2_E).exp2_()
    states = decay.new_empty(len(decay) + 1, *start.shape)
    states[0] = start
    torch.mul((steps.dt * steps.x).unsqueeze(-2), steps.B.unsqueeze(-1), out=states[1:])
    for before, factor, state in zip(states[:-1].unbind(), decay.unbind(), states[1:].unbind(), strict=True):
        state.addcmul_(factor, before)
    return decay, states


def images_at_once(x: Tensor, rates: Tensor, chunk: int) -> int:
    """Return how many images go through one operation: on a GPU all of them."""
    if x.device.type != "cpu":
        return max(1, len(x))
    return max(1, AT_ONCE // max(1, chunk * rates.numel()))


def runs(total: int, length: int) -> Iterator[slice]:
    """Yield 0 .. total in runs of a length, the last one shorter."""
    return (slice(first, min(first + length, total)) for first in range(0, total, length))
