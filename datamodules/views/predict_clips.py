"""Clips in files -> canvases and trajectories: a window of each, as in validation, or all of it as it arrives."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

from datamodules.transforms.clips import middle, stacked
from datamodules.transforms.depth import AsSide, whole
from datamodules.transforms.frames import Frames, Volume, open_frames
from datamodules.transforms.headers import PixelLimit
from datamodules.transforms.images import centred
from datamodules.views.evaluate import EvaluateView
from datamodules.views.keys import PREDICTION, Key, policy_seed
from datamodules.views.plan import plan
from datamodules.views.predict import OpenedFile, PredictView
from datamodules.views.samples import scene_of
from mambaeye.batch import CANVAS, ImageFile, Scene, TubeBatch
from mambaeye.errors import InputError
from mambaeye.geometry.box import Box
from mambaeye.geometry.stream import ArrivingStream, glimpses_a_tube

ARRIVING = "arriving"
"""The scan that a stream is looked at under."""


@dataclass(frozen=True)
class ClipCanvases:
    """Opens clips and plans trajectories on them.

    Of a clip of more frames than the canvas the middle ones are decoded, one by one; a shorter one lies in the middle,
    with black frames around it. What is drawn depends on the seed and the files' bytes alone.
    """

    view: PredictView
    evaluate: EvaluateView
    scan: str
    glimpse: tuple[int, ...]
    """Sides of a glimpse: frames, pixels, pixels."""
    frames: int | AsSide
    """Frames of a canvas; "side" for volumes, all slices of which are taken."""
    seed: int
    limit: PixelLimit

    def __call__(self, path: str) -> OpenedFile:
        """Open a clip."""
        try:
            return self._opened(path)
        except OSError as error:
            return OpenedFile(unread(path, error), None)
        except InputError as error:
            return OpenedFile(ImageFile(path, error=str(error)), None)

    def _opened(self, path: str) -> OpenedFile:
        clip = open_frames(path, self.limit, self.view.grays)
        key, count = self._key(clip), clip.count()
        if isinstance(self.frames, str):
            return self._scene(self._whole(clip), ImageFile(path, next(clip.decoded()).shape[:2], count, 0), key)
        window = middle(count, self.frames)
        sizes: list[tuple[int, ...]] = []

        def placed(frame: np.ndarray) -> tuple[np.ndarray, Box]:
            sizes.append(frame.shape[:2])
            return self._placed(frame)

        on_canvas = stacked(
            map(placed, islice(clip.decoded(window.start), len(window))), len(window), self.frames, path
        )
        return self._scene(on_canvas, ImageFile(path, sizes[0], count, window.start), key)

    def _whole(self, clip: Frames) -> tuple[np.ndarray, Box]:
        """Return a volume's canvas, all of it scaled alike, and its box there."""
        if not isinstance(clip, Volume):
            raise InputError(
                f"{clip.path} is no volume, and data.frames is {self.frames}, which scales depth: give --data.frames a "
                f"number"
            )
        slices, side = clip.clip, self.view.resize
        if side is None:
            depth = max(len(slices), self.glimpse[0])
            return stacked(map(self._placed, clip.decoded()), len(slices), depth, clip.path)

        def place(at: int, fitted: int) -> tuple[np.ndarray, Box]:
            return centred(self.evaluate.resized(slices.decoded(at), fitted), side)

        return whole(slices, side, clip.path, place, self.evaluate.resize, self.evaluate.truncate)

    def _scene(self, on_canvas: tuple[np.ndarray, Box], file: ImageFile, key: Key) -> OpenedFile:
        """Return a clip with its trajectory planned."""
        canvas, box = on_canvas
        area = self.evaluate.area(box, canvas.shape[:-1], self.glimpse)
        positions = plan(self.scan, area, self.glimpse, self.evaluate.num_glimpses, np.random.default_rng(key))
        scene = scene_of(canvas, box, positions, policy_seed(key), self.scan)
        return OpenedFile(file, scene)

    def stream(self, path: str) -> Iterator[TubeBatch]:
        """Yield a clip tube by tube as it is decoded, and in the end that it has ended.

        Where its frames are no multiple of a tube's, the last tube goes back to end with them, as in a grid.
        """
        file = ImageFile(path)
        try:
            for tube in self._tubes(open_frames(path, self.limit)):
                file = tube.file
                yield tube
        except OSError as error:
            file = unread(path, error)
        except InputError as error:
            file = file._replace(error=str(error))
        yield TubeBatch(None, file.frames, file)

    def _tubes(self, clip: Frames) -> Iterator[TubeBatch]:
        """Yield the tubes of a clip with their glimpses; a clip of less frames lies in the middle of one."""
        assert not isinstance(self.frames, str)  # see require_stream
        length = self.glimpse[0]
        each = glimpses_a_tube(self.evaluate.num_glimpses, self.frames, length)
        latest: deque[tuple[np.ndarray, Box]] = deque(maxlen=length)
        scan, size, count = None, (0, 0), 0

        def tube() -> TubeBatch:
            nonlocal scan
            canvas, box = stacked(iter(latest), len(latest), length, clip.path)
            if scan is None:
                place = self.evaluate.area(Box(*box[1:3], *box[4:6]), canvas.shape[1:-1], self.glimpse[1:])
                scan = ArrivingStream(place, self.glimpse, each, np.random.default_rng(self._key(clip)))
            first = max(0, count - length)
            scene = scene_of(canvas, box, scan.next_tube(first), 0, ARRIVING)
            of_one = Scene(scene.pixels[None], *(part[None] for part in scene[1:]))
            return TubeBatch(of_one, first, ImageFile(clip.path, size, count, 0))

        for frame in clip.decoded():
            size = frame.shape[:2]
            latest.append(self._placed(frame))
            count += 1
            if count % length == 0:
                yield tube()
        if count % length:
            yield tube()
        if not count:
            raise InputError(f"{clip.path} has no frames: replace it or leave it out")

    def _placed(self, frame: np.ndarray) -> tuple[np.ndarray, Box]:
        return self.view.placed(frame, self.evaluate, self.glimpse[-1])

    def _key(self, clip: Frames) -> Key:
        return (PREDICTION, self.seed, *clip.digest())


def unread(path: str, error: OSError) -> ImageFile:
    """Return what is known of a clip that the system does not let be read."""
    return ImageFile(path, error=f"{error.filename or path} cannot be read ({error.strerror})")


def require_stream(view: PredictView, are_clips: bool, scan: str, frames: int | AsSide) -> None:
    """Require clips, the scan that streams are looked at under, and a number of frames, where a view streams.

    Raises:
        InputError: there are images, another scan is given, or no number.
    """
    if view.stream and not are_clips:
        raise InputError("data.predict.stream is of clips, and these are images: leave it out")
    if view.stream and isinstance(frames, str):
        raise InputError(
            f"data.predict.stream takes frames as they come, and data.frames is {frames}: give it a number"
        )
    if view.stream and scan not in (ARRIVING, CANVAS):  # for the model has the better message on whole canvases
        raise InputError(
            f"data.predict.stream looks at frames as they arrive, and the scan {scan} does not: give --data.scans "
            f"[{ARRIVING}]"
        )
