"""Clips made of real video: by small videos that the tests write, against what their labels say."""

from collections import Counter
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from clips import LIMIT, avi

from benchmarks import moving_video, real_clips
from benchmarks.moving_video import FRAMES, SIDE, SPEEDS, moving
from benchmarks.suites import SUITES
from benchmarks.video_sources import VIDEOS, Shot, Video, read_shots
from datamodules.moving_digits import DIRECTIONS
from datamodules.transforms.clips import Clip
from mambaeye.encoders.base import Encoder
from mambaeye.encoders.glimpse_vit import GlimpseViT
from mambaeye.encoders.mambaeye import MambaEye
from mambaeye.encoders.video_mamba import VideoMamba
from mambaeye.errors import InputError

ROOT = Path(__file__).parents[1]
ENCODERS: dict[str, type[Encoder]] = {"MambaEye": MambaEye, "GlimpseViT": GlimpseViT, "VideoMamba": VideoMamba}
FRAME = (144, 160)  # pixels of the videos here
SPANS = {"train": Shot("long.avi", 0, 40), "later": Shot("long.avi", 44, 76), "other": Shot("other.avi", 0, 32)}


def flat(first: int, count: int) -> np.ndarray:
    """Frames each of one gray, a step brighter than the one before, that JPEG cannot confuse: (count, *FRAME, 3)."""
    return np.broadcast_to(
        np.arange(first, first + 2 * count, 2, dtype=np.uint8)[:, None, None, None], (count, *FRAME, 3)
    )


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Video]]:
    """Two videos whose frames tell their number by their gray, and what they are."""
    folder = tmp_path_factory.mktemp("videos")
    known = {}
    for name, frames in (("long.avi", flat(0, 76)), ("other.avi", flat(180, 32))):
        (folder / "deep").mkdir(exist_ok=True)
        (folder / "deep" / name).write_bytes(data := avi(frames))
        known[name] = Video("a package", len(frames), sha256(data).hexdigest())
    return folder, known


def frames_in(path: Path) -> np.ndarray:
    """Frames of a clip, (F, H, W, 3) RGB."""
    clip = Clip.open(path.read_bytes(), LIMIT, path.name)
    return np.stack([clip.decoded(at) for at in range(len(clip))])


def numbers_in(path: Path) -> list[int]:
    """Numbers of the frames of long.avi that a clip is of."""
    return [round(frame.mean() / 2) for frame in frames_in(path)]


@pytest.fixture(scope="module")
def real(videos: tuple[Path, dict[str, Video]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, known = videos
    made = tmp_path_factory.mktemp("real") / "made"
    draws = {task: dict.fromkeys(SPANS, 6) for task in real_clips.DRAWS}
    real_clips.write_clips(folder, made, draws, {split: (shot,) for split, shot in SPANS.items()}, known)
    return made


def test_backward_is_forward_in_reverse(real: Path) -> None:
    for split in SPANS:
        paths = sorted((real / "arrow" / split / "forward").iterdir())
        assert len(paths) == 6
        for path in paths:
            forward, backward = frames_in(path), frames_in(real / "arrow" / split / "backward" / path.name)
            assert forward.shape == (16, 48, 48, 3)
            assert np.array_equal(forward, backward[::-1])
            if split != "other":
                assert np.diff(numbers_in(path)).tolist() == [1] * 15


def test_speed_takes_every_kth_frame_and_keeps_the_fifth(real: Path) -> None:
    for name, stride in (("1x", 1), ("2x", 2), ("4x", 4)):
        for path in (real / "speed/train" / name).iterdir():
            assert np.diff(numbers_in(path)).tolist() == [stride] * 7
            assert numbers_in(path)[4] == numbers_in(real / "speed/train/4x" / path.name)[4]


def test_splits_share_no_frame(real: Path) -> None:
    for task in ("arrow", "speed"):
        for split in ("train", "later"):
            seen = {number for path in (real / task / split).rglob("*.avi") for number in numbers_in(path)}
            assert seen <= set(range(*SPANS[split][1:]))


def test_the_shots_of_splits_are_of_other_frames() -> None:
    for shots in (moving_video.SHOTS, real_clips.SHOTS):
        frames = [(shot.video, at) for some in shots.values() for shot in some for at in range(shot.start, shot.stop)]
        assert len(set(frames)) == len(frames)
        assert all(shot.stop <= VIDEOS[shot.video].frames for some in shots.values() for shot in some)
    first, second = ({shot.video for shot in moving_video.SHOTS[split]} for split in ("train", "val"))
    assert not first & second
    assert not {shot.video for shot in real_clips.SHOTS["other"]} & {s.video for s in real_clips.SHOTS["train"]}


def test_clips_are_made_alike_again(videos: tuple[Path, dict[str, Video]], tmp_path: Path) -> None:
    folder, known = videos
    few = {"train": 12, "val": 4}
    shots = {"train": (SPANS["train"],), "val": (SPANS["other"],)}
    for name in ("one", "two"):
        moving_video.write_clips(folder, tmp_path / name, few, shots, known)
    one, two = (
        {path.relative_to(tmp_path / name): path.read_bytes() for path in (tmp_path / name).rglob("*.avi")}
        for name in ("one", "two")
    )
    assert one == two
    by_task = [sorted(data for path, data in one.items() if path.parts[0] == task) for task in ("direction", "digit")]
    assert by_task[0] == by_task[1]
    assert Counter(path.parts[1:3] for path in one if path.parts[0] == "direction") == {
        (split, name): count // 4 for split, count in few.items() for name in DIRECTIONS
    }
    assert len(set(by_task[0])) == 16
    with pytest.raises(InputError, match="one is there already: give a new folder"):
        moving_video.write_clips(folder, tmp_path / "one", few, shots, known)


def test_a_digit_moves_as_its_label_says(videos: tuple[Path, dict[str, Video]], tmp_path: Path) -> None:
    """Between successive frames: of all shifts over the square, that one matches best, by any of the speeds."""
    folder, known = videos
    shots = {"train": (Shot("long.avi", 0, 20),), "val": (SPANS["other"],)}
    moving_video.write_clips(folder, tmp_path / "made", {"train": 24, "val": 12}, shots, known)
    found = Counter()
    for path in (tmp_path / "made/direction").rglob("*.avi"):
        frames = frames_in(path)[..., 0].astype(float)
        frames -= np.median(frames, axis=(1, 2), keepdims=True)  # the background is flat
        spectra = np.fft.fft2(frames.clip(0))
        matches = np.fft.ifft2(spectra[1:] * spectra[:-1].conj()).real.sum(0)  # (SIDE, SIDE), by shift
        shift = np.array(np.unravel_index(matches.argmax(), matches.shape))
        shift = np.where(shift > SIDE // 2, shift - SIDE, shift)
        speed = np.abs(shift).sum()
        assert tuple(shift // speed) == DIRECTIONS[path.parts[-2]]
        found[int(speed)] += 1
    assert found == dict.fromkeys(SPEEDS, 12)


def test_what_is_behind_a_digit_is_dark_or_black(videos: tuple[Path, dict[str, Video]], tmp_path: Path) -> None:
    folder, known = videos
    shots = {"train": (Shot("long.avi", 44, 76),), "val": (SPANS["other"],)}
    few = {"train": 8, "val": 1}
    moving_video.write_clips(folder, tmp_path / "video", few, shots, known)
    moving_video.write_clips(folder, tmp_path / "black", few, shots, known, brightest=0)
    behind = []
    for path in sorted((tmp_path / "video/direction/train").rglob("*.avi")):
        frames, black = frames_in(path), frames_in(tmp_path / "black" / path.relative_to(tmp_path / "video"))
        assert np.array_equal(frames.argmax(), black.argmax())  # the same digit in the same place
        behind.append(frames[black == 0].mean() / 255)
        assert (black == 0).mean() > 0.5
    assert max(behind) < 0.4 * 0.6  # of 2 x 75 grays
    assert min(behind) < max(behind) / 2


def test_a_single_frame_says_nothing_about_direction_or_speed() -> None:
    """From all places where a digit may begin, a frame is as often each picture, whatever the direction."""
    scan = np.arange(64.0).reshape(8, 8) % 17
    starts = np.argwhere(np.ones((SIDE, SIDE)))
    seen = []
    for direction, speed in (*((direction, SPEEDS[-1]) for direction in DIRECTIONS.values()), ((0, 1), SPEEDS[0])):
        clips = [moving(scan, start, direction, speed) for start in starts]
        seen.append([{clip[at].tobytes() for clip in clips} for at in (0, 7, FRAMES - 1)])
    assert len(seen[0][0]) == len(starts)  # each picture once
    assert all(pictures == seen[0] for pictures in seen)


def test_what_is_no_source_is_said_in_a_sentence(videos: tuple[Path, dict[str, Video]], tmp_path: Path) -> None:
    folder, known = videos
    shot = SPANS["train"]
    with pytest.raises(InputError, match=r"has no long.avi: unpack a package there"):
        read_shots(tmp_path, [shot], known)
    changed = {"long.avi": known["long.avi"]._replace(sha256="0" * 64)}
    with pytest.raises(InputError, match=r"long.avi is another file than that of a package, by its SHA-256"):
        read_shots(folder, [shot], changed)
    longer = {"long.avi": known["long.avi"]._replace(frames=77)}
    with pytest.raises(InputError, match="decodes to 76 frames in place of 77"):
        read_shots(folder, [shot], longer)
    for program in (moving_video, real_clips):
        with pytest.raises(SystemExit, match=r"error: .* has no vtest.avi: unpack Debian's opencv-doc there"):
            program.main([str(tmp_path), str(tmp_path / "made")])
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("name", ["moving_video", "arrow_of_time", "video_speed"])
def test_all_that_are_compared_on_clips_have_as_many_parameters(name: str) -> None:
    """But for those with two frames a glimpse: these take twice as many pixels in."""
    suite, counts = SUITES[name], {}
    base = yaml.safe_load((ROOT / suite.config).read_text())["model"]["encoder"]
    for variant, changed in suite.variants.items():
        flags = {flag.removeprefix("model.encoder."): yaml.safe_load(value) for flag, value in changed.items()}
        told = {flag: value for flag, value in flags.items() if "." not in flag}
        settings = told if "model.encoder" in changed else base | told
        with torch.device("meta"):
            encoder = ENCODERS[changed.get("model.encoder", "MambaEye")](num_classes=4, **settings)
        counts[variant] = sum(p.numel() for p in encoder.parameters())
    assert all(0.9 < count / counts["base"] < 1.1 for count in counts.values()), counts
