"""Blocks of an encoder, whatever it is: computed again in the backward pass instead of kept, and what they keep."""

import copy
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.checkpoint import checkpoint

from mambaeye.batch import CanvasBatch, GlimpseBatch
from mambaeye.encoders.base import Encoder
from mambaeye.errors import InputError
from mambaeye.ops.batch_norm import running_means_kept

WAYS = 64  # to compile a block: first or not, with a state or a gradient or not, in which precision, how large roughly


def blocks_of(encoder: Encoder) -> Iterator[nn.Module]:
    """Yield the encoder's blocks: what the lists of modules in it hold, the first one first."""
    lists = [part for part in encoder.modules() if isinstance(part, nn.ModuleList)]
    for blocks in lists:
        yield from blocks


def checkpoint_blocks(encoder: Encoder) -> None:
    """Let every block keep its arguments alone for the backward pass, and compute the rest again there.

    Values and gradients are the same, for a third more work: a forward pass more. Single steps, and whatever has no
    gradient, go on as they did.
    """
    for block in blocks_of(encoder):
        block.forward = partial(recomputed, block.forward)  # of the instance: names and weights stay


def recomputed(forward: Callable[..., Any], x: Tensor, *rest: Any, **named: Any) -> Any:
    """Call forward on x (B, T, ...) and what else it takes, and keep nothing of it but these."""
    if not torch.is_grad_enabled() or x.shape[1] == 1:
        return forward(x, *rest, **named)
    return checkpoint(forward, x, *rest, use_reentrant=False, context_fn=passes, **named)


def passes() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return what the two computations of a block run in: the second moves no running means of batch norms."""
    return nullcontext(), running_means_kept()


def compile_blocks(encoder: Encoder, backend: str = "inductor") -> None:
    """Compile every block with torch.compile, for any length and batch at once; they run in plain torch then.

    Args:
        encoder: whose blocks it is.
        backend: of torch.compile.

    Raises:
        InputError: the encoder is to run on kernels.
    """
    for part in encoder.modules():
        if getattr(part, "kernels", "torch") == "cuda":
            raise InputError(
                "model.compile is true and model.encoder.kernels cuda, which are compiled already: leave one"
            )
        if hasattr(part, "kernels"):
            part.kernels = "torch"  # type: ignore[assignment]  # no module or tensor
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, WAYS)
    for block in blocks_of(encoder):
        block.forward = Compiled(block.forward, backend)


class Compiled:
    """The forward method of a block, compiled; single steps are not, nor is a copy of the block."""

    def __init__(self, forward: Callable[..., Any], backend: str) -> None:
        self.forward = forward
        self.compiled = torch.compile(forward, dynamic=True, fullgraph=True, backend=backend)

    def __call__(self, x: Tensor, *rest: Any, **named: Any) -> Any:
        return (self.forward if x.shape[1] == 1 else self.compiled)(x, *rest, **named)

    def __deepcopy__(self, memo: dict[int, Any]) -> Callable[..., Any]:
        return copy.deepcopy(self.forward, memo)


def kept_bytes(encoder: Encoder, batch: GlimpseBatch | CanvasBatch) -> int:
    """Return the bytes that a training step of the encoder holds at once for its backward pass.

    Counted in a forward pass of a copy, where the encoder is, its precision and kernels as they are: on the meta device
    nothing is computed and no memory taken. Of blocks that are computed again, one is counted besides what all keep.

    Args:
        encoder: which is not touched.
        batch: on the encoder's device, of which only shapes and dtypes count.
    """
    copied = copy.deepcopy(encoder)
    kept = held_after(copied, batch)
    again = [block for block in blocks_of(copied) if vars(block).pop("forward", None)]
    return kept + (held_after(copied, batch) - kept) // len(again) if again else kept


def held_after(encoder: Encoder, batch: GlimpseBatch | CanvasBatch) -> int:
    """Return the bytes that operations of a forward pass have made and that its result holds."""
    with torch.enable_grad(), Allocated() as allocated:
        features = encoder.encode(batch)
        held = allocated.bytes
    del features
    return held


class Allocated(TorchDispatchMode):
    """Counts the bytes of the storages that operations within it have made, and that are still there."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0
        self.known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for given in storages((args, kwargs)):  # which were there before, such as weights
            self.known.add(given)
        results = func(*args, **(kwargs or {}))
        for made in storages(results):
            if made not in self.known:
                self.known.add(made)
                self.bytes += made.nbytes()
                weakref.finalize(made, self._free, made.nbytes())
        return results

    def _free(self, size: int) -> None:
        self.bytes -= size


def storages(tensors: Any) -> Iterator[torch.UntypedStorage]:
    """Yield the storage of every tensor in a nest of containers."""
    return (tensor.untyped_storage() for tensor in tree_iter(tensors) if isinstance(tensor, Tensor))
