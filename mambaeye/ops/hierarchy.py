"""A network within a network: blocks, a router, an inner network on what it keeps, and blocks again (H-Net, section 2).

    e = encoder(x);  p_t, b_t = router(e)             which glimpses are kept
    z = inner(e_t + W embed(move since the last kept) for b_t)        the re-summed move is ours, for places
    z_j <- P_j z_j + (1 - P_j) z_{j-1}                smoothing, P_j the p of the j-th kept one
    y_t = z_{j(t)} STE(c_t) + W_res e_t               the latest one kept; c_t = p_t if kept, else 1 - p_t
    decoder(y)

Causal throughout, with a state that does not grow. Shapes: B images, T glimpses, M kept, K axes, D width.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambaeye.geometry.moves import embed_moves, moves
from mambaeye.ops import stack
from mambaeye.ops.block import Block
from mambaeye.ops.checked_kernels import CheckedKernels
from mambaeye.ops.precision import no_autocast, wide
from mambaeye.ops.routers import Router, RouterState
from mambaeye.ops.ssd import ssd
from mambaeye.ops.stack import StackState

RUN = 32  # kept glimpses that the inner network takes at once without gradients
SMALLEST = 1e-4  # distance of P from 0 and 1


class Routing(NamedTuple):
    """Decisions of a router, (B, T) each."""

    probability: Tensor
    """p, float32 or wider."""
    kept: Tensor
    """b, bool."""
    counts: Tensor
    """False for padding, bool."""

    @staticmethod
    def joined(parts: Sequence["Routing"]) -> "Routing":
        """Return the routing of consecutive runs as one."""
        return Routing(*(torch.cat(of_runs, dim=1) for of_runs in zip(*parts, strict=True)))

    def ratio_loss(self, shrink: float) -> Tensor:
        """Return the loss that is least, 1, where one of shrink glimpses is kept (H-Net, equation 10)."""
        number = self.counts.sum()
        kept = (self.kept & self.counts).sum() / number
        probability = torch.where(self.counts, self.probability, 0).sum() / number
        more = shrink - 1
        return shrink / more * (more * kept * probability + (1 - kept) * (1 - probability))


class StageState(NamedTuple):
    """All that a stage carries, one row an image."""

    encoder: StackState
    router: RouterState
    kept: Tensor
    """(B,) int64: glimpses that went on to the inner network."""
    position: Tensor
    """(B, K) int64: where the last of them was."""
    z: Tensor
    """(B, D) float32 or wider: what the inner network said last, smoothed."""
    inner: "StageState | StackState"
    decoder: StackState


class Main(nn.Module):
    """The innermost network: blocks on all that it is given."""

    def __init__(self, blocks: list[Block], dim: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.RMSNorm(dim, eps=1e-5)

    def initial_state(self, batch_size: int) -> StackState:
        """Return the state before anything was seen."""
        return stack.initial_state(listed(self.blocks), batch_size)

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        state: StackState | None,
        lengths: Tensor | None,
        kernels: CheckedKernels | None,
    ) -> tuple[Tensor, StackState | None, list[Routing]]:
        """Run the blocks, as Stage.forward; without routing."""
        y, state = stack.run(listed(self.blocks), self.norm, x, state, kernels, lengths)
        return y, state, []


class Stage(nn.Module):
    """Blocks before and after, and an inner network on what the router keeps.

    Args:
        encoder: blocks before.
        decoder: blocks after.
        router: what decides.
        inner: Main or another stage.
        dim: D.
        move_embedding_dim: values that embed a re-summed move along one axis; None to leave such moves out.
        axes: K.
        smooth: smooth what the inner network says.
        confidence: let the gradient of the router's confidence through (STE).
    """

    def __init__(
        self,
        encoder: list[Block],
        decoder: list[Block],
        router: Router,
        inner: "Stage | Main",
        dim: int,
        move_embedding_dim: int | None,
        axes: int,
        smooth: bool,
        confidence: bool,
    ) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.ModuleList(encoder), nn.ModuleList(decoder)
        self.encoder_norm, self.decoder_norm = (nn.RMSNorm(dim, eps=1e-5) for _ in range(2))
        self.router, self.inner = router, inner
        self.move_embedding_dim, self.axes = move_embedding_dim, axes
        self.smooth, self.confidence = smooth, confidence
        self.resum = nn.Linear(axes * move_embedding_dim, dim, bias=False) if move_embedding_dim else None
        self.residual = nn.Linear(dim, dim, bias=False)
        self.reset_links()

    @torch.no_grad()
    def reset_links(self) -> None:
        """Start with re-summed moves and the residual at zero."""
        self.residual.weight.zero_()
        if self.resum is not None:
            self.resum.weight.zero_()

    def initial_state(self, batch_size: int) -> StageState:
        """Return the state before anything was seen."""
        weight = self.residual.weight
        none = torch.zeros(batch_size, dtype=torch.long, device=weight.device)
        return StageState(
            stack.initial_state(listed(self.encoder), batch_size),
            self.router.initial_state(batch_size, weight),
            none,
            none[:, None].expand(-1, self.axes),
            weight.new_zeros(batch_size, weight.shape[0], dtype=wide(weight.dtype)),
            self.inner.initial_state(batch_size),
            stack.initial_state(listed(self.decoder), batch_size),
        )

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        state: StageState | None,
        lengths: Tensor | None,
        kernels: CheckedKernels | None,
    ) -> tuple[Tensor, StageState | None, list[Routing]]:
        """Run T glimpses.

        Args:
            x: (B, T, D).
            positions: (B, T, K) integers.
            state: before them; None for sequences from their start on, whose states nobody wants.
            lengths: (B,), how many count of each image; None for all.
            kernels: what runs the blocks, None for plain torch.

        Returns:
            (B, T, D), the state after those that count if one was given, and the routing of this and all inner stages.
        """
        before = self.initial_state(len(x)) if state is None else state
        e, encoder = stack.run(
            listed(self.encoder), self.encoder_norm, x, None if state is None else state.encoder, kernels, lengths
        )
        p, router = self.router(e, positions, before.router, lengths)
        counts = torch.ones_like(p, dtype=torch.bool)
        if lengths is not None:
            counts = torch.arange(p.shape[1], device=p.device) < lengths[:, None]
        kept = (p > 0.5) & counts
        z, inner, position, routings = self.think(e, p, kept, positions, before, state is None, kernels)
        number = kept.sum(1)
        y = gathered(z, kept.cumsum(1))  # (B, T, D): the latest
        if self.confidence:
            sure = torch.where(kept, p, 1 - p).unsqueeze(-1)
            y = y * (sure + (1 - sure).detach())
        with no_autocast(e.device):  # the residual stays wide
            y = y + F.linear(e.to(y.dtype), self.residual.weight.to(y.dtype))
        y = y.to(x.dtype)
        y, decoder = stack.run(
            listed(self.decoder), self.decoder_norm, y, None if state is None else state.decoder, kernels, lengths
        )
        routings = [Routing(p, kept, counts), *routings]
        if encoder is None or decoder is None:
            return y, None, routings
        last = gathered(z, number[:, None]).squeeze(1)
        after = StageState(encoder, router, before.kept + number, position, last, inner, decoder)
        return y, after, routings

    def think(
        self,
        e: Tensor,
        p: Tensor,
        kept: Tensor,
        positions: Tensor,
        before: StageState,
        from_start: bool,
        kernels: CheckedKernels | None,
    ) -> tuple[Tensor, Any, Tensor, list[Routing]]:
        """Run the inner network on what is kept.

        Without gradients it goes in runs of a length that T alone decides, so that later glimpses change not even the
        rounding of earlier answers, as they would by the shape of a product.

        Returns:
            What it says, smoothed, with what it said before in front (B, 1 + M, D) in float32 or wider, its state, the
            position of the last one kept (B, K), and the routing within it.
        """
        number, steps = kept.sum(1), kept.shape[1]
        most = math.ceil(steps / self.router.shrink) if kept.is_meta else int(number.max())
        if not most:
            return before.z[:, None], before.inner, before.position, []
        run = most if torch.is_grad_enabled() else min(RUN, steps)
        padded = min(steps, -(-most // run) * run)
        order = (~kept).to(torch.uint8).argsort(dim=1, stable=True)[:, :padded]  # (B, M), of those kept first
        places = gathered(positions.long(), order)
        u = self.told(gathered(e, order), places, before)
        state = None if from_start and run >= most else before.inner
        said, routings = [before.z[:, None]], []
        for first in range(0, most, run):
            some = slice(first, first + run)
            counted = (number - first).clamp(0, run)
            z, state, within = self.inner(u[:, some], places[:, some], state, counted, kernels)
            z = z.to(before.z.dtype)
            said.append(smoothed(z, p.gather(1, order[:, some]), said[-1][:, -1], counted) if self.smooth else z)
            routings.append(within)
        position = torch.where(number[:, None] == 0, before.position, gathered(places, number[:, None] - 1).squeeze(1))
        return torch.cat(said, dim=1), state, position, [Routing.joined(parts) for parts in zip(*routings, strict=True)]

    def told(self, u: Tensor, places: Tensor, before: StageState) -> Tensor:
        """Return kept glimpses u (B, M, D), at places (B, M, K), with the moves between them."""
        if self.resum is None:
            return u
        assert self.move_embedding_dim is not None
        previous = torch.where(before.kept[:, None] == 0, places[:, 0], before.position)
        embedded = embed_moves(moves(places, previous), self.move_embedding_dim, wide(u.dtype))
        return u + self.resum(embedded.to(self.resum.weight.dtype)).to(u.dtype)


def smoothed(z: Tensor, probability: Tensor, before: Tensor, number: Tensor) -> Tensor:
    """Return the running mean P_j z_j + (1 - P_j) times the one before, (B, M, D), of the first `number` of each image.

    Args:
        z: (B, M, D).
        probability: (B, M), clamped away from 0 and 1.
        before: (B, D), what it starts from.
        number: (B,).
    """
    P = probability.to(z.dtype).clamp(SMALLEST, 1 - SMALLEST)
    dt = -torch.log1p(-P)  # a decay of 1 - P, and what is added divided by it, as the recurrence multiplies by it
    counts = torch.arange(z.shape[1], device=z.device) < number[:, None]
    x = torch.where(counts.unsqueeze(-1), z * (P / dt).unsqueeze(-1), 0)
    dt = torch.where(counts, dt, 0)
    with no_autocast(z.device):
        ones, one = z.new_ones(*z.shape[:2], 1), z.new_ones(1)
        y, _ = ssd(x.unsqueeze(2), dt.unsqueeze(2), -one, ones, ones, 0 * one, before[:, None, :, None])
    return y.squeeze(2)


def gathered(steps: Tensor, index: Tensor) -> Tensor:
    """Return steps (B, T, D) at index (B, M): (B, M, D)."""
    index = index.clamp(min=0)
    return steps.gather(1, index.unsqueeze(-1).expand(-1, -1, steps.shape[-1]))


def listed(blocks: nn.ModuleList) -> list[Block]:
    """Return blocks as such."""
    return [cast(Block, block) for block in blocks]
