"""Made clips of real digits: python -m datamodules.moving_digits DEST writes class folders of clips to pack.

scikit-learn's scans of handwritten digits, each twice as large, move over a black square in one of four directions,
which is the class. What leaves the square at one side comes in at the other, and the place where a digit begins is
drawn: so a single frame tells nothing about the direction.

    DEST/train/{down,left,right,up}/digit-0000.avi      1400 clips of as many digits
    DEST/val/...                                        397 clips of the others
"""

import argparse
import sys
from pathlib import Path

import cv2
import numpy as np

from datamodules.digits import SPLIT_SEED, TRAIN_SAMPLES, WHITE
from datamodules.transforms.avi import write_avi
from mambaeye.atomic import atomic_folder
from mambaeye.errors import InputError

DIRECTIONS = {"down": (1, 0), "left": (0, -1), "right": (0, 1), "up": (-1, 0)}  # rows and columns
SIDE = 32  # of the square, pixels
LARGER = 2  # times the scan's 8 x 8 pixels
FRAMES = 24
SPEED = 2  # pixels a frame
RATE = 12.0  # frames a second, for players


def write_clips(folder: Path, most: int | None = None) -> None:
    """Write clips below a new folder.

    Args:
        folder: is not there yet.
        most: of each split, the first at most; None for all.

    Raises:
        InputError: the folder holds something else, or cannot be written.
    """
    from sklearn.datasets import load_digits  # here, for every command would wait for it, and few need it

    if folder.exists():
        raise InputError(f"{folder} is there already: give a new folder, or pack what is in it")
    scans = load_digits().images
    numbers = np.random.default_rng(SPLIT_SEED).permutation(len(scans))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as partial:
        for split, members in (("train", numbers[:TRAIN_SAMPLES]), ("val", numbers[TRAIN_SAMPLES:])):
            for name in DIRECTIONS:
                (partial / split / name).mkdir(parents=True)
            for place, number in enumerate(members[:most].tolist()):
                name = [*DIRECTIONS][place % len(DIRECTIONS)]
                frames = moving(scans[number], DIRECTIONS[name], np.random.default_rng((SPLIT_SEED, number)))
                encoded = [cv2.imencode(".png", frame)[1].tobytes() for frame in frames]
                path = partial / split / name / f"digit-{number:04d}.avi"
                path.write_bytes(write_avi(encoded, SIDE, SIDE, RATE))


def moving(scan: np.ndarray, direction: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """Return a scan (8, 8), from 0 to WHITE, moving over a square: (FRAMES, SIDE, SIDE) uint8."""
    gray = np.rint(scan * (255 / WHITE)).astype(np.uint8).repeat(LARGER, axis=0).repeat(LARGER, axis=1)
    square = np.zeros((SIDE, SIDE), np.uint8)
    square[: gray.shape[0], : gray.shape[1]] = gray
    start = rng.integers(SIDE, size=2)
    shifts = start + SPEED * np.arange(FRAMES)[:, None] * direction  # (FRAMES, 2)
    return np.stack([np.roll(square, shift, (0, 1)) for shift in shifts])


def main(args: list[str] | None = None) -> None:
    """Run the command line; a user's mistake ends in one sentence and exit code 1."""
    parser = argparse.ArgumentParser(
        prog="python -m datamodules.moving_digits",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dest", type=Path, metavar="DEST", help="new folder")
    given = parser.parse_args(args)
    try:
        write_clips(given.dest)
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
