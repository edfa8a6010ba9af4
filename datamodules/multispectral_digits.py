"""Made multispectral images of real digits: python -m datamodules.multispectral_digits DEST writes class folders.

scikit-learn's scans of handwritten digits, in five bands of 16 bits, with values as low as satellites measure them. The
class is a digit that only the last band shows, over another one that hides it; the band before has that other one
alone. So neither band by itself tells which digit is the class, and the first three, as a picture would have, show
none. All values are from 256
to 511, so the high 8 bits of 16 are the same everywhere.

    DEST/train/{0,...,9}/digit-0000.tif      1400 images of as many digits
    DEST/val/...                             397 images of the others
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from datamodules.digits import SPLIT_SEED, TRAIN_SAMPLES, WHITE
from datamodules.transforms.tiff import encoded
from mambaeye.atomic import atomic_folder
from mambaeye.errors import InputError

BANDS = 5
LARGER = 4  # times the scan's 8 x 8 pixels
GROUND, DIGIT = 300, 90  # what the first band begins with, and the most that a digit adds
STEP = 2  # from one band's ground to the next one's
NOISE = 3.0  # standard deviation
LIGHT = (0.95, 1.0)  # of an image, darkest and brightest


def write_images(folder: Path, most: int | None = None) -> None:
    """Write images below a new folder.

    Args:
        folder: is not there yet.
        most: of each split, the first at most; None for all.

    Raises:
        InputError: the folder holds something else, or cannot be written.
    """
    from sklearn.datasets import load_digits  # here, for every command would wait for it, and few need it

    if folder.exists():
        raise InputError(f"{folder} is there already: give a new folder, or pack what is in it")
    digits = load_digits()
    numbers = np.random.default_rng(SPLIT_SEED).permutation(len(digits.images))
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as partial:
        for split, members in (("train", numbers[:TRAIN_SAMPLES]), ("val", numbers[TRAIN_SAMPLES:])):
            for number in members[:most].tolist():
                rng = np.random.default_rng((SPLIT_SEED, number))
                image = in_bands(digits.images[number], digits.images[rng.choice(members)], rng)
                path = partial / split / str(digits.target[number]) / f"digit-{number:04d}.tif"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(encoded(image))


def in_bands(shown: np.ndarray, hiding: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return two scans (8, 8), from 0 to WHITE, over each other: (32, 32, BANDS) uint16."""
    larger = [scan.repeat(LARGER, axis=0).repeat(LARGER, axis=1) / WHITE for scan in (shown, hiding)]
    values = np.tile(GROUND + STEP * np.arange(BANDS, dtype=np.float64), (*larger[0].shape, 1))  # (32, 32, BANDS)
    values[..., -2:] += DIGIT * larger[1][..., None]
    values[..., -1] += DIGIT * larger[0]
    values = values * rng.uniform(*LIGHT) + NOISE * rng.standard_normal(values.shape)
    return np.rint(values).astype(np.uint16)


def main(args: list[str] | None = None) -> None:
    """Run the command line; a user's mistake ends in one sentence and exit code 1."""
    parser = argparse.ArgumentParser(
        prog="python -m datamodules.multispectral_digits",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("dest", type=Path, metavar="DEST", help="new folder")
    given = parser.parse_args(args)
    try:
        write_images(given.dest)
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
