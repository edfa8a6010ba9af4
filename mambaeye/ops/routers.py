"""Routers of a hierarchy: which glimpses go on to the inner network (H-Net: Hwang et al. 2025, arXiv 2507.07955).

Each gives a probability p_t in [0, 1] from glimpses up to t alone, and keeps those with p_t > 0.5; the first of a
sequence always. What they carry from chunk to chunk does not grow. Shapes: B images, T glimpses, K axes, D width.
"""

from abc import ABC, abstractmethod
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambaeye.ops.precision import no_autocast, wide

RouterName = Literal["neighbours", "novelty", "similarity", "stride", "random"]
SHARPNESS, THRESHOLD = 10.0, 0.5  # of the similarity router: how fast it turns from keeping to dropping, and where
HASH = (73_856_093, 19_349_663, 83_492_791, 2_654_435_761)  # odd numbers; the last one scatters their sum
BITS = 32


class RouterState(NamedTuple):
    """Summary of what a router has seen, one row an image."""

    seen: Tensor
    """(B,) int64: glimpses."""
    memory: Tensor
    """(B, D) float32 or wider: their last or their sum, as the router wants it; (B, 0) if it wants neither."""


class Router(nn.Module, ABC):
    """Keeps some of the glimpses.

    Args:
        dim: D.
        shrink: glimpses for each that is kept, where the router does not learn it.
    """

    remembers = True
    """True if its memory has D values, false if it has none."""

    def __init__(self, dim: int, shrink: float) -> None:
        super().__init__()
        self.dim, self.shrink = dim, shrink

    def initial_state(self, batch_size: int, like: Tensor) -> RouterState:
        """Return the state before anything was seen, on the device of a weight and as wide."""
        memory = like.new_zeros(batch_size, self.dim if self.remembers else 0, dtype=wide(like.dtype))
        return RouterState(torch.zeros(batch_size, dtype=torch.long, device=like.device), memory)

    def forward(
        self, x: Tensor, positions: Tensor, state: RouterState, lengths: Tensor | None
    ) -> tuple[Tensor, RouterState]:
        """Return the probabilities of the next glimpses, and the state after those that count.

        Args:
            x: (B, T, D) their features.
            positions: (B, T, K) where they are.
            state: before them.
            lengths: (B,), how many count of each image; None for all.

        Returns:
            (B, T) in float32 or wider, and the state.
        """
        number = state.seen[:, None] + torch.arange(x.shape[1], device=x.device)  # (B, T)
        counted = lengths if lengths is not None else torch.full_like(state.seen, x.shape[1])
        with no_autocast(x.device):
            p, memory = self.route(x.to(state.memory.dtype), positions, number, state.memory, counted)
        return torch.where(number == 0, 1.0, p), RouterState(state.seen + counted, memory)

    @abstractmethod
    def route(
        self, x: Tensor, positions: Tensor, number: Tensor, memory: Tensor, counted: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return probabilities (B, T), whatever for number 0, and the memory after the first `counted` of each image.

        Args:
            x: (B, T, D) in float32 or wider.
            positions: (B, T, K).
            number: (B, T), of each glimpse in its sequence, from 0.
            memory: before them.
            counted: (B,) int64.
        """


class Neighbours(Router):
    """Keep a glimpse that is unlike the one before: p_t = (1 - cos(Wq x_{t-1}, Wk x_t)) / 2 (as published)."""

    def __init__(self, dim: int, shrink: float) -> None:
        super().__init__(dim, shrink)
        self.query, self.key = (nn.Linear(dim, dim, bias=False) for _ in range(2))
        for projection in (self.query, self.key):
            nn.init.eye_(projection.weight)

    def route(
        self, x: Tensor, positions: Tensor, number: Tensor, memory: Tensor, counted: Tensor
    ) -> tuple[Tensor, Tensor]:
        known = torch.cat((memory[:, None], x), dim=1)  # (B, 1 + T, D)
        p = self.unlike(known[:, :-1], x)
        return p, at(known, counted)

    def unlike(self, known: Tensor, x: Tensor) -> Tensor:
        """Return (1 - cos) / 2 of what is known before each glimpse, and the glimpse: (B, T)."""
        weights = (projection.weight.to(x.dtype) for projection in (self.query, self.key))
        query, key = (F.linear(t, weight) for t, weight in zip((known, x), weights, strict=True))
        return ((1 - F.cosine_similarity(query, key, dim=-1)) / 2).clamp(0, 1)


class Novelty(Neighbours):
    """Keep a glimpse that is unlike the mean of all before it: what is new, wherever the last glimpse was (ours)."""

    def route(
        self, x: Tensor, positions: Tensor, number: Tensor, memory: Tensor, counted: Tensor
    ) -> tuple[Tensor, Tensor]:
        sums = torch.cat((memory[:, None], x), dim=1).cumsum(1)  # (B, 1 + T, D)
        p = self.unlike(sums[:, :-1] / number.clamp(min=1).unsqueeze(-1), x)
        return p, at(sums, counted)


class Similarity(Router):
    """Drop a glimpse that is like the one before, beyond a threshold that is learned: nothing else is (a control)."""

    def __init__(self, dim: int, shrink: float) -> None:
        super().__init__(dim, shrink)
        self.threshold = nn.Parameter(torch.tensor(THRESHOLD))

    def route(
        self, x: Tensor, positions: Tensor, number: Tensor, memory: Tensor, counted: Tensor
    ) -> tuple[Tensor, Tensor]:
        known = torch.cat((memory[:, None], x), dim=1)  # (B, 1 + T, D)
        alike = F.cosine_similarity(known[:, :-1], x, dim=-1)
        return (SHARPNESS * (self.threshold.to(x.dtype) - alike)).sigmoid(), at(known, counted)


class Stride(Router):
    """Keep each shrink-th glimpse (a control)."""

    remembers = False

    def route(
        self, x: Tensor, positions: Tensor, number: Tensor, memory: Tensor, counted: Tensor
    ) -> tuple[Tensor, Tensor]:
        return (number % round(self.shrink) == 0).to(x.dtype), memory


class Random(Router):
    """Keep one of shrink glimpses by a hash of its number and position: the same in any split and on any machine."""

    remembers = False

    def route(
        self, x: Tensor, positions: Tensor, number: Tensor, memory: Tensor, counted: Tensor
    ) -> tuple[Tensor, Tensor]:
        mixed = number * HASH[0]
        for axis in range(positions.shape[-1]):
            mixed = mixed ^ (positions[..., axis].long() + 1) * HASH[1 + axis % 2]
        mixed = (mixed * HASH[3]) & (2**BITS - 1)
        mixed = ((mixed ^ (mixed >> 15)) * HASH[1]) & (2**BITS - 1)  # the low bits of a product hang on low bits alone
        return (mixed * self.shrink < 2**BITS).to(x.dtype), memory


def at(steps: Tensor, counted: Tensor) -> Tensor:
    """Return steps (B, 1 + T, D) after so many of each image, (B, D)."""
    return steps[torch.arange(len(steps), device=steps.device), counted]


ROUTERS: dict[RouterName, type[Router]] = {
    "neighbours": Neighbours,
    "novelty": Novelty,
    "similarity": Similarity,
    "stride": Stride,
    "random": Random,
}
