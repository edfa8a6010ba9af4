"""Images of five bands of 16 bits through train.py: made, packed, trained on, continued, predicted, and refused."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from commands import NO_PICTURES, TINY, flags

from datamodules import check, multispectral_digits, pack
from datamodules.shards.index import read_index
from datamodules.transforms import tiff
from datamodules.transforms.pixels import Pixels
from train import main

ROOT = Path(__file__).parents[1]
SMALL = {
    **TINY,
    "trainer.max_epochs": -1,
    "trainer.max_steps": 2,
    "trainer.val_check_interval": 2,
    "trainer.check_val_every_n_epoch": "null",
    "trainer.limit_val_batches": 1,
    "model.optimizer.warmup_epochs": 0,
    "data.resolutions": "[32]",
    "data.loader.batch_size": 4,
}


SMALL_VMAMBA = {"model.encoder": "VMamba", "model.encoder.dim": 8, "model.encoder.depths": "[1,1,1,1]"}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few of the digits, in shards."""
    folder = tmp_path_factory.mktemp("multispectral")
    multispectral_digits.write_images(folder / "images", most=24)
    for split in ("train", "val"):
        names = folder / "classes"
        names.write_text("\n".join("0123456789"))
        given = ["--channels", "5", "--bits", "16", "--classes", str(names)]
        pack.main([str(folder / "images" / split), str(folder / split), *given])
    return folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])


def refused(words: list[str]) -> str:
    """The sentence that a command ends in."""
    with pytest.raises(SystemExit) as exit_info:
        main(words)
    return str(exit_info.value)


def places(shards: Path) -> dict[str, object]:
    """Flags of the shards."""
    return {"data.train_shards": shards / "train", "data.val_shards": shards / "val"}


def test_the_index_says_what_images_are_and_keeps_it(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = json.loads((shards / "val" / "index.json").read_text())
    assert (told["channels"], told["bits"]) == (5, 16)
    pack.main([str(shards / "val")])
    assert capsys.readouterr().out.endswith(", 5 channels of 16 bits\n")
    assert read_index(shards / "val")["pixels"] == Pixels(5, 16)
    names = Path("names")
    names.write_text("\n".join("abcdefghij"))
    Path("shards").mkdir()
    for path in (shards / "val").glob("*.tar"):
        Path("shards", path.name).write_bytes(path.read_bytes())
    pack.main(["shards", "--classes", str(names), "--channels", "5", "--bits", "16"])
    pack.main(["shards", "--classes", str(names)])
    assert read_index(Path("shards"))["pixels"] == Pixels(5, 16)
    capsys.readouterr()
    check.main([str(shards / "val"), "--decode"])
    assert "every image decodes" in capsys.readouterr().out


@pytest.mark.long
def test_bands_are_trained_on_continued_validated_and_predicted(
    shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = f"--config={ROOT}/configs/multispectral.yaml"
    augmented = {
        "data.train.augmentation": '{"jitter": 0, "grayscale": 0}',
        "film_strip.images": 1,
        "mistakes.images": 2,
    }
    main(["fit", config, *flags(SMALL | places(shards) | augmented)])
    main(["fit", config, *flags(SMALL | places(shards) | augmented | {"trainer.max_steps": 3}), "--ckpt_path=last"])
    saved = torch.load("runs/multispectral/checkpoints/last.ckpt", weights_only=True)
    assert saved["global_step"] == 3
    assert saved["hyper_parameters"]["encoder"]["init_args"]["channels"] == 5
    assert saved["datamodule_hyper_parameters"].items() >= {"channels": 5, "bits": 16}.items()

    asked = {"ckpt_path": "runs/multispectral/checkpoints/last.ckpt", "trainer.accelerator": "cpu"}
    main(["validate", "--run_dir=again", *flags(asked | {"data.val_shards": shards / "val", "film_strip.images": 1})])
    (row,) = json.loads(Path("again/validation.json").read_text())["rows"][-1:]
    assert row["samples"] == 24
    files = sorted((shards / "images" / "val").glob("*/*.tif"))[:3]
    cv2.imwrite("rgb.png", np.zeros((20, 20, 3), np.uint16))
    capsys.readouterr()
    asked["predictions.score"] = "true"
    main(["predict", "--run_dir=again", "--pictures", *flags(asked), "--data.images", *map(str, files), "rgb.png"])
    lines = [json.loads(line) for line in Path("again/predictions.jsonl").read_text().splitlines()]
    assert [bool(line.get("error")) for line in lines] == [False, False, False, True]
    assert "rgb.png has 3 channels of 16 bits, and all are to have 5 channels of 16 bits" in lines[3]["error"]
    assert len([*Path("again/predictions").glob("*.png")]) == 3
    right = sum(line["top5"][0]["class"] == Path(line["path"]).parent.name for line in lines[:3])
    assert f"3 images in folders called like a class: {100 * right / 3:.1f} % named right" in capsys.readouterr().out
    del asked["predictions.score"]

    said = refused(["validate", "--run_dir=other", *flags(asked | {"data.data_dir": "digits"})])
    assert "the checkpoint was validated on" in said
    digits = {"data.val_shards": "digits/digits/val", "data.data_dir": "digits"}
    main(["fit", "--run_dir=rgb", *flags(SMALL | {"data.data_dir": "digits"})])
    said = refused(["validate", "--run_dir=other", *flags(asked | digits)])
    assert "digits/digits/val holds images of 3 channels of 8 bits, and data.channels and data.bits are 5 and" in said


@pytest.mark.parametrize("encoder", ["HNet", "GlimpseViT", "ViT", "Vim"])
def test_encoders_of_any_channels(encoder: str, shards: Path) -> None:
    sizes = {"depth": 1} if encoder != "HNet" else {"blocks": "[1,1]", "headdim": 8, "d_state": 4}
    sizes |= {"heads": 2} if "ViT" in encoder else {}
    few = {name: value for name, value in SMALL.items() if not name.startswith("model.encoder.")}
    given = {"model.encoder": encoder, "model.encoder.dim": 24, "data.channels": 5, "data.bits": 16}
    given |= {f"model.encoder.{name}": value for name, value in sizes.items()}
    main(["fit", "--run_dir=run", *flags(NO_PICTURES | few | places(shards) | given)])
    saved = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    assert saved["hyper_parameters"]["encoder"]["init_args"]["channels"] == 5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "holds images of 5 channels of 16 bits, and data.channels and data.bits are 3 and 8"),
        (
            {"data.channels": 5, "data.bits": 16, **SMALL_VMAMBA},
            "VMamba looks at 3: choose an encoder of any",
        ),
        (
            {"data.channels": 5, "data.bits": 16, "data.train.augmentation": "{}"},
            "data.train.augmentation changes colours of RGB of 8 bits, and these images have 5 channels of 16 bits",
        ),
    ],
)
def test_what_does_not_go_with_bands_is_said(given: dict[str, object], message: str, shards: Path) -> None:
    few = {name: value for name, value in SMALL.items() if not name.startswith("model.encoder.")}
    assert message in refused(["fit", *flags(few | places(shards) | given)])


def test_images_of_one_packing_have_the_same_channels(capsys: pytest.CaptureFixture[str]) -> None:
    for number, channels in enumerate((5, 5, 4)):
        path = Path("images") / "ab"[number % 2] / f"{number}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tiff.encoded(np.ones((8, 8, channels), np.uint16)))
    with pytest.raises(SystemExit, match="1 of 3 images are unreadable"):
        pack.main(["images", "shards", "--channels", "5", "--bits", "16"])
    said = capsys.readouterr().err
    assert "a/2.tif: the image of a/2.tif has 4 channels of 16 bits, and all are to have 5 channels of 16 bits" in said


def test_a_folder_of_images_of_bands_is_packed_and_trained_on() -> None:
    rng = np.random.default_rng(0)
    for number in range(12):
        path = Path("images") / "ab"[number % 2] / f"{number}.tif"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(tiff.encoded(rng.integers(0, 4000, (20, 17, 4)).astype(np.uint16)))
    bands = {"data.folder": "images", "data.channels": 4, "data.bits": 16, "data.levels": "[[0,4000]]"}
    main(["fit", "--run_dir=run", *flags(SMALL | bands)])
    saved = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    assert [[*pair] for pair in saved["datamodule_hyper_parameters"]["levels"]] == [[0, 4000]]
