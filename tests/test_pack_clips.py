"""Videos and folders of frames, packed: their frames as they were, and what cannot be read answered as images are."""

import io
import json
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from clips import LIMIT, avi, noise, png
from commands import ROOT

from datamodules import check, pack
from datamodules.packing.folder import class_names, ensure_packed, packed
from datamodules.shards.index import ShardIndex, write_index
from datamodules.shards.reading import read_images
from datamodules.shards.scan import scan_shard
from datamodules.transforms.clips import Clip
from mambaeye.errors import InputError


def grey_video(path: Path, codec: str, frames: int = 20) -> None:
    """A video that brightens by 10 with each frame."""
    video = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), 25, (64, 48))
    for number in range(frames):
        video.write(np.full((48, 64, 3), 10 * number, np.uint8))
    video.release()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Class folders: a with a folder of JPEGs and one of BMPs, b with videos."""
    folder = tmp_path / "source"
    for name in ("a/one", "a/two", "b"):
        (folder / name).mkdir(parents=True)
    for number, frame in enumerate(noise(12)):
        cv2.imwrite(str(folder / f"a/one/frame{number}.jpg"), frame)  # 10 and 11 come before 2 by letters
    for number, frame in enumerate(noise(3, seed=1)):
        cv2.imwrite(str(folder / f"a/two/{number}.bmp"), frame[..., ::-1])
    grey_video(folder / "b/x.mp4", "mp4v")
    (folder / "b/y.avi").write_bytes(avi(noise(4, seed=2)))
    return folder


def clips_in(folder: Path) -> dict[str, Clip]:
    index = ShardIndex.read(folder)
    found = read_images(index, np.arange(len(index)), 0)
    clips = {}
    for number, data in enumerate(found):
        assert isinstance(data, bytes)
        clips[index.key(number)] = Clip.open(data, LIMIT, index.key(number))
    assert index.frames is not None
    assert index.frames.tolist() == [len(clip) for clip in clips.values()]
    return clips


def test_clips_are_packed_with_the_frames_that_they_have(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack.main([str(source), str(tmp_path / "shards"), "--clips", "--samples_per_shard", "3"])
    assert "clips 4, classes 2, shards 2" in capsys.readouterr().out
    clips = clips_in(tmp_path / "shards")
    assert clips.keys() == {"a/one", "a/two", "b/x", "b/y"}
    jpegs = [(source / f"a/one/frame{number}.jpg").read_bytes() for number in range(12)]
    assert [clips["a/one"].encoded(at) for at in range(12)] == jpegs
    assert np.array_equal([clips["a/two"].decoded(at) for at in range(3)], noise(3, seed=1))
    assert clips["b/y"].data == (source / "b/y.avi").read_bytes()
    means = [clips["b/x"].decoded(at).mean() for at in range(20)]
    np.testing.assert_allclose(means, np.arange(0, 200, 10), atol=4)
    index = ShardIndex.read(tmp_path / "shards")
    assert {index.key(n): index.classes[index.labels[n]] for n in range(4)} == {key: key[0] for key in clips}
    content = json.loads((tmp_path / "shards/index.json").read_text())
    assert content["kind"] == "clips"

    check.main([str(tmp_path / "shards"), "--decode"])
    before = content["shards"]
    pack.main([str(tmp_path / "shards")])  # anew
    assert json.loads((tmp_path / "shards/index.json").read_text())["shards"] == before


def test_a_tar_of_clips_packs_to_the_same_shards(source: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "source.tar", "w") as tar:
        for path in sorted(source.rglob("*.*")):
            tar.add(path, path.relative_to(source))
    for name in ("source", "source.tar"):
        pack.main([str(tmp_path / name), str(tmp_path / f"{name}.shards"), "--clips"])
    folder, of_tar = (clips_in(tmp_path / f"{name}.shards") for name in ("source", "source.tar"))
    assert {key: clip.data for key, clip in folder.items()} == {key: clip.data for key, clip in of_tar.items()}


def test_damaged_clips_are_listed_and_refused_or_left_out(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (source / "b/x.mp4").read_bytes()
    (source / "b/cut.mp4").write_bytes(whole[: len(whole) // 2])
    (source / "b/list.mkv").write_bytes(b"#EXTM3U\n/etc/hostname\n")
    (source / "b/empty.webm").write_bytes(b"")
    for name, frames in (("sizes", [noise(1)[0], noise(1, 9)[0]]), ("broken", [noise(1)[0]])):
        (source / "a" / name).mkdir()
        for number, frame in enumerate(frames):
            (source / "a" / name / f"{number}.png").write_bytes(png(frame)[: -30 if name == "broken" else None])
    with pytest.raises(SystemExit, match="5 of 9 clips are unreadable"):
        pack.main([str(source), str(tmp_path / "shards"), "--clips"])
    lines = capsys.readouterr().err
    for name, reason in (
        ("b/cut.mp4", "cut short or damaged"),
        ("b/list.mkv", "no video of the known kinds"),
        ("b/empty.webm", "no video of the known kinds"),
        ("a/sizes", "have several sizes"),
        ("a/broken", "frame 0 of a/broken"),
    ):
        (line,) = [line for line in lines.splitlines() if line.startswith(f"unreadable: {name}:")]
        assert reason in line
    pack.main([str(source), str(tmp_path / "shards"), "--clips", "--unreadable", "skip"])
    assert clips_in(tmp_path / "shards").keys() == {"a/one", "a/two", "b/x", "b/y"}


def test_too_large_frames_are_unreadable(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="1 of 4 clips"):
        pack.main([str(source), str(tmp_path / "shards"), "--clips", "--max_pixels", "1000"])
    assert "b/x.mp4 has frames of 64 x 48 pixels, more than the 1000 of --max_pixels" in capsys.readouterr().err


@pytest.mark.parametrize("folder", ["source", "source/b"])
def test_videos_without_the_flag_are_noticed(folder: str, source: Path, tmp_path: Path) -> None:
    for frames in (source / "a").glob("*/*"):
        frames.unlink()
    with pytest.raises(SystemExit, match="has no images and 2 videos: give --clips to pack these"):
        pack.main([str(tmp_path / folder), str(tmp_path / "shards")])


@pytest.mark.parametrize("parts", [("",), ("train", "val")])
def test_class_folders_of_videos_are_packed_as_clips_on_first_use(
    parts: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same bytes as of the command; with a picture among them, videos are passed over as before."""
    for part in parts:
        for number in range(4):
            folder = tmp_path / "VIDEOS" / part / "ab"[number % 2]
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number}{part}.avi").write_bytes(avi(noise(3, seed=number)))
    assert class_names(tmp_path / "VIDEOS") == ["a", "b"]
    ensure_packed(tmp_path / "VIDEOS", tmp_path / "data", 0, LIMIT)
    trained, validated = (4, 4) if len(parts) > 1 else (2, 2)
    assert f"2 classes, {trained} clips to train on and {validated} to validate on" in capsys.readouterr().out
    place = packed(tmp_path / "VIDEOS", tmp_path / "data")
    found = clips_in(place / "train") | clips_in(place / "val")
    sources = {path.stem: path.read_bytes() for path in (tmp_path / "VIDEOS").rglob("*.avi")}
    assert {key.rpartition("/")[2]: clip.data for key, clip in found.items()} == sources

    (tmp_path / "VIDEOS" / parts[0] / "a" / "one.png").write_bytes(png(noise(1)[0]))
    with pytest.raises(InputError, match="has pictures of a single class, a"):
        class_names(tmp_path / "VIDEOS")


@pytest.mark.long
def test_stopped_while_it_packs_it_continues_to_the_same_bytes(tmp_path: Path) -> None:
    """Killed twice and interrupted once, each time after another shard is there."""
    for number in range(24):
        folder = tmp_path / "source" / "abc"[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        grey_video(folder / f"{number}.mp4", "mp4v", 25)
        for frame, picture in enumerate(noise(20, 200, 200, seed=number)):
            (folder / f"frames {number}").mkdir(exist_ok=True)
            (folder / f"frames {number}" / f"{frame}.png").write_bytes(png(picture))
    flags = ["--clips", "--samples_per_shard", "2", "--jobs", "1"]
    command = [sys.executable, "-m", "datamodules.pack", str(tmp_path / "source"), str(tmp_path / "out"), *flags]
    for shards, stop in enumerate((signal.SIGKILL, signal.SIGINT, signal.SIGKILL), 1):
        with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
            while process.poll() is None and len(list(tmp_path.glob("out.packing/*.tar"))) < shards:
                time.sleep(0.01)
            process.send_signal(stop)
            said = process.communicate()[1]
        assert process.returncode == (-stop if stop == signal.SIGKILL else 1)
        assert stop == signal.SIGKILL or said.endswith("interrupted: the same command continues\n")
        assert not (tmp_path / "out").exists()
    subprocess.run(command, cwd=ROOT, check=True)
    pack.main([str(tmp_path / "source"), str(tmp_path / "whole"), *flags])
    one, other = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("out", "whole"))
    assert len(one) == 25
    assert one == other


def test_frames_without_a_folder_of_their_own_are_refused(source: Path, tmp_path: Path) -> None:
    (source / "b/still.png").write_bytes(png(noise(1)[0]))
    with pytest.raises(SystemExit, match=r"frame b/still.png lies in no folder of its own clip.* b/CLIP/0001.jpg"):
        pack.main([str(source), str(tmp_path / "shards"), "--clips"])


def shard_of(path: Path, **members: bytes) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            member = tarfile.TarInfo(name.replace("_", "."))
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def test_images_and_clips_do_not_mix(tmp_path: Path) -> None:
    image, moving = png(noise(1)[0]), avi(noise(2))
    mixed = shard_of(tmp_path / "m.tar", a_png=image, a_cls=b"0", b_avi=moving, b_cls=b"0")
    with pytest.raises(InputError, match=r"m.tar holds images and clips"):
        scan_shard(mixed)
    shards = [
        scan_shard(shard_of(tmp_path / "i.tar", a_png=image, a_cls=b"0")),
        scan_shard(shard_of(tmp_path / "c.tar", b_avi=moving, b_cls=b"0")),
    ]
    write_index(tmp_path, ["x"], shards)
    with pytest.raises(InputError, match="its kind is 'clips', and its shards hold something else"):
        ShardIndex.read(tmp_path)
    write_index(tmp_path, ["x"], shards[1:])
    index = tmp_path / "index.json"
    for old, new, message in (
        ('"frames": [2]', '"frames": [0]', "less than 1 frame"),
        ('"frames": [2]', '"frames": [2, 2]', "different lengths"),
        ('"frames": [2]', '"frames": ["2"]', "not an integer"),
        ('"kind": "clips"', '"kind": "images"', "hold something else"),
    ):
        write_index(tmp_path, ["x"], shards[1:])
        index.write_text(index.read_text().replace(old, new))
        with pytest.raises(InputError, match=message):
            ShardIndex.read(tmp_path)


def test_an_index_with_other_numbers_of_frames_is_found_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shard = scan_shard(shard_of(tmp_path / "c.tar", b_avi=avi(noise(2)), b_cls=b"0"))
    write_index(tmp_path, ["x"], [shard])
    index = tmp_path / "index.json"
    index.write_text(index.read_text().replace('"frames": [2]', '"frames": [3]'))
    with pytest.raises(SystemExit):
        check.main([str(tmp_path)])
    assert "has other frames than the index in 1 samples, the first b: 2, and 3 in the index" in capsys.readouterr().out
