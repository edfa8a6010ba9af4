"""Measure the selective scan in plain torch, against its recurrence step by step and the projections around it.

    python -m benchmarks.s6 [--dim 192] [--steps 197 1024 4096] [--images 1]

A Vim block of two directions, forward and backward, all in one process and in turn: the scan, the same recurrence as a
loop under autograd, and the block's dense projections (in, x, dt, out). Times are the process's own CPU seconds, so
that others on the machine disturb them less; ratios are of the same run. Memory is what autograd keeps for the
backward pass, counted tensor by tensor, without the scan's own arguments.
"""

import argparse
import math
from collections.abc import Callable
from statistics import median
from time import process_time

import torch
from torch import Tensor

from mambaeye.ops.s6 import selective_scan

DIRECTIONS, STATES = 2, 16
Scan = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def step_by_step(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """Compute selective_scan as its definition says, for autograd to follow."""
    state = x.new_zeros(x.shape[0], *A.shape)  # (B, K, E, N)
    outputs = []
    # unbound, for the gradient of x[:, t] would be as long as x
    for x_t, dt_t, B_t, C_t in zip(*(tensor.unbind(1) for tensor in (x, dt, B, C)), strict=True):
        added = (dt_t * x_t).unsqueeze(-1) * B_t.unsqueeze(-2)
        state = torch.exp(dt_t.unsqueeze(-1) * A) * state + added
        outputs.append((state * C_t.unsqueeze(-2)).sum(-1) + D * x_t)
    return torch.stack(outputs, dim=1)


def scan_arguments(images: int, steps: int, inner: int) -> list[Tensor]:
    """Draw x, dt, A, B, C and D, all with gradients, with the step sizes that training starts with."""
    x, C = torch.randn(images, steps, DIRECTIONS, inner), torch.randn(images, steps, DIRECTIONS, STATES)
    dt = torch.empty_like(x).uniform_(math.log(1e-3), math.log(1e-1)).exp()
    A = -torch.arange(1.0, STATES + 1).expand(DIRECTIONS, inner, -1).clone()
    tensors = [x, dt, A, torch.randn_like(C), C, torch.ones(DIRECTIONS, inner)]
    return [tensor.requires_grad_() for tensor in tensors]


def projections(images: int, steps: int, dim: int) -> Callable[[], None]:
    """Return a call of the block's matrix products and their gradients."""
    inner, rank = 2 * dim, math.ceil(dim / 16)
    tokens = images * steps
    widths = [(dim, 2 * inner)] + [(inner, rank + 2 * STATES), (rank, inner)] * DIRECTIONS + [(inner, dim)]
    pairs = [(torch.randn(tokens, i, requires_grad=True), torch.randn(o, i, requires_grad=True)) for i, o in widths]

    def call() -> None:
        for x, weight in pairs:
            y = x @ weight.T
            torch.autograd.grad(y, (x, weight), torch.ones_like(y))

    return call


def kept(scan: Scan, tensors: list[Tensor]) -> int:
    """Return the bytes that autograd keeps for a scan's backward pass, each storage once, its arguments left out."""
    storages: dict[int, int] = {tensor.untyped_storage().data_ptr(): 0 for tensor in tensors}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages.setdefault(storage.data_ptr(), storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        y = scan(*tensors)
    size = sum(storages.values())
    del y
    return size


def seconds(call: Callable[[], object]) -> float:
    """Return the CPU seconds of a call."""
    start = process_time()
    call()
    return process_time() - start


def measure(images: int, steps: int, dim: int, rounds: int) -> dict[str, float]:
    """Return median CPU seconds of everything, in turn, and the bytes kept."""
    tensors = scan_arguments(images, steps, 2 * dim)

    def both(scan: Scan) -> Callable[[], object]:
        def call() -> object:
            y = scan(*tensors)
            return torch.autograd.grad(y, tensors, torch.ones_like(y))

        return call

    calls = {"scan": both(selective_scan), "loop": both(step_by_step), "projections": projections(images, steps, dim)}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 1):
        for name, call in calls.items():
            took = seconds(call)
            if turn:  # the first warms up
                times[name].append(took)
    measured = {name: median(some) for name, some in times.items()}
    return measured | {"scan keeps": kept(selective_scan, tensors), "loop keeps": kept(step_by_step, tensors)}


def main() -> None:
    """Print one line for each number of steps."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, default=192)
    parser.add_argument("--steps", type=int, nargs="+", default=[197, 1024, 4096])
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.manual_seed(0)
    print("| steps | scan, ms | loop / scan | scan / projections | scan keeps, MiB | loop keeps, MiB |")
    print("|---|---|---|---|---|---|")
    for steps in given.steps:
        m = measure(given.images, steps, given.dim, given.rounds)
        print(
            f"| {steps} | {1e3 * m['scan']:.0f} | {m['loop'] / m['scan']:.1f} | {m['scan'] / m['projections']:.1f} | "
            f"{m['scan keeps'] / 2**20:.1f} | {m['loop keeps'] / 2**20:.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
