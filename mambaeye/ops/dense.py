"""Whole canvases as grids of tokens: pixels normalised and padded, patches embedded, position tables resized, extra
tokens put in between.

Shapes: B images or clips, T frames, H and W sides in pixels, S... all sides of a canvas, F tubelets in time, R rows and
C columns of patches, M = R C patches, D model width, E extra tokens (class tokens, registers).
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambaeye.errors import InputError
from mambaeye.ops.precision import wide

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels in [0, 1], by channel


def normalise(canvases: Tensor, dtype: torch.dtype) -> Tensor:
    """Return (B, C, S...) of a dtype, of canvases (B, S..., C) uint8 or uint16.

    Three channels are normalised by ImageNet's mean and standard deviation; others, of which nothing is known, to
    [-1, 1].
    """
    of_rgb = canvases.shape[-1] == len(MEAN)
    constants = (torch.tensor(values, dtype=dtype) for values in ((MEAN, STD) if of_rgb else ((0.5,), (0.5,))))
    mean, std = (one.to(canvases.device, non_blocking=True) for one in constants)
    if canvases.dtype == torch.uint16:
        canvases, most = canvases.to(wide(dtype)) / 65535, 1  # the largest is more than float16 holds
    else:
        most = 255
    pixels: Tensor = canvases.to(dtype) / (most * std) - mean / std
    return pixels.movedim(-1, 1)


def pad_to_patches(canvases: Tensor, patch: int, stride: int) -> Tensor:
    """Return canvases (B, ..., H, W, C) with black below and to the right, as little as lets patches cover every pixel.

    A canvas is black where its image is not, and the authors' networks leave such a rest out.
    """
    height, width = canvases.shape[-3:-1]
    bottom, right = (max(0, patch - side) or (patch - side) % stride for side in (height, width))
    return F.pad(canvases, (0, 0, 0, right, 0, bottom)) if bottom or right else canvases


def require_covered(images: Tensor, patch: int, stride: int) -> None:
    """Require that patches cover images (B, C, H, W) exactly.

    Raises:
        InputError: they do not.
    """
    height, width = images.shape[2:]
    if any(side < patch or (side - patch) % stride for side in (height, width)):
        raise InputError(f"patches of {patch} pixels, {stride} apart, do not cover {height} x {width}: pad images")


class PatchEmbed(nn.Module):
    """A linear map of square patches: images (B, channels, H, W) -> tokens (B, R, C, D).

    Starts from LeCun's normal weights and zero biases, as the vision Mambas do.

    Args:
        dim: D, values a token.
        patch: side of a patch in pixels.
        stride: pixels from one patch to the next.
        channels: of images.
    """

    def __init__(self, dim: int, patch: int, stride: int, channels: int = 3) -> None:
        super().__init__()
        if not 1 <= stride <= patch:
            raise InputError(f"encoder.stride is {stride}: give 1 to {patch}, the side of a patch")
        self.proj = nn.Conv2d(channels, dim, patch, stride)
        lecun_normal_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)  # type: ignore[arg-type]  # it has one

    def forward(self, images: Tensor) -> Tensor:
        """Embed images that patches cover exactly.

        Raises:
            InputError: they do not.
        """
        (patch, _), (stride, _) = self.proj.kernel_size, self.proj.stride
        require_covered(images, patch, stride)
        tokens: Tensor = self.proj(images)
        return tokens.permute(0, 2, 3, 1)


class TubeletEmbed(nn.Module):
    """A linear map of tubelets, patches over some frames: clips (B, 3, T, H, W) -> tokens (B, F, R, C, D).

    None overlap; starts as PatchEmbed.

    Args:
        dim: D, values a token.
        patch: side of a patch in pixels.
        tubelet: frames of a tubelet.
    """

    def __init__(self, dim: int, patch: int, tubelet: int) -> None:
        super().__init__()
        size = (tubelet, patch, patch)
        self.proj = nn.Conv3d(3, dim, size, size)
        lecun_normal_(self.proj.weight)
        nn.init.zeros_(self.proj.bias)  # type: ignore[arg-type]  # it has one

    def forward(self, clips: Tensor) -> Tensor:
        """Embed clips that tubelets cover exactly.

        Raises:
            InputError: they do not.
        """
        sides, size = clips.shape[2:], self.proj.kernel_size
        if any(side < step or side % step for side, step in zip(sides, size, strict=True)):
            given, needed = (" x ".join(map(str, shape)) for shape in (sides, size))
            raise InputError(f"tubelets of {needed} do not cover {given} (frames, rows, columns): pad clips")
        tokens: Tensor = self.proj(clips)
        return tokens.permute(0, 2, 3, 4, 1)


@torch.no_grad()
def lecun_normal_(weight: Tensor) -> None:
    """Fill with a normal distribution of variance 1 / fan-in, truncated at twice what that takes before truncation."""
    deviation = math.prod(weight.shape[1:]) ** -0.5 / 0.87962566103423978  # what is left of 1 within [-2, 2]
    nn.init.trunc_normal_(weight, std=deviation, a=-2 * deviation, b=2 * deviation)


def resized(table: Tensor, rows: int, cols: int) -> Tensor:
    """Return a position table of a grid, (S, S, D), for one of other sides, (rows, cols, D), in float32 or wider.

    Bicubic interpolation between centres of patches, with antialiasing where an axis shrinks; the same sides give the
    table itself. That grid need not be square.
    """
    table = table.to(wide(table.dtype))
    if table.shape[:2] == (rows, cols):
        return table
    if cols == 1 < rows:  # torch 2.13 gives all rows of a single column, antialiased on a CPU, the first one's values
        return resized(table.transpose(0, 1), 1, rows).transpose(0, 1)
    shrinks = rows < table.shape[0] or cols < table.shape[1]
    planes = table.permute(2, 0, 1).unsqueeze(0)  # (1, D, S, S)
    planes = F.interpolate(planes, (rows, cols), mode="bicubic", align_corners=False, antialias=shrinks)
    return planes.squeeze(0).permute(1, 2, 0)


def insert(tokens: Tensor, extra: Tensor, places: Sequence[int]) -> Tensor:
    """Return (B, M + E, D): tokens (B, M, D) in their order, with extra ones (E, D) in between.

    Args:
        tokens: (B, M, D).
        extra: (E, D), the same for all images.
        places: where each of them is in the result, increasing.
    """
    total = tokens.shape[1] + len(extra)
    order = torch.zeros(total, dtype=torch.long)
    is_extra = order.bool()
    is_extra[list(places)] = True
    order[is_extra] = torch.arange(tokens.shape[1], total)
    order[~is_extra] = torch.arange(tokens.shape[1])
    together = torch.cat((tokens, extra.to(tokens.dtype).expand(len(tokens), -1, -1)), dim=1)
    return together.index_select(1, order.to(tokens.device, non_blocking=True))


def picked(tokens: Tensor, places: Sequence[int]) -> Tensor:
    """Return tokens (B, M, D) at some places, (B, E, D), without waiting for the device."""
    return tokens.index_select(1, torch.tensor(places, dtype=torch.long).to(tokens.device, non_blocking=True))


def take_out(tokens: Tensor, places: Sequence[int]) -> tuple[Tensor, Tensor | None]:
    """Return what insert put together: tokens (B, L, D) without those at the places, and these (B, E, D), if any."""
    if not places:
        return tokens, None
    extra = {*places}
    others = [place for place in range(tokens.shape[1]) if place not in extra]
    return picked(tokens, others), picked(tokens, places)
