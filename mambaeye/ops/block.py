"""The residual block around a Mamba2 mixer, in plain torch or on kernels (paper figure 2).

Shapes: B batch, T steps, D model width.
"""

from torch import Tensor, nn

from mambaeye.ops.kernels import CudaKernels
from mambaeye.ops.mamba2 import Mamba2, MixerState
from mambaeye.ops.precision import wide


class Block(nn.Module):
    """Pre-norm residual block: x + Mamba2(RMSNorm(x)), with the sum left to the next norm.

    Arguments as for Mamba2.
    """

    def __init__(self, dim: int, d_state: int, d_conv: int, expand: int, headdim: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(dim, eps=1e-5)
        self.mixer = Mamba2(dim, d_state, d_conv, expand, headdim)

    def forward(
        self, x: Tensor, residual: Tensor | None, state: MixerState | None, kernels: CudaKernels | None
    ) -> tuple[Tensor, Tensor, MixerState | None]:
        """Add x to the residual stream, norm, mix.

        Returns:
            What the mixer adds, the residual stream to add it to, and the mixer's state.
        """
        if kernels is None:
            x, residual = add_norm(x, residual, self.norm)
            x, state = self.mixer(x, state)
        else:
            x, residual = kernels.add_norm(x, residual, self.norm)
            x, state = kernels.mix(self.mixer, x, state)
        return x, residual, state


def add_norm(x: Tensor, residual: Tensor | None, norm: nn.RMSNorm) -> tuple[Tensor, Tensor]:
    """Return norm(residual + x) in the dtype of the norm, and the sum in float32 or wider."""
    residual = x.to(wide(x.dtype)) if residual is None else residual + x
    return norm(residual.to(norm.weight.dtype)), residual
