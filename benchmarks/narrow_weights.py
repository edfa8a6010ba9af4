"""Measure what narrow weights of an export cost: top-1 on the held-out digits by the exported step, size and time.

    python -m benchmarks.narrow_weights [--ckpt_paths runs/quickstart/checkpoints/best.ckpt ...]

Every checkpoint's step is written with matrices in float32 and bfloat16, and run by onnxruntime, in one thread,
on the 397 held-out digits under validation's own trajectories of 64 glimpses. Prints Markdown.
"""

import argparse
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

import numpy as np

from datamodules.datamodule import ShardDataModule
from datamodules.loading.config import LoaderConfig
from datamodules.loading.loader import FixedLoader, ShardAccess
from datamodules.shards.index import ShardIndex
from datamodules.views.evaluate import EvaluateView, EvaluationCanvases
from mambaeye.batch import EvaluationCondition
from mambaeye.checkpoints import DATA
from mambaeye.exporting.checking import latency
from mambaeye.exporting.graphs import STATE, state_parts, stream_graph
from mambaeye.exporting.narrow import Weights, round_matrices, store_narrow
from mambaeye.exporting.onnx_files import session, write_onnx
from mambaeye.exporting.trained import Trained, read_trained
from mambaeye.geometry.patches import cut_from_canvases

SIDES, SCANS, GLIMPSES = (48, 64, 96, 128), ("random", "row_raster"), 64
CONDITIONS = [EvaluationCondition(side, scan) for side in SIDES for scan in SCANS]


def right_answers(trained: Trained, path: Path) -> tuple[Counter[EvaluationCondition], int]:
    """Return how many images of each condition a step is right on after the last glimpse, and how many there are."""
    encoder, run, data = trained.encoder, session(path), ShardDataModule()
    names, initial, _ = state_parts(encoder)
    data.prepare_data()
    index, config = ShardIndex.read(data.splits.digits / "val"), LoaderConfig(num_workers=0)
    access = ShardAccess(index, config.evaluation_layout(index, 1), 0, config)
    view = EvaluateView(num_glimpses=GLIMPSES, interpolation="area")
    samples = EvaluationCanvases(CONDITIONS, encoder.patch_size, view)
    right: Counter[EvaluationCondition] = Counter()
    images = 0
    for batch in FixedLoader(access, samples, trained.checkpoint[DATA]["seed"]):
        positions = batch.scene.positions.long()
        patches = cut_from_canvases(batch.scene.canvases, positions, encoder.patch_size).numpy()
        count = len(patches)
        state = [part.new_zeros(count, *part.shape[1:]).numpy() for part in initial]
        for at in range(GLIMPSES):
            inputs = {"patches": patches[:, at], "positions": positions[:, at].numpy()}
            inputs |= {STATE + name: part for name, part in zip(names, state, strict=True)}
            logits, _, *state = run.run(None, inputs)
        found = (logits.argmax(-1) == batch.labels.numpy()) & batch.valid.numpy()
        right[CONDITIONS[batch.condition]] += int(found.sum())
        images += int(batch.valid.sum()) * (batch.condition == 0)
    return right, images


def line(path: Path, weights: Weights, folder: Path) -> list[str]:
    """Return a line of the table: a checkpoint's step with such weights."""
    trained = read_trained(path)
    round_matrices(trained.encoder, weights)
    graph, step = stream_graph(trained.encoder, None), folder / "step.onnx"
    write_onnx(graph, step)
    store_narrow(step, weights)
    right, images = right_answers(trained, step)
    top1 = [f"{100 * right[condition] / images:.1f}" for condition in CONDITIONS]
    milliseconds = np.median([latency(step, graph) for _ in range(5)])
    run = path.parents[1].name
    return [run, weights, *top1, f"{step.stat().st_size / 1e6:.2f}", f"{milliseconds:.2f}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = [Path("runs/quickstart/checkpoints/best.ckpt")]
    parser.add_argument("--ckpt_paths", nargs="+", type=Path, default=default, help="of runs on the digits")
    args = parser.parse_args()
    headings = ["run", "weights", *(condition.title for condition in CONDITIONS), "MB", "ms a glimpse"]
    print(f"| {' | '.join(headings)} |\n|{'---|' * len(headings)}")
    for path in args.ckpt_paths:
        for weights in get_args(Weights):
            with TemporaryDirectory() as folder:
                print(f"| {' | '.join(line(path, weights, Path(folder)))} |", flush=True)


if __name__ == "__main__":
    main()
