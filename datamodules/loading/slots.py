"""Batches from loader workers to their process, through shared memory that is used again and again.

Memory that nobody has touched yet costs time: the system clears every page of it, and takes it back after a batch. Here
each worker has a few slots of it and collates its batches straight into one that is free. In the process, the tensors
of a batch lie over its slot, without a copy; when the last of them is gone, the slot is free again. So a batch that
somebody keeps is never overwritten: a worker without a free slot hands over fresh memory, as torch does.

A slot is torch's shared memory, which has no name, so that nothing of it is left when its processes have ended, however
they end. It is sent with its first batch, and again when it has grown; everything else is in the batch's ordinary
message. Slots come back through a pipe, a byte each.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from math import prod
from multiprocessing import Pipe
from typing import Any, ClassVar, Generic, TypeVar
from weakref import WeakValueDictionary, finalize

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

SLOTS = 6  # of a worker: two batches wait, one is made, and whoever takes them may hold three
ALIGNMENT = 64  # bytes; every tensor starts at a multiple

Sample = TypeVar("Sample")
Batch = TypeVar("Batch")
Stack = Callable[[Sequence[Tensor]], Any]
"""Makes a batch's tensor of those of its samples, or what stands for it."""


class Slots(Generic[Sample, Batch]):
    """The collate_fn of one pass of a DataLoader with workers.

    It is made in the process that the batches are for. Workers have copies, each with a state of its own.

    Args:
        workers: how many there are.
        collate: makes a batch of samples, every tensor of it by what it is given; as torch does where that is None.
    """

    _of_this_process: ClassVar["WeakValueDictionary[int, Slots[Any, Any]]"] = WeakValueDictionary()
    _numbers = count()

    def __init__(self, workers: int, collate: Callable[[list[Sample], Stack | None], Batch]) -> None:
        self._collate = collate
        pipes = [Pipe(duplex=False) for _ in range(workers)]
        self._returned, self._returns = [end for end, _ in pipes], [end for _, end in pipes]
        self._free = list(range(SLOTS))  # of a worker; the last to come back is used first, so that few are touched
        self._memory: dict[int, Tensor] = {}  # of a worker, by slot
        self._received: dict[tuple[int, int], Tensor] = {}  # of the process, by worker and slot
        self._number = next(self._numbers)
        self._of_this_process[self._number] = self

    def __getstate__(self) -> dict[str, Any]:
        """Return what a worker gets that is not a fork."""
        return self.__dict__ | {"_returns": []}

    def __call__(self, samples: list[Sample]) -> Batch:
        """Return a batch, in a worker: where its tensors stand for ones in a slot, the process receives these."""
        worker = get_worker_info()
        assert worker is not None, "only workers hand batches over"
        returned = self._returned[worker.id]
        if returned.poll():
            self._free.extend(os.read(returned.fileno(), SLOTS))
        if not self._free:
            return self._collate(samples, None)
        contents = Contents(self._number, worker.id, self._free[-1])
        batch = self._collate(samples, contents.add)
        contents.write(self._memory)
        self._free.pop()
        return batch

    @classmethod
    def receive(cls, number: int, worker: int, slot: int, memory: Tensor | None) -> np.ndarray:
        """Return the memory of a slot, which is given back when nobody holds what is returned any more.

        Args:
            number: of the pass.
            worker: whose slot it is.
            slot: index among that worker's.
            memory: (n,) uint8 in shared memory, if it is new.
        """
        slots = cls._of_this_process[number]
        if memory is not None:
            slots._received[worker, slot] = memory
        array: np.ndarray = slots._received[worker, slot].numpy()
        finalize(array, slots._give_back, worker, slot, os.getpid()).atexit = False
        return array

    def _give_back(self, worker: int, slot: int, process: int) -> None:
        if os.getpid() == process:  # and not a fork, whose copy of the batch is gone
            os.write(self._returns[worker].fileno(), bytes([slot]))


class Contents:
    """One batch's tensors in a slot; unpickled, the memory of that slot.

    Args:
        number: of the pass.
        worker: whose slot it is.
        slot: index among that worker's.
    """

    def __init__(self, number: int, worker: int, slot: int) -> None:
        self._slot = (number, worker, slot)
        self._stacks: list[tuple[Sequence[Tensor], InSlot]] = []
        self._size = 0  # bytes
        self._new: Tensor | None = None

    def __reduce__(self) -> tuple[Callable[..., np.ndarray], tuple[Any, ...]]:
        return Slots.receive, (*self._slot, self._new)

    def add(self, parts: Sequence[Tensor]) -> "InSlot":
        """Find a place for some tensors of one shape, stacked."""
        first = parts[0]
        place = InSlot(self, self._size, (len(parts), *first.shape), first.dtype)
        self._stacks.append((parts, place))
        self._size += -(-prod(place.shape) * first.itemsize // ALIGNMENT) * ALIGNMENT
        return place

    def write(self, memory: dict[int, Tensor]) -> None:
        """Stack the tensors, each in its place.

        Args:
            memory: of each of the worker's slots, (n,) uint8; what is missing or too small is replaced.
        """
        slot = self._slot[-1]
        if slot not in memory or len(memory[slot]) < self._size:
            memory.pop(slot, None)  # gone before there is more
            # As torch's collate does; share_memory_ would copy memory that nobody has touched, twice as many pages.
            shared = torch.UntypedStorage._new_shared(self._size)
            self._new = memory[slot] = torch.empty(0, dtype=torch.uint8).set_(shared)
        array = memory[slot].numpy()
        for parts, place in self._stacks:
            torch.stack(tuple(parts), out=tensor_in(array, place.offset, place.shape, place.dtype))
        self._stacks.clear()


@dataclass(frozen=True)
class InSlot:
    """A tensor's place in a slot; unpickled, the tensor."""

    contents: Contents
    offset: int
    """Of its first byte."""
    shape: tuple[int, ...]
    dtype: torch.dtype

    def __reduce__(self) -> tuple[Callable[..., Tensor], tuple[Any, ...]]:
        return tensor_in, (self.contents, self.offset, self.shape, self.dtype)


def tensor_in(memory: np.ndarray, offset: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Return the tensor that lies in memory from a byte on; it holds the memory.

    Args:
        memory: (n,) uint8.
        offset: of the first byte.
        shape: of the tensor.
        dtype: of the tensor.
    """
    if not prod(shape):
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(memory, dtype=dtype, count=prod(shape), offset=offset).view(shape)
