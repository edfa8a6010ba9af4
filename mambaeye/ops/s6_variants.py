"""Changes to the selective scan that VideoMambaPro makes (Lu et al. 2024, arXiv 2406.19006), around any backend of it.

Both were built from the paper, for the authors' released code does not run: no number of theirs is reproduced here.

Shapes: B batch, L steps, K directions, E channels, N state values.
"""

from collections.abc import Collection

import torch
from torch import Tensor

from mambaeye.ops.kernels import Scan


def from_first_input(scan: Scan) -> Scan:
    """Return a scan that starts from the state h_{-1}[e, n] = x_0[e] in place of zeros.

    A step before the first one leaves that state: with dt 1 and B 1 it adds x_0, and nothing was there to decay.
    """

    def started(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
        first = x[:, :1], torch.ones_like(dt[:, :1]), torch.ones_like(B[:, :1]), torch.zeros_like(C[:, :1])
        x, dt, B, C = (torch.cat(parts, dim=1) for parts in zip(first, (x, dt, B, C), strict=True))
        return scan(x, dt, A, B, C, D)[:, 1:]

    return started


def without_own(y: Tensor, x: Tensor, dt: Tensor, B: Tensor, C: Tensor, directions: Collection[int]) -> Tensor:
    """Take out of a scan's output what each step adds to the state that it reads itself.

    What remains is C_t exp(dt_t A) h_{t-1} + D x_t: of its own step only the skip. Of two directions that are added,
    the second one masked, every token then counts once.

    Args:
        y: (B, L, K, E), of the scan.
        x: (B, L, K, E), its arguments.
        dt: (B, L, K, E).
        B: (B, L, K, N).
        C: (B, L, K, N).
        directions: which of the K are masked.
    """
    own = ((B * C).sum(-1, keepdim=True) * dt * x).unbind(2)
    return torch.stack([y_k - own[k] if k in directions else y_k for k, y_k in enumerate(y.unbind(2))], dim=2)
