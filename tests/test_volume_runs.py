"""Volumes through train.py: packed, trained on, and validated on canvases of another size."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import NO_PICTURES, flags
from test_clip_runs import ROOT, SMALL

pytest.importorskip("nibabel", reason="needs the extra nifti")

from volumes import nifti, noise, packed

from datamodules import pack
from train import main

SIZES = {"data.train.canvas": "[12,16]", "data.resolutions": "[16]", "data.num_classes": 2}


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen small volumes of two classes, in shards."""
    folder = tmp_path_factory.mktemp("volumes")
    for name in ("dark", "light"):
        (folder / "volumes" / name).mkdir(parents=True)
        for number in range(8):
            voxels = noise(10 + number, 12, 9, seed=number) // 2 + (128 if name == "light" else 0)
            path = folder / "volumes" / name / f"{number}.nii.gz"
            path.write_bytes(packed(nifti(voxels.astype(np.uint8))))
    pack.main([str(folder / "volumes"), str(folder / "shards"), "--volumes"])
    return folder / "shards"


def test_volumes_are_trained_on_and_validated_on_larger_canvases(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])
    places = {"data.train_shards": shards, "data.val_shards": shards}
    main(["fit", f"--config={ROOT}/configs/volumes.yaml", *flags(SMALL | places | SIZES)])
    checkpoint = Path("runs/volumes/checkpoints/last.ckpt")
    saved = torch.load(checkpoint, weights_only=True)
    assert saved["global_step"] == 2
    assert saved["classes"] == ["dark", "light"]
    assert saved["datamodule_hyper_parameters"]["frames"] == "side"
    assert saved["datamodule_hyper_parameters"]["train"]["frames"] == "side"
    # the checkpoint alone says that depth is scaled
    asked = {"ckpt_path": checkpoint, "data.val_shards": shards, "trainer.accelerator": "cpu", "run_dir": "larger"}
    main(["validate", *flags(NO_PICTURES | asked | {"data.resolutions": "[16,24]", "data.scans": "[sobol]"})])
    told = json.loads(Path("larger/validation.json").read_text())
    assert told["protocol"].items() >= {"frames": "side", "tube": 8}.items()
    assert {row["resolution"] for row in told["rows"]} == {16, 24}
    assert {row["samples"] for row in told["rows"]} == {16}
    assert "data.resolutions: [16] -> [16, 24]" in capsys.readouterr().out


def test_an_encoder_of_whole_clips_is_trained_on_volumes(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])
    places = {"data.train_shards": shards, "data.val_shards": shards}
    few = {name: value for name, value in SMALL.items() if not name.startswith("model.encoder.")}
    sizes = {"dim": 16, "depth": 1, "d_state": 2, "patch": 8, "grid": 2, "frames": 16, "tubelet": 8}
    places |= {"data.patch_size": 8, "data.tube": 8}
    encoder = {"model.encoder": "VideoMamba", **{f"model.encoder.{name}": value for name, value in sizes.items()}}
    main(
        [
            *("fit", "--run_dir=run", "--data.frames=side", "--data.train.frames=side"),
            *flags(few | places | encoder | SIZES),
        ]
    )
    asked = {"ckpt_path": "run/checkpoints/last.ckpt", "data.val_shards": shards, "data.resolutions": "[24]"}
    main(["validate", "--run_dir=larger", *flags(NO_PICTURES | asked | {"trainer.accelerator": "cpu"})])
    (row,) = json.loads(Path("larger/validation.json").read_text())["rows"]
    assert (row["resolution"], row["scan"], row["samples"]) == (24, "canvas", 16)
