"""The command line on two processes: the numbers of one, written once."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FIT = """--data.train.num_glimpses=9 --data.evaluate.num_glimpses=9 --data.resolutions=[32,40]
--data.loader.num_workers=0 --data.loader.batch_size=30
--model.encoder.dim=16 --model.encoder.depth=1 --model.encoder.d_state=8 --model.encoder.headdim=8
--trainer.max_epochs=2 --trainer.limit_train_batches=4 --trainer.log_every_n_steps=2"""


def require_same_answers(folder: Path, expected: Path) -> None:
    """Require the same tables, with the last digit of confidence to spare: batches are others on two processes."""
    for name in ("32_random.csv", "40_random.csv"):
        rows, others = (list(csv.DictReader((path / name).open(newline=""))) for path in (folder, expected))
        assert len(rows) == 397
        for row, other in zip(rows, others, strict=True):
            sure = [name for name in row if name.startswith("confidence_")]
            found, known = ([float(one.pop(name)) for name in sure] for one in (row, other))
            assert found == pytest.approx(known, abs=1.1e-4)
            assert row == other


@pytest.mark.long
def test_two_processes_give_the_numbers_of_one(data_dir: Path, tmp_path: Path) -> None:
    def run(*arguments: str) -> None:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        quiet = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
        command = [sys.executable, "-m", "train", *arguments, *quiet]
        subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=300)

    two, answers = ["--trainer.devices=2", "--trainer.strategy=ddp"], ["--answers.write=true"]
    run("fit", "--run_dir=two", f"--data.data_dir={data_dir}", *FIT.split(), *two)
    together = json.loads((tmp_path / "two/validation.json").read_text())["rows"]
    run(
        "validate",
        "--ckpt_path=two/checkpoints/last.ckpt",
        "--run_dir=one",
        "--trainer.devices=1",
        "--answers.write=true",
    )
    alone = json.loads((tmp_path / "one/validation.json").read_text())["rows"]
    assert len(together) == len(alone) == 2 * 5
    for row, expected in zip(together, alone, strict=True):
        assert row["samples"] == 397  # 397 of 420 rows on two processes
        assert row == pytest.approx(expected, abs=1e-6)

    run("validate", "--ckpt_path=two/checkpoints/last.ckpt", "--run_dir=both", *two, *answers)
    content, expected = (json.loads((tmp_path / f"{name}/validation.json").read_text()) for name in ("both", "one"))
    for part in ("rows", "early_exit"):
        assert content[part] == [pytest.approx(row, abs=1e-6) for row in expected[part]]
    assert {row["samples"] for row in content["early_exit"]} == {397}
    require_same_answers(tmp_path / "both/validation/answers", tmp_path / "one/validation/answers")

    lines = [json.loads(line) for line in (tmp_path / "two/curves.jsonl").read_text().splitlines()]
    places = [(line["kind"], line["optimizer_step"]) for line in lines]
    assert places == [
        *[("training", 2), ("training", 4), ("validation", 4), ("validation", 4)],
        *[("training", 6), ("training", 8), ("validation", 8), ("validation", 8)],
    ]
    for epoch in ("epoch_000", "epoch_001"):
        assert len(list((tmp_path / "two/by_glimpse" / epoch).iterdir())) == 1
