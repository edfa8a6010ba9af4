"""The embedded data: scikit-learn's 1797 scans of handwritten digits, 8x8 pixels, packed into shards on first use."""

import os
import shutil
from pathlib import Path

import cv2
import numpy as np
from filelock import FileLock
from webdataset import TarWriter

from datamodules.shards.index import write_index
from datamodules.shards.scan import scan_shard
from mambaeye.atomic import refusals

SPLIT_SEED = 0
TRAIN_SAMPLES = 1400
SAMPLES_PER_SHARD = 200
WHITE = 16  # the scans' brightest value


def ensure_digits(folder: Path) -> None:
    """Pack the digits into folder/train (1400) and folder/val (397) unless they are there.

    The folder gets its name only when it is complete; what a killed packing left is removed by the next.

    Raises:
        InputError: the system refuses to write there.
    """
    if folder.exists():
        return
    with refusals(folder, ", or choose another --data.data_dir"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            if not folder.exists():  # else packed by another process while this one waited
                pack_digits(folder)


def pack_digits(folder: Path) -> None:
    """Pack the digits under a name of their own, and rename them."""
    from sklearn.datasets import load_digits  # here, for every command would wait for it, and few pack

    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    digits = load_digits()
    numbers = np.random.default_rng(SPLIT_SEED).permutation(len(digits.target))
    for split, members in (("train", numbers[:TRAIN_SAMPLES]), ("val", numbers[TRAIN_SAMPLES:])):
        pack_split(partial / split, members, digits.images, digits.target)
    os.replace(partial, folder)


def pack_split(folder: Path, members: np.ndarray, scans: np.ndarray, labels: np.ndarray) -> None:
    """Write the scans at the given places as PNGs into shards, and their index."""
    folder.mkdir(parents=True)
    for shard, first in enumerate(range(0, len(members), SAMPLES_PER_SHARD)):
        with TarWriter(str(folder / f"{folder.name}-{shard:06d}.tar"), encoder=False, mtime=0) as tar:
            for number in members[first : first + SAMPLES_PER_SHARD]:
                gray = np.rint(scans[number] * (255 / WHITE)).astype(np.uint8)
                _, png = cv2.imencode(".png", gray)
                tar.write({"__key__": f"digit-{number:04d}", "png": png.tobytes(), "cls": str(labels[number]).encode()})
    classes = [str(digit) for digit in range(10)]
    write_index(folder, classes, [scan_shard(path) for path in sorted(folder.glob("*.tar"))])
