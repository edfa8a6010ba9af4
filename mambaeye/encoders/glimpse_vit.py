"""A control for MambaEye: a ViT over the same glimpses, which tells what is due to glimpses and what to recurrence.

Each glimpse is a token that is told its absolute position; attention is among all glimpses, whatever their order, and
their mean answers, once. Shapes: B images, T glimpses, K axes of a position, P... the sides of a glimpse,
D model width.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambaeye.encoders.base import GlimpseEncoder
from mambaeye.errors import InputError
from mambaeye.geometry.moves import embed_moves
from mambaeye.ops.glimpses import flattened
from mambaeye.ops.precision import wide
from mambaeye.ops.shapes import require_sizes
from mambaeye.ops.transformer import TransformerBlock, heads_of, reset_linear


class GlimpseViT(GlimpseEncoder):
    """ViT's transformer over glimpses, with sines and cosines of where each one is; it answers once.

    Args:
        num_classes: Number of classes that the head tells apart.
        patch_size: Side of a glimpse along rows and columns, in pixels.
        dim: Width of the residual stream: values a token; the sines and cosines of every axis have an even share of it.
        depth: Number of transformer blocks.
        heads: Heads of attention, dividing dim; null for one every 64 values of dim.
        mlp_ratio: Hidden width of a block's MLP as a multiple of dim.
        axes: Axes of a position, and of a glimpse: 2 for (row, col), 3 for (frame, row, col) of clips.
        tube: Frames of a glimpse, where there are three axes.
        channels: Channels of a pixel.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        patch_size: int = 16,
        dim: int = 192,
        depth: int = 12,
        heads: int | None = None,
        mlp_ratio: float = 4.0,
        axes: int = 2,
        tube: int = 1,
        channels: int = 3,
    ) -> None:
        super().__init__()
        sizes = {"num_classes": num_classes, "patch_size": patch_size, "dim": dim, "depth": depth, "axes": axes}
        require_sizes(**sizes, tube=tube, mlp_ratio=mlp_ratio, channels=channels)
        if dim % (2 * axes):
            raise InputError(f"encoder.dim is {dim}: sines and cosines of {axes} axes need a multiple of {2 * axes}")
        self.patch_size, self.axes, self.tube = patch_size, axes, tube
        self.channels = channels
        self.projection = nn.Linear(channels * math.prod(self.glimpse), dim)
        heads = heads_of(dim, heads)
        self.blocks = nn.ModuleList(TransformerBlock(dim, heads, round(dim * mlp_ratio)) for _ in range(depth))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.head = nn.Linear(dim, num_classes)
        reset_linear(self)

    def features(self, patches: Tensor, positions: Tensor) -> Tensor:
        """Return what the head sees, (B, 1, D), of patches (B, T, C, P, ...) and positions (B, T, K)."""
        weight = self.projection.weight  # (D, C P ...)
        if patches.dtype == torch.uint8:
            weight = weight / 255  # bytes to [0, 1], as MambaEye takes them
        dim, dtype = weight.shape[0], weight.dtype
        places = embed_moves(positions, dim // self.axes, wide(dtype)).to(dtype)  # (B, T, D)
        x = F.linear(flattened(patches, dtype), weight, self.projection.bias) + places
        for block in self.blocks:
            x = block(x)
        return self.norm(x).mean(1, keepdim=True)

    def feature_modules(self) -> tuple[list[nn.Module], nn.Module]:
        return [*self.blocks], self.norm
