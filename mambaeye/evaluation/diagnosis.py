"""Diagnosis of an encoder's states: how large they are, how fast they change, and how long they remember.

Shapes: B images, T glimpses, L layers, H heads, P and N the sides of a head's state.
"""

from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from mambaeye.encoders.base import Encoder, State
from mambaeye.errors import InputError
from mambaeye.rollout import Rollout


@runtime_checkable
class RecurrentEncoder(Protocol):
    """An encoder whose states can be looked into: h_t = exp(dt A) h_{t-1} + what glimpse t writes, head by head."""

    def recurrent_states(self, state: State) -> Tensor:
        """Return h of all layers: (B, L, H, P, N)."""

    def record_log_decays(self) -> AbstractContextManager[list[Tensor]]:
        """Yield a list that grows by (B, H) log decays dt A whenever a layer takes one glimpse, first layer first."""


class Diagnosis(NamedTuple):
    """Numbers of every image, glimpse and layer, on the CPU, in the dtype of the states.

    With h the state of a layer and a = exp(dt A) its decay, head by head: h_t = a_t h_{t-1} + what glimpse t writes.
    Norms are over all heads of a layer.
    """

    norm: Tensor
    """(B, T, L): |h_t|."""
    change: Tensor
    """(B, T, L): |h_t - h_{t-1}| / |h_t|; 1 at the first glimpse, NaN while the state is zero."""
    written: Tensor
    """(B, T, L): |h_t - a_t h_{t-1}|."""
    decay: Tensor
    """(B, T, L, H): a_t, between 0 (forget everything) and 1 (forget nothing)."""
    left: Tensor
    """(B, T, L, H): what share of what glimpse t wrote is left after the last one: the product of the decays since."""
    positions: Tensor
    """(B, T, K): where the glimpses were."""


def require_recurrent(encoder: Encoder) -> RecurrentEncoder:
    """Return the encoder as what it must be to be diagnosed.

    Raises:
        InputError: it has no recurrent states.
    """
    if not isinstance(encoder, RecurrentEncoder):
        raise InputError(f"{type(encoder).__name__} has no recurrent states to diagnose: set --diagnosis.images 0")
    return encoder


@torch.no_grad()
def diagnose(walk: Rollout) -> Diagnosis:
    """Walk to the end, glimpse by glimpse, on whatever kernels the encoder runs; no state is kept but the last two.

    Args:
        walk: a rollout that takes one glimpse at a time, not begun yet.

    Raises:
        InputError: the encoder has no recurrent states.
    """
    encoder = require_recurrent(walk.encoder)
    assert walk.at_once == 1
    norms, changes, writings, log_decays, positions = [], [], [], [], []
    before: Tensor | None = None
    with encoder.record_log_decays() as recorded:
        for step in walk:
            after = encoder.recurrent_states(step.state)  # (B, L, H, P, N)
            before = torch.zeros_like(after) if before is None else before
            log_decay = torch.stack(recorded, dim=1).to(after.dtype)  # (B, L, H)
            recorded.clear()
            norm = size(after)
            norms.append(norm)
            changes.append(size(after - before) / norm)
            writings.append(size(after - log_decay.exp()[..., None, None] * before))
            log_decays.append(log_decay)
            positions.append(step.positions)
            before = after
    norm, change, written, log_decay = (
        torch.stack(steps, dim=1).cpu() for steps in (norms, changes, writings, log_decays)
    )
    since = log_decay.double().flip(1).cumsum(1).flip(1) - log_decay  # the steps after each
    left = since.exp().to(norm.dtype)
    return Diagnosis(norm, change, written, log_decay.exp(), left, torch.cat(positions, dim=1).cpu())


def size(state: Tensor) -> Tensor:
    """Return the norm of every layer's part: (B, L, H, P, N) -> (B, L)."""
    return torch.linalg.vector_norm(state, dim=(2, 3, 4))
