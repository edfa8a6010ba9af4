"""The residual block around a Mamba2 mixer, in plain torch or on kernels (paper figure 2).

Shapes: B batch, T steps, D model width.
"""

from torch import Tensor, nn

from mambaeye.ops.add_norm import add_norm
from mambaeye.ops.checked_kernels import CheckedKernels
from mambaeye.ops.mamba2 import Mamba2, MixerState


class Block(nn.Module):
    """Pre-norm residual block: x + Mamba2(RMSNorm(x)), with the sum left to the next norm.

    Arguments as for Mamba2.
    """

    def __init__(self, dim: int, d_state: int, d_conv: int, expand: int, headdim: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(dim, eps=1e-5)
        self.mixer = Mamba2(dim, d_state, d_conv, expand, headdim)

    def forward(
        self,
        x: Tensor,
        residual: Tensor | None,
        state: MixerState | None,
        kernels: CheckedKernels | None,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, MixerState | None]:
        """Add x (B, T, D) to the residual stream, norm, mix. State and lengths are as for Mamba2.forward.

        Returns:
            What the mixer adds, the residual stream to add it to, and the mixer's state.
        """
        if kernels is None:
            x, residual = add_norm(x, residual, self.norm)
            x, state = self.mixer(x, state, lengths)
        else:
            x, residual = kernels.add_norm(x, residual, self.norm)
            x, state = kernels.mix(self.mixer, x, state, lengths)
        return x, residual, state
