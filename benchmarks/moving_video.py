"""Clips of real digits that move over real video: python -m benchmarks.moving_video VIDEOS DEST

scikit-learn's scans of handwritten digits, each twice as large, move over a square of darkened video in one of four
directions, at one of three speeds. What leaves the square at one side comes in at the other, and the place where a
digit begins is drawn: so a single frame tells nothing about the direction. The video runs backwards in half of the
clips, so neither does the background. How bright it is, is drawn for every clip, from black on. Digits in train and val
are others, and so are the videos behind them.

    DEST/direction/{train,val}/{down,left,right,up}/0000.avi      1920 and 480 clips
    DEST/digit/{train,val}/{0,...,9}/0000.avi                     the same clips, by their digit
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from benchmarks.video_sources import VIDEOS, Shot, Video, crop, read_shots
from datamodules.digits import SPLIT_SEED, TRAIN_SAMPLES, WHITE
from datamodules.moving_digits import DIRECTIONS
from datamodules.transforms.avi import write_avi
from mambaeye.atomic import atomic_folder
from mambaeye.errors import InputError

SPEEDS = (1, 2, 3)  # pixels a frame
SIDE = 24  # of the square, pixels
LARGER = 2  # times the scan's 8 x 8 pixels
FRAMES = 16
BRIGHTEST = 0.4  # the most that is left of the video's brightness
LEAST = 48  # side of the part of a frame behind a digit, pixels
RATE = 12.0  # frames a second, for players
COUNTS = {"train": 1920, "val": 480}
SHOTS: dict[str, Sequence[Shot]] = {
    "train": (
        Shot("vtest.avi", 0, 795),
        Shot("bikes.mp4", 30, 76),
        Shot("bikes.mp4", 100, 137),
        Shot("bikes.mp4", 137, 187),
        Shot("bikes.mp4", 187, 242),
        Shot("bigbuckbunny.mp4", 0, 132),
    ),
    "val": (
        Shot("Megamind.avi", 1, 98),
        Shot("Megamind.avi", 98, 154),
        Shot("Megamind.avi", 154, 200),
        Shot("Megamind.avi", 200, 270),
        Shot("carphone_pristine.mp4", 0, 120),
    ),
}


def write_clips(
    videos: Path,
    folder: Path,
    counts: Mapping[str, int] = COUNTS,
    shots: Mapping[str, Sequence[Shot]] = SHOTS,
    known: Mapping[str, Video] = VIDEOS,
    brightest: float = BRIGHTEST,
) -> None:
    """Write clips below a new folder.

    Args:
        videos: folder of the videos.
        folder: is not there yet.
        counts: clips by split.
        shots: what is behind the digits, by split.
        known: videos by name.
        brightest: the most that is left of the video's brightness; 0 for digits on black.

    Raises:
        InputError: the folder is there already; or a video is not, or is another one.
    """
    from sklearn.datasets import load_digits  # here, for every command would wait for it, and few need it

    if folder.exists():
        raise InputError(f"{folder} is there already: give a new folder, or pack what is in it")
    frames = {split: [*read_shots(videos, some, known).values()] for split, some in shots.items()}
    digits = load_digits()
    numbers = np.random.default_rng(SPLIT_SEED).permutation(len(digits.target))
    members = {"train": numbers[:TRAIN_SAMPLES], "val": numbers[TRAIN_SAMPLES:]}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as partial:
        for key, (split, count) in enumerate(counts.items()):
            for place in range(count):
                rng = np.random.default_rng((SPLIT_SEED, key, place))
                direction = [*DIRECTIONS][place % len(DIRECTIONS)]
                speed = SPEEDS[place // len(DIRECTIONS) % len(SPEEDS)]
                number = rng.choice(members[split])
                behind = background(frames[split][rng.integers(len(frames[split]))], rng)
                start = rng.integers(SIDE, size=2)
                behind = brightest * rng.random() * behind
                clip = over(behind, moving(digits.images[number], start, DIRECTIONS[direction], speed))
                encoded = [cv2.imencode(".png", frame)[1].tobytes() for frame in clip]
                avi = write_avi(encoded, SIDE, SIDE, RATE)
                for task, name in (("direction", direction), ("digit", str(digits.target[number]))):
                    path = partial / task / split / name / f"{place:04d}.avi"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(avi)


def moving(scan: np.ndarray, start: np.ndarray, direction: tuple[int, int], speed: int) -> np.ndarray:
    """Return a scan (8, 8), from 0 to WHITE, moving over a square from a row and column on: (FRAMES, SIDE, SIDE) from
    0 to 1.
    """
    square = np.zeros((SIDE, SIDE))
    square[: LARGER * scan.shape[0], : LARGER * scan.shape[1]] = np.kron(scan / WHITE, np.ones((LARGER, LARGER)))
    shifts = start + speed * np.arange(FRAMES)[:, None] * direction  # (FRAMES, 2)
    return np.stack([np.roll(square, shift, (0, 1)) for shift in shifts])


def background(shot: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw FRAMES successive frames of a shot, and a square of them, forwards or backwards: (FRAMES, SIDE, SIDE, 3)."""
    first = rng.integers(len(shot) - FRAMES, endpoint=True)
    frames = crop(shot[first : first + FRAMES], LEAST, SIDE, rng)
    return frames[::-1] if rng.random() < 0.5 else frames


def over(behind: np.ndarray, digit: np.ndarray) -> np.ndarray:
    """Paint a white digit (FRAMES, SIDE, SIDE) over frames: (FRAMES, SIDE, SIDE, 3) uint8."""
    ink = digit[..., None]
    return np.rint(behind * (1 - ink) + 255 * ink).astype(np.uint8)


def main(args: list[str] | None = None) -> None:
    """Run the command line; a user's mistake ends in one sentence and exit code 1."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.moving_video",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("videos", type=Path, metavar="VIDEOS", help="folder with the videos, at any depth")
    parser.add_argument("dest", type=Path, metavar="DEST", help="new folder")
    told = f"the most that is left of the video's brightness (default: {BRIGHTEST}); 0 for digits on black"
    parser.add_argument("--brightest", type=float, default=BRIGHTEST, help=told)
    given = parser.parse_args(args)
    if not 0 <= given.brightest <= 1:
        parser.error(f"--brightest is {given.brightest}: give a share, 0 to 1")
    try:
        write_clips(given.videos, given.dest, brightest=given.brightest)
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
