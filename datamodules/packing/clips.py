"""Clips as a source: videos, and folders of frames, in class folders; each is read as an AVI of whole pictures.

Videos are decoded here, by OpenCV and FFmpeg, once and for all: no shard holds what only they can read, and every frame
of one is read without the frames before it.
"""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from tempfile import NamedTemporaryFile

import cv2
import numpy as np

from datamodules.files import EXTENSIONS, VIDEOS, in_order
from datamodules.packing.sources import Found, Member, Source, counted_kind
from datamodules.shards.index import CLIP_EXTENSION
from datamodules.shards.limits import LARGEST_IMAGE
from datamodules.transforms.avi import CODECS, MOST_FRAMES, RATE, write_avi
from datamodules.transforms.clips import require_readable
from datamodules.transforms.headers import PixelLimit, stored_size
from datamodules.transforms.images import decode_image
from datamodules.transforms.videos import frames_of, is_container, require_size, require_whole
from mambaeye.errors import InputError

QUALITY = 95  # of JPEGs that video is stored as


@dataclass(frozen=True)
class Clips(Source):
    """Source of clips: a folder or an uncompressed tar of class folders with videos, or with folders of frames.

    AVIs of whole pictures stay as they are.
    """

    kinds = (*VIDEOS, *EXTENSIONS)
    noun = "clips"
    limit: PixelLimit = field(default_factory=PixelLimit)
    """Of each frame."""
    frames: dict[str, list[Member]] = field(default_factory=dict)
    """For the path of every folder of frames, these in order; known once samples are listed."""

    def samples(self) -> tuple[list[Found], Counter[str]]:
        """List videos and folders of frames, and count other files by extension.

        Raises:
            InputError: a picture lies in a class folder itself.
        """
        found: list[Found] = []
        others: Counter[str] = Counter()
        folders: dict[str, list[Member]] = defaultdict(list)
        for member in self.members():
            stem, dot, extension = member.path.rpartition(".")
            if extension.lower() in VIDEOS:
                found.append(Found(stem, CLIP_EXTENSION, member))
            elif extension.lower() in EXTENSIONS:
                folders[member.path.rpartition("/")[0]].append(member)
            else:
                others[counted_kind(dot, extension)] += 1
        for folder, members in folders.items():
            if "/" not in folder:
                raise InputError(
                    f"frame {members[0].path} lies in no folder of its own clip: put the frames of each clip into a "
                    f"folder in its class folder, such as {folder or 'CLASS'}/CLIP/0001.jpg"
                )
            members.sort(key=lambda member: in_order(member.path))
            self.frames[folder] = members
            told = sha256(repr(members).encode()).digest()[:7]  # of names, sizes and times
            whole = Member(folder, 0, sum(member.size for member in members), int.from_bytes(told))
            found.append(Found(folder, CLIP_EXTENSION, whole))
        return found, others

    def read(self, member: Member) -> bytes:
        """Read a clip, and return it as an AVI of whole pictures.

        Raises:
            InputError: it does not decode, or is too large or too long.
        """
        if member.path in self.frames:
            return of_pictures([super(Clips, self).read(frame) for frame in self.frames[member.path]], member.path)
        data = super().read(member)
        try:
            require_readable(data, True, self.limit, member.path)
        except InputError:
            return of_video(data, self.limit, member.path)
        return data


def of_pictures(frames: Sequence[bytes], what: str) -> bytes:
    """Return the AVI of some pictures: JPEGs or PNGs as they are, others and mixed ones as PNGs.

    Raises:
        InputError: they have several sizes, or one that is to be converted does not decode.
    """
    sizes = {stored_size(frame) for frame in frames}
    if len(sizes) > 1:
        raise InputError(f"the frames of {what} have several sizes: give a clip frames of one size")
    size = sizes.pop()
    if size is None:
        raise InputError(f"the frames of {what} do not decode: replace the clip or leave it out")
    require_length(len(frames), sum(map(len, frames)), what)
    if not any(all(frame.startswith(magic) for frame in frames) for magic in CODECS):
        frames = [as_png(decode_image(frame, what)) for frame in frames]
    return write_avi(frames, *size, RATE)


def as_png(image: np.ndarray) -> bytes:
    """Encode (H, W, 3) uint8 RGB."""
    _, png = cv2.imencode(".png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    return png.tobytes()


def of_video(data: bytes, limit: PixelLimit, what: str) -> bytes:
    """Decode a video and return the AVI of its frames as JPEGs.

    Args:
        data: the file's bytes.
        limit: of each frame.
        what: names it in a message.

    Raises:
        InputError: it is none of the known containers, does not decode, breaks off, or is too large or too long.
    """
    if not is_container(data):
        raise InputError(f"{what} is no video of the known kinds (.{', .'.join(VIDEOS)}): replace it or leave it out")
    with NamedTemporaryFile() as file:  # not from memory, which OpenCV's threads crash with
        file.write(data)
        file.flush()
        video = cv2.VideoCapture(file.name, cv2.CAP_FFMPEG)
        height, width = require_size(video, limit, what)
        frames, size = [], 0
        for frame in frames_of(video):
            height, width = frame.shape[:2]
            _, jpeg = cv2.imencode(".jpg", frame, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
            frames.append(jpeg.tobytes())
            size += len(frames[-1])
            require_length(len(frames), size, what)
        told, rate = video.get(cv2.CAP_PROP_FRAME_COUNT), video.get(cv2.CAP_PROP_FPS)
        video.release()
    require_whole(len(frames), told, what)
    return write_avi(frames, height, width, rate if 1 <= rate <= 1000 else RATE)


def require_length(frames: int, size: int, what: str) -> None:
    """Refuse a clip that no shard holds: of too many frames, or bytes of them."""
    if frames > MOST_FRAMES or size > LARGEST_IMAGE // 2:
        raise InputError(
            f"{what} has more than {MOST_FRAMES} frames, or {LARGEST_IMAGE // 2} bytes of pictures: cut it into "
            f"shorter clips"
        )
