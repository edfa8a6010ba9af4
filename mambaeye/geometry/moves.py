"""Positions -> moves -> sinusoidal embedding: the only way in which the model learns where it looks.

Shapes: B images, T glimpses, K axes of a position (2: row, col).
"""

import torch
from torch import Tensor


def moves(positions: Tensor, previous: Tensor | None = None) -> Tensor:
    """Return the move that led to each glimpse, in raw pixels; the first is zero unless a previous position is carried.

    Args:
        positions: (B, T, K) integers.
        previous: (B, K) integers, the position before the first one here.

    Returns:
        (B, T, K): positions[:, t] - positions[:, t - 1], in the dtype of positions.
    """
    if previous is None:
        previous = positions[:, 0]
    return positions.diff(dim=1, prepend=previous[:, None].to(positions.dtype))


def embed_moves(moves: Tensor, dim: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Embed moves sinusoidally (paper section 3.1): axis after axis, dim/2 sines then dim/2 cosines.

    The angle of pair i is move / 10000^(2i / dim), so that a zero move embeds as zeros and ones.

    Args:
        moves: (..., K) integers, pixels.
        dim: values an axis, even.
        dtype: of the computation and the result.

    Returns:
        (..., K * dim).
    """
    exponent = torch.arange(0, dim, 2, dtype=torch.float64, device=moves.device) / dim
    frequency = torch.pow(10000.0, -exponent).to(dtype)
    angle = moves.to(dtype).unsqueeze(-1) * frequency  # (..., K, dim/2)
    return torch.cat((angle.sin(), angle.cos()), dim=-1).flatten(-2)
