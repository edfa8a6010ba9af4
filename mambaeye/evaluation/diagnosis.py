"""What glimpses do to the encoder's states: how large they are, how fast they change, and how long they remember.

Shapes: B images, T glimpses, L layers, H heads.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mambaeye.encoders.mambaeye import MambaEye
from mambaeye.ops.mamba2 import Mamba2


class Diagnosis(NamedTuple):
    """Numbers of every image, glimpse and layer, on the CPU, in the dtype of the SSM states.

    With h the SSM state of a layer and a = exp(dt A) its decay, head by head: h_t = a_t h_{t-1} + what glimpse t
    writes. Norms are over all heads of a layer.
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


@torch.no_grad()
def diagnose(encoder: MambaEye, patches: Tensor, positions: Tensor) -> Diagnosis:
    """Glimpse by glimpse, on whatever kernels the encoder runs: no state is kept but the last two.

    Args:
        patches: (B, T, 3, P, P) RGB, uint8 or floating in [0, 1].
        positions: (B, T, 2) integers, (row, col).

    Raises:
        InputError: shapes or dtypes are others than the encoder's.
    """
    state = encoder.initial_state(len(patches))
    norms, changes, writings, log_decays = [], [], [], []
    with listening(encoder) as heard:
        for step in range(positions.shape[1]):
            before = state.ssm  # (B, L, H, P, N)
            _, state = encoder.stream(patches[:, step : step + 1], positions[:, step : step + 1], state)
            log_decay = torch.stack(heard, dim=1).to(before.dtype)  # (B, L, H)
            heard.clear()
            norm = size(state.ssm)
            norms.append(norm)
            changes.append(size(state.ssm - before) / norm)
            writings.append(size(state.ssm - log_decay.exp()[..., None, None] * before))
            log_decays.append(log_decay)
    norm, change, written, log_decay = (
        torch.stack(steps, dim=1).cpu() for steps in (norms, changes, writings, log_decays)
    )
    since = log_decay.double().flip(1).cumsum(1).flip(1) - log_decay  # the steps after each
    return Diagnosis(norm, change, written, log_decay.exp(), since.exp().to(norm.dtype))


def size(state: Tensor) -> Tensor:
    """The norm of every layer's part: (B, L, H, P, N) -> (B, L)."""
    return torch.linalg.vector_norm(state, dim=(2, 3, 4))


@contextmanager
def listening(encoder: MambaEye) -> Iterator[list[Tensor]]:
    """A list that grows by (B, H) log decays dt A whenever a layer has taken one glimpse, first layer first."""
    heard: list[Tensor] = []
    hooks = []
    for block in encoder.blocks:
        mixer = block.mixer

        def hear(module: torch.nn.Module, inputs: tuple[Tensor], projected: Tensor, mixer: Mamba2 = mixer) -> None:
            dt = projected[:, 0, -mixer.heads :]  # (B, H), the last columns of (z, x, B, C, dt)
            wide = torch.promote_types(mixer.A_log.dtype, torch.float32)
            heard.append(F.softplus(dt.to(wide) + mixer.dt_bias) * -mixer.A_log.to(wide).exp())

        hooks.append(mixer.in_proj.register_forward_hook(hear))
    try:
        yield heard
    finally:
        for hook in hooks:
            hook.remove()
