"""Clips as files: AVIs whose frames are whole pictures, so that any of them is read alone.

The format (Microsoft, "AVI RIFF File Reference"): chunks of four letters, a length in four bytes, the lowest first, and
so many bytes, to an even number. A RIFF chunk "AVI " holds the list hdrl, with the main header avih and the stream's
headers strh and strf; the list movi, with a chunk 00dc for each frame; and the index idx1. A frame is a JPEG or a PNG,
as it is: players know these as the codecs MJPG and MPNG.
"""

import os
import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from datamodules.transforms.headers import START_OF_JPEG, START_OF_PNG
from mambaeye.errors import InputError

MOST_FRAMES = 1 << 16  # of a clip, 36 minutes at 30 a second; each has an entry in memory
RATE = 25.0  # frames a second, where a source does not say; players alone go by it
CODECS = {START_OF_JPEG: b"MJPG", START_OF_PNG: b"MPNG"}
HEADER = 8  # bytes of a chunk's letters and length
HAS_INDEX, IS_WHOLE = 0x10, 0x10  # flags of a file with idx1, and of a frame that needs no other
MICROSECONDS = 1_000_000


class OpenBytes:
    """The bytes of an open file as a slice takes them, read when they are asked for.

    Args:
        descriptor: of a file that stays open, and can be read by place.
    """

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __len__(self) -> int:
        """Return the file's size."""
        return os.fstat(self.descriptor).st_size

    def __getitem__(self, place: slice) -> bytes:
        """Return the bytes of a slice from its start, which must be given, to its stop or the file's end."""
        return os.pread(self.descriptor, max(0, min(place.stop, len(self)) - place.start), place.start)


class Span(NamedTuple):
    """A frame's place in a file."""

    start: int
    """Offset of its first byte."""
    stop: int
    """Offset behind its last byte."""


def write_avi(frames: Sequence[bytes], height: int, width: int, rate: float) -> bytes:
    """Return an AVI of encoded pictures.

    Args:
        frames: at least one, all JPEGs or all PNGs.
        height: of each, in pixels.
        width: of each, in pixels.
        rate: frames a second, for players.
    """
    (codec,) = {code for magic, code in CODECS.items() if all(frame.startswith(magic) for frame in frames)}
    count, largest = len(frames), max(map(len, frames))
    duration = round(MICROSECONDS / rate)
    main = struct.pack("<14I", duration, 0, 0, HAS_INDEX, count, 0, 1, largest, width, height, 0, 0, 0, 0)
    stream = struct.pack(
        "<4s4sI2H8I4h", b"vids", codec, 0, 0, 0, 0, duration, MICROSECONDS, 0, count, largest, 0, 0, 0, 0, width, height
    )
    picture = struct.pack("<I2i2H4s5I", 40, width, height, 1, 24, codec, 3 * height * width, 0, 0, 0, 0)
    header = chunk(b"avih", main) + listed(b"strl", chunk(b"strh", stream) + chunk(b"strf", picture))
    chunks = [chunk(b"00dc", frame) for frame in frames]
    entries, place = [], 4  # from the letters movi on
    for frame, whole in zip(frames, chunks, strict=True):
        entries.append(struct.pack("<4s3I", b"00dc", IS_WHOLE, place, len(frame)))
        place += len(whole)
    body = listed(b"hdrl", header) + listed(b"movi", b"".join(chunks)) + chunk(b"idx1", b"".join(entries))
    return chunk(b"RIFF", b"AVI " + body)


def chunk(name: bytes, content: bytes) -> bytes:
    """Return a chunk."""
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def listed(name: bytes, content: bytes) -> bytes:
    """Return a list of chunks."""
    return chunk(b"LIST", name + content)


def find_frames(data: bytes | OpenBytes, what: str) -> list[Span]:
    """Return where the frames of an AVI lie, in order; what they are is not looked at.

    Args:
        data: the file's bytes.
        what: names the clip in a message.

    Raises:
        InputError: it is no whole AVI of a single stream, is empty, or has too many frames.
    """
    if data[0:4] != b"RIFF" or data[8:12] != b"AVI ":
        raise InputError(f"the clip of {what} is no AVI: pack it anew, or leave it out")
    spans: list[Span] = []
    told = None
    for name, start, stop in chunks_in(data, 0, len(data), what):
        if name != b"RIFF" or start != HEADER:
            raise InputError(f"the clip of {what} goes on behind its end: pack it anew, or leave it out")
        for part, inner, end in chunks_in(data, start + 4, stop, what):
            if part == b"LIST" and data[inner : inner + 4] == b"hdrl":
                told = count_told(data, inner + 4, end, what)
            elif part == b"LIST" and data[inner : inner + 4] == b"movi":
                for frame in chunks_in(data, inner + 4, end, what):
                    if frame[0] == b"00dc":
                        spans.append(Span(*frame[1:]))
                    if len(spans) > MOST_FRAMES:
                        raise InputError(
                            f"the clip of {what} has more than {MOST_FRAMES} frames: cut it into shorter clips"
                        )
    if not spans or told != len(spans):
        raise InputError(
            f"the clip of {what} has {len(spans)} frames, and {told} by its header: pack it anew, or leave it out"
        )
    return spans


def count_told(data: bytes | OpenBytes, start: int, stop: int, what: str) -> int | None:
    """Return the number of frames that the main header says, among chunks; None if there is none."""
    for name, inner, end in chunks_in(data, start, stop, what):
        if name == b"avih" and end - inner >= 20:
            return int.from_bytes(data[inner + 16 : inner + 20], "little")
    return None


def chunks_in(data: bytes | OpenBytes, start: int, stop: int, what: str) -> Iterator[tuple[bytes, int, int]]:
    """Yield the chunks between two places: letters, offset of the content and of its end.

    Raises:
        InputError: one leaves these bounds.
    """
    while start < stop:
        inner = start + HEADER
        end = inner + int.from_bytes(data[start + 4 : inner], "little")
        if inner > stop or end > stop:
            raise InputError(f"the clip of {what} is cut short or damaged: replace it or leave it out")
        yield data[start : start + 4], inner, end
        start = end + end % 2  # all places are even, for the file begins at 0
