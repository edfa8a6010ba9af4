"""Prediction on image files: every line against a computation that shares no code with it but the encoder."""

import hashlib
import json
import logging
import math
import os
import subprocess
import sys
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import ROOT, TINY, flags
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageSequence

import datamodules.loading.files
from callbacks.reports.prediction_writer import picture_name
from datamodules.loading.config import LoaderConfig
from datamodules.loading.files import FileLoader
from datamodules.transforms.headers import PixelLimit
from datamodules.views.evaluate import EvaluateView
from datamodules.views.predict import FileCanvases, PredictView
from mambaeye import weights
from mambaeye.batch import Scene
from mambaeye.command_line.words import split_images, without_policy_arguments
from mambaeye.encoders.mambaeye import MambaEye
from mambaeye.evaluation import prediction
from mambaeye.evaluation.early_exit import Rule
from mambaeye.geometry.box import Box
from mambaeye.geometry.scans import scan_pattern
from train import main

P, T, SEED = 16, 70, 3  # glimpses go through in chunks of 32 or 256
ROUNDING = 5e-5  # of probabilities, with logits as large as here
NAMES = ["zero", "one $x_2$", "two", "three", "four", "five, or so: a name that is far too long for a bar"]
NAMES += ["six", "seven", "acht", "九"]


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])


@pytest.fixture(scope="module")
def checkpoint(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model after a few steps, made more sure of itself, with class names that are not numbers.

    It starts without biases, which would favour one class whatever is seen.
    """
    folder = tmp_path_factory.mktemp("trained")
    torch.manual_seed(SEED)
    sizes = {name.removeprefix("model.encoder."): size for name, size in TINY.items() if ".encoder." in name}
    encoder = MambaEye(num_classes=10, **sizes)
    for linear in (encoder.projection, encoder.head):
        torch.nn.init.zeros_(linear.bias)
    weights.save(encoder, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["train.py"])
        settings = {**TINY, "run_dir": folder / "run", "data.data_dir": data_dir, "data.evaluate.num_glimpses": T}
        settings |= {"trainer.limit_train_batches": 8, "trainer.limit_val_batches": 0, "model.optimizer.lr": 0.01}
        settings |= {"data.loader.shuffle_span": 1}  # thresholds are made for it
        main(["fit", *flags(settings | {"model.init_from": folder / "model.safetensors"})])
    content = torch.load(folder / "run/checkpoints/last.ckpt", weights_only=True)
    assert content["classes"] == [str(digit) for digit in range(10)]
    content["state_dict"]["encoder.head.weight"] *= 40
    torch.save(content | {"classes": NAMES}, folder / "named.ckpt")
    return folder / "named.ckpt"


def predict(checkpoint: Path, images: Any, run_dir: str = "out", **settings: object) -> list[dict[str, Any]]:
    paths = [str(image) for image in (images if isinstance(images, list) else [images])]
    more = {"run_dir": run_dir, "ckpt_path": checkpoint, "trainer.enable_progress_bar": "false"}
    more |= {"trainer.accelerator": "cpu"} | settings
    bare = [f"--{key}" for key, value in more.items() if value is None]
    main(["predict", *flags({key: value for key, value in more.items() if value is not None}), *bare]
         + ["--data.images", *paths])  # fmt: skip
    return lines(run_dir)


def lines(run_dir: str = "out") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(run_dir, "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


def fails(checkpoint: Path, images: list[str], capsys: pytest.CaptureFixture[str], **settings: object) -> str:
    with pytest.raises(SystemExit) as stop:
        predict(checkpoint, images, **settings)
    said = str(stop.value) if stop.value.code != 2 else capsys.readouterr().err.splitlines()[-1]
    assert "\n" not in said
    return said


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    """An image with patches of one colour, so that the model does not see the same everywhere."""
    small = np.random.default_rng(seed).integers(0, 256, (-(-height // 9), -(-width // 7), 3), dtype=np.uint8)
    return Image.fromarray(np.kron(small, np.ones((9, 7, 1), np.uint8))[:height, :width])


@cache
def encoder_of(checkpoint: Path) -> MambaEye:
    return weights.load(checkpoint).eval()


def expected(checkpoint: Path, path: Path, rules: dict[str, float], scan: str = "random") -> dict[str, Any]:
    """The line of an image that was taken as it is: Pillow decodes, a loop cuts, one pass encodes, a loop stops."""
    opened = Image.open(path)
    image = np.asarray(opened.convert("RGB"))
    height, width = image.shape[:2]
    canvas = np.zeros((max(height, P), max(width, P), 3), np.uint8)
    top, left = (canvas.shape[0] - height) // 2, (canvas.shape[1] - width) // 2
    canvas[top : top + height, left : left + width] = image
    rng = np.random.default_rng((2, SEED, *hashlib.sha256(path.read_bytes()).digest()))
    positions = scan_pattern(scan)(Box(top, left, height, width), P, T, rng)
    cut = [canvas[row : row + P, col : col + P].transpose(2, 0, 1) for row, col in positions.tolist()]
    with torch.no_grad():
        logits = encoder_of(checkpoint)(torch.from_numpy(np.stack(cut))[None], torch.from_numpy(positions)[None])[
            0
        ].double()
    shares = logits.softmax(-1).numpy()  # (T, C)
    glimpses, stopped, in_a_row = T, "budget", 0
    for step in range(T):
        in_a_row = in_a_row + 1 if step and shares[step].argmax() == shares[step - 1].argmax() else 1
        scores = {"confidence": shares[step].max(), "stable": in_a_row}
        met = [kind for kind in ("confidence", "stable") if kind in rules and scores[kind] >= rules[kind]]
        if "entropy" in rules and -(shares[step] * np.log(shares[step])).sum() <= rules["entropy"]:
            met.append("entropy")
        if met:
            glimpses, stopped = step + 1, met[0]
            break
    mask = np.zeros(canvas.shape[:2], bool)
    for row, col in positions[:glimpses].tolist():
        mask[row : row + P, col : col + P] = True
    best = shares[glimpses - 1].argsort()[::-1][:5]
    line = {"path": str(path), "size": [height, width], "glimpses": glimpses, "stopped": stopped}
    if getattr(opened, "n_frames", 1) > 1:
        line["frames"] = opened.n_frames
    line["top5"] = [
        {"class": NAMES[c], "probability": pytest.approx(shares[glimpses - 1, c], abs=ROUNDING)} for c in best
    ]
    line["information_ratio"] = pytest.approx(mask[top : top + height, left : left + width].mean(), abs=1e-6)
    line["confidence_by_glimpse"] = pytest.approx(shares[:glimpses].max(1).tolist(), abs=ROUNDING)
    return line


def many_files(folder: Path) -> list[Path]:
    """Files without loss, for which two decoders agree: of many formats, kinds and sizes."""
    folder.mkdir()
    sizes = [(1, 1), (5, 300), (300, 5), (16, 16), (17, 31), (37, 53), (120, 64)]
    for number, (height, width) in enumerate(sizes):
        noise(height, width, number).save(folder / f"{height} x {width}.png")
    some = [noise(40, 30, seed) for seed in range(4)]
    several = {"save_all": True, "append_images": some[1:]}
    some[0].save(folder / "animé.webp", lossless=True, **several)
    some[0].save(folder / "animated.gif", **several)
    some[0].save(folder / "animated.png", **several)
    some[0].save(folder / "pages.tiff", **several)
    for extension in ("bmp", "ppm", "tif", "jp2", "gif"):
        some[1].save(folder / f"写真.{extension}")
    some[1].convert("L").save(folder / "gray.png")
    some[1].convert("P").save(folder / "palette.png")
    (folder / "upper.PNG").write_bytes((folder / "gray.png").read_bytes())
    (folder / "link.png").symlink_to("gray.png")
    return sorted(folder.iterdir())


@pytest.mark.parametrize(
    ("rules", "scan"),
    [
        ({}, "random"),
        ({"confidence": 0.992, "stable": 30}, "random"),
        ({"stable": 12}, "hilbert"),
        ({"entropy": 0.06}, "sobol"),
    ],
    ids=str,
)
def test_every_line_is_what_a_plain_computation_gives(rules: dict[str, float], scan: str, checkpoint: Path) -> None:
    files = many_files(Path("images"))
    asked = {f"model.exit_criteria.{kind}": threshold for kind, threshold in rules.items()}
    got = predict(checkpoint, "images", **asked, **{"data.scans": f"[{scan},random]"})
    assert [line["path"] for line in got] == [str(file) for file in files]
    for line, file in zip(got, files, strict=True):
        assert line == expected(checkpoint, file, rules, scan), file
    if rules:
        assert len({line["glimpses"] for line in got}) > 3  # they do stop at different times
        assert any(line["glimpses"] < T for line in got)


def test_a_jpeg_and_a_resized_image_are_close_to_pillow(checkpoint: Path) -> None:
    noise(90, 60).resize((200, 300), Image.Resampling.BICUBIC).save("photo.jpeg", quality=95)
    (line,) = predict(checkpoint, "photo.jpeg")
    reference = expected(checkpoint, Path("photo.jpeg"), {})
    assert line["information_ratio"] == reference["information_ratio"]
    assert line["confidence_by_glimpse"] == pytest.approx(reference["confidence_by_glimpse"].expected, abs=0.02)

    fitted = Image.new("RGB", (48, 48))
    fitted.paste(Image.open("photo.jpeg").resize((32, 48), Image.Resampling.BOX), (8, 0))
    fitted.save("fitted.png")
    got, whole = predict(
        checkpoint, ["photo.jpeg", "fitted.png"], **{"data.predict.resize": 48, "data.scans": "[row_raster]"}
    )
    assert got["size"] == [300, 200]
    assert got["information_ratio"] == whole["information_ratio"] == 1  # of the image, and of the image with its bars
    (alone,) = predict(checkpoint, "photo.jpeg", **{"data.predict.resize": 48, "data.scans": "[row_raster]"})
    assert alone == got


def about(line: dict[str, Any]) -> dict[str, Any]:
    """The same to what batches of other sizes may round differently."""
    top5 = [
        {"class": top["class"], "probability": pytest.approx(top["probability"], abs=ROUNDING)} for top in line["top5"]
    ]
    confidence = pytest.approx(line["confidence_by_glimpse"], abs=ROUNDING)
    return line | {"top5": top5, "confidence_by_glimpse": confidence}


@pytest.mark.long
def test_a_line_does_not_depend_on_what_else_is_predicted(checkpoint: Path) -> None:
    """One by one the same bytes, from workers too, and alone; a copy differs in its path; batches, by rounding."""
    for number in range(5):
        noise(33, 41, number).save(f"{number}.png")
    Path("copy of 3.png").write_bytes(Path("3.png").read_bytes())
    stop = {"model.exit_criteria.confidence": 0.992}
    singly = {**stop, "data.loader.micro_batch_size": 1, "pictures": None}
    one_by_one = predict(checkpoint, "*.png", **singly)
    text = Path("out/predictions.jsonl").read_text()
    pictures = {path.name: path.read_bytes() for path in Path("out/predictions").iterdir()}
    lines_of = {line["path"]: line for line in one_by_one}
    original, copied = lines_of["3.png"], lines_of["copy of 3.png"]
    assert len(pictures) == 6
    assert copied == original | {"path": "copy of 3.png", "picture": copied["picture"]}

    predict(checkpoint, "*.png", "workers", **singly, **{"data.loader.num_workers": 2})
    assert Path("workers/predictions.jsonl").read_text() == text
    (alone,) = predict(checkpoint, "3.png", "alone", **singly)
    assert alone == original
    for run_dir in ("workers", "alone"):
        for path in Path(run_dir, "predictions").iterdir():
            assert path.read_bytes() == pictures[path.name]

    for line, together in zip(
        one_by_one, predict(checkpoint, "*.png", **stop, **{"data.loader.batch_size": 4}), strict=True
    ):
        assert together == about({key: value for key, value in line.items() if key != "picture"})
    assert predict(checkpoint, "3.png", **stop, seed_everything=4)[0]["top5"] != original["top5"]


def test_what_is_done_costs_nothing_more(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(6):
        noise(50, 50, number).save(f"{number}.png")
    taken = []
    stream = MambaEye.stream_features
    monkeypatch.setattr(
        MambaEye,
        "stream_features",
        lambda self, patches, *rest: taken.append(patches.shape[:2]) or stream(self, patches, *rest),
    )
    got = predict(checkpoint, "*.png", **{"model.exit_criteria.confidence": 0.992, "data.loader.batch_size": 6})
    most = sum(min(T, 32 * math.ceil(line["glimpses"] / 32)) for line in got)
    assert len({math.ceil(line["glimpses"] / 32) for line in got}) > 1  # one was dropped while others went on
    assert sum(images * glimpses for images, glimpses in taken) == most < 6 * T
    assert taken[0] == (6, 32)


@settings(max_examples=25, deadline=None)
@given(
    images=st.integers(1, 5),
    length=st.integers(1, 80),
    rules=st.sets(st.sampled_from([Rule("confidence", 0.4), Rule("stable", 3), Rule("entropy", 1.0)])),
    seed=st.integers(0, 99),
)
def test_predictions_are_those_of_a_loop(images: int, length: int, rules: set[Rule], seed: int) -> None:
    """On random canvases, with a model that is sure enough of something."""
    torch.manual_seed(seed)
    sizes = {"dim": 8, "depth": 1, "d_state": 4, "headdim": 4, "move_embedding_dim": 8}
    encoder = MambaEye(num_classes=4, patch_size=4, **sizes).eval()
    torch.nn.init.normal_(encoder.head.weight, std=1.5)
    canvases = torch.randint(256, (images, 20, 30, 3), dtype=torch.uint8)
    positions = torch.stack((torch.randint(17, (images, length)), torch.randint(27, (images, length))), dim=-1)
    ordered = sorted(rules)
    with torch.no_grad():
        boxes = torch.tensor([[0, 0, 20, 30]]).expand(images, 4)
        scene = Scene(canvases, boxes, positions, *torch.zeros(2, images, dtype=torch.long))
        got = prediction.predict(encoder, scene, None, ordered)
        for image, told in enumerate(got):
            cut = [canvases[image, row : row + 4, col : col + 4] for row, col in positions[image].tolist()]
            shares = encoder(torch.stack(cut).permute(0, 3, 1, 2)[None], positions[image][None])[0].softmax(-1)
            end, why = length, "budget"
            for step in range(length, 0, -1):  # from the last, so that the first of all stays
                last = shares[max(0, step - 3) : step].argmax(-1).tolist()
                met = {
                    Rule("confidence", 0.4): shares[step - 1].max() >= 0.4,
                    Rule("stable", 3): len(last) == 3 and len(set(last)) == 1,
                    Rule("entropy", 1.0): -(shares[step - 1] * shares[step - 1].log()).sum() <= 1,
                }
                for rule in reversed(ordered):
                    if met[rule]:
                        end, why = step, rule.kind
            assert (told.glimpses, told.stopped) == (end, why)
            torch.testing.assert_close(told.confidence, shares[:end].amax(-1))
            best = shares[end - 1].topk(4)
            torch.testing.assert_close(told.probabilities, best.values)
            assert told.steps[-1] == end
            torch.testing.assert_close(told.by_step, shares[told.steps - 1][:, best.indices])


def test_odd_files_have_lines_of_their_own(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path("folder")
    (folder / "deeper/at last").mkdir(parents=True)
    noise(20, 20).save(folder / "a.jpg")
    whole = (folder / "a.jpg").read_bytes()
    (folder / "broken.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("no image")
    (folder / "notes.txt").write_text("no image, and it does not say so")
    (folder / ".hidden.png").write_text("not looked at")
    (folder / "deeper/dangling.png").symlink_to("nowhere")
    (folder / "deeper/up").symlink_to("..")  # in a circle
    os.mkfifo(folder / "deeper/pipe.png")  # which nobody writes to
    noise(20, 20).save(folder / "deeper/at last/z z.png")
    odd_name = os.fsencode(folder) + b"/deeper/\xe9.gif"  # not UTF-8
    noise(20, 20).save("x.gif")
    Path(os.fsdecode(odd_name)).write_bytes(Path("x.gif").read_bytes())

    with caplog.at_level(logging.WARNING):
        got = {line.pop("path"): line for line in predict(checkpoint, "folder")}
    broken = ("broken.jpg", "empty.png", "text.png", "deeper/dangling.png", "deeper/pipe.png")
    readable = ("a.jpg", "deeper/at last/z z.png", os.fsdecode(b"deeper/\xe9.gif"))
    assert got.keys() == {f"folder/{name}" for name in (*broken, *readable)}
    for name in broken:
        assert got[f"folder/{name}"].keys() == {"error"}
        assert f"folder/{name}" in got[f"folder/{name}"]["error"]
        assert got[f"folder/{name}"]["error"] in caplog.messages
    assert all("top5" in got[f"folder/{name}"] for name in readable)
    said = capsys.readouterr().out
    assert "out/predictions.jsonl has 3 predicted images, 5 files could not be read, 1 file without" in said

    Path("image.dat").write_bytes(whole)  # any name will do if it is given
    again = predict(checkpoint, ["image.dat", "folder/a.jpg", "folder/*.jpg", "*.dat"])
    assert [line["path"] for line in again] == ["image.dat", "folder/a.jpg", "folder/broken.jpg"]
    everything = {line["path"] for line in predict(checkpoint, "**")}
    assert everything >= {"x.gif", *(f"folder/{name}" for name in broken)}
    assert "image.dat" not in everything
    assert not any("/up/" in path for path in everything)  # nothing again, through the link that leads in a circle


def test_large_images_that_were_hardly_seen_are_said(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("L", (24, 24), 90).save("small.png")
    Image.new("L", (700, 900), 90).save("large.png")
    said = "of 1 image the glimpses showed less than 25%: scale larger ones down with --data.predict.resize"
    for words, expected in ((["small.png", "large.png"], 1), (["small.png"], 0), (["large.png"], 1)):
        main(["predict", f"--ckpt_path={checkpoint}", "--run_dir=out", "--data.images", *words])
        assert capsys.readouterr().out.count(said) == expected
    main(["predict", f"--ckpt_path={checkpoint}", "--data.predict.resize=32", "--data.images=large.png"])
    assert said not in capsys.readouterr().out


@pytest.mark.long
def test_pictures(checkpoint: Path) -> None:
    """Of images with one name in two folders; and what moves is as long as it says."""
    names = ("there/a $b$ 写.png", "here/a $b$ 写.png", "here/" + 40 * "長い" + ".png")
    for number, name in enumerate(names):
        Path(name).parent.mkdir(exist_ok=True)
        noise(3 + 400 * number, 1000, number).save(name)
    got = predict(checkpoint, list(names), pictures=None, animate=None, **{"data.evaluate.num_glimpses": 4})
    assert len({line["picture"] for line in got} | {line["animation"] for line in got}) == 6
    assert sorted(Path("out/predictions").iterdir()) == sorted(
        Path("out", line[kind]) for line in got for kind in ("picture", "animation")
    )
    for line in got:
        assert Path("out", line["picture"]).name == f"{picture_name(line['path'])}.png"
        drawn = np.asarray(Image.open(Path("out", line["picture"])).convert("RGB")).reshape(-1, 3)
        assert len(np.unique(drawn, axis=0)) > 200
        frames = [np.asarray(frame.convert("RGB"), int) for frame in ImageSequence.Iterator(
            Image.open(Path("out", line["animation"])))]  # fmt: skip
        assert len(frames) == 4
        assert all(np.abs(one - other).max() > 50 for one, other in pairwise(frames))


def test_classes_without_names_are_numbers(checkpoint: Path) -> None:
    noise(20, 20).save("a.png")
    (named,) = predict(checkpoint, "a.png")
    content = torch.load(checkpoint, weights_only=True)
    del content["classes"]
    torch.save(content, "old.ckpt")
    (line,) = predict(Path("old.ckpt"), "a.png")
    assert [NAMES[int(top["class"])] for top in line["top5"]] == [top["class"] for top in named["top5"]]
    data = {"data.evaluate.num_glimpses": T, "seed_everything": SEED}
    weights = {**{key: value for key, value in TINY.items() if key.startswith("model.encoder")}, **data}
    main(["predict", "--run_dir=from", "--model.init_from=old.ckpt", *flags(weights), "--data.images=a.png"])
    assert lines("from") == [line]


@pytest.mark.parametrize(
    ("images", "settings", "said"),
    [
        ([], {}, "predict has no images: give --data.images files, folders or patterns"),
        (["nowhere"], {}, "'nowhere' of --data.images does not exist: give files, folders or patterns of images"),
        (["a.png", "x/**/*.jpg"], {}, "'x/**/*.jpg' of --data.images matches nothing: give files"),
        (["hollow"], {}, "there is no image in hollow: give --data.images files, or folders and patterns of .jpg, "),
        (["text.png"], {}, "none of the 1 file could be read as an image: out/predictions.jsonl says why"),
        (["a.png"], {"data.scans": "[zigzag]"}, "no scan pattern is called 'zigzag': choose one of random, "),
        (["a.png"], {"data.evaluate.num_glimpses": 0}, "data.evaluate.num_glimpses is 0: give at least 1"),
        (["a.png"], {"data.predict.resize": 8}, "data.predict.resize is 8, less than a glimpse of 16 pixels"),
        (
            ["a.png"],
            {"model.exit_criteria.confidence": 0},
            "model.exit_criteria.confidence has 0.0: give confidences above 0",
        ),
        (
            ["a.png"],
            {"model.exit_criteria.confidence": 1.5},
            "model.exit_criteria.confidence has 1.5: give confidences above",
        ),
        (["a.png"], {"model.exit_criteria.stable": 0}, "model.exit_criteria.stable has 0: give at least 1 glimpse"),
        (
            ["a.png"],
            {"model.exit_criteria.entropy": -1},
            "model.exit_criteria.entropy has -1.0: give an entropy above 0",
        ),
    ],
    ids=str,
)
def test_mistakes_end_in_one_sentence(
    images: list[str], settings: dict[str, object], said: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    noise(20, 20).save("a.png")
    Path("hollow").mkdir()
    Path("hollow/notes.txt").touch()
    Path("text.png").write_text("no image")
    assert said in fails(checkpoint, images, capsys, **settings)


def test_words_after_images_are_taken_as_they_are(checkpoint: Path) -> None:
    odd = ["a, b.png", "[1].png", "é: x.png", "2024", "'q'.png", os.fsdecode(b"\xe9.png")]
    for name in odd:
        with open(name, "wb") as file:
            noise(20, 20).save(file, "png")
    assert [line["path"] for line in predict(checkpoint, odd)] == odd
    words = ["predict", "--run_dir", "r", "--data.images", *odd, "-c", "x.yaml", "--data.predict.resize", "32"]
    assert split_images(words) == (words[:3] + words[-4:], odd)
    for as_it_is in (["predict", "--data.images=a"], ["fit"], ["predict", "--data.images", "[a,b]"]):
        assert split_images(as_it_is) == (as_it_is, [])


@pytest.mark.parametrize(
    ("batch_size", "expected"), [(10, [0, 0, 0, 4, 0, 0, 2, 1, 1, 1]), (3, [0, 0, 3, 1, 0, 0, 2, 1, 1, 1])]
)
def test_every_file_has_a_batch(batch_size: int, expected: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """So that progress is told in files; and where there is no file, Lightning still has a batch."""
    monkeypatch.setattr(datamodules.loading.files, "PIXELS", 2500)
    for number, size in enumerate([(20, 20)] * 4 + [None] + [(20, 30)] * 2 + [(60, 60)] * 2 + [(20, 20)]):
        if size:
            noise(*size).save(f"{number}.png")
        else:
            Path(f"{number}.png").touch()
    files = sorted(path.name for path in Path().glob("*.png"))
    opener = FileCanvases(PredictView(), EvaluateView(5), "random", P, 0, PixelLimit())
    loader = FileLoader(files, opener, batch_size, LoaderConfig(num_workers=0))
    batches = list(loader)
    assert len(loader) == len(files) == 10
    assert [0 if batch.scene is None else len(batch.scene.canvases) for batch in batches] == expected
    assert [file.path for batch in batches for file in batch.files] == files
    nothing = FileLoader([], opener, batch_size, LoaderConfig(num_workers=0))
    assert [batch.files for batch in nothing] == [[]] * len(nothing) == [[]]


@pytest.mark.long
def test_two_processes_write_the_lines_of_one(checkpoint: Path) -> None:
    many_files(Path("images"))
    Path("images/0 broken.png").touch()
    alone = predict(checkpoint, "images", "one", pictures=None)
    command = [sys.executable, "-m", "train", "predict", f"--ckpt_path={checkpoint}", "--run_dir=two", "--pictures"]
    command += ["--trainer.accelerator=cpu", "--trainer.devices=2", "--data.images", "images"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=True)
    assert lines("two") == alone
    assert f"two/predictions.jsonl has {len(alone) - 1} predicted images, 1 file could not be read" in ended.stdout
    assert not list(Path("two").glob("predictions-*"))
    pictures = {path.name: path.read_bytes() for path in Path("one/predictions").iterdir()}
    assert {path.name: path.read_bytes() for path in Path("two/predictions").iterdir()} == pictures


@pytest.mark.long
def test_memory_grows_with_the_decoded_image_alone(checkpoint: Path) -> None:
    """Peak resident memory of whole runs: of 100 megapixels against 1, and of 5000 glimpses against 50."""
    for side in (1000, 10_000):
        noise(side // 50, side // 50).resize((side, side), Image.Resampling.NEAREST).save(f"{side}.jpg")
    script = "import resource, sys, train; train.main(); print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def peak(side: int, length: int) -> float:
        command = ["sh", "-c", '"$@"; exit $?', "sh"]  # between, for of a large process a child inherits the peak
        command += [sys.executable, "-c", script, "predict", f"--ckpt_path={checkpoint}", f"--run_dir={side}"]
        command += [f"--data.evaluate.num_glimpses={length}", "--data.images", f"{side}.jpg"]
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=True)
        assert lines(str(side))[0]["size"] == [side, side]
        return int(ended.stdout.splitlines()[-1]) * 1024

    small = peak(1000, 300)
    assert peak(10_000, 300) - small < 1.1 * 3 * 10_000**2 + 32 * 2**20
    assert peak(1000, 5000) - small < 48 * 2**20


def test_arguments_of_a_policy_are_left_out_until_its_class_is_known() -> None:
    words = ["validate", "--model.policy.candidates", "16", "--model.policy", "LearnedScan", "--model.policy.leads=4"]
    more = ["--model.policy.hand_over", "-0.1", "--data.scans", "[learned]", "--model.policy.dim"]
    assert without_policy_arguments([*words, *more]) == ["validate", "--model.policy", "LearnedScan", *more[2:4]]
    assert without_policy_arguments(more[2:4]) == more[2:4]
