"""What the README promises of the quickstart, measured: minutes long."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.long
def test_the_quickstart_learns(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "train"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for stage in ("fit", "validate"):
        arguments = [stage, "--config", str(ROOT / "configs" / "quickstart.yaml"), "--ckpt_path", "last"]
        subprocess.run([*command, *arguments], cwd=tmp_path, env=environment, check=True, timeout=1200)
    rows = json.loads((tmp_path / "runs/quickstart/validation.json").read_text())["rows"]
    assert {row["resolution"] for row in rows} == {32, 48, 64, 96}
    assert {row["samples"] for row in rows} == {397}
    curve = [row["top1"] for row in rows if row["resolution"] == 48]
    assert [row["step"] for row in rows if row["resolution"] == 48] == [1, 2, 4, 8, 16, 32, 64]
    assert curve[-1] >= 0.95
    assert curve[0] < curve[1] < curve[2] < curve[3] < curve[-1]
