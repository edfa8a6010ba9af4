"""Float32 or wider in the midst of a narrower run: what autocast, or parameters in bf16, must not round."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor


def no_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Switch autocast off on a device; the meta device, on which FLOPs are counted, has none."""
    return nullcontext() if device.type == "meta" else torch.autocast(device.type, enabled=False)


@contextmanager
def exact_products() -> Iterator[None]:
    """Multiply float32 matrices in float32 in here, whatever --float32_matmul_precision allows elsewhere.

    For what is carried from step to step: a GPU would round factors to TF32's 10 bits of mantissa.
    """
    allowed = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(allowed)


def wide(dtype: torch.dtype) -> torch.dtype:
    """Return float32, or the dtype itself where that is wider."""
    return torch.promote_types(dtype, torch.float32)


def wide_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return x @ weight.T + bias in float32 or wider, whatever the autocast and the arguments' dtypes.

    Args:
        x: (..., D).
        weight: (C, D).
        bias: (C,).

    Returns:
        (..., C).
    """
    dtype = wide(x.dtype)
    with no_autocast(x.device):
        return F.linear(x.to(dtype), weight.to(dtype), bias.to(dtype))
