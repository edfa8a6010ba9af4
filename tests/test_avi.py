"""Clips as AVIs: what is written is found again, other programs read it, and damage is noticed."""

import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from clips import avi, clip, noise, png
from hypothesis import given
from hypothesis import strategies as st

from datamodules.transforms.avi import find_frames, listed, write_avi
from datamodules.transforms.clips import Clip, stacked
from datamodules.transforms.headers import START_OF_JPEG, START_OF_PNG, PixelLimit
from mambaeye.errors import InputError
from mambaeye.geometry.box import Box

CONTENT = st.lists(st.binary(max_size=20), min_size=1, max_size=6)  # of even and odd lengths


@given(content=CONTENT, magic=st.sampled_from([START_OF_JPEG, START_OF_PNG]))
def test_frames_are_found_where_they_were_written(content: list[bytes], magic: bytes) -> None:
    frames = [magic + part for part in content]
    data = write_avi(frames, 3, 4, 25)
    assert [data[start:stop] for start, stop in find_frames(data, "a")] == frames


@given(content=CONTENT, data=st.data())
def test_a_clip_that_ends_early_or_late_is_refused(content: list[bytes], data: st.DataObject) -> None:
    whole = write_avi([START_OF_PNG + part for part in content], 3, 4, 25)
    cut = data.draw(st.integers(0, len(whole) - 1))
    for damaged in (whole[:cut], whole + b"more", whole + whole):
        with pytest.raises(InputError, match="^the clip of sample x "):
            find_frames(damaged, "sample x")


def test_another_program_reads_the_same_frames(tmp_path: Path) -> None:
    frames = noise(7)
    (tmp_path / "clip.avi").write_bytes(avi(frames))
    video = cv2.VideoCapture(str(tmp_path / "clip.avi"), cv2.CAP_FFMPEG)
    assert video.get(cv2.CAP_PROP_FPS) == 25
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 7
    read = [video.read()[1][..., ::-1] for _ in frames]
    assert not video.read()[0]
    video.release()
    assert np.array_equal(read, frames)


def test_a_header_that_tells_another_number_of_frames_is_refused() -> None:
    data = bytearray(avi(noise(5)))
    at = data.index(b"avih") + 8 + 16
    data[at : at + 4] = struct.pack("<I", 6)
    with pytest.raises(InputError, match="has 5 frames, and 6 by its header"):
        find_frames(bytes(data), "a")


@pytest.mark.parametrize("data", [b"", b"RIFF", b"#EXTM3U\n", png(noise(1)[0]), listed(b"AVI ", b"")])
def test_what_is_no_clip_is_refused(data: bytes) -> None:
    with pytest.raises(InputError, match="no AVI"):
        find_frames(data, "a")


def test_a_frame_is_decoded_alone() -> None:
    """The others need not even be pictures."""
    frames = noise(5)
    encoded = [START_OF_PNG + b"damaged"] * 5
    encoded[3] = png(frames[3])
    opened = Clip.open(write_avi(encoded, 20, 24, 25), PixelLimit(), "sample a")
    assert np.array_equal(opened.decoded(3), frames[3])
    with pytest.raises(InputError, match="^the image of frame 2 of sample a does not decode"):
        opened.decoded(2)


def test_a_frame_of_too_many_pixels_is_refused_by_its_header() -> None:
    opened = Clip.open(avi(noise(2)), PixelLimit(479), "sample a")
    with pytest.raises(InputError, match=r"frame 1 of sample a has 24 x 20 pixels, more than the 479"):
        opened.encoded(1)


@given(count=st.integers(1, 12), frames=st.integers(1, 15), data=st.data())
def test_a_window_is_successive_frames(count: int, frames: int, data: st.DataObject) -> None:
    opened = clip(noise(count, 2, 2))
    middle = opened.window(frames)
    assert len(middle) == min(count, frames)
    before, after = middle[0], count - 1 - middle[-1]
    assert after - before in (0, 1)
    start = data.draw(st.integers(0, max(0, count - frames)))
    assert [*opened.window(frames, start)] == [*range(count)][start : start + frames]


@given(length=st.integers(1, 6), more=st.integers(0, 5))
def test_a_short_clip_lies_in_the_middle_of_its_canvas(length: int, more: int) -> None:
    frames = noise(length, 6, 5)
    canvas, box = stacked(((frame, Box(1, 2, 3, 3)) for frame in frames), length, length + more, "a")
    assert canvas.shape == (length + more, 6, 5, 3)
    assert box == (more // 2, 1, 2, length, 3, 3)
    assert np.array_equal(canvas[more // 2 :][:length], frames)
    assert not canvas[: more // 2].any()
    assert not canvas[more // 2 + length :].any()


def test_frames_of_several_shapes_are_refused() -> None:
    frame = noise(1)[0]
    with pytest.raises(InputError, match="^the frames of sample a have several shapes"):
        stacked([(frame, Box(0, 0, 2, 2)), (frame, Box(0, 0, 2, 3))], 2, 2, "sample a")
