"""Two validations of one checkpoint at once, in one run directory: both end well, and every file is one of theirs."""

import csv
import json
from pathlib import Path

import pytest
import yaml
from commands import NO_PICTURES, ROOT, TINY, flags, start
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from train import main

FEW = {"trainer.limit_train_batches": 2, "trainer.limit_val_batches": 2, "data.scans": "[random]"}
DRAWN = {"report.plots": "true", "classes.every": 1, "mistakes.images": 4}


@pytest.mark.long
def test_two_validations_at_once_leave_whole_files(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They write at the same time what is the same, for they read the same."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])
    asked = ["--run_dir=run", "--ckpt_path=run/checkpoints/last.ckpt", "--trainer.accelerator=cpu"]
    asked += ["--trainer.enable_progress_bar=false", "--trainer.limit_val_batches=2"]
    main(["fit", *flags(TINY | FEW), f"--data.data_dir={data_dir}", "--run_dir=run", "--trainer.limit_val_batches=0"])
    main(["validate", *asked, *flags(NO_PICTURES)])
    alone = json.loads(Path("run/validation.json").read_text())
    table = Path("run/validation/curves.csv").read_text()

    meet = ["--trainer.callbacks+=meeting.Meet", *flags(NO_PICTURES | DRAWN)]
    path = {"PYTHONPATH": f"{ROOT}:{Path(__file__).parent}", "OMP_NUM_THREADS": "1"}
    runs = [start(["validate", *asked, *meet], **path) for _ in range(2)]
    for run, said in [(run, run.communicate(timeout=600)[0]) for run in runs]:
        assert run.returncode == 0, said
        assert "Traceback" not in said

    assert json.loads(Path("run/validation.json").read_text()) == alone
    assert Path("run/validation/curves.csv").read_text() == table
    assert "ckpt_path" in yaml.safe_load(Path("run/validate.yaml").read_text())
    written = [path for path in Path("run").rglob("*") if path.is_file()]
    assert not [path for path in written if "partial" in path.name]
    pictures = [path for path in written if path.suffix == ".png"]
    assert {path.stem for path in pictures} >= {"validation", "reliability", "confusion_32_random", "mistakes"}
    for picture in pictures:
        Image.open(picture).load()
    for path in (path for path in written if path.suffix == ".json"):
        json.loads(path.read_text())
    for path in (path for path in written if path.suffix == ".csv"):
        assert len({len(row) for row in csv.reader(path.open(newline=""))}) == 1, path
    for folder in ("validation", "validation/by_glimpse/all", "validation/by_condition/32_random"):
        events = EventAccumulator(f"run/{folder}").Reload()
        assert events.Tags()["scalars"], folder
    (point,) = EventAccumulator("run/validation").Reload().Scalars("val/top1/32_random")
    assert point.value == pytest.approx(next(r for r in alone["rows"][::-1] if r["resolution"] == 32)["top1"], rel=1e-6)
