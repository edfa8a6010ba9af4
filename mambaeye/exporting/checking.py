"""Exported graphs against torch, before anything is put in place, and what they cost.

Shapes: B images, T glimpses, K axes of a position, P patch side, C classes.
"""

import time
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from mambaeye.encoders.base import CausalEncoder
from mambaeye.errors import InputError
from mambaeye.exporting.graphs import STATE, Graph, state_parts
from mambaeye.exporting.onnx_files import session

IMAGES, GLIMPSES = 20, 50  # a thousand glimpses at least
TOLERANCE = 1e-4  # of logits and features; of a state, or of what it is where that is above 1
FARTHEST = 1024  # pixels
REPEATS = 200  # of which the median is the latency
SEED = 0


class Seen(NamedTuple):
    """Glimpses of some images, and what torch makes of them."""

    patches: Tensor
    """(B, T, 3, P, ...) uint8."""
    positions: Tensor
    """(B, T, K) int64."""
    logits: Tensor
    """(B, T, C)."""
    states: list[list[np.ndarray]]
    """After every glimpse, the state's tensors."""


def seen_by_torch(encoder: CausalEncoder, chunk: int) -> Seen:
    """Return a thousand random glimpses: noise of every contrast, anywhere on a large canvas, one after another.

    There are more if it takes more for a whole number of chunks.
    """
    generator = torch.Generator().manual_seed(SEED)
    glimpses = -(-GLIMPSES // chunk) * chunk
    shape = (IMAGES, glimpses, 3, *encoder.glimpse)
    noise = torch.rand(shape, generator=generator)
    contrast = torch.rand(shape[:2], generator=generator).view(*shape[:2], *[1] * (len(shape) - 2))
    patches = (255 * contrast * noise).to(torch.uint8)
    positions = torch.randint(FARTHEST, (*shape[:2], encoder.axes), generator=generator)
    logits, states, state = [], [], encoder.initial_state(IMAGES)
    with torch.no_grad():
        for at in range(glimpses):
            one, state = encoder.stream(patches[:, at : at + 1], positions[:, at : at + 1], state)
            logits.append(one)
            states.append([part.numpy().copy() for part in tree_leaves(state)])
    return Seen(patches, positions, torch.cat(logits, dim=1), states)


def check_stream(path: Path, encoder: CausalEncoder, seen: Seen, glimpses: int | None) -> float:
    """Compare a file with torch, glimpse by glimpse or so many at once, and return the largest difference of logits.

    Raises:
        InputError: it differs by more than TOLERANCE.
    """
    run, names = session(path), [STATE + name for name in state_parts(encoder).names]
    state = [part.numpy() for part in tree_leaves(encoder.initial_state(IMAGES))]
    count, worst = glimpses or 1, 0.0
    for first in range(0, seen.positions.shape[1], count):
        at = first if glimpses is None else slice(first, first + count)
        inputs = {"patches": seen.patches[:, at].numpy(), "positions": seen.positions[:, at].numpy()}
        logits, _, *state = run.run(None, inputs | dict(zip(names, state, strict=True)))
        worst = max(worst, require_close(path, "logits", logits, seen.logits[:, at].numpy()))
        for name, found, expected in zip(names, state, seen.states[first + count - 1], strict=True):
            require_close(path, name, found, expected)
    return worst


def check_policy(path: Path, graph: Graph) -> float:
    """Compare a policy's file with torch on a thousand random observations, and return the largest difference.

    Raises:
        InputError: it differs by more than TOLERANCE.
    """
    run, generator, worst = session(path), torch.Generator().manual_seed(SEED), 0.0
    for _ in range(GLIMPSES):
        inputs = {name: like(example, generator) for name, example in graph.inputs.items()}
        with torch.no_grad():
            expected = graph.module(*inputs.values())
        (found,) = run.run(None, {name: value.numpy() for name, value in inputs.items()})
        worst = max(worst, require_close(path, "gains", found, expected.numpy()))
    return worst


def like(example: Tensor, generator: torch.Generator) -> Tensor:
    """Return random values for some images: normal ones where an example is floating, else integers from 1 to 48."""
    shape = (IMAGES, *example.shape[1:])
    if example.is_floating_point():
        return torch.randn(shape, generator=generator)
    return torch.randint(1, 49, shape, generator=generator)


def require_close(path: Path, name: str, found: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest difference, of large values relative to them.

    Raises:
        InputError: it is above TOLERANCE, or something is not a finite number.
    """
    difference = np.abs(found.astype(np.float64) - expected) / np.maximum(1, np.abs(expected))
    worst = float(difference.max())
    if not worst <= TOLERANCE:
        raise InputError(
            f"{path.name} is not written: its {name} differ from torch's by {worst:.1e}, and {TOLERANCE:.0e} is "
            f"allowed; report this with the versions of torch and onnxruntime"
        )
    return worst


def latency(path: Path, graph: Graph) -> float:
    """Return the median milliseconds that a file takes for one image, in one thread of this machine."""
    run: Any = session(path)
    inputs = {name: example[:1].numpy() for name, example in graph.inputs.items()}
    taken = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        run.run(None, inputs)
        taken.append(time.perf_counter() - started)
    return 1000 * median(taken)


def state_bytes(encoder: CausalEncoder) -> int:
    """Return how many bytes the state of one image takes."""
    return sum(part.numel() * part.element_size() for part in tree_leaves(encoder.initial_state(1)))
