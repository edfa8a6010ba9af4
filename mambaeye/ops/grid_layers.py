"""Layers over grids of tokens, channels last: convolutions, stems that make a grid of an image, steps to a coarser one.

Shapes: B images, H and W sides in pixels, R rows and C columns of tokens, D values a token.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambaeye.ops.dense import PatchEmbed


class GridConv(nn.Conv2d):
    """A convolution over tokens (B, R, C, D), channels last; arguments as for Conv2d."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolve (B, R, C, D) into a grid by stride and padding."""
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class ImageConv(nn.Conv2d):
    """A convolution of images (B, 3, H, W) into tokens (B, R, C, D), channels last; arguments as for Conv2d."""

    def forward(self, images: Tensor) -> Tensor:
        """Convolve images into a grid by stride and padding."""
        return super().forward(images).permute(0, 2, 3, 1)


class Neighbours(nn.Module):
    """Four tokens of 2 x 2 as one: (B, R, C, D) -> (B, R / 2, C / 2, 4 D), zeros behind an odd last row or column."""

    def forward(self, x: Tensor) -> Tensor:
        """Put them side by side: upper left, lower left, upper right, lower right."""
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        return torch.cat([x[:, row::2, col::2] for col in (0, 1) for row in (0, 1)], dim=-1)


def overlapping_stem(dim: int) -> nn.Sequential:
    """Return two convolutions of 3 x 3, each of which halves sides: images (B, 3, H, W) -> (B, H / 4, W / 4, D)."""
    return nn.Sequential(
        ImageConv(3, dim // 2, 3, 2, 1),
        nn.LayerNorm(dim // 2),
        nn.GELU(),
        GridConv(dim // 2, dim, 3, 2, 1),
        nn.LayerNorm(dim),
    )


def patch_stem(dim: int, patch: int) -> nn.Sequential:
    """Return a linear map of square patches, which must cover the images: (B, 3, H, W) -> (B, R, C, D)."""
    embed = PatchEmbed(dim, patch, patch)
    embed.proj.reset_parameters()  # torch's start, not that of the plain vision Mambas
    return nn.Sequential(embed, nn.LayerNorm(dim))


def overlapping_merge(dim: int) -> nn.Sequential:
    """Return a convolution of 3 x 3 that halves sides and doubles width: (B, R, C, D) -> (B, R / 2, C / 2, 2 D)."""
    return nn.Sequential(GridConv(dim, 2 * dim, 3, 2, 1), nn.LayerNorm(2 * dim))


def patch_merge(dim: int) -> nn.Sequential:
    """Return a linear map of 2 x 2 neighbours (Swin's patch merging): (B, R, C, D) -> (B, R / 2, C / 2, 2 D)."""
    return nn.Sequential(Neighbours(), nn.LayerNorm(4 * dim), nn.Linear(4 * dim, 2 * dim, bias=False))
