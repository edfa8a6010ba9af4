"""Clips through train.py: made, packed, trained on, validated at another length, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from commands import NO_PICTURES, TINY, flags

from datamodules import moving_digits, pack
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
    "data.scans": "[arriving]",
    "data.loader.batch_size": 4,
}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few of the moving digits, in shards."""
    folder = tmp_path_factory.mktemp("moving")
    moving_digits.write_clips(folder / "clips", most=16)
    for split in ("train", "val"):
        pack.main([str(folder / "clips" / split), str(folder / split), "--clips"])
    return folder


@pytest.mark.long
def test_clips_are_trained_on_and_validated_at_another_length(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])
    places = {"data.train_shards": shards / "train", "data.val_shards": shards / "val"}
    main(["fit", f"--config={ROOT}/configs/clips.yaml", *flags(SMALL | places)])
    checkpoint = Path("runs/clips/checkpoints/last.ckpt")
    saved = torch.load(checkpoint, weights_only=True)
    assert saved["global_step"] == 2
    assert saved["classes"] == ["down", "left", "right", "up"]
    assert saved["hyper_parameters"]["encoder"]["init_args"].items() >= {"axes": 3, "tube": 2}.items()
    said = capsys.readouterr().out
    assert "next: python train.py validate" in said
    assert "train.py predict --ckpt_path runs/clips/checkpoints/best.ckpt --data.images FOLDER" in said
    asked = {
        "ckpt_path": checkpoint,
        "data.val_shards": shards / "val",
        "data.frames": 24,
        "trainer.accelerator": "cpu",
    }
    asked |= {"run_dir": "longer", "data.scans": "[random,tube_raster]", "diagnosis.images": 2}
    with pytest.warns(UserWarning, match="no diagnosis of positions with 3 axes"):
        main(["validate", *flags(asked)])
    pictures = [path.name for path in Path("longer/validation").iterdir()]
    assert "curves.csv" in pictures
    assert not [name for name in pictures if name.startswith(("diagnosis", "film_strip"))]
    assert "data.frames: 8 -> 24" in capsys.readouterr().out
    told = json.loads(Path("longer/validation.json").read_text())
    assert told["protocol"].items() >= {"frames": 24, "tube": 2}.items()
    assert {row["scan"] for row in told["rows"]} == {"random", "tube_raster"}
    assert {row["samples"] for row in told["rows"]} == {16}

    several = {**asked, **NO_PICTURES, "run_dir": "several", "data.frames": "[8,24]", "diagnosis.images": 0}
    main(["validate", *flags(several)])
    by_length = json.loads(Path("several/validation.json").read_text())
    assert by_length["protocol"]["frames"] == [8, 24]
    assert [(row["frames"], row["scan"]) for row in by_length["rows"] if row["step"] == 1] == [
        (8, "random"), (8, "tube_raster"), (24, "random"), (24, "tube_raster"),
    ]  # fmt: skip
    of_24 = [row for row in by_length["rows"] if row["frames"] == 24]
    assert [{**row, "frames": 24} for row in told["rows"]] == of_24
    assert "tube_raster, 24 frames" in capsys.readouterr().out


def test_an_encoder_of_whole_clips_is_trained_and_validated_at_another_length(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])
    places = {"data.train_shards": shards / "train", "data.val_shards": shards / "val", "data.num_classes": 4}
    few = {name: value for name, value in SMALL.items() if not name.startswith("model.encoder.")}
    sizes = {"dim": 16, "depth": 1, "d_state": 2, "patch": 8, "grid": 4, "frames": 8, "tubelet": 2}
    encoder = {"model.encoder": "VideoMamba", **{f"model.encoder.{name}": value for name, value in sizes.items()}}
    main(["fit", "--run_dir=run", *flags(few | places | encoder | {"data.frames": 8, "data.train.frames": "[4,12]"})])
    asked = {"ckpt_path": "run/checkpoints/last.ckpt", "data.val_shards": shards / "val", "data.frames": 24}
    main(["validate", "--run_dir=longer", *flags(NO_PICTURES | asked | {"trainer.accelerator": "cpu"})])
    (row,) = json.loads(Path("longer/validation.json").read_text())["rows"]
    assert (row["scan"], row["samples"]) == ("canvas", 16)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model.encoder.axes": 2}, "MambaEye looks at images, and these data are clips: give --model.encoder.axes 3"),
        ({"model.encoder": "ViT"}, "ViT looks at images, and these data are clips: choose another encoder"),
        ({"data.scans": "[spiral]"}, "the scan spiral takes boxes of 2 axes, and this one has 3"),
    ],
)
def test_what_does_not_go_with_clips_is_said(
    given: dict[str, object], message: str, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    places = {"data.train_shards": shards / "train", "data.val_shards": shards / "val", "data.num_classes": 4}
    few = {name: value for name, value in SMALL.items() if not name.startswith("model.encoder.")}
    sizes = {"model.encoder.depth": 1} if "model.encoder" in given else {}
    encoder = {"model.encoder.axes": 3} if "data.scans" in given else {}
    with pytest.raises(SystemExit, match=message):
        main(["fit", *flags(few | places | encoder | given | sizes)])
