"""Matrices in fewer bytes: rounded in torch, and kept so in a file of ONNX, which expands them to float32 when loaded.

A matrix in bfloat16 is rounded to it. All else, norms, biases and convolutions, stays float32.
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

Weights = Literal["float32", "bfloat16"]


@torch.no_grad()
def round_matrices(module: nn.Module, weights: Weights) -> None:
    """Round a module's matrices, in place, to what they will be in a file."""
    for parameter in module.parameters():
        if parameter.ndim == 2 and weights != "float32":
            parameter.copy_(parameter.bfloat16())


def store_narrow(path: Path, weights: Weights) -> None:
    """Rewrite a file of ONNX with the matrices that were rounded in fewer bytes; others stay as they are."""
    import onnx

    if weights == "float32":
        return
    model = onnx.load(path)
    graph, nodes = model.graph, []
    for tensor in list(graph.initializer):
        if len(tensor.dims) != 2 or min(tensor.dims) == 1 or tensor.data_type != onnx.TensorProto.FLOAT:
            continue  # it is no matrix
        stored = stored_as(onnx.numpy_helper.to_array(tensor), tensor.name)
        if stored is not None:
            graph.initializer.remove(tensor)
            graph.initializer.append(stored[0])
            nodes.append(stored[1])
    kept = [*nodes, *graph.node]
    del graph.node[:]
    graph.node.extend(kept)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def stored_as(values: np.ndarray, name: str) -> tuple[Any, Any] | None:
    """Return the tensor that a matrix is kept in, and the node that expands it; None if it was not rounded."""
    import onnx

    tensor, narrow = torch.from_numpy(values.copy()), f"{name}_narrow"
    if not tensor.equal(tensor.bfloat16().float()):
        return None
    raw = tensor.bfloat16().view(torch.int16).numpy().tobytes()
    kept = onnx.helper.make_tensor(narrow, onnx.TensorProto.BFLOAT16, values.shape, raw, raw=True)
    return kept, onnx.helper.make_node("Cast", [narrow], [name], to=onnx.TensorProto.FLOAT)
