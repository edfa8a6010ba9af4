"""Matrices in fewer bytes: rounded in torch, and kept so in a file of ONNX, which expands them to float32 when loaded.

A matrix in bfloat16 is rounded to it. One in int8 has whole numbers from -127 to 127 and a scale for every row of the
torch module's, an output: its largest value over 127. All else, norms, biases and convolutions, stays float32.
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

Weights = Literal["float32", "bfloat16", "int8"]
STEPS = 127  # the largest whole number of int8 that has its opposite
EXACT = 1e-5  # of a step: what float32 leaves of a whole number after a multiplication and a division


@torch.no_grad()
def round_matrices(module: nn.Module, weights: Weights) -> None:
    """Round a module's matrices, in place, to what they will be in a file."""
    for parameter in module.parameters():
        if parameter.ndim == 2 and weights != "float32":
            parameter.copy_(parameter.bfloat16() if weights == "bfloat16" else rounded_by_rows(parameter))


def rounded_by_rows(matrix: Tensor) -> Tensor:
    """Return a matrix of whole multiples of every row's scale: (rows, columns)."""
    scale = matrix.abs().amax(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / STEPS
    return (matrix / scale).round() * scale


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
        stored = stored_as(onnx.numpy_helper.to_array(tensor), tensor.name, weights)
        if stored is not None:
            graph.initializer.remove(tensor)
            graph.initializer.extend(stored[0])
            nodes += stored[1]
    kept = [*nodes, *graph.node]
    del graph.node[:]
    graph.node.extend(kept)
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def stored_as(values: np.ndarray, name: str, weights: Weights) -> tuple[list[Any], list[Any]] | None:
    """Return the tensors that a matrix is kept in, and the nodes that expand it; None if it was not rounded so."""
    import onnx

    narrow, wide = f"{name}_narrow", onnx.TensorProto.FLOAT
    if weights == "bfloat16":
        tensor = torch.from_numpy(values.copy())
        if not tensor.equal(tensor.bfloat16().float()):
            return None
        raw = tensor.bfloat16().view(torch.int16).numpy().tobytes()
        kept = onnx.helper.make_tensor(narrow, onnx.TensorProto.BFLOAT16, values.shape, raw, raw=True)
        return [kept], [onnx.helper.make_node("Cast", [narrow], [name], to=wide)]
    for axis in (1, 0):  # as torch has it, or transposed
        scale = np.abs(values).max(axis, keepdims=True).clip(np.finfo(np.float32).tiny) / np.float32(STEPS)
        numbers = values / scale
        if np.abs(numbers - np.rint(numbers)).max() < STEPS * EXACT:
            tensors = {narrow: np.rint(numbers).astype(np.int8), f"{name}_scale": scale.astype(np.float32)}
            cast = onnx.helper.make_node("Cast", [narrow], [f"{name}_cast"], to=wide)
            multiply = onnx.helper.make_node("Mul", [f"{name}_cast", f"{name}_scale"], [name])
            return [onnx.numpy_helper.from_array(value, key) for key, value in tensors.items()], [cast, multiply]
    return None
