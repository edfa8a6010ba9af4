"""Measure how fast shards stream, and whether workers keep to their memory.

    python -m benchmarks.streaming SHARDS [--num_workers 0 1 2 4] [--canvas 32 128] [--num_glimpses 256]
    python -m benchmarks.streaming FOLDER --over_http ROUNDS

SHARDS may be whatever --data.train_shards takes; --shuffle_span is as in training, 1 for version 0.1's order.

Prints JSON lines. First the bare stream: every image of one epoch read in order, not decoded, in one process. Then, for
each number of workers, one epoch of training samples through the loader that training uses, without augmentation:
images a second (after the first batches, which start the workers), whether every sample came at most once and less than
a batch was left out, and what memory of its own (RssAnon, MiB; Linux) the largest worker had after a tenth of the epoch
and at its end.

With --over_http a folder's shards come from a web server of this machine, front to back, by each of the ways in
READERS in turn, each time in a process of its own.
"""

import json
import multiprocessing
import resource
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import BinaryIO

import fsspec
from webdataset import gopen

from datamodules.loading.config import LoaderConfig
from datamodules.loading.loader import EpochLoader, ShardAccess
from datamodules.shards.index import ShardIndex
from datamodules.shards.locate import open_index
from datamodules.shards.order import EpochOrder, ResumedSegment
from datamodules.shards.reading import read_images
from datamodules.storage.limits import ReadLimits
from datamodules.storage.stream import open_stream
from datamodules.views.train import TrainingGlimpses, TrainView

AT_ONCE = 110_000  # bytes, an ImageNet image
PORT = 8765


def by_curl(url: str) -> Iterator[int]:
    """Read as version 0.1 did: a curl process, through webdataset."""
    with gopen(url) as file:
        yield from sizes_of(file)


def by_urllib3(url: str) -> Iterator[int]:
    """Read as the loaders do."""
    with closing(open_stream(url, ReadLimits())) as stream:
        length = stream.raw.response.length_remaining
        for start in range(0, length, AT_ONCE):
            yield len(stream.read(min(AT_ONCE, length - start)))


def by_fsspec(url: str) -> Iterator[int]:
    """Read by fsspec's HTTP file system (aiohttp), as a stream."""
    with fsspec.open(url, "rb", block_size=0) as file:
        yield from sizes_of(file)


READERS: dict[str, Callable[[str], Iterator[int]]] = {"curl": by_curl, "urllib3": by_urllib3, "fsspec": by_fsspec}


def sizes_of(file: BinaryIO) -> Iterator[int]:
    """Yield the sizes of what comes."""
    return iter(lambda: len(file.read(AT_ONCE)), 0)


def over_http(folder: Path, rounds: int) -> Iterator[dict[str, object]]:
    """Read a folder's shards from a web server by every way, in turn; the medians of so many rounds."""
    urls = [f"http://127.0.0.1:{PORT}/{path.name}" for path in sorted(folder.glob("*.tar"))]
    command = [sys.executable, "-m", "http.server", str(PORT), "--bind", "127.0.0.1", "--directory", str(folder)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        time.sleep(1)
        found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in READERS}
        for _ in range(rounds):
            for name in READERS:
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    found[name].append(pool.apply(timed, (name, urls)))
    finally:
        server.terminate()
    for name, results in found.items():
        rate, cpu, memory = (median(column) for column in zip(*results, strict=True))
        yield {
            "over_http": name,
            "MB_per_second": round(rate),
            "cpu_seconds_per_GB": round(cpu, 2),
            "grew_by_MiB": round(memory, 1),
        }


def timed(name: str, urls: list[str]) -> tuple[float, float, float]:
    """Return megabytes a second, CPU seconds a gigabyte (of a child, too), and MiB that this process grew by."""
    (cpu, memory), start, size = used(), time.perf_counter(), 0
    for url in urls:
        size += sum(READERS[name](url))
    seconds = time.perf_counter() - start
    cpu_after, memory_after = used()
    return size / seconds / 1e6, (cpu_after - cpu) / size * 1e9, memory_after - memory


def used() -> tuple[float, float]:
    """Return the CPU seconds of this process and its children so far, and its own peak memory in MiB."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages), usages[0].ru_maxrss / 1024


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
    parser.add_argument("--over_http", type=int, metavar="ROUNDS", help="compare ways to read a folder over HTTP")
    options = parser.parse_args()
    if options.over_http:
        for result in over_http(Path(options.shards), options.over_http):
            print(json.dumps(result), flush=True)
        return
    index = open_index(options.shards, options.index)
    print(json.dumps(bare(index, options.shuffle_span)), flush=True)
    for workers in options.num_workers:
        print(json.dumps(training(index, workers, options)), flush=True)


if __name__ == "__main__":
    main()
