"""Measure how fast encoded images become training samples, against the least that any pipeline must do.

    python -m benchmarks.data --source data/train [--num_workers 4]

One process, one thread, image bytes in memory, canvas 256..1024, T 1024, patches 16x16. For every image of every
round, interleaved: the floor (decode, one cv2 resize to the canvas, cut T glimpses), the pipeline as trained with
(bytes -> augment -> positions -> glimpses -> information ratio -> sample), and the stages by themselves. The time of a
round is its mean over the images; of the rounds the median is taken. Prints one JSON line:

- images_per_second of the pipeline, floor_images_per_second, and ratio: the first by the second;
- bytes_per_sample: of all tensors of a sample;
- milliseconds an image, by stage; decode is a part of augment, floor_resize of the floor;
- loader_images_per_second, with --num_workers N: what training's loader gives with 0, 1, 2 and N workers, in batches of
  64, measured in turn; loader_milliseconds is the processor time an image of all its processes, which others that run
  on the machine disturb less.
"""

import argparse
import json
import resource
import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from statistics import mean, median
from time import perf_counter
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from datamodules.loading.slots import Slots
from datamodules.loading.stream import collate
from datamodules.loading.workers import load
from datamodules.transforms.augment import augment
from datamodules.transforms.draws import Augmentation
from datamodules.transforms.images import decode_image
from datamodules.views.train import RawSample, TrainingGlimpses, TrainView
from mambaeye.batch import GlimpseBatch
from mambaeye.geometry.box import Box
from mambaeye.geometry.coverage import information_ratio
from mambaeye.geometry.patches import cut_patches
from mambaeye.geometry.scans import random

VIEW = TrainView(canvas=(256, 1024), num_glimpses=1024, augmentation=Augmentation())
PATCH_SIZE = 16
GLIMPSES = TrainingGlimpses(VIEW, PATCH_SIZE)
BATCH_SIZE = 64
PASSES = 3  # over the images, of each worker in a round
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp")


def read_images(source: Path) -> Iterator[bytes]:
    """Yield the encoded images of a tar, or of all tars and image files below a folder."""
    for path in [source] if source.is_file() else sorted(source.rglob("*")):
        if path.suffix == ".tar":
            with tarfile.open(path) as tar:
                for member in tar:
                    if member.isfile() and member.name.lower().endswith(EXTENSIONS):
                        yield tar.extractfile(member).read()
        elif path.suffix.lower() in EXTENSIONS:
            yield path.read_bytes()


class Samples(Dataset):
    """Makes training samples of image bytes; each pass over it draws the same."""

    def __init__(self, images: list[bytes]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, number: int) -> GlimpseBatch:
        raw = RawSample(str(number), self.images[number], 0)
        return GLIMPSES.sample(raw, np.random.default_rng(number), lambda rng: raw)


class Stopwatch:
    """Collects milliseconds by stage, one list a round."""

    def __init__(self) -> None:
        self.rounds: list[dict[str, list[float]]] = []

    def new_round(self) -> None:
        self.rounds.append(defaultdict(list))

    def __call__(self, stage: str, function: Callable, *args: Any, **kwargs: Any) -> Any:
        """Return what the function returns, and note its time under the stage."""
        start = perf_counter()
        result = function(*args, **kwargs)
        self.rounds[-1][stage].append((perf_counter() - start) * 1e3)
        return result

    def medians(self) -> dict[str, float]:
        """Return each stage's median over the rounds' means over the images."""
        return {stage: median(mean(times[stage]) for times in self.rounds) for stage in self.rounds[0]}


def floor(data: bytes, side: int, positions: np.ndarray) -> np.ndarray:
    """Do the least that any pipeline must do: decode, resize once to the canvas, cut."""
    return cut_patches(cv2.resize(decode_image(data, "an image"), (side, side)), positions, PATCH_SIZE)


def measure(images: list[bytes], rounds: int) -> dict[str, float]:
    """Return milliseconds by stage, of the whole pipeline and of the floor."""
    watch = Stopwatch()
    size, num_glimpses = PATCH_SIZE, VIEW.num_glimpses
    samples = Samples(images)
    for round_number in range(rounds):
        watch.new_round()
        for number, data in enumerate(images):
            rng = np.random.default_rng(number)
            side = int(rng.integers(*VIEW.canvas, endpoint=True))
            everywhere = random(Box(0, 0, side, side), size, num_glimpses, rng)
            both = [("pipeline", samples.__getitem__, number), ("floor", floor, data, side, everywhere)]
            for stage in both if round_number % 2 else both[::-1]:
                watch(*stage)
            image = watch("decode", decode_image, data, "an image")
            watch("floor_resize", cv2.resize, image, (side, side))
            canvas, box = watch("augment", augment, data, side, VIEW.augmentation, rng, "an image")
            area = box if rng.random() < VIEW.inside_prob else Box(0, 0, side, side)
            positions = watch("positions", random, area, size, num_glimpses, rng)
            watch("patches", cut_patches, canvas, positions, size)
            watch("information_ratio", information_ratio, positions, box, size)
    return watch.medians()


def processor_seconds() -> float:
    """Return the processor time of this process so far and of its children that have ended."""
    usages = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def loader_pass(images: list[bytes], num_workers: int) -> tuple[float, float]:
    """Return the images a second of a loader that has started, and the processor's milliseconds an image."""
    samples = Samples(images * PASSES * max(1, num_workers))
    made_by = Slots(num_workers, collate) if num_workers else collate
    before = processor_seconds()
    batches = load(samples, num_workers, 0, "images", batch_size=BATCH_SIZE, collate_fn=made_by)
    for _ in range(1 + num_workers):  # workers start and fill their queues
        next(batches)
    start = perf_counter()
    count = sum(len(batch.keys) for batch in batches)
    rate = count / (perf_counter() - start)
    return rate, (processor_seconds() - before) / len(samples) * 1e3


def loader_rates(images: list[bytes], counts: list[int], rounds: int) -> dict[str, dict[int, float]]:
    """Return the medians of what loader_pass measures, by number of workers."""
    passes = {count: [] for count in counts}
    for _ in range(rounds):
        for count in counts:
            passes[count].append(loader_pass(images, count))
    medians = {count: [median(column) for column in zip(*measured, strict=True)] for count, measured in passes.items()}
    return {
        "loader_images_per_second": {count: round(rate, 1) for count, (rate, _) in medians.items()},
        "loader_milliseconds": {count: round(time, 3) for count, (_, time) in medians.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="shards, a tar of images or a folder of either")
    parser.add_argument("--num_workers", type=int, help="also measure a DataLoader with 0, 1, 2 and so many workers")
    parser.add_argument("--images", type=int, default=240, help="how many images, the source's first")
    parser.add_argument("--rounds", type=int, default=7, help="how often each is timed")
    args = parser.parse_args()
    cv2.setNumThreads(0)
    torch.set_num_threads(1)

    images = list(islice(read_images(args.source), args.images))
    if not images:
        parser.error(f"{args.source} has no images: give a tar or a folder with {', '.join(EXTENSIONS)} files")
    one = Samples(images)[0]
    measure(images[:20], 1)  # caches and allocators warm up
    milliseconds = measure(images, args.rounds)
    report = {
        "images_per_second": round(1e3 / milliseconds["pipeline"], 1),
        "floor_images_per_second": round(1e3 / milliseconds["floor"], 1),
        "ratio": round(milliseconds["floor"] / milliseconds["pipeline"], 3),
        "bytes_per_sample": sum(part.nbytes for part in one if isinstance(part, torch.Tensor)),
        "images": len(images),
        "milliseconds": {stage: round(time, 3) for stage, time in milliseconds.items()},
    }
    if args.num_workers is not None:
        counts = sorted({0, 1, 2, args.num_workers})
        report |= loader_rates(images, counts, args.rounds)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
