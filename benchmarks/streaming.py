"""Measure how fast shards stream, and whether workers keep to their memory.

    python -m benchmarks.streaming SHARDS [--num_workers 0 1 2 4] [--canvas 32 128] [--num_glimpses 256]

SHARDS may be whatever --data.train_shards takes; --shuffle_span is as in training, 1 for version 0.1's order.

Prints JSON lines. First the bare stream: every image of one epoch read in order, not decoded, in one process. Then, for
each number of workers, one epoch of training samples through the loader that training uses, without augmentation:
images a second (after the first batches, which start the workers), whether every sample came at most once and less than
a batch was left out, and what memory of its own (RssAnon, MiB; Linux) the largest worker had after a tenth of the epoch
and at its end.
"""

import json
import multiprocessing
import time
from argparse import ArgumentParser, Namespace
from pathlib import Path

from datamodules.loading.config import LoaderConfig
from datamodules.loading.loader import EpochLoader, ShardAccess
from datamodules.shards.index import ShardIndex
from datamodules.shards.locate import open_index
from datamodules.shards.order import EpochOrder, ResumedSegment
from datamodules.shards.reading import read_images
from datamodules.views.train import TrainingGlimpses, TrainView


def bare(index: ShardIndex, span: int | None) -> dict[str, object]:
    """Stream one epoch of encoded images."""
    layout = LoaderConfig(shuffle_span=span).training_layout(index, ranks=1)
    order = EpochOrder(index.counts, 0, 0).left([ResumedSegment(layout, 0)])
    start, size = time.perf_counter(), 0
    for image in read_images(index, order, attempts=0):
        assert isinstance(image, bytes)
        size += len(image)
    seconds = time.perf_counter() - start
    return {
        "stream": "bare",
        "span": layout.span,
        "images": len(index),
        "images_per_second": round(len(index) / seconds),
        "MB_per_second": round(size / seconds / 1e6, 1),
    }


def training(index: ShardIndex, workers: int, options: Namespace) -> dict[str, object]:
    """Load one epoch of training samples."""
    samples = TrainingGlimpses(TrainView(tuple(options.canvas), options.num_glimpses), patch_size=16)
    config = LoaderConfig(options.batch_size, num_workers=workers, shuffle_span=options.shuffle_span)
    access = ShardAccess(index, config.training_layout(index, ranks=1), rank=0, config=config)
    loader = EpochLoader(access, samples, seed=0, epoch=lambda: 0)
    keys: list[str] = []
    begin, early, late = max(1, workers) * 2, None, None
    for step, batch in enumerate(loader):
        if step == begin:  # every worker has started and has handed out its first
            start = time.perf_counter()
        if step == len(loader) // 10:
            early = largest_child()
        if step == len(loader) - 2 * begin:
            late = largest_child()
        keys += batch.keys
    seconds = time.perf_counter() - start
    return {
        "stream": "training",
        "num_workers": workers,
        "images_per_second": round((len(loader) - begin - 1) * options.batch_size / seconds),
        "each_once": len(set(keys)) == len(keys) > len(index) - options.batch_size,
        "worker_MiB_early": early,
        "worker_MiB_late": late,
    }


def largest_child() -> float | None:
    """Return the most memory of its own that a worker process has, in MiB; None without workers or /proc."""
    sizes = []
    for child in multiprocessing.active_children():
        status = Path(f"/proc/{child.pid}/status")
        if status.exists():
            line = next(line for line in status.read_text().splitlines() if line.startswith("RssAnon"))
            sizes.append(int(line.split()[1]) / 1024)
    return round(max(sizes), 1) if sizes else None


def main() -> None:
    """Run the command line; see the module's docstring."""
    parser = ArgumentParser(prog="python -m benchmarks.streaming", description="How fast shards stream.")
    parser.add_argument("shards", help="folder of shards, or whatever else --data.train_shards takes")
    parser.add_argument("--index", help="the shards' index, if it is not beside them")
    parser.add_argument("--num_workers", type=int, nargs="+", default=[0, 1, 2, 4], help="worker processes to try")
    parser.add_argument("--canvas", type=int, nargs=2, default=(32, 128), help="smallest and largest side, pixels")
    parser.add_argument("--num_glimpses", type=int, default=256, help="glimpses an image")
    parser.add_argument("--batch_size", type=int, default=64, help="images a batch")
    parser.add_argument("--shuffle_span", type=int, help="shards to shuffle over (default: as in training)")
    options = parser.parse_args()
    index = open_index(options.shards, options.index)
    print(json.dumps(bare(index, options.shuffle_span)), flush=True)
    for workers in options.num_workers:
        print(json.dumps(training(index, workers, options)), flush=True)


if __name__ == "__main__":
    main()
