"""Prediction on clips: every line against a computation on arrays that shares no code with it but the encoder."""

import hashlib
import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from clips import avi, noise, png
from commands import ROOT, flags
from PIL import Image

from callbacks.reports.prediction_writer import picture_name
from mambaeye import weights
from mambaeye.encoders.mambaeye import MambaEye
from mambaeye.encoders.video_mamba import VideoMamba
from mambaeye.evaluation.prediction import kept_steps
from mambaeye.geometry.box import Box
from mambaeye.geometry.scans import scan_pattern
from train import main

P, TUBE, FRAMES, T, SEED = 8, 2, 8, 16, 0
ROUNDING = 5e-5  # of probabilities, with logits as large as here
SIZES = {"dim": 16, "depth": 2, "d_state": 8, "headdim": 8, "move_embedding_dim": 16}


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a model of clips that is sure of something."""
    torch.manual_seed(SEED)
    encoder = MambaEye(num_classes=4, patch_size=P, axes=3, tube=TUBE, **SIZES)
    torch.nn.init.normal_(encoder.head.weight, std=0.5)
    folder = tmp_path_factory.mktemp("model")
    weights.save(encoder, folder)
    return folder / "model.safetensors"


@cache
def encoder_of(model: Path) -> MambaEye:
    encoder = weights.load(model.parent).eval()
    assert isinstance(encoder, MambaEye)
    return encoder


def arguments(model: Path, clips: list[str], run_dir: str = "out", **settings: object) -> list[str]:
    asked: dict[str, object] = {
        "run_dir": run_dir,
        "model.init_from": model,
        "data.num_classes": 4,
        "data.patch_size": P,
        "data.tube": TUBE,
        "data.frames": FRAMES,
        "data.evaluate.num_glimpses": T,
        "data.scans": "[arriving]",
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
        "data.loader.num_workers": 0,
    }
    return ["predict", *flags(asked | settings), "--data.images", *clips]


def predict(model: Path, clips: list[str], run_dir: str = "out", **settings: object) -> list[dict[str, Any]]:
    main(arguments(model, clips, run_dir, **settings))
    return [json.loads(line) for line in Path(run_dir, "predictions.jsonl").read_text().splitlines()]


def folder_of_frames(frames: np.ndarray, name: str) -> bytes:
    """Write PNGs that sort otherwise by letters, and return the digest of all."""
    Path(name).mkdir(parents=True)
    whole = hashlib.sha256()
    for number, frame in enumerate(frames):
        Path(name, f"{number}.png").write_bytes(png(frame))
        whole.update(hashlib.sha256(png(frame)).digest())
    return whole.digest()


def video(frames: np.ndarray, name: str, codec: str = "FFV1") -> None:
    """Write a video, FFV1 without loss."""
    writer = cv2.VideoWriter(name, cv2.VideoWriter_fourcc(*codec), 25, frames.shape[2:0:-1])
    for frame in frames:
        writer.write(frame[..., ::-1])
    writer.release()


def expected(model: Path, clip: np.ndarray, digest: bytes, frames: int, glimpses: int, scan: str) -> dict[str, Any]:
    """The numbers of a clip (L, H, W, 3) of which the middle frames are looked at."""
    first = max(0, len(clip) - frames) // 2
    window = clip[first : first + frames]
    size = (frames, *(max(side, P) for side in window.shape[1:3]))
    start = [(whole - side) // 2 for whole, side in zip(size, window.shape, strict=False)]
    canvas = np.zeros((*size, 3), np.uint8)
    canvas[tuple(slice(s, s + n) for s, n in zip(start, window.shape, strict=False))] = window
    rng = np.random.default_rng((2, SEED, *digest))
    positions = scan_pattern(scan)(Box(*start, *window.shape[:3]), (TUBE, P, P), glimpses, rng)
    patches, seen = [], np.zeros(size, bool)
    for t, row, col in positions.tolist():
        patches.append(canvas[t : t + TUBE, row : row + P, col : col + P].transpose(3, 0, 1, 2))
        seen[t : t + TUBE, row : row + P, col : col + P] = True
    with torch.no_grad():
        logits = encoder_of(model)(torch.from_numpy(np.stack(patches))[None], torch.from_numpy(positions)[None])[0]
    shares = logits.double().softmax(-1).numpy()  # (T, C)
    inside = seen[tuple(slice(s, s + n) for s, n in zip(start, window.shape, strict=False))]
    return {
        "size": list(clip.shape[1:3]),
        "first_frame": first,
        "glimpses": glimpses,
        "top5": [
            {"class": str(c), "probability": pytest.approx(shares[-1, c], abs=ROUNDING)}
            for c in shares[-1].argsort()[::-1]
        ],
        "information_ratio": pytest.approx(inside.mean(), abs=1e-6),
        "confidence_by_glimpse": pytest.approx(shares.max(1).tolist(), abs=ROUNDING),
    }


@pytest.mark.parametrize("scan", ["random", "arriving", "tube_raster"])
def test_every_line_is_what_a_plain_computation_gives(scan: str, model: Path) -> None:
    clips = {
        "long.avi": noise(21, seed=1),
        "short.avi": noise(3, seed=2),
        "one.avi": noise(1, seed=3),
        "small.avi": noise(9, 5, 30, seed=4),
    }
    digests = {}
    for name, frames in clips.items():
        Path(name).write_bytes(avi(frames))
        digests[name] = hashlib.sha256(avi(frames)).digest()
    clips["frames/of a clip"] = noise(12, seed=5)
    digests["frames/of a clip"] = folder_of_frames(clips["frames/of a clip"], "frames/of a clip")
    clips["lossless.mkv"] = noise(11, 32, 32, seed=6)
    video(clips["lossless.mkv"], "lossless.mkv")
    digests["lossless.mkv"] = hashlib.sha256(Path("lossless.mkv").read_bytes()).digest()
    for line in predict(model, ["."], **{"data.scans": f"[{scan}]"}):
        name = line["path"].removeprefix("./")
        want = expected(model, clips[name], digests.pop(name), FRAMES, T, scan)
        assert line.items() >= want.items(), name
        assert line.get("frames", 1) == len(clips[name])
    assert not digests


def test_a_clip_is_fitted_onto_a_canvas(model: Path) -> None:
    frames = noise(4, 32, 16, seed=1).repeat(2, axis=1).repeat(2, axis=2)  # halving gives exactly the small ones
    Path("clip.avi").write_bytes(avi(frames))
    (line,) = predict(model, ["clip.avi"], **{"data.predict.resize": 32, "data.evaluate.interpolation": "area"})
    digest = hashlib.sha256(avi(frames)).digest()
    canvas_box = Box(2, 0, 8, 4, 32, 16)
    positions = scan_pattern("arriving")(canvas_box, (TUBE, P, P), T, np.random.default_rng((2, SEED, *digest)))
    seen = np.zeros((FRAMES, 32, 32), bool)
    for t, row, col in positions.tolist():
        seen[t : t + TUBE, row : row + P, col : col + P] = True
    assert line["size"] == [64, 32]
    assert line["information_ratio"] == pytest.approx(seen[canvas_box.slices].mean(), abs=1e-6)


@pytest.mark.parametrize("length", [1, 2, 7, 8, 30, 31])
def test_a_stream_gives_what_the_whole_clip_gives(length: int, model: Path) -> None:
    """With as many glimpses a tube: 16 for 8 frames are 4 for each of 2 frames; an odd frame has them too."""
    clip = noise(length, seed=length)
    video(clip, "clip.mkv") if length > 7 else Path("clip.mkv").write_bytes(avi(clip))
    (line,) = predict(model, ["clip.mkv"], **{"data.predict.stream": "true"})
    digest = hashlib.sha256(Path("clip.mkv").read_bytes()).digest()
    tubes = -(-length // TUBE)
    want = expected(model, clip, digest, max(TUBE, length), 4 * tubes, "arriving")
    confidence = want.pop("confidence_by_glimpse").expected
    assert line.items() >= want.items()
    assert line["frames"] == length
    arrived = [json.loads(told) for told in Path("out", line["stream"]).read_text().splitlines()]
    assert [told["frames"] for told in arrived] == [min(TUBE * (at + 1), length) for at in range(tubes)]
    assert [told["glimpses"] for told in arrived] == [4 * (at + 1) for at in range(tubes)]
    assert [share for told in arrived for share in told["confidence"]] == pytest.approx(confidence, abs=1e-5)
    assert [told["probability"] for told in arrived] == pytest.approx(confidence[3::4], abs=1e-5)


def test_a_stream_may_have_less_glimpses_than_tubes(model: Path) -> None:
    Path("clip.avi").write_bytes(avi(noise(24)))
    (line,) = predict(model, ["clip.avi"], **{"data.predict.stream": "true", "data.evaluate.num_glimpses": 2})
    arrived = [json.loads(told) for told in Path("out", line["stream"]).read_text().splitlines()]
    assert [(told["frames"], told["glimpses"]) for told in arrived] == [(2 + 4 * at, at + 1) for at in range(6)]
    assert (line["frames"], line["glimpses"]) == (24, 6)


@pytest.mark.parametrize("stream", ["false", "true"])
def test_what_cannot_be_read_is_said_and_the_others_go_on(
    stream: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("good.avi").write_bytes(avi(noise(9)))
    Path("empty.avi").write_bytes(b"")
    Path("text.mp4").write_text("#EXTM3U\n/etc/passwd\n")
    frames = [png(frame) for frame in noise(9)]
    folder_of_frames(noise(4), "sides")
    Path("sides/2.png").write_bytes(png(noise(1, 30, 30)[0]))
    video(noise(40, 32, 32), "cut.mkv")
    whole = Path("cut.mkv").read_bytes()
    Path("cut.mkv").write_bytes(whole[: len(whole) // 2])
    Path("picture.png").write_bytes(frames[0])
    names = ["good.avi", "empty.avi", "text.mp4", "sides", "cut.mkv", "picture.png"]
    got = predict(model, names, **{"data.predict.stream": stream})
    assert [line["path"] for line in got] == names
    assert "error" not in got[0]
    no_video = "is no video or volume of the known kinds"
    for line, words in zip(got[1:], (no_video, no_video, "several shapes", "cut short", no_video), strict=True):
        assert words in line["error"]
    assert "1 predicted clip, 5 files could not be read" in capsys.readouterr().out


def test_pictures_and_films(model: Path) -> None:
    Path("clip.avi").write_bytes(avi(noise(24)))
    main([*arguments(model, ["clip.avi"]), "--pictures", "--animate"])
    (line,) = [json.loads(told) for told in Path("out/predictions.jsonl").read_text().splitlines()]
    name = f"predictions/{picture_name('clip.avi')}"
    assert (line["picture"], line["animation"]) == (f"{name}.png", f"{name}.webp")
    with Image.open(Path("out", line["picture"])) as picture:
        assert min(picture.size) > 300
    with Image.open(Path("out", line["animation"])) as film:
        assert film.n_frames == len(kept_steps(T))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data.predict.stream": "true", "data.scans": "[random]"}, r"give --data.scans \[arriving\]"),
        ({"data.predict.stream": "true", "pictures": "true"}, "leave them or it out"),
        (
            {"data.predict.stream": "true", "data.frames": "side"},
            "takes frames as they come, and data.frames is side: give it a number",
        ),
        ({"data.predict.window": "[3,3]"}, r"data.predict.window is \[3.0, 3.0\]: give a value, and a larger one"),
        ({"data.predict.voxel": "0"}, "data.predict.voxel is 0: give a side above 0"),
        ({"data.predict.stream": "true", "model.exit_criteria.stable": 3}, "leave model.exit_criteria.stable out"),
    ],
)
def test_what_does_not_go_together_is_said(settings: dict[str, object], message: str, model: Path) -> None:
    Path("clip.avi").write_bytes(avi(noise(9)))
    if "pictures" in settings:
        settings = {name: value for name, value in settings.items() if name != "pictures"}
        words = [*arguments(model, ["clip.avi"], **settings), "--pictures"]
    else:
        words = arguments(model, ["clip.avi"], **settings)
    with pytest.raises(SystemExit, match=message):
        main(words)


def test_an_encoder_of_whole_clips_and_of_images_takes_what_there_is(tmp_path: Path) -> None:
    """VideoMamba looks at both: where there is a video, at clips."""
    sizes = {"dim": 16, "depth": 1, "d_state": 2, "patch": 8, "grid": 4, "frames": 4, "tubelet": 2}
    encoder = VideoMamba(num_classes=4, **sizes)
    weights.save(encoder.eval(), tmp_path / "whole")
    Path("clip.avi").write_bytes(avi(noise(20)))
    Path("image.png").write_bytes(png(noise(1)[0]))
    asked: dict[str, object] = {"model.init_from": tmp_path / "whole/model.safetensors", "data.scans": "[random]"}
    asked |= {"model.encoder": "VideoMamba", **{f"model.encoder.{name}": size for name, size in sizes.items()}}
    (line,) = predict(Path(), ["clip.avi"], **asked)
    with torch.no_grad():
        shares = encoder(torch.from_numpy(noise(20)[6:14])[None])[0].softmax(-1)
    assert (line["first_frame"], line["information_ratio"]) == (6, 1)
    assert line["confidence_by_glimpse"] == [pytest.approx(shares.max().item(), abs=ROUNDING)]
    assert line["top5"][0]["class"] == str(shares.argmax().item())
    (still,) = predict(Path(), ["image.png"], "still", **asked)
    assert "first_frame" not in still
    with pytest.raises(SystemExit, match="and VideoMamba answers only once"):
        predict(Path(), ["clip.avi"], **asked | {"data.predict.stream": "true", "data.scans": "[arriving]"})


def test_where_there_is_no_clip_is_said(model: Path) -> None:
    Path("empty").mkdir()
    with pytest.raises(SystemExit, match="there is no clip in empty: give --data.images videos, or folders"):
        predict(model, ["empty"])


def peak(arguments: list[str]) -> float:
    """Return the peak memory of train.py in a process of its own, in MiB."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, str(ROOT / "train.py"), *arguments], env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_maxrss / 1024


@pytest.mark.long
def test_memory_does_not_grow_with_a_stream(model: Path) -> None:
    """3,000 frames of 300 KiB against 100: all of them would be 850 MiB more."""
    frames = noise(10, 240, 320).repeat(10, axis=0)
    for name, times in (("short", 1), ("long", 30)):
        writer = cv2.VideoWriter(f"{name}.mp4", cv2.VideoWriter_fourcc(*"mp4v"), 25, (320, 240))
        for _ in range(times):
            for frame in frames:
                writer.write(cv2.blur(frame, (9, 9)))
        writer.release()
    asked = {"data.predict.stream": "true"}
    short, long = (peak(arguments(model, [f"{name}.mp4"], run_dir=name, **asked)) for name in ("short", "long"))
    assert json.loads(Path("long/predictions.jsonl").read_text())["frames"] == 3000
    assert abs(long - short) < 15
