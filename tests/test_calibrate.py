"""train.py calibrate, and what the other commands make of its checkpoint."""

import json
import shutil
import subprocess
import sys
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import ROOT, TINY, flags
from PIL import Image
from test_datamodule import data_module

import mambaeye
from datamodules.calibration import calibration_sides
from datamodules.shards.held_out import places
from datamodules.shards.index import ShardIndex
from mambaeye.temperature import TEMPERATURE, temperature_in
from train import main

QUIET = {"trainer.accelerator": "cpu", "trainer.enable_progress_bar": "false"}
FEW = QUIET | {"report.plots": "false", "film_strip.images": 0, "classes.every": 0, "mistakes.images": 0}
CALIBRATE = QUIET | {"trainer.limit_val_batches": 2}
FEW |= {"figures.every": 0, "trainer.limit_val_batches": 2, "data.resolutions": "[40]"}


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data_dir: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])
    Path("data").symlink_to(data_dir)


@pytest.fixture(scope="module")
def trained(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run directory of a tiny model, calibrated, that has a fifth of the samples kept out of training.

    Its head, and nothing else, has learnt something: by least squares.
    """
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    settings = {**TINY, "data.data_dir": data_dir, "data.held_out": 0.2, "run_dir": run_dir}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["train.py"])
        main(["fit", *flags(settings | {"trainer.limit_val_batches": 0, "trainer.max_steps": 1})])
        last = checkpoint(run_dir, "last")
        content, encoder = torch.load(last, weights_only=True), mambaeye.load(last)
        data = data_module(data_dir, held_out=0.2, train__num_glimpses=9, loader__batch_size=64)
        with torch.no_grad():
            batches = [(encoder.encode(batch), batch.labels) for batch in islice(data.train_dataloader(), 12)]
        seen = torch.cat([features for features, _ in batches]).flatten(0, 1)  # (B T, D)
        labels = torch.cat([labels for _, labels in batches]).repeat_interleave(9)
        design = torch.cat((seen, torch.ones(len(seen), 1)), 1)
        head = torch.linalg.lstsq(design, torch.eye(10)[labels], driver="gelsd").solution.T  # (10, D + 1)
        content["state_dict"] |= {"encoder.head.weight": 30 * head[:, :-1], "encoder.head.bias": 30 * head[:, -1]}
        torch.save(content, last)
        main(["calibrate", f"--ckpt_path={last}", f"--data.data_dir={data_dir}", *flags(CALIBRATE)])
    return run_dir


def checkpoint(run_dir: Path, name: str = "last-calibrated") -> Path:
    return run_dir / "checkpoints" / f"{name}.ckpt"


def validate(path: Path, run_dir: str, *more: str) -> dict[str, Any]:
    main(["validate", f"--ckpt_path={path}", f"--run_dir={run_dir}", *flags(FEW), *more])
    content: dict[str, Any] = json.loads(Path(run_dir, "validation.json").read_text())
    return content


def refused(*words: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main([*words, *flags(QUIET)])
    said = str(stop.value)
    assert said.startswith("error: ")
    assert "\n" not in said
    return said


def test_the_checkpoint_beside_is_the_same_but_for_the_temperature(trained: Path) -> None:
    before, after = (torch.load(checkpoint(trained, name), weights_only=True) for name in ("last", "last-calibrated"))
    found = temperature_in(after.pop(TEMPERATURE))
    assert found.sides == (32, 64)
    assert any(found.coefficients)
    assert before.keys() == after.keys()
    for name, tensor in before["state_dict"].items():
        assert tensor.equal(after["state_dict"][name])
    assert before["datamodule_hyper_parameters"] == after["datamodule_hyper_parameters"]
    assert (trained / "calibrate.yaml").is_file()
    assert not list(trained.glob("validation*"))


@pytest.mark.long
def test_validate_uses_it_unless_told_otherwise_and_top1_stays(trained: Path) -> None:
    """In a process of its own, too."""
    command = [sys.executable, str(ROOT / "train.py"), "validate", f"--ckpt_path={checkpoint(trained)}"]
    others = ["--run_dir=other", *flags(FEW)]
    ran = subprocess.run([*command, *others], capture_output=True, text=True, check=True)
    assert "answers are tempered as calibrate found: --model.calibrated false" in ran.stdout + ran.stderr
    with_it = json.loads(Path("other/validation.json").read_text())
    plain = validate(checkpoint(trained, "last"), "plain")
    without = validate(checkpoint(trained), "without", "--model.calibrated=false")
    assert without == plain
    assert with_it["protocol"] == plain["protocol"] | {TEMPERATURE: with_it["protocol"][TEMPERATURE]}
    for before, after in zip(plain["rows"], with_it["rows"], strict=True):
        for same in ("resolution", "scan", "step", "samples", "top1", "top5", "information_ratio"):
            assert before[same] == after[same]
    last = [[row for row in rows["rows"] if row["step"] == 9] for rows in (plain, with_it)]
    nll, sure = ([sum(row[name] for row in rows) for rows in last] for name in ("nll", "confidence"))
    assert nll[1] < nll[0]
    assert sure[1] != sure[0]
    stops = [
        [row["stopped"] for row in content["early_exit"] if row["rule"] == "confidence"] for content in (plain, with_it)
    ]
    assert stops[0] != stops[1]


def test_predict_says_what_validate_does(trained: Path, data_dir: Path) -> None:
    """Of one picture, whatever its trajectory: predict's confidence is that of the walk with the temperature."""
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save("noise.png")
    found = {}
    for name, more in {"with": [], "without": ["--model.calibrated=false"]}.items():
        main(["predict", f"--ckpt_path={checkpoint(trained)}", f"--run_dir={name}", *flags(QUIET), *more]
             + ["--data.images", "noise.png"])  # fmt: skip
        found[name] = json.loads(Path(name, "predictions.jsonl").read_text())
    assert found["with"]["top5"][0]["class"] == found["without"]["top5"][0]["class"]
    assert found["with"]["confidence_by_glimpse"] != found["without"]["confidence_by_glimpse"]
    least = max(found["with"]["confidence_by_glimpse"][:-1])
    first = next(n for n, sure in enumerate(found["with"]["confidence_by_glimpse"], 1) if sure >= least - 1e-5)
    main(["predict", f"--ckpt_path={checkpoint(trained)}", "--run_dir=stops", *flags(QUIET)]
         + [f"--model.exit_criteria.confidence={least - 1e-5}", "--data.images", "noise.png"])  # fmt: skip
    line = json.loads(Path("stops/predictions.jsonl").read_text())
    assert (line["glimpses"], line["stopped"]) == (first, "confidence")


def test_it_looks_at_what_was_kept_out(
    trained: Path, data_dir: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(trained, "copy")
    main(["calibrate", f"--ckpt_path={copy}/checkpoints/last.ckpt", *flags(CALIBRATE)])
    index = ShardIndex.read(data_dir / "digits" / "train")
    number = int((places(index) < 0.2).sum())
    said = f"{number} samples of data/digits/train that data.held_out 0.2 kept out of training, at 24, 32, 40"
    assert said in caplog.text
    assert "next: python train.py validate --ckpt_path copy/checkpoints/last-calibrated.ckpt" in capsys.readouterr().out


def test_training_goes_on_without_it(trained: Path, caplog: pytest.LogCaptureFixture) -> None:
    copy = Path(shutil.copytree(trained, "copy"))
    more = {**TINY, "data.held_out": 0.2, "trainer.max_steps": 2, "trainer.limit_val_batches": 0}
    main(["fit", f"--ckpt_path={checkpoint(copy)}", f"--run_dir={copy}", *flags(more)])
    assert "the checkpoint's temperature is dropped" in caplog.text
    assert TEMPERATURE not in torch.load(checkpoint(copy, "last"), weights_only=True)


def test_mistakes_are_answered_in_one_sentence(trained: Path) -> None:
    last = checkpoint(trained, "last")
    assert "calibrate has no checkpoint (runs/default/checkpoints/last.ckpt may be one)" in refused("calibrate")
    assert "is calibrated already" in refused("calibrate", f"--ckpt_path={checkpoint(trained)}", "--run_dir=out")
    given = ("calibrate", f"--ckpt_path={last}", "--run_dir=out")
    assert "was trained with 0.2: leave the flag out" in refused(*given, "--data.held_out=0.5")
    assert "calibrate takes one process, and these would be 2" in refused(*given, "--trainer.devices=2")
    content = torch.load(last, weights_only=True)
    content["state_dict"]["encoder.head.weight"] *= 0
    content["state_dict"]["encoder.head.bias"] *= 0
    torch.save(content, "ignorant.ckpt")
    few = "--trainer.limit_val_batches=1"
    assert "train it first" in refused("calibrate", "--ckpt_path=ignorant.ckpt", "--run_dir=out", few)
    assert not Path("ignorant-calibrated.ckpt").exists()


def test_a_temperature_that_was_tampered_with_is_refused(trained: Path) -> None:
    content = torch.load(checkpoint(trained), weights_only=True)
    content[TEMPERATURE]["coefficients"][0] = float("inf")
    torch.save(content, "evil.ckpt")
    assert "the checkpoint's temperature is damaged" in refused("validate", "--ckpt_path=evil.ckpt", "--run_dir=out")


def test_sides_are_those_of_training_and_one_beyond_on_either_hand() -> None:
    assert calibration_sides((32, 64), 16) == [24, 32, 40, 48, 56, 64, 96]
    assert calibration_sides((16, 16), 16) == [16, 24]
    assert calibration_sides((48, 48), 16) == [36, 48, 72]
