"""A device that is not there: its tensors say "meta", hold values all the same, and do not mix with the CPU's.

A run on it computes what it would on the CPU. An operation on tensors of both devices raises as on a GPU, and so does
what reads a tensor's memory, like .numpy(); a number without an axis may be on the CPU, as there. What a GPU would be
waited for is noted.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

from mambaeye.evaluation.calibration import fine_edges

DEVICE = torch.device("meta")
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)  # from one device to another on purpose

aten = torch.ops.aten
WAITING = {  # for a value, or for how much there is
    aten._local_scalar_dense,
    aten.equal,
    aten.is_nonzero,
    aten.nonzero,
    aten.masked_select,
    aten.bincount,
    aten._unique2,
    aten.unique_dim,
    aten.unique_consecutive,
    aten.repeat_interleave,
}
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}


class Elsewhere(Tensor):
    """A tensor of the device, with its values in one of the CPU's."""

    here: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, here: Tensor) -> "Elsewhere":
        tensor = Tensor._make_wrapper_subclass(
            cls,
            here.shape,
            strides=here.stride(),
            storage_offset=here.storage_offset(),
            dtype=here.dtype,
            device=DEVICE,
            requires_grad=here.requires_grad,
        )
        tensor.here = here
        return tensor

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return compute(func, args, kwargs or {})

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.here.__reduce_ex__(protocol)  # in files, as whoever has no such device reads them

    def __repr__(self, **_: Any) -> str:
        return f"Elsewhere({self.here!r})"

    def tolist(self) -> Any:
        return self.here.tolist()


class OnElsewhere(TorchDispatchMode):
    """Lets the device be there, counts the operations on it, and collects those that would wait for a GPU."""

    def __init__(self) -> None:
        super().__init__()
        self.operations, self.waits = 0, []

    def __enter__(self) -> "OnElsewhere":
        fine_edges.cache_clear()  # of tensors that are on the meta device
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        fine_edges.cache_clear()
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        tensors = [part for part in tree_iter((args, kwargs)) if isinstance(part, Tensor)]
        result = compute(func, args, kwargs or {})
        there = [isinstance(tensor, Elsewhere) for tensor in tensors]
        self.operations += any(there)
        copies = func in COPIES and not (kwargs or {}).get("non_blocking") and func is not COPIES[1]
        between = copies and isinstance(result, Elsewhere) != there[0]
        between |= func is COPIES[1] and there[0] != there[1] and not (args[2:] + (False,))[0]
        masked = func.overloadpacket in INDEXING and any(
            isinstance(index, Tensor) and (index.dtype == torch.bool or not isinstance(index, Elsewhere))
            for index in args[1]
        )
        if (any(there) and (func.overloadpacket in WAITING or masked)) or between:
            self.waits.append((str(func), [tuple(tensor.shape) for tensor in tensors]))
        return result


def compute(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Return an operation's result, on the device of what it takes or on the one that it is told."""
    tensors = [part for part in tree_iter((args, kwargs)) if isinstance(part, Tensor)]
    there = {id(tensor.here): tensor for tensor in tensors if isinstance(tensor, Elsewhere)}
    free = func in COPIES or func.overloadpacket in INDEXING  # indices may be on the CPU
    if not free and there and (strange := [t for t in tensors if t.ndim and not isinstance(t, Elsewhere)]):
        raise RuntimeError(f"{func} takes tensors of two devices: of the CPU {[tuple(t.shape) for t in strange]}")
    device = kwargs.get("device")
    if device is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    args, kwargs = tree_map_only(Elsewhere, lambda tensor: tensor.here, (args, kwargs))
    result = func(*args, **kwargs)
    if torch.device(device).type != DEVICE.type if device is not None else not there:
        return result
    return tree_map_only(Tensor, lambda tensor: there[id(tensor)] if id(tensor) in there else Elsewhere(tensor), result)
