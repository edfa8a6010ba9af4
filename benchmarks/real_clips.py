"""Clips of real video whose class is how they run: python -m benchmarks.real_clips VIDEOS DEST

arrow: 16 successive frames of a square of a video, forwards and, of the same, backwards: any single frame is in both.
speed: 8 frames, every one, every second or every fourth of the video; the three clips of a draw share one frame, their
fifth.

Train is of the first part of four videos, later of what comes behind a gap or a cut in the same videos, and other of a
video that nothing is trained on.

    DEST/arrow/{train,later,other}/{forward,backward}/0000.avi    2000, 400 and 400 clips
    DEST/speed/{train,later,other}/{1x,2x,4x}/0000.avi            1950, 450 and 450 clips
"""

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np

from benchmarks.video_sources import VIDEOS, Shot, Video, crop, read_shots
from datamodules.packing.clips import QUALITY
from datamodules.transforms.avi import write_avi
from mambaeye.atomic import atomic_folder
from mambaeye.errors import InputError

SEED = 0
SIDE = 48  # of a clip, pixels
LEAST = 72  # side of the part of a frame that it shows, pixels of 144
RATE = 12.0  # frames a second, for players
FRAMES = {"arrow": 16, "speed": 8}
STRIDES = {"1x": 1, "2x": 2, "4x": 4}
DRAWS: dict[str, Mapping[str, int]] = {  # of each, as many clips as the task has classes
    "arrow": {"train": 1000, "later": 200, "other": 200},
    "speed": {"train": 650, "later": 150, "other": 150},
}
SHOTS: dict[str, Sequence[Shot]] = {
    "train": (
        Shot("vtest.avi", 0, 560),
        Shot("bikes.mp4", 30, 76),
        Shot("bikes.mp4", 100, 137),
        Shot("bikes.mp4", 137, 187),
        Shot("carphone_pristine.mp4", 0, 80),
        Shot("bigbuckbunny.mp4", 0, 88),
    ),
    "later": (
        Shot("vtest.avi", 592, 795),
        Shot("bikes.mp4", 187, 242),
        Shot("carphone_pristine.mp4", 88, 120),
        Shot("bigbuckbunny.mp4", 100, 132),
    ),
    "other": (
        Shot("Megamind.avi", 1, 98),
        Shot("Megamind.avi", 98, 154),
        Shot("Megamind.avi", 154, 200),
        Shot("Megamind.avi", 200, 270),
    ),
}


def write_clips(
    videos: Path,
    folder: Path,
    draws: Mapping[str, Mapping[str, int]] = DRAWS,
    shots: Mapping[str, Sequence[Shot]] = SHOTS,
    known: Mapping[str, Video] = VIDEOS,
) -> None:
    """Write clips below a new folder.

    Args:
        videos: folder of the videos.
        folder: is not there yet.
        draws: how often to draw from a split, by task.
        shots: what to draw from, by split.
        known: videos by name.

    Raises:
        InputError: the folder is there already; or a video is not, or is another one.
    """
    if folder.exists():
        raise InputError(f"{folder} is there already: give a new folder, or pack what is in it")
    frames = {split: read_shots(videos, some, known) for split, some in shots.items()}
    folder.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(folder) as partial:
        for task_key, (task, counts) in enumerate(draws.items()):
            for split_key, (split, count) in enumerate(counts.items()):
                for place in range(count):
                    rng = np.random.default_rng((SEED, task_key, split_key, place))
                    for name, clip in drawn(task, frames[split], rng):
                        path = partial / task / split / name / f"{place:04d}.avi"
                        path.parent.mkdir(parents=True, exist_ok=True)
                        path.write_bytes(clip)


def drawn(task: str, shots: Mapping[Shot, np.ndarray], rng: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    """Draw a place in the shots, and yield a clip of every class there: its class, and the file's bytes."""
    count = FRAMES[task]
    span = 1 + (count - 1) * (max(STRIDES.values()) if task == "speed" else 1)
    shot, first = draw_window([*shots], span, rng)
    window = crop(shots[shot][first : first + span], LEAST, SIDE, rng)
    if task == "arrow":
        encoded = jpegs(window)
        yield "forward", write_avi(encoded, SIDE, SIDE, RATE)
        yield "backward", write_avi(encoded[::-1], SIDE, SIDE, RATE)
        return
    middle = count // 2
    for name, stride in STRIDES.items():
        taken = max(STRIDES.values()) * middle + stride * (np.arange(count) - middle)
        yield name, write_avi(jpegs(window[taken]), SIDE, SIDE, RATE)


def draw_window(shots: Sequence[Shot], span: int, rng: np.random.Generator) -> tuple[Shot, int]:
    """Draw a video, then where in its shots so many successive frames begin: the shot, and a place in it."""
    names = sorted({shot.video for shot in shots if len(shot) >= span})
    name = names[rng.integers(len(names))]
    places = [(shot, first) for shot in shots if shot.video == name for first in range(len(shot) - span + 1)]
    return places[rng.integers(len(places))]


def jpegs(frames: np.ndarray) -> list[bytes]:
    """Encode frames (F, H, W, 3) uint8 BGR, each by itself."""
    return [cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes() for frame in frames]


def main(args: list[str] | None = None) -> None:
    """Run the command line; a user's mistake ends in one sentence and exit code 1."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.real_clips",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("videos", type=Path, metavar="VIDEOS", help="folder with the videos, at any depth")
    parser.add_argument("dest", type=Path, metavar="DEST", help="new folder")
    given = parser.parse_args(args)
    try:
        write_clips(given.videos, given.dest)
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
