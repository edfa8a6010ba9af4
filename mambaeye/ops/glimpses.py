"""Glimpses as tokens: patch and embedded place through one projection (paper section 3.1).

Shapes: B images, T glimpses, C channels, P... the sides of a glimpse, K axes of a position, D model width.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambaeye.errors import InputError
from mambaeye.geometry.moves import embed_moves
from mambaeye.ops.precision import wide


def embed_glimpses(projection: nn.Linear, patches: Tensor, places: Tensor) -> Tensor:
    """Project patch vector (channel, then (frame,) row, column) and embedded places side by side, then SiLU.

    Args:
        projection: from C P... + K E values, E of which embed a place along one axis, to D.
        patches: (B, T, C, P...) uint8 or uint16, or floating in [0, 1].
        places: (B, T, K) integers: moves or positions, pixels.

    Returns:
        (B, T, D) in the weight's dtype.
    """
    weight, bias, dtype = projection.weight, projection.bias, projection.weight.dtype
    pixels = patches[0, 0].numel()
    of_patch, of_place = weight.split((pixels, weight.shape[1] - pixels), dim=1)
    if patches.dtype == torch.uint8:
        of_patch = of_patch / 255  # bytes to [0, 1], cheaper on the weight than on the pixels
    # angles of hundreds of radians, which bf16 rounds by whole ones
    embedded = embed_moves(places, of_place.shape[1] // places.shape[-1], wide(dtype)).to(dtype)
    # one projection of the concatenation (patch, place), without the copy that concatenating makes
    x = F.linear(flattened(patches, dtype), of_patch, bias) + F.linear(embedded, of_place)
    return F.silu(x).to(dtype)  # autocast must not narrow the residual stream


def flattened(patches: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the vectors of patches (B, T, C, P...), in a dtype: bytes as they are, 16 bits and others in [0, 1]."""
    vectors = patches.flatten(2)
    if vectors.dtype == torch.uint16:  # on the pixels, for the largest is more than float16 holds
        vectors = vectors.to(wide(dtype)) / 65535
    return vectors.to(dtype)


def require_glimpses(patches: Tensor, positions: Tensor, sides: Sequence[int], channels: int = 3) -> None:
    """Require patches (B, T, channels, *sides) and positions (B, T, K) that an encoder can take.

    Args:
        patches: of any shape and dtype.
        positions: of any shape and dtype.
        sides: of a glimpse, K of them.
        channels: of a pixel.

    Raises:
        InputError: shapes or dtypes are others than these.
    """
    if patches.ndim < 2 or patches.shape[2:] != (channels, *sides):
        wanted = ", ".join(map(str, ("B", "T", channels, *sides)))
        raise InputError(f"patches have shape {tuple(patches.shape)}: this encoder takes ({wanted})")
    if positions.shape != (*patches.shape[:2], len(sides)):
        raise InputError(
            f"positions have shape {tuple(positions.shape)}: these patches need {(*patches.shape[:2], len(sides))}"
        )
    if patches.shape[1] == 0:
        raise InputError("the sequence is empty: give at least one glimpse")
    if patches.dtype not in (torch.uint8, torch.uint16) and not patches.is_floating_point():
        raise InputError(f"patches are {patches.dtype}: give uint8, uint16, or floating values in [0, 1]")
    if positions.is_floating_point() or positions.is_complex() or positions.dtype == torch.bool:
        raise InputError(f"positions are {positions.dtype}: give integers, the pixel of each glimpse's corner")
