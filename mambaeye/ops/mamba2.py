"""The Mamba2 mixer: projection, short causal convolution, SSD recurrence, gated norm, projection.

Shapes: B batch, T steps, D model width, I inner width, H heads, P headdim, N d_state, W d_conv; X = I + 2 N channels
pass through the convolution.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambaeye.errors import InputError
from mambaeye.ops.precision import no_autocast, wide
from mambaeye.ops.ssd import ssd, ssd_step

DT_MIN, DT_MAX = 0.001, 0.1
A_MIN, A_MAX = 1.0, 16.0


class MixerState(NamedTuple):
    """State that one mixer carries from glimpse to glimpse; its size does not depend on how much was seen."""

    conv: Tensor
    """(B, X, W - 1): the last inputs of the convolution."""
    ssm: Tensor
    """(B, H, P, N): the state of the recurrence, in float32 or wider."""


class Mamba2(nn.Module):
    """Mamba2 with one group of B and C (Dao and Gu 2024, section 7), strictly causal.

    Args:
        dim: model width D.
        d_state: N, state values a channel.
        d_conv: W, taps of the causal convolution.
        expand: inner width as a multiple of dim.
        headdim: P, channels a head; divides expand * dim.
    """

    def __init__(self, dim: int, d_state: int, d_conv: int, expand: int, headdim: int) -> None:
        super().__init__()
        self.d_state, self.d_conv, self.headdim = d_state, d_conv, headdim
        self.inner = expand * dim
        self.heads = self.inner // headdim
        self.channels = self.inner + 2 * d_state
        self.in_proj = nn.Linear(dim, self.inner + self.channels + self.heads, bias=False)  # z, (x, B, C), dt
        self.conv1d = nn.Conv1d(self.channels, self.channels, d_conv, groups=self.channels)
        self.dt_bias = nn.Parameter(torch.empty(self.heads))
        self.A_log = nn.Parameter(torch.empty(self.heads))
        self.D = nn.Parameter(torch.empty(self.heads))
        self.norm = nn.RMSNorm(self.inner, eps=1e-5)
        self.out_proj = nn.Linear(self.inner, dim, bias=False)
        self.reset_recurrence()

    @torch.no_grad()
    def reset_recurrence(self) -> None:
        """Initialise as Mamba2 does: step sizes log-uniform in [0.001, 0.1], A uniform in [1, 16], D one."""
        dt = torch.empty_like(self.dt_bias).uniform_(math.log(DT_MIN), math.log(DT_MAX)).exp()
        self.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus
        self.A_log.uniform_(A_MIN, A_MAX).log_()
        self.D.fill_(1.0)

    def initial_state(self, batch_size: int) -> MixerState:
        """Return the state before anything was seen: zeros."""
        weight = self.in_proj.weight
        return MixerState(
            weight.new_zeros(batch_size, self.channels, self.d_conv - 1),
            weight.new_zeros(batch_size, self.heads, self.headdim, self.d_state, dtype=wide(weight.dtype)),
        )

    def forward(self, u: Tensor, state: MixerState | None, lengths: Tensor | None = None) -> tuple[Tensor, MixerState]:
        """Mix T steps.

        Args:
            u: (B, T, D).
            state: before them; None if nothing was seen.
            lengths: (B,) int64, the steps that count of each; the others are padding. None if all do.

        Returns:
            (B, T, D), and the state after the steps that count.
        """
        if state is None:
            state = self.initial_state(u.shape[0])
        z, xbc, dt = self.in_proj(u).split((self.inner, self.channels, self.heads), dim=-1)
        if lengths is not None:
            dt = without_padding(dt, lengths)
        inputs = xbc
        xbc, conv = causal_conv(xbc, self.conv1d.weight, self.conv1d.bias, state.conv)
        if lengths is not None:
            conv = last_inputs(inputs, state.conv, lengths)
        y, ssm = self.recurrence(F.silu(xbc), dt, state.ssm)
        y = self.norm((y * F.silu(z)).to(self.norm.weight.dtype))
        return self.out_proj(y), MixerState(conv.to(state.conv.dtype), ssm)

    def recurrence(self, xbc: Tensor, dt: Tensor, ssm: Tensor) -> tuple[Tensor, Tensor]:
        """Run the SSD over (x, B, C), in float32 or wider whatever the autocast: (B, T, I) and the new state."""
        with no_autocast(xbc.device):
            x, B, C = xbc.to(ssm.dtype).split((self.inner, self.d_state, self.d_state), dim=-1)
            x = x.unflatten(-1, (self.heads, self.headdim))  # (B, T, H, P)
            dt = F.softplus(dt.to(ssm.dtype) + self.dt_bias)  # (B, T, H)
            A = -self.A_log.to(ssm.dtype).exp()
            D = self.D.to(ssm.dtype)
            if x.shape[1] == 1:
                y, ssm = ssd_step(x[:, 0], dt[:, 0], A, B[:, 0], C[:, 0], D, ssm)
                return y.flatten(1).unsqueeze(1), ssm
            y, ssm = ssd(x, dt, A, B, C, D, ssm)
            return y.flatten(2), ssm


def without_padding(dt: Tensor, lengths: Tensor) -> Tensor:
    """Return step sizes before softplus, (B, T, H), such that steps from the lengths (B,) on leave the state alone."""
    padding = torch.arange(dt.shape[1], device=dt.device) >= lengths[:, None]
    return dt.masked_fill(padding.unsqueeze(-1), -math.inf)


def last_inputs(x: Tensor, before: Tensor, lengths: Tensor) -> Tensor:
    """Return the last W - 1 inputs of the convolution of the steps that count, (B, X, W - 1), in the dtype of before.

    Args:
        x: (B, T, X).
        before: (B, X, W - 1), the inputs before x.
        lengths: (B,), how many of the T count.
    """
    together = torch.cat((before, x.transpose(1, 2).to(before.dtype)), dim=2)  # (B, X, W - 1 + T)
    places = lengths[:, None, None] + torch.arange(before.shape[2], device=x.device)  # (B, 1, W - 1)
    return together.gather(2, places.expand(-1, x.shape[2], -1))


def require_mixer(inner: int, headdim: int, d_conv: int) -> None:
    """Require sizes that a mixer can have.

    Args:
        inner: expand * dim.
        headdim: channels a head; must divide it.
        d_conv: taps of the convolution, 2 or more.

    Raises:
        InputError: it cannot.
    """
    if d_conv < 2:
        raise InputError("encoder.d_conv is 1: a causal convolution needs 2 taps or more")
    if inner % headdim:
        small = [d for d in range(1, math.isqrt(inner) + 1) if inner % d == 0]
        nearest = min([*small, *(inner // d for d in small)], key=lambda d: (abs(d - headdim), d))
        raise InputError(
            f"encoder.headdim is {headdim}, which does not divide expand * dim = {inner}: "
            f"the nearest that does is {nearest}"
        )


def causal_conv(x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor) -> tuple[Tensor, Tensor]:
    """Convolve over time, depthwise and causal, with carried inputs.

    Args:
        x: (B, T, X).
        weight: (X, 1, W), the last tap for the present step.
        bias: (X,).
        state: (B, X, W - 1), the inputs before x.

    Returns:
        (B, T, X) and the last W - 1 inputs.
    """
    x = torch.cat((state.to(x.dtype).transpose(1, 2), x), dim=1)  # (B, W - 1 + T, X)
    last = x[:, x.shape[1] - state.shape[2] :].transpose(1, 2)
    if torch.compiler.is_dynamo_compiling():  # products that are fused; the compiler's convolution is for one length
        steps, taps = x.shape[1] - state.shape[2], weight.squeeze(1).to(x.dtype).unbind(1)
        y = torch.stack([x[:, tap : tap + steps] * of_tap for tap, of_tap in enumerate(taps)]).sum(0)
        return (y if bias is None else y + bias.to(x.dtype)), last
    # as a two-dimensional convolution of height one, which takes channels last without a copy; the weight by way of
    # (X, W), so that its gradient comes back with the strides that DDP's buckets have
    weight = weight.squeeze(1)[:, None, None]  # (X, 1, 1, W)
    y = F.conv2d(x.transpose(1, 2).unsqueeze(2), weight, bias, groups=weight.shape[0])  # (B, X, 1, T)
    return y.squeeze(2).transpose(1, 2), last
