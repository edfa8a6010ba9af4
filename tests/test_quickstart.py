"""The promises of the README about the quickstart, measured: minutes long."""

import json
import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from benchmarks.suites.suite import PATTERNS

ROOT = Path(__file__).parents[1]


@pytest.mark.long
def test_the_quickstart_learns_any_scan(quickstart: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def validate(*arguments: str) -> list[dict[str, Any]]:
        config = str(ROOT / "configs" / "quickstart.yaml")
        command = [sys.executable, "-m", "train", "validate", "--config", config, "--ckpt_path", "last", *arguments]
        subprocess.run(command, cwd=quickstart, env=environment, check=True, timeout=2400)
        rows: list[dict[str, Any]] = json.loads((quickstart / "runs/quickstart/validation.json").read_text())["rows"]
        return rows

    rows = validate()
    assert {(row["resolution"], row["scan"]) for row in rows} == set(
        product((48, 64, 96, 128), ("random", "row_raster"))
    )
    assert {row["samples"] for row in rows} == {397}
    curve = [row["top1"] for row in rows if (row["resolution"], row["scan"]) == (48, "random")]
    assert curve[-1] >= 0.95
    assert curve[0] < curve[1] < curve[2] < curve[3] < curve[-1]

    scans = f"--data.scans=[{','.join(PATTERNS)}]"
    asked = ["--data.resolutions=[48,64]", scans, "--data.evaluate.num_glimpses=64", "--report.plots=false"]
    rows = validate(*asked)
    assert len(PATTERNS) == 13
    worst = min((row["top1"], row["resolution"], row["scan"]) for row in rows if row["step"] == 64)
    assert worst[0] >= 0.85, worst
