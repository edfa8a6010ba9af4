"""The pre-norm transformer block of ViT and DeiT, and how these start; parameters by the authors' names.

Shapes: B images, M tokens, D model width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambaeye.errors import InputError

HEAD_WIDTH = 64  # of the published models
STD = 0.02  # that linear weights, tokens and position tables start with


class Attention(nn.Module):
    """Self-attention of all tokens with all: torch's scaled_dot_product_attention.

    Args:
        dim: D.
        heads: number of heads; divides dim.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Attend: (B, M, D) -> (B, M, D)."""
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, M, D/h)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two linear maps with an exact GELU between.

    Args:
        dim: D.
        hidden: width between.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map every token by itself: (B, M, D) -> (B, M, D)."""
        return self.fc2(F.gelu(self.fc1(x)))


class TransformerBlock(nn.Module):
    """x + attention(LayerNorm(x)), and to that MLP(LayerNorm(.)).

    Args:
        dim: D.
        heads: heads of attention.
        hidden: width of the MLP.
    """

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = MLP(dim, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Add what tokens take from each other, then what each makes of itself: (B, M, D) -> (B, M, D)."""
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def heads_of(dim: int, heads: int | None) -> int:
    """Return the number of attention heads: as given, or as many as have a width of 64 each.

    Raises:
        InputError: the width is no multiple of it.
    """
    if heads is None and dim % HEAD_WIDTH == 0:
        return dim // HEAD_WIDTH
    if heads is None:
        raise InputError(f"encoder.dim is {dim}, no multiple of {HEAD_WIDTH}: give encoder.heads, which divides it")
    if heads < 1 or dim % heads:
        raise InputError(f"encoder.heads is {heads}, which does not divide dim {dim}: give a divisor")
    return heads


@torch.no_grad()
def reset_linear(module: nn.Module) -> None:
    """Start every linear map at or below a module from normal weights of deviation 0.02 and zero biases."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=STD)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
