"""The residual sum and the norm of it, as one step of a block (paper figure 2)."""

from torch import Tensor, nn

from mambaeye.ops.precision import wide


def add_norm(x: Tensor, residual: Tensor | None, norm: nn.RMSNorm) -> tuple[Tensor, Tensor]:
    """Return norm(residual + x) in the dtype of the norm, and the sum in float32 or wider."""
    residual = x.to(wide(x.dtype)) if residual is None else residual + x
    return norm(residual.to(norm.weight.dtype)), residual
