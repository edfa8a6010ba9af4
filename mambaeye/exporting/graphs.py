"""An encoder's step and a policy's values as graphs of plain tensors, and what goes in and comes out of each, by name.

Shapes: B images, T glimpses, K axes of a position, P patch side, C classes, D feature width, n candidate places.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import (
    MappingKey,
    SequenceKey,
    TreeSpec,
    keystr,
    tree_flatten_with_path,
    tree_leaves,
    tree_unflatten,
)

from mambaeye.encoders.base import CausalEncoder
from mambaeye.geometry.coverage import Coverage
from mambaeye.policies.base import Observation
from mambaeye.policies.learned import BLOCKS, LearnedScan, context_of

STATE, NEXT = "state_", "next_"
IMAGES = 3  # of an example to trace: neither 0 nor 1, which would stay a constant


class Graph(NamedTuple):
    """A module to export, with an example of what it takes."""

    module: nn.Module
    inputs: dict[str, Tensor]
    """By name, in order; every first axis is that of the images, and may be of any length."""
    outputs: list[str]
    """Names, in order."""
    rest: int = 0
    """Number of the last inputs that the module takes as *args."""


class StateParts(NamedTuple):
    """An encoder's state as a flat list of tensors."""

    names: list[str]
    initial: list[Tensor]
    """Of no image, (0, ...)."""
    spec: TreeSpec
    """Their place in the state."""


def state_parts(encoder: CausalEncoder) -> StateParts:
    """Return the tensors that an encoder carries."""
    parts, spec = tree_flatten_with_path(encoder.initial_state(0))
    names = ["_".join(key_name(key) for key in path) for path, _ in parts]
    return StateParts(names, [part for _, part in parts], spec)


def key_name(key: Any) -> str:
    """Return what a tensor is called in its container."""
    if isinstance(key, SequenceKey):
        return str(key.idx)
    return str(key.key) if isinstance(key, MappingKey) else keystr((key,)).lstrip(".")  # a field of a NamedTuple


class StreamGraph(nn.Module):
    """Patches, positions and a state's tensors -> logits, features, and the next state's tensors.

    Args:
        encoder: in evaluation.
        single: take one glimpse an image, (B, 3, P, P) and (B, K), and give (B, C) and (B, D); otherwise several.
    """

    def __init__(self, encoder: CausalEncoder, single: bool) -> None:
        super().__init__()
        self.encoder, self.single = encoder, single
        self.spec = state_parts(encoder).spec

    def forward(self, patches: Tensor, positions: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        if self.single:
            patches, positions = patches[:, None], positions[:, None]
        carried = tree_unflatten(state, self.spec)
        features, carried = self.encoder.stream_features(patches, positions, carried)
        logits = self.encoder.logits(features)
        if self.single:
            logits, features = logits[:, 0], features[:, 0]
        return (logits, features, *tree_leaves(carried))


def stream_graph(encoder: CausalEncoder, glimpses: int | None) -> Graph:
    """Return the graph of an encoder that takes so many glimpses at once; None for a single one, without their axis."""
    time = () if glimpses is None else (glimpses,)
    axes = encoder.axes
    parts = state_parts(encoder)
    inputs = {
        "patches": torch.zeros(IMAGES, *time, 3, *encoder.glimpse, dtype=torch.uint8),
        "positions": torch.zeros(IMAGES, *time, axes, dtype=torch.long),
    }
    inputs |= {STATE + name: part.new_zeros(IMAGES, *part.shape[1:]) for name, part in zip(*parts[:2], strict=True)}
    outputs = ["logits", "features", *(NEXT + name for name in parts.names)]
    return Graph(StreamGraph(encoder, glimpses is None), inputs, outputs, rest=len(parts.names))


class ToldCoverage(Coverage):
    """Coverage as far as a policy reads it, counted by whoever runs the graph."""

    def __init__(self, boxes: Tensor, covered: Tensor, new: Tensor, sides: Tensor) -> None:
        self.boxes, self.covered, self.new, self.sides = boxes, covered, new, sides

    def in_blocks(self, blocks: int) -> Tensor:
        return self.covered

    def new_pixels(self, positions: Tensor) -> Tensor:
        return self.new


class PolicyGraph(nn.Module):
    """Values places: images and candidates as they are known -> the drop in cross entropy expected, (B, n) nats."""

    sides: Tensor

    def __init__(self, policy: LearnedScan, patch_size: tuple[int, ...]) -> None:
        super().__init__()
        self.policy, self.patch_size = policy, patch_size
        self.register_buffer("sides", torch.tensor(patch_size))  # (K,)

    def forward(
        self,
        features: Tensor,
        logits: Tensor,
        glimpses: Tensor,
        boxes: Tensor,
        last: Tensor,
        covered: Tensor,
        candidates: Tensor,
        new: Tensor,
    ) -> Tensor:
        """Return the values.

        Args:
            features: (B, D), the encoder's after the last glimpse.
            logits: (B, C), likewise.
            glimpses: (B,) int64, taken so far, from 1 up.
            boxes: (B, 2 K) int64, the images' first pixels and sides.
            last: (B, K) int64, where the last glimpse was.
            covered: (B, BLOCKS, ...) float32, the share of every block that was shown; see Coverage.in_blocks.
            candidates: (B, n, K) int64.
            new: (B, n) int64, the image's pixels that a glimpse at each would be the first to show.
        """
        coverage = ToldCoverage(boxes, covered, new, self.sides)
        seen = Observation(1, features, logits, coverage, last[:, None], candidates, glimpses, self.patch_size)
        octaves = glimpses.to(logits.dtype).log2()[:, None]  # (B, 1), in place of the observation's step
        return self.policy.gains_in(context_of(seen, self.policy.sees, octaves), seen, candidates)


def policy_graph(policy: LearnedScan, encoder: CausalEncoder) -> Graph:
    """Return the graph of what a policy expects of so many candidates as it chooses from."""
    axes, offered = encoder.axes, policy.offered
    inputs = {
        "features": torch.zeros(IMAGES, encoder.feature_dim),
        "logits": torch.zeros(IMAGES, encoder.num_classes),
        "glimpses": torch.ones(IMAGES, dtype=torch.long),
        "boxes": torch.full((IMAGES, 2 * axes), 48),
        "last": torch.zeros(IMAGES, axes, dtype=torch.long),
        "covered": torch.zeros(IMAGES, *(BLOCKS,) * axes),
        "candidates": torch.zeros(IMAGES, offered, axes, dtype=torch.long),
        "new": torch.zeros(IMAGES, offered, dtype=torch.long),
    }
    return Graph(PolicyGraph(policy, encoder.glimpse), inputs, ["gains"])
