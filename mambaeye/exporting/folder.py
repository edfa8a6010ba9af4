"""`train.py export`: from a checkpoint to a folder that runs anywhere, checked against torch before it is there."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from mambaeye.atomic import atomic_folder
from mambaeye.checkpoints import DATA
from mambaeye.errors import InputError
from mambaeye.exporting import checking, web
from mambaeye.exporting.card import card
from mambaeye.exporting.graphs import Graph, policy_graph, state_parts, stream_graph
from mambaeye.exporting.narrow import Weights, round_matrices, store_narrow
from mambaeye.exporting.onnx_files import require_onnx, write_onnx
from mambaeye.exporting.trained import Trained, read_trained
from mambaeye.policies.learned import BLOCKS, LearnedScan
from mambaeye.weights import save

MANIFEST = "export.json"
CHUNK = 16  # glimpses that chunk.onnx takes at once
LONGEST_CHUNK = 1024
GLIMPSES = 256  # that the page takes by itself, where the checkpoint does not say how many validation takes


class Checked(NamedTuple):
    """A file that does what torch does."""

    file: str
    difference: float
    """The largest of logits, or of a policy's gains."""
    milliseconds: float
    """For one image, in one thread."""
    bytes: int


def export(
    ckpt_path: str | Path,
    output: str | Path,
    chunk: int = CHUNK,
    weights: Weights = "float32",
    tell: Callable[[str], None] = print,
) -> list[Checked]:
    """Write a checkpoint's model into a folder: graphs, weights, a card and a page.

    Args:
        ckpt_path: of a run's checkpoint, read without running code.
        output: the folder; an earlier export in it is replaced when the new one is complete.
        chunk: glimpses that chunk.onnx takes at once.
        weights: what the encoder's matrices are rounded to and kept in.
        tell: takes lines for the user.

    Raises:
        InputError: the model is not one that is exported, the folder holds something else, a package is missing, or
            a file does not do what torch does.
    """
    require_onnx()
    if not 2 <= chunk <= LONGEST_CHUNK:
        raise InputError(f"--chunk is {chunk}: give a number of glimpses from 2 to {LONGEST_CHUNK}")
    require_replaceable(Path(output))
    trained = read_trained(ckpt_path)
    round_matrices(trained.encoder, weights)
    with atomic_folder(output) as partial:
        checked = write_graphs(trained, partial, chunk, weights, tell)
        manifest = manifest_of(trained, chunk, weights, checked)
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        save(trained.encoder, partial)
        (partial / "README.md").write_text(card(trained, manifest, Path(ckpt_path)), encoding="utf-8")
        web.write_page(partial)
    return checked


def require_replaceable(output: Path) -> None:
    """Require that a folder is not there, is empty, or is an earlier export.

    Raises:
        InputError: it is something else.
    """
    if output.exists() and not (output / MANIFEST).is_file() and (output.is_file() or any(output.iterdir())):
        raise InputError(f"--output {output} holds something else than an export: choose another folder")


def write_graphs(
    trained: Trained, folder: Path, chunk: int, weights: Weights, tell: Callable[[str], None]
) -> list[Checked]:
    """Write step.onnx, chunk.onnx and, where there is one that values places, policy.onnx, and check each."""
    encoder, policy = trained.encoder, trained.policy
    seen = checking.seen_by_torch(encoder, chunk)
    checked = []

    def write(name: str, graph: Graph, check: Callable[[Path], float]) -> None:
        tell(f"writing {name} ...")
        path = folder / name
        write_onnx(graph, path)
        store_narrow(path, weights)
        checked.append(Checked(name, check(path), checking.latency(path, graph), path.stat().st_size))

    for name, glimpses in (("step.onnx", None), ("chunk.onnx", chunk)):
        graph = stream_graph(encoder, glimpses)
        write(name, graph, lambda path, count=glimpses: checking.check_stream(path, encoder, seen, count))  # type: ignore[misc]
    if isinstance(policy, LearnedScan):
        graph = policy_graph(policy, encoder)
        write("policy.onnx", graph, lambda path: checking.check_policy(path, graph))
    elif policy is not None:
        tell(f"the policy {type(policy).__name__} is left out: it is no LearnedScan, whose values are a graph")
    return checked


def manifest_of(trained: Trained, chunk: int, weights: Weights, checked: list[Checked]) -> dict[str, Any]:
    """Return what whoever runs the files must know, as plain values."""
    encoder, policy, data = trained.encoder, trained.policy, trained.checkpoint[DATA]
    parts = state_parts(encoder)
    return {
        "encoder": type(encoder).__name__,
        "classes": trained.classes,
        "patch_size": encoder.patch_size,
        "axes": encoder.axes,
        "parameters": sum(parameter.numel() for parameter in encoder.parameters()),
        "state": [
            {"name": name, "dtype": str(part.dtype).removeprefix("torch."), "shape": list(part.shape[1:])}
            for name, part in zip(parts.names, parts.initial, strict=True)
        ],
        "state_bytes": checking.state_bytes(encoder),
        "chunk": chunk,
        "weights": weights,
        "policy": {
            "candidates": policy.offered,
            "leads": policy.leads,
            "hand_over": policy.hand_over,
            "blocks": BLOCKS,
        }
        if isinstance(policy, LearnedScan)
        else None,
        "temperature": None if trained.temperature is None else trained.temperature.saved(),
        "canvas": list(data.get("train", {}).get("canvas", ())),
        "glimpses": data.get("evaluate", {}).get("num_glimpses", GLIMPSES),
        "resolutions": list(data.get("resolutions", ())),
        "files": [one._asdict() for one in checked],
    }
