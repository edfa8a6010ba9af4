"""Graphs in files of ONNX, and sessions of onnxruntime that run them."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from packaging.version import Version

from mambaeye.errors import InputError
from mambaeye.exporting.graphs import Graph

NEEDED = ("onnx", "onnxscript", "onnxruntime")
TORCH = Version("2.9")  # from which on torch.export is how it writes ONNX
TALKATIVE = "torch.onnx._internal.exporter._registration"  # of torchvision, which nothing here needs


def require_onnx() -> None:
    """Require what writes and runs ONNX.

    Raises:
        InputError: it is not installed, or torch is older.
    """
    if Version(torch.__version__) < TORCH:
        raise InputError(f"export needs torch {TORCH} or newer, and this is {torch.__version__}: upgrade it")
    for name in NEEDED:
        try:
            __import__(name)
        except ImportError:
            raise InputError(f"export needs {name}: pip install 'mambaeye[export]'") from None


def write_onnx(graph: Graph, path: Path) -> None:
    """Write a graph, weights inside, every first axis of any length.

    Raises:
        InputError: what the module does depends on the values that it takes, as H-Net's, whose router drops glimpses.
    """
    images = torch.export.Dim("images")
    args = tuple(graph.inputs.values())
    shapes: list[Any] = [{0: images}] * (len(args) - graph.rest)
    if graph.rest:
        shapes.append(({0: images},) * graph.rest)  # which is one argument to torch.export
    try:
        with quiet(), torch.no_grad():
            program = torch.onnx.export(
                graph.module.eval(),
                args,
                dynamo=True,
                dynamic_shapes=tuple(shapes),
                input_names=list(graph.inputs),
                output_names=graph.outputs,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        raise InputError(
            f"{path.name} cannot be written, for torch.export cannot trace what this model does at a glimpse "
            f"({reason(error)}): give --ckpt_path a checkpoint of another encoder, such as MambaEye"
        ) from None
    assert program is not None
    for node in program.model.graph:
        node.metadata_props.clear()  # the paths and lines of this machine that it comes from
        node.doc_string = None
    program.model.metadata_props.clear()
    program.save(str(path), external_data=False)


def reason(error: Exception) -> str:
    """Return why a module was not traced, in a few words."""
    cause = error.__cause__ or error
    return type(cause).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """Keep an exporter's remarks on itself, which nobody can act on, from the console."""
    logger = logging.getLogger(TALKATIVE)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def session(path: Path) -> Any:
    """Return what runs a file, in one thread."""
    import onnxruntime  # here, for few commands need it

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
