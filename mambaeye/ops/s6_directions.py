"""Recurrences of S6 in several directions, each with parameters of its own: what the vision Mambas' mixers share.

Shapes: B images, S steps, K directions, E inner width, N d_state, R rank of the step sizes.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambaeye.ops.kernel_selection import Kernels, select_scan
from mambaeye.ops.mamba2 import DT_MAX, DT_MIN
from mambaeye.ops.precision import no_autocast, wide
from mambaeye.ops.s6 import selective_scan
from mambaeye.ops.s6_variants import from_first_input, without_own

DT_FLOOR = 1e-4


class S6Directions(nn.Module):
    """Base of mixers that scan in K directions, whose parameters are stacked along a first axis."""

    sizes: tuple[int, int, int]
    """R, N, N: what x_proj gives of a step."""
    kernels: Kernels
    """Backend of the scan."""
    masked: tuple[int, ...] = ()
    """Directions whose steps do not read what they themselves add to the state."""
    residual_state: bool = False
    """Start the state from the first step's input in place of zeros."""

    def add_recurrences(self, directions: int, inner: int, rank: int, d_state: int, kernels: Kernels) -> None:
        """Make the parameters of K recurrences; reset_recurrences draws them."""
        self.sizes, self.kernels = (rank, d_state, d_state), kernels
        self.x_proj = nn.Parameter(torch.empty(directions, sum(self.sizes), inner))  # dt before its projection, B, C
        self.dt_weight = nn.Parameter(torch.empty(directions, inner, rank))
        self.dt_bias = nn.Parameter(torch.empty(directions, inner))
        self.A_log = nn.Parameter(torch.empty(directions, inner, d_state))
        self.D = nn.Parameter(torch.empty(directions, inner))

    @torch.no_grad()
    def reset_recurrences(self) -> None:
        """Start as Mamba-1: step sizes log-uniform in [0.001, 0.1], A = -1 ... -N, D one; projections as torch does."""
        for parameter in (self.x_proj, self.dt_weight):
            uniform_by_fan_in_(parameter, parameter.shape[-1])
        draw_step_sizes_(self.dt_bias)
        states = torch.arange(1, self.A_log.shape[-1] + 1, dtype=self.A_log.dtype, device=self.A_log.device)
        self.A_log.copy_(states.log().expand_as(self.A_log))
        self.D.fill_(1.0)

    def scan(self, x: Tensor) -> Tensor:
        """Run the selective scan over x (B, S, K, E), in float32 or wider whatever the autocast."""
        projected = torch.einsum("bske,kre->bskr", x, self.x_proj)
        dtype = wide(x.dtype)
        with no_autocast(x.device):
            dt, B, C = projected.to(dtype).split(self.sizes, dim=-1)
            dt = F.softplus(torch.einsum("bskr,ker->bske", dt, self.dt_weight.to(dtype)) + self.dt_bias.to(dtype))
            scan = select_scan(self.kernels, dt) or selective_scan
            if self.residual_state:
                scan = from_first_input(scan)
            x = x.to(dtype)
            y = scan(x, dt, -self.A_log.to(dtype).exp(), B, C, self.D.to(dtype))
            return without_own(y, x, dt, B, C, self.masked) if self.masked else y


def uniform_by_fan_in_(parameter: Tensor, fan_in: int) -> None:
    """Fill as torch fills the weights of linear maps and convolutions, within one over the root of their fan-in."""
    parameter.uniform_(-(fan_in**-0.5), fan_in**-0.5)


@torch.no_grad()
def draw_step_sizes_(bias: Tensor) -> None:
    """Fill a bias with what softplus turns into step sizes log-uniform in [0.001, 0.1]."""
    dt = torch.empty_like(bias).uniform_(math.log(DT_MIN), math.log(DT_MAX)).exp().clamp(min=DT_FLOOR)
    bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus
