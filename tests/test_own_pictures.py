"""A folder of one's own pictures: from the folder to predictions by the documented commands, and what can go wrong."""

import json
import os
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from commands import NO_PICTURES, ROOT, flags
from PIL import Image

from datamodules import pack as packing
from datamodules.check import main as check
from datamodules.packing import folder as own
from datamodules.packing.folder import class_names, ensure_packed, packed
from datamodules.packing.listing import hold_out
from datamodules.packing.sources import Entry, Member
from datamodules.shards.index import ShardIndex
from datamodules.transforms.headers import PixelLimit
from mambaeye.checkpoints import PLACES
from mambaeye.command_line.gpu_overlay import gpu_overlay
from mambaeye.errors import InputError
from train import main

COLOURS = {"blue": (30, 60, 220), "green": (40, 200, 50), "red": (230, 40, 30)}
CONFIG = f"--config={ROOT}/configs/folder.yaml"
SMALL = {
    "trainer.max_epochs": 6,
    "trainer.accelerator": "cpu",
    "trainer.check_val_every_n_epoch": 3,
    "trainer.enable_progress_bar": "false",
    "trainer.enable_model_summary": "false",
    "model.encoder.dim": 32,
    "model.encoder.depth": 1,
    "model.encoder.d_state": 8,
    "model.encoder.headdim": 8,
    "model.optimizer.lr": 1e-2,
    "model.optimizer.warmup_epochs": 1,
    "data.train.num_glimpses": 8,
    "data.train.augmentation": "null",
    "data.evaluate.num_glimpses": 8,
    "data.resolutions": "[64]",
    "data.loader.batch_size": 16,
    "data.loader.num_workers": 0,
    **NO_PICTURES,
}


def picture(name: str, number: int) -> Image.Image:
    """A picture of one colour, more or less."""
    rng = np.random.default_rng((sum(map(ord, name)), number))
    height, width = rng.integers(40, 90, 2)
    noise = rng.integers(-20, 21, (height, width, 3))
    return Image.fromarray((noise + COLOURS[name]).clip(0, 255).astype(np.uint8))


def fill(folder: Path, counts: dict[str, int]) -> None:
    """Write pictures into class folders."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            picture(name, number).save(folder / name / f"{number:02d}.jpg", quality=90)


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder PHOTOS in the folder where one is."""
    monkeypatch.chdir(tmp_path)
    fill(Path("PHOTOS"), dict.fromkeys(COLOURS, 20))
    return Path("PHOTOS")


def ensure(folder: Path, max_unreadable: int = 0) -> Path:
    ensure_packed(folder, Path("data"), max_unreadable, PixelLimit())
    return packed(folder, Path("data"))


def index_of(folder: Path, split: str) -> ShardIndex:
    return ShardIndex.read(packed(folder, Path("data")) / split)


def keys(index: ShardIndex) -> list[str]:
    return [index.key(sample_id) for sample_id in range(len(index))]


def fails(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert isinstance(error.value.code, str)
    assert re.fullmatch(r"error: [^\n]+", error.value.code)
    return error.value.code


@pytest.mark.long
def test_from_a_folder_of_pictures_to_predictions(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fit, validate, predict, as the documentation has them, on smaller sizes."""
    best = "--ckpt_path=runs/folder/checkpoints/best.ckpt"
    folder = f"--data.folder={photos}"
    main(["fit", CONFIG, folder, *flags(SMALL)])
    said = capsys.readouterr().out
    assert "PHOTOS: 3 classes, 54 images to train on and 6 to validate on (10% of each class, at least one" in said
    assert yaml.safe_load(Path("runs/folder/config.yaml").read_text())["data"]["num_classes"] == 3
    main(["validate", CONFIG, folder, best, *flags(SMALL)])
    rows = json.loads(Path("runs/folder/validation.json").read_text())["rows"]
    assert {row["samples"] for row in rows} == {6}
    assert rows[-1]["top1"] == 1
    fill(Path("NEW"), dict.fromkeys(COLOURS, 1))
    main(["predict", CONFIG, best, "--data.images=NEW", *flags(SMALL)])
    lines = [json.loads(line) for line in Path("runs/folder/predictions.jsonl").read_text().splitlines()]
    assert [(Path(line["path"]).parent.name, line["top5"][0]["class"]) for line in lines] == [
        (name, name) for name in sorted(COLOURS)
    ]
    checkpoint = torch.load("runs/folder/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["classes"] == sorted(COLOURS)
    assert "data.folder" in PLACES  # so that a file says it in messages alone
    for command, did in {"fit": "trained and validated", "validate": "validated"}.items():
        asked = fails([command, "--run_dir=runs/other", "--ckpt_path=runs/folder/checkpoints/last.ckpt"], capsys)
        assert f"the checkpoint was {did} on PHOTOS, and a file does not say what is read: give --data.folder" in asked
    main(["fit", "--run_dir=runs/folder", "--ckpt_path=last", "--trainer.max_epochs=7"])
    assert torch.load("runs/folder/checkpoints/last.ckpt", weights_only=True)["global_step"] == 7 * 3


@pytest.mark.long
def test_a_fit_names_the_sizes_for_a_gpu_and_takes_them_when_they_are_given(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As if the device were one, in a step of each; what continues a run is not told."""
    named = "a GPU is here: --config "
    larger = f"{ROOT}/configs/folder_gpu.yaml"
    sizes = {name: value for name, value in SMALL.items() if not name.startswith(("model.encoder", "data.train"))}
    little = {"trainer.max_steps": 1, "trainer.limit_val_batches": 0, "data.loader.batch_size": 2}
    step = ["fit", CONFIG, f"--data.folder={photos}", *flags(SMALL | little)]
    main(step)
    assert named not in capsys.readouterr().out
    monkeypatch.setattr("train.gpu_overlay", lambda configs, device: gpu_overlay(configs, torch.device("cuda")))
    main([*step, "--run_dir=runs/told"])
    assert f"{named}{larger} " in capsys.readouterr().out
    main([*step, "--run_dir=runs/told", "--ckpt_path=last", "--trainer.max_steps=2"])
    assert named not in capsys.readouterr().out
    given = flags(sizes | little | {"trainer.precision": "32-true"})
    main(["fit", CONFIG, f"--config={larger}", f"--data.folder={photos}", *given])
    assert named not in capsys.readouterr().out
    saved = torch.load("runs/folder-folder_gpu/checkpoints/last.ckpt", weights_only=True)
    assert saved["datamodule_hyper_parameters"]["train"]["num_glimpses"] == 256
    assert saved["datamodule_hyper_parameters"]["train"]["canvas"] == (128, 224)


def test_a_tenth_of_each_class_is_held_out_and_every_picture_is_on_one_side(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(photos.parent / "more", {"blue": 1, "green": 2, "red": 34})
    ensure(photos.parent / "more")
    assert "classes with a single image, which is trained on and never validated: blue" in capsys.readouterr().out
    train, val = index_of(Path("more"), "train"), index_of(Path("more"), "val")
    assert train.classes == val.classes == ["blue", "green", "red"]
    assert Counter(train.labels.tolist()) == {0: 1, 1: 1, 2: 31}
    assert Counter(val.labels.tolist()) == {1: 1, 2: 3}
    everything = {path.relative_to("more").with_suffix("").as_posix() for path in Path("more").rglob("*.jpg")}
    assert sorted([*keys(train), *keys(val)]) == sorted(everything)
    for index in (train, val):
        for key, label in zip(keys(index), index.labels, strict=True):
            assert key.split("/")[0] == index.classes[label]
        check([str(index.folder), "--decode"])


def entries(count: int) -> list[Entry]:
    return [Entry(f"a/{number:03d}", "jpg", 0, Member("", 0, 0, 0)) for number in range(count)]


def test_a_picture_that_is_added_hardly_moves_another_one() -> None:
    before, after = hold_out(entries(100), 0.1, 0), hold_out(entries(101), 0.1, 0)
    assert len(before) == len(after) == 10
    assert len(before - after) <= 1
    assert hold_out(entries(100), 0.1, 1) != before


def test_packed_again_only_if_files_have_changed(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = ensure(photos)
    written = {path: path.stat().st_mtime_ns for path in first.rglob("*")}
    assert "packing PHOTOS" in capsys.readouterr().out
    assert ensure(photos) == first
    assert "packing PHOTOS" not in capsys.readouterr().out
    places = [first]
    for change in ("time", "name", "size", "gone"):
        path = sorted(photos.rglob("*.jpg"))[0]
        if change == "time":
            os.utime(path, ns=(0, 12_345_678_900))
        elif change == "name":
            path.rename(path.with_name("zz.jpg"))
        elif change == "size":
            picture("red", 99).save(path, quality=50)
        else:
            path.unlink()
        places.append(ensure(photos))
        said = capsys.readouterr().out
        assert "for its files have changed" in said
        assert f"the packing from before is still in {places[-2]}" in said
    assert len({*places}) == 5
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*")} == written  # whoever reads it goes on


def test_an_interrupted_packing_leaves_nothing_that_is_taken_for_whole(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = os.replace

    def break_off(source: Path, target: Path) -> None:
        if Path(source).name.endswith(".packing"):
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", break_off)
        with pytest.raises(KeyboardInterrupt):
            ensure(photos)
    with pytest.raises(InputError, match="is not packed in"):
        packed(photos, Path("data"))
    ensure(photos)
    assert len(index_of(photos, "train")) == 54


def test_folders_to_train_and_to_validate_on(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(Path("two/train"), {"blue": 3, "green": 4, "red": 5})
    fill(Path("two/val"), {"green": 2, "red": 1})
    (Path("two/val") / "blue").mkdir()
    fill(Path("two/test"), {"red": 1})
    ensure(Path("two"))
    said = capsys.readouterr().out
    assert "two: 3 classes, 12 images to train on and 3 to validate on, packed in" in said
    assert "classes without an image to validate on in val/: blue" in said
    assert "passed over class folders without an image in val/: blue" in said
    assert "two/test is not read" in said
    val = index_of(Path("two"), "val")
    assert val.classes == ["blue", "green", "red"]
    assert sorted(zip(keys(val), val.labels.tolist(), strict=True)) == [("green/00", 1), ("green/01", 1), ("red/00", 2)]
    (Path("two/val") / "violet").mkdir()
    picture("red", 0).save("two/val/violet/0.png")
    with pytest.raises(InputError, match="val/ of two has the class violet"):
        ensure(Path("two"))
    shutil.rmtree("two/val")
    ensure(Path("two"))
    assert len(index_of(Path("two"), "val")) == 3  # one of each class


def test_what_is_passed_over_is_said(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (photos / "empty").mkdir()
    (photos / ".hidden").mkdir()
    (photos / "red" / "IMG_1.HEIC").write_bytes(b"x")
    (photos / "red" / "notes.txt").write_text("x")
    assert class_names(photos) == sorted(COLOURS)
    ensure(photos)
    said = capsys.readouterr().out
    assert "passed over class folders without an image in PHOTOS: empty\n" in said
    assert "passed over 1 HEIC pictures, which are not read here: save them as JPEG" in said
    assert "passed over files that are not images: 1 .txt\n" in said


def test_every_format_that_predict_reads_is_packed(photos: Path) -> None:
    kinds = ("gif", "tif", "tiff", "bmp", "jp2", "avif", "png", "webp", "ppm")
    for kind in kinds:
        picture("red", 50).save(photos / "red" / f"of {kind}.{kind}")
    place = ensure(photos)
    found = {*keys(index_of(photos, "train")), *keys(index_of(photos, "val"))}
    assert {f"red/of {kind}" for kind in kinds} <= found
    for split in ("train", "val"):
        check([str(place / split), "--decode"])


def test_unreadable_pictures_are_refused_or_left_out_up_to_a_number(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(2):
        (photos / "red" / f"{number:02d}.jpg").write_bytes(b"text")
    with pytest.raises(InputError, match=r"2 of 60 images are unreadable.*with --data.loader.max_unreadable 2$"):
        ensure(photos)
    assert "unreadable: red/00.jpg: " in capsys.readouterr().err
    with pytest.raises(InputError, match="2 of 60 images are unreadable"):
        ensure(photos, max_unreadable=1)
    ensure(photos, max_unreadable=2)
    assert len(index_of(photos, "train")) + len(index_of(photos, "val")) == 58


def test_another_process_that_packs_is_waited_for_while_it_gets_on(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = own.home_of(photos, Path("data"))
    home.mkdir(parents=True)
    monkeypatch.setattr(own, "PATIENCE", 0.05)
    changes = iter([1.0, 2.0, 3.0, 3.0])
    monkeypatch.setattr(own, "last_change", lambda home: next(changes))
    with (
        own.FileLock(home / "lock", is_singleton=False),
        pytest.raises(InputError, match="has written nothing for"),
    ):
        ensure(photos)
    assert next(changes, None) is None
    ensure(photos)


def test_packing_by_hand_splits_as_well(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packing.main([str(photos), "by_hand", "--split", "0.1"])
    assert "by_hand/train: images 54, classes 3" in capsys.readouterr().out
    place = ensure(photos)
    for split in ("train", "val"):
        for path in (place / split).glob("*.tar"):
            assert path.read_bytes() == (Path("by_hand") / split / path.name).read_bytes()
    packing.main([str(photos), "by_hand", "--split", "0.1"])  # is complete
    for refused in (["--split", "0.5"], ["--split", "1"], []):
        with pytest.raises(SystemExit, match="error: "):
            packing.main([str(photos), "by_hand", *refused])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--data.folder=nowhere"], "data.folder nowhere is not a folder: give one with a folder of pictures for each"),
        (["--data.folder=one"], "data.folder one has pictures of a single class, red: give a folder with"),
        (["--data.folder=none"], "data.folder none has no class folder with an image: give a folder with a folder of"),
        (["--data.folder=loose"], "image 0.jpg lies in no class folder: move it into one, or away"),
        (["--data.folder=PHOTOS", "--data.train_shards=x"], "data.folder is PHOTOS and data.train_shards is given too"),
        (["--data.folder=PHOTOS", "--data.data_dir=PHOTOS/data"], "lies in data.folder PHOTOS: give another"),
        (["--data.folder=PHOTOS", "--data.num_classes=5"], "has 3 classes in its index and data.num_classes is 5"),
    ],
)
def test_folders_that_will_not_do_are_refused(
    photos: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(Path("one"), {"red": 2})
    Path("none/empty").mkdir(parents=True)
    fill(Path("loose"), {"red": 1, "blue": 2})
    picture("red", 0).save("loose/0.jpg")
    assert said in fails(["fit", CONFIG, *flags(SMALL), *arguments], capsys)


def test_class_folders_given_as_shards_are_answered_with_the_flag_for_them(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = [f"--data.{split}_shards={photos}" for split in ("train", "val")]
    said = fails(["fit", CONFIG, *flags(SMALL), *shards], capsys)
    assert "PHOTOS holds no shards: if it holds class folders of pictures, give --data.folder in place of" in said
