"""Time the two interpolations that validation resizes images with, and compare how sharp they leave them.

    python -m benchmarks.resizing --source IMAGES [--images 60] [--rounds 5]

One thread, as in a loader's worker. For each canvas side: the mean processor time an image, the median of rounds in
which both take turns; and the mean gradient under area as a share of that under lanczos.
"""

import argparse
from itertools import islice
from pathlib import Path
from statistics import mean, median
from time import process_time
from typing import get_args

import cv2
import numpy as np

from benchmarks.data import read_images
from benchmarks.validation import PAPER
from datamodules.transforms.images import Interpolation, decode_image, resized

KINDS: tuple[Interpolation, ...] = get_args(Interpolation)[::-1]


def gradient(image: np.ndarray) -> float:
    """Return the mean absolute difference between neighbouring pixels, along both axes, of (H, W, 3) uint8."""
    pixels = image.astype(np.int16)
    return float(np.mean([np.abs(np.diff(pixels, axis=axis)).mean() for axis in (0, 1)]))


def milliseconds(images: list[np.ndarray], side: int, interpolation: Interpolation) -> float:
    """Return the mean milliseconds that resizing takes an image."""
    began = process_time()
    for image in images:
        resized(image, side, "fit", interpolation)
    return 1e3 * (process_time() - began) / len(images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", type=Path, required=True, help="a tar or folder of images")
    parser.add_argument("--images", type=int, default=60, help="the first so many of them")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is timed")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    encoded = islice(read_images(args.source), args.images)
    images = [decode_image(data, f"image {number}") for number, data in enumerate(encoded)]
    print("| side | " + " | ".join(f"{kind}, ms" for kind in KINDS) + " | gradient, area / lanczos |")
    print("|---" * (len(KINDS) + 2) + "|")
    for side in PAPER:
        times: dict[Interpolation, list[float]] = {kind: [] for kind in KINDS}
        for _ in range(args.rounds):
            for kind in KINDS:
                times[kind].append(milliseconds(images, side, kind))
        sharpness = {kind: mean(gradient(resized(image, side, "fit", kind)) for image in images) for kind in KINDS}
        columns = [str(side), *(f"{median(times[kind]):.2f}" for kind in KINDS)]
        print(f"| {' | '.join(columns)} | {sharpness['area'] / sharpness['lanczos']:.2f} |", flush=True)


if __name__ == "__main__":
    main()
