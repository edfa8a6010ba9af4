"""Compare how sharp augmented images come out with the same draws done as a list, with Pillow.

    python -m benchmarks.sharpness --source data/train [--images 240] [--draws 4]

The list resamples where the authors do: a bicubic fit, a linear perspective, a Lanczos resize. Colour, blur and erasing
are off. For every image and draw the mean gradient of the grays is taken over the image's box, and ours divided by the
list's. Prints one JSON line a kind of draw: how many there were, and the mean, the median and the 5th and 95th
percentile of the ratios.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from rich.progress import track

from benchmarks.data import read_images
from datamodules.transforms.augment import augment
from datamodules.transforms.draws import Augmentation, Draw, draw
from datamodules.transforms.images import decode_image
from datamodules.transforms.warping import perspective_matrix

GEOMETRY = replace(Augmentation(), jitter=0.0, grayscale=0.0, blur=0.0, erase=0.0)
CANVAS = (256, 1024)  # pixels


def kind_of(height: int, width: int, drawn: Draw) -> str:
    """Name what happens to the scale of an image of (height, width) pixels."""
    fit = "fit enlarges" if max(drawn.fitted) > max(height, width) else "fit shrinks"
    if drawn.corners is not None:
        return f"{fit}, perspective"
    scales = [result / crop for result, crop in zip(drawn.size, drawn.crop.size, strict=True)]
    resize = "enlarges" if min(scales) > 1 else "shrinks" if max(scales) < 1 else "does both"
    return f"{fit}, resize {resize}"


def by_list(image: np.ndarray, drawn: Draw) -> np.ndarray:
    """Do what was drawn step by step: (H, W, 3) uint8 -> (result height, result width, 3) uint8."""
    picture = Image.fromarray(image).resize(drawn.fitted[::-1], Image.Resampling.BICUBIC)
    if drawn.flip:
        picture = ImageOps.mirror(picture)
    if drawn.corners is not None:
        inverse = np.linalg.inv(perspective_matrix(*drawn.fitted, drawn.corners))
        width, height = np.ceil(np.ptp(drawn.corners, axis=0)).astype(int).tolist()
        coefficients = (inverse / inverse[2, 2]).ravel()[:8].tolist()
        method, kernel = Image.Transform.PERSPECTIVE, Image.Resampling.BILINEAR
        picture = picture.transform((width, height), method, coefficients, kernel)
    row, col, height, width = drawn.crop
    picture = picture.crop((col, row, col + width, row + height))
    return np.asarray(picture.resize(drawn.size[::-1], Image.Resampling.LANCZOS))


def mean_gradient(image: np.ndarray) -> float:
    """Return the mean absolute difference of the grays of neighbours, over both axes."""
    gray = image.mean(axis=2)
    return float(np.abs(np.diff(gray, axis=0)).mean() + np.abs(np.diff(gray, axis=1)).mean())


def gradient_ratios(data: bytes, seed: tuple[int, ...], sides: tuple[int, int] = CANVAS) -> tuple[str, float]:
    """Return the kind of a draw and our gradient by the list's, with a canvas side drawn too."""
    side = int(np.random.default_rng((*seed, 1)).integers(*sides, endpoint=True))
    image = decode_image(data, "an image")
    height, width = image.shape[:2]
    drawn = draw(height, width, side, GEOMETRY, np.random.default_rng(seed))
    canvas, box = augment(data, side, GEOMETRY, np.random.default_rng(seed), "an image")
    return kind_of(height, width, drawn), mean_gradient(canvas[box.slices]) / mean_gradient(by_list(image, drawn))


def summaries(ratios: dict[str, list[float]]) -> Iterator[dict[str, str | int | float]]:
    """Yield the distribution of every kind's ratios, and of all."""
    everything = {**dict(sorted(ratios.items())), "all": [ratio for kind in ratios.values() for ratio in kind]}
    for kind, values in everything.items():
        low, middle, high = np.percentile(values, [5, 50, 95]).round(3).tolist()
        mean = round(float(np.mean(values)), 3)
        yield {"kind": kind, "draws": len(values), "mean": mean, "median": middle, "p5": low, "p95": high}


def main() -> None:
    """Print the distribution of gradient ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="shards, a tar of images or a folder of either")
    parser.add_argument("--images", type=int, default=240, help="how many images, the source's first")
    parser.add_argument("--draws", type=int, default=4, help="draws an image")
    args = parser.parse_args()
    ratios = defaultdict(list)
    for number, data in track(enumerate(islice(read_images(args.source), args.images)), total=args.images):
        for attempt in range(args.draws):
            kind, ratio = gradient_ratios(data, (number, attempt))
            ratios[kind].append(ratio)
    for summary in summaries(ratios):
        print(json.dumps(summary))


if __name__ == "__main__":
    main()
