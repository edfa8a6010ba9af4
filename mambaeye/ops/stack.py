"""Blocks one after another over a residual stream, with their states as one (paper figure 2).

Shapes: B images, T steps, D model width; X, W, H, P, N as in mamba2.py.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mambaeye.ops.add_norm import add_norm
from mambaeye.ops.block import Block
from mambaeye.ops.checked_kernels import CheckedKernels
from mambaeye.ops.kernels import in_place
from mambaeye.ops.mamba2 import MixerState


class StackState(NamedTuple):
    """States of all mixers, one row an image."""

    conv: Tensor
    """(B, depth, X, W - 1): see MixerState."""
    ssm: Tensor
    """(B, depth, H, P, N): see MixerState."""


def initial_state(blocks: Sequence[Block], batch_size: int) -> StackState:
    """Return the state of batch_size images of which nothing was seen: zeros."""
    parts = blocks[0].mixer.initial_state(0)
    return StackState(*(part.new_zeros(batch_size, len(blocks), *part.shape[1:]) for part in parts))


def run(
    blocks: Sequence[Block],
    norm: nn.RMSNorm,
    x: Tensor,
    state: StackState | None,
    kernels: CheckedKernels | None,
    lengths: Tensor | None = None,
) -> tuple[Tensor, StackState | None]:
    """Run x (B, T, D) through blocks and the norm of their residual stream.

    Args:
        blocks: one or more.
        norm: of the stream behind the last one.
        x: what the stream starts with.
        state: before these steps; None for sequences from their start on, whose states nobody wants.
        kernels: what runs them, None for plain torch.
        lengths: (B,), how many of the steps count; None for all.

    Returns:
        (B, T, D), and the state after the steps that count, if one was given.
    """
    if state is None:
        residual = None
        for block in blocks:
            x, residual, _ = block(x, residual, None, kernels, lengths)
        return add_norm(x, residual, norm)[0], None
    conv, ssm = state
    if overwritten := kernels is not None and in_place(x, lengths):
        conv, ssm = conv.clone(), ssm.clone()
    residual, layers = None, []
    for i, block in enumerate(blocks):
        x, residual, after = block(x, residual, MixerState(conv[:, i], ssm[:, i]), kernels, lengths)
        layers.append(after)
    if not overwritten:
        conv, ssm = (torch.stack(parts, dim=1) for parts in zip(*layers, strict=True))
    return add_norm(x, residual, norm)[0], StackState(conv, ssm)
