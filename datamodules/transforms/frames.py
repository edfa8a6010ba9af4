"""Clips as they lie in files of any kind, whose frames are decoded one at a time: videos, AVIs of whole pictures,
folders of pictures, and volumes.

None of them is held as a whole, but for volumes: what takes memory does not grow with the number of frames, but for
their places.
"""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from itertools import islice

import cv2
import numpy as np

from datamodules.files import VIDEOS, VOLUMES, in_order, is_named_like_an_image, open_at_once
from datamodules.transforms.avi import CODECS, OpenBytes, Span, find_frames
from datamodules.transforms.clips import Clip
from datamodules.transforms.headers import PixelLimit
from datamodules.transforms.images import decode_image
from datamodules.transforms.nifti import LARGEST_FILE, Grays, as_slices, is_nifti, read_nifti
from datamodules.transforms.videos import frames_of, is_container, require_size, require_whole
from mambaeye.errors import InputError

START = 12  # bytes that tell a container
STORED = Grays()


@dataclass(frozen=True)
class Frames(ABC):
    """A clip that lies in files."""

    path: str
    """As it was given."""
    limit: PixelLimit
    """Of each frame."""

    @abstractmethod
    def digest(self) -> bytes:
        """Return what stands for all its bytes: 32 of them.

        Raises:
            OSError: a file cannot be read.
        """

    @abstractmethod
    def count(self) -> int:
        """Return the number of frames; of a video all are decoded for it.

        Raises:
            InputError: the clip is cut short.
        """

    @abstractmethod
    def decoded(self, first: int = 0) -> Iterator[np.ndarray]:
        """Yield the frames from one on, (H, W, 3) uint8 RGB, upright.

        Raises:
            InputError: one does not decode, or has more pixels than the limit; the clip is cut short.
            OSError: a file cannot be read.
        """

    def of_picture(self, data: bytes, at: int) -> np.ndarray:
        """Decode the bytes of a frame that is a picture."""
        what = f"frame {at} of {self.path}"
        self.limit.require(data, what)
        return decode_image(data, what)


@dataclass(frozen=True)
class FolderOfPictures(Frames):
    """A folder whose pictures are the frames, in the order of their names, with the numbers in them as numbers."""

    @property
    def names(self) -> list[str]:
        """Return the pictures' names."""
        told = [name for name in os.listdir(self.path) if not name.startswith(".")]
        return sorted(filter(is_named_like_an_image, told), key=in_order)

    def digest(self) -> bytes:
        whole = hashlib.sha256()
        for name in self.names:
            with open(os.path.join(self.path, name), "rb", opener=open_at_once) as file:
                whole.update(hashlib.file_digest(file, "sha256").digest())
        return whole.digest()

    def count(self) -> int:
        names = self.names
        if not names:
            raise InputError(f"{self.path} has no pictures: give a folder of a clip's frames, or a video")
        return len(names)

    def decoded(self, first: int = 0) -> Iterator[np.ndarray]:
        for at, name in enumerate(self.names[first:], first):
            with open(os.path.join(self.path, name), "rb", opener=open_at_once) as file:
                yield self.of_picture(file.read(), at)


@dataclass(frozen=True)
class File(Frames):
    """A clip in a file."""

    def digest(self) -> bytes:
        with self.opened() as file:
            return hashlib.file_digest(file, "sha256").digest()

    @contextmanager
    def opened(self) -> Iterator[BufferedReader]:
        """Open the file."""
        with open(self.path, "rb", opener=open_at_once) as file:
            yield file


@dataclass(frozen=True)
class AviOfPictures(File):
    """An AVI whose frames are whole JPEGs or PNGs."""

    spans: list[Span]

    def count(self) -> int:
        return len(self.spans)

    def decoded(self, first: int = 0) -> Iterator[np.ndarray]:
        with self.opened() as file:
            data = OpenBytes(file.fileno())
            for at, span in enumerate(self.spans[first:], first):
                yield self.of_picture(data[slice(*span)], at)


@dataclass(frozen=True)
class Video(File):
    """Any other video, which OpenCV's FFmpeg decodes from its first frame on."""

    def count(self) -> int:
        with self._decoder() as video:
            frames = 0
            while video.grab():
                frames += 1
            require_whole(frames, video.get(cv2.CAP_PROP_FRAME_COUNT), self.path)
        return frames

    def decoded(self, first: int = 0) -> Iterator[np.ndarray]:
        with self._decoder() as video:
            frames = sum(1 for _ in islice(iter(video.grab, False), first))
            for frame in frames_of(video):
                frames += 1
                yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
            require_whole(frames, video.get(cv2.CAP_PROP_FRAME_COUNT), self.path)

    @contextmanager
    def _decoder(self) -> Iterator[cv2.VideoCapture]:
        # by its descriptor, so that nothing goes by the name: OpenCV takes UTF-8 alone, and FFmpeg protocols
        with self.opened() as file:
            video = cv2.VideoCapture(f"/dev/fd/{file.fileno()}", cv2.CAP_FFMPEG)
            try:
                require_size(video, self.limit, self.path)
                yield video
            finally:
                video.release()


@dataclass(frozen=True)
class Volume(File):
    """A NIfTI file, whose slices are the frames, as packing makes them."""

    clip: Clip

    def count(self) -> int:
        return len(self.clip)

    def decoded(self, first: int = 0) -> Iterator[np.ndarray]:
        return map(self.clip.decoded, range(first, len(self.clip)))


def open_frames(path: str, limit: PixelLimit, grays: Grays = STORED) -> Frames:
    """Open a clip: a folder of pictures, or a file, which may be called anything.

    Args:
        path: of it.
        limit: of each frame.
        grays: of a volume.

    Raises:
        InputError: it is none.
        OSError: it cannot be read.
    """
    if os.path.isdir(path):
        return FolderOfPictures(path, limit)
    with open(path, "rb", opener=open_at_once) as file:
        start = file.read(START)
        if is_nifti(start):
            file.seek(0)
            voxels, sides = read_nifti(file.read(LARGEST_FILE + 1), limit, path)
            return Volume(path, limit, Clip.open(as_slices(voxels, sides, grays, limit, path), limit, path))
        if not is_container(start):
            raise InputError(
                f"{path} is no video or volume of the known kinds (.{', .'.join((*VIDEOS, *VOLUMES))}), and the model "
                f"looks at clips: give such, or folders of frames"
            )
        clip = AviOfPictures(path, limit, spans_in(OpenBytes(file.fileno()), path))
    try:
        next(clip.decoded())
    except (StopIteration, InputError):  # a codec's frames, or pictures that lean on others
        return Video(path, limit)
    return clip


def spans_in(data: OpenBytes, path: str) -> list[Span]:
    """Return where the pictures of an AVI lie, in order; none of a file that is no such AVI."""
    try:
        spans = find_frames(data, path)
    except InputError:
        return []
    return spans if any(data[slice(*spans[0])].startswith(magic) for magic in CODECS) else []
