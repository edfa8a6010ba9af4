"""Rotary positions of patches in a grid (Su et al. 2021), as in LocalVim: half of the channels by row, half by column.

Shapes: B images, R rows and C columns of patches, M = R C, D channels.
"""

import torch
from torch import Tensor

THETA = 1e4
SCALE = 14  # of a grid's sides, whatever they are


def rotations(rows: int, cols: int, dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of the patches' angles, (M, D) float32 each; dim is a multiple of 4."""
    frequencies = THETA ** -(torch.arange(0, dim // 2, 2, device=device) / (dim // 2))  # (D / 4,)

    def of_axis(side: int) -> Tensor:
        place = torch.arange(side, device=device) / side * SCALE
        return torch.outer(place, frequencies).repeat_interleave(2, dim=1)  # (side, D / 2)

    by_row, by_col = of_axis(rows), of_axis(cols)
    angles = torch.cat((by_row[:, None].expand(-1, cols, -1), by_col[None].expand(rows, -1, -1)), dim=-1).flatten(0, 1)
    return angles.cos(), angles.sin()


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Return x (B, M, D) with every two neighbouring channels rotated by their angle."""
    cos, sin = rotation
    even, odd = x[..., ::2], x[..., 1::2]
    return x * cos + torch.stack((-odd, even), dim=-1).flatten(-2) * sin
