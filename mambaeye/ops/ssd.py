"""The SSD recurrence of Mamba2 in plain torch: chunked matrix form, with carried state.

For every head, with a scalar decay a_t = exp(dt_t * A) in (0, 1]:

    h_t = a_t h_{t-1} + dt_t x_t B_t^T        state, (P, N)
    y_t = h_t C_t + D x_t                     output, (P,)

Within a chunk of Q steps this is a masked matrix product, like attention with the decay as its mask; between chunks
only the state is passed on (Dao and Gu 2024, "Transformers are SSMs", section 6). Work and memory grow linearly with T.

Shapes: B batch, T steps, H heads, P headdim, N d_state, Z chunks, Q steps a chunk. The chunked form keeps states as
(N, H * P), so that all heads, which share B and C, go through one matrix product.
"""

import math
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from mambaeye.ops.precision import exact_products

CHUNK = 64


def ssd(
    x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """Run the recurrence over T steps at once. All tensors of one floating dtype.

    Args:
        x: (B, T, H, P) inputs.
        dt: (B, T, H) positive step sizes, after softplus.
        A: (H,) negative.
        B: (B, T, N), shared by all heads.
        C: (B, T, N), shared by all heads.
        D: (H,) skip.
        state: (B, H, P, N), carried from the steps before.
        chunk: longest run of steps that is computed as one matrix product.

    Returns:
        y (B, T, H, P) and the state after the last step (B, H, P, N).
    """
    heads, headdim = x.shape[2:]
    inputs = (x * dt.unsqueeze(-1), dt * A, B, C)
    state = state.flatten(1, 2).transpose(1, 2)  # (B, N, H P)
    if torch.compiler.is_dynamo_compiling():
        y, state, *_ = recurrence(*inputs, state, chunk)
    else:
        chunked = (in_chunks(part, chunk) for part in inputs)
        y, state = _ChunkedRecurrence.apply(*chunked, state)  # type: ignore[no-untyped-call]
        y = y.flatten(1, 2)[:, : x.shape[1]]
    return torch.addcmul(y, x, D.unsqueeze(-1)), state.transpose(1, 2).unflatten(1, (heads, headdim))


def chunks_of(steps: int, chunk: int) -> tuple[int, int]:
    """Return how many chunks there are and how long they are, as even as can be: the least padding."""
    chunks = -(-steps // chunk)
    return chunks, -(-steps // chunks)


def in_chunks(part: Tensor, chunk: int) -> Tensor:
    """Return an argument of all steps (B, T, ...) as (B, Z, Q, ...).

    A padded step is zero: it neither decays (log decay 0) nor adds (input 0).
    """
    chunks, size = chunks_of(part.shape[1], chunk)
    if padding := chunks * size - part.shape[1]:
        part = F.pad(part, (0, 0) * (part.ndim - 2) + (0, padding))
    return part.reshape(part.shape[0], chunks, size, *part.shape[2:])


class _ChunkedRecurrence(torch.autograd.Function):
    """h_t = exp(l_t) h_{t-1} + B_t w_t^T and y_t = C_t^T h_t over chunks, with l the log decay and w = dt x.

    Write s_i for the sum of l up to step i of a chunk. Then, within one chunk that starts from state h,

        y_i = sum over j <= i of (C_i . B_j) exp(s_i - s_j) w_j  +  exp(s_i) C_i h.

    The backward pass is written out because s enters everything through exp alone: with g the gradient of y, and w'
    that of w, the gradient of s_i is  y_i . g_i - w_i . w'_i  plus what reaches it as the chunk's last s.
    """

    @staticmethod
    def forward(
        ctx: FunctionCtx, w: Tensor, log_decay: Tensor, B: Tensor, C: Tensor, state: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Run over w (B, Z, Q, H, P), log_decay (B, Z, Q, H), B, C (B, Z, Q, N) from state (B, N, H P)."""
        y, state, *kept = over_chunks(w, log_decay, B, C, state)
        ctx.save_for_backward(w, B, C, y, *kept)
        return y, state

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor, g_state: Tensor) -> tuple[Tensor, ...]:
        """Return the gradients of forward's arguments, from those of y and of the last state."""
        return gradients_of_chunks(g, g_state, *ctx.saved_tensors)


@exact_products()
def over_chunks(w: Tensor, log_decay: Tensor, B: Tensor, C: Tensor, state: Tensor) -> tuple[Tensor, ...]:
    """Return y and the last state, and what the backward pass needs besides: from_start ... between."""
    heads, headdim = w.shape[3:]
    s = log_decay.cumsum(2)  # (B, Z, Q, H)
    from_start = s.exp().unsqueeze(-1)  # (B, Z, Q, H, 1)
    until_end = (s[:, :, -1:] - s).exp_().unsqueeze(-1)  # (B, Z, Q, H, 1)
    through = from_start[:, :, -1].expand(-1, -1, -1, headdim).flatten(2).unsqueeze(2)  # (B, Z, 1, H P)

    added = B.transpose(2, 3) @ (w * until_end).flatten(3)  # (B, Z, N, H P)
    starts = torch.empty_like(added)  # the state at the start of each chunk
    for z in range(w.shape[1]):
        starts[:, z] = state
        state = torch.addcmul(added[:, z], through[:, z], state)

    by_head = s.transpose(2, 3).contiguous()  # (B, Z, H, Q)
    between = (by_head.unsqueeze(-1) - by_head.unsqueeze(-2)).exp_().tril_()  # (B, Z, H, Q, Q): exp(s_i - s_j)
    mixing = between * (C @ B.transpose(2, 3)).unsqueeze(2)
    within = (mixing @ w.transpose(2, 3)).transpose(2, 3)  # (B, Z, Q, H, P)
    y = torch.addcmul(within, (C @ starts).unflatten(3, (heads, headdim)), from_start)
    return y, state, from_start, until_end, through, starts, between


@exact_products()
def gradients_of_chunks(
    g: Tensor,
    g_state: Tensor,
    w: Tensor,
    B: Tensor,
    C: Tensor,
    y: Tensor,
    from_start: Tensor,
    until_end: Tensor,
    through: Tensor,
    starts: Tensor,
    between: Tensor,
) -> tuple[Tensor, ...]:
    """Return the gradients of over_chunks' arguments, from those of y and of the last state and what it returned."""
    heads, headdim = w.shape[3:]

    # Through the states, last chunk to first.
    g_from_start = (g * from_start).flatten(3)  # (B, Z, Q, H P)
    g_starts = C.transpose(2, 3) @ g_from_start  # (B, Z, N, H P)
    g_added = torch.empty_like(g_starts)
    for z in range(w.shape[1] - 1, -1, -1):
        g_added[:, z] = g_state
        g_state = torch.addcmul(g_starts[:, z], through[:, z], g_state)
    g_until_end = (B @ g_added).unflatten(3, (heads, headdim)) * until_end  # (B, Z, Q, H, P)
    g_end = (w * g_until_end).sum((2, 4))  # (B, Z, H)
    g_end += ((g_added * starts).sum(2, keepdim=True) * through).unflatten(3, (heads, headdim)).sum((2, 4))

    # Within the chunks.
    g_by_head, w_by_head = (t.transpose(2, 3).contiguous() for t in (g, w))  # (B, Z, H, Q, P)
    g_products = (g_by_head @ w_by_head.transpose(3, 4)).mul_(between).sum(2)  # (B, Z, Q, Q): of C_i . B_j
    mixing = between * (C @ B.transpose(2, 3)).unsqueeze(2)
    g_w = g_until_end.add_((mixing.transpose(3, 4) @ g_by_head).transpose(2, 3))

    g_B = (w * until_end).flatten(3) @ g_added.transpose(2, 3) + g_products.transpose(2, 3) @ C
    g_C = g_from_start @ starts.transpose(2, 3) + g_products @ B
    g_s = (y * g).sum(4) - (w * g_w).sum(4)  # (B, Z, Q, H)
    g_s[:, :, -1] += g_end
    g_log_decay = g_s.flip(2).cumsum(2).flip(2)
    return g_w, g_log_decay, g_B, g_C, g_state


@torch.library.custom_op("mambaeye::recurrence", mutates_args=())
def recurrence(
    w: Tensor, log_decay: Tensor, B: Tensor, C: Tensor, state: Tensor, chunk: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Run over all steps as one operation, for what is compiled: it would unroll the chunks, anew for every T.

    Args:
        w: (B, T, H, P).
        log_decay: (B, T, H).
        B: (B, T, N).
        C: (B, T, N).
        state: (B, N, H P).
        chunk: as in ssd.

    Returns:
        y (B, T, H, P), the last state, and what over_chunks returns besides, each with a single axis: how many chunks
        there are is nothing that is compiled for.
    """
    of_w, of_decay, of_B, of_C = (in_chunks(part, chunk) for part in (w, log_decay, B, C))
    y, state, *kept = over_chunks(of_w, of_decay, of_B, of_C, state)
    y = y.flatten(1, 2)[:, : w.shape[1]].contiguous()
    return y, state.contiguous(), *(part.flatten() for part in kept)  # type: ignore[return-value]


def shapes_of_kept(w: Tensor, B: Tensor, chunk: int) -> list[tuple[int, ...]]:
    """Return the shapes of what over_chunks returns besides y and state, from w (B, T, H, P) and B (B, T, N)."""
    batch, steps, heads, headdim = w.shape
    chunks, size = chunks_of(steps, chunk)
    by_step, inner = (batch, chunks, size, heads, 1), heads * headdim
    of_states = [(batch, chunks, 1, inner), (batch, chunks, B.shape[2], inner)]
    return [by_step, by_step, *of_states, (batch, chunks, heads, size, size)]


@recurrence.register_fake
def _(w: Tensor, log_decay: Tensor, B: Tensor, C: Tensor, state: Tensor, chunk: int) -> tuple[Tensor, ...]:
    kept = (w.new_empty(math.prod(shape)) for shape in shapes_of_kept(w, B, chunk))
    return w.new_empty(w.shape), w.new_empty(state.shape), *kept


@torch.library.custom_op("mambaeye::recurrence_backward", mutates_args=())
def recurrence_backward(
    g: Tensor, g_state: Tensor, w: Tensor, B: Tensor, C: Tensor, y: Tensor, kept: list[Tensor], chunk: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of recurrence's tensors, from those of y and of the last state."""
    steps = w.shape[1]
    kept = [part.view(shape) for part, shape in zip(kept, shapes_of_kept(w, B, chunk), strict=True)]
    g, w, B, C, y = (in_chunks(part, chunk) for part in (g, w, B, C, y))
    *of_steps, g_state = gradients_of_chunks(g, g_state, w, B, C, y, *kept)
    return tuple(part.contiguous() for part in (*(p.flatten(1, 2)[:, :steps] for p in of_steps), g_state))  # type: ignore[return-value]


@recurrence_backward.register_fake
def _(
    g: Tensor, g_state: Tensor, w: Tensor, B: Tensor, C: Tensor, y: Tensor, kept: list[Tensor], chunk: int
) -> tuple[Tensor, ...]:
    return tuple(w.new_empty(shape) for shape in (w.shape, w.shape[:3], B.shape, C.shape, g_state.shape))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    w, _, B, C, _, ctx.chunk = inputs
    y, _, *kept = output
    ctx.save_for_backward(w, B, C, y, *kept)


def _backward(ctx: Any, g: Tensor, g_state: Tensor, *of_kept: Tensor) -> tuple[Tensor | None, ...]:
    w, B, C, y, *kept = ctx.saved_tensors
    return (*recurrence_backward(g, g_state, w, B, C, y, kept, ctx.chunk), None)


recurrence.register_autograd(_backward, setup_context=_keep)


def ssd_step(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Take one step: x (B, H, P), dt (B, H), B and C (B, N), state (B, H, P, N) -> y (B, H, P) and the next state."""
    decay = torch.exp(dt * A)[..., None, None]  # (B, H, 1, 1)
    added = (x * dt.unsqueeze(-1)).unsqueeze(-1) * B[:, None, None]  # (B, H, P, N)
    state = torch.addcmul(added, decay, state)
    with nullcontext() if torch.compiler.is_compiling() else exact_products():  # what is compiled knows no context
        y = (state @ C[:, None, :, None]).squeeze(-1)  # (B, H, P)
    return torch.addcmul(y, x, D.unsqueeze(-1)), state
