"""The program of `make gpu` on a CPU: every part, once; and what it says of parts that do not end well."""

import io
import json
import subprocess
import sys
import tarfile
from datetime import timedelta
from pathlib import Path
from time import monotonic

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.callbacks import Timer

from benchmarks import gpu
from benchmarks.gpu import PARTS, PartError, Run, Settings, duration
from benchmarks.gpu_page import SECTIONS, page

ROOT = Path(__file__).parents[1]


def small_cifar10(path: Path) -> Path:
    """Make a tar of class folders with five random images a class."""
    generator = np.random.default_rng(0)
    with tarfile.open(path, "w") as tar:
        for split, images in (("train", 4), ("test", 1)):
            for name in (f"{split}/c{c}/{k}.png" for c in range(10) for k in range(images)):
                data = cv2.imencode(".png", generator.integers(0, 256, (32, 32, 3), dtype=np.uint8))[1].tobytes()
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def start(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.gpu", "--dry", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)


@pytest.mark.long
def test_every_part_runs_dry_once_and_makes_the_page(tmp_path: Path) -> None:
    output, tar = tmp_path / "gpu", small_cifar10(tmp_path / "cifar10.tar")
    done = start("--output", output, "--cifar10", tar, "--workers", 1, "--minutes", 14)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {path.stem for path in output.glob("*.json")} == set(PARTS)
    again = start("--output", output, "--cifar10", tar)
    assert again.stdout.splitlines() == [f"{part}: done before" for part in PARTS]
    written = start("--output", output, "--page", tmp_path / "gpu.md")
    assert written.returncode == 0, written.stderr
    text = (tmp_path / "gpu.md").read_text()
    assert "Not measured." not in text
    for part, (title, section) in SECTIONS.items():
        assert f"## {title}\n\n{section(json.loads((output / f'{part}.json').read_text()))}" in text


def test_parts_and_sections_are_the_same() -> None:
    assert [*PARTS] == [*SECTIONS]
    assert page({}).count("Not measured.") == len(PARTS)


def run_of(tmp_path: Path, seconds: float) -> Run:
    return Run(Settings(tmp_path, True, None, 1), "ceilings", monotonic() + seconds)


def test_a_command_that_fails_is_said_with_its_log(tmp_path: Path) -> None:
    with pytest.raises(PartError, match=r"ceilings ended with exit code 3: see .*ceilings\.log"):
        run_of(tmp_path, 60).call(sys.executable, "-c", "print('so far'); raise SystemExit(3)")
    assert "so far" in (tmp_path / "ceilings.log").read_text()


def test_a_command_is_stopped_at_its_time(tmp_path: Path) -> None:
    with pytest.raises(PartError, match="ceilings was stopped, for its time was up: start again to go on"):
        run_of(tmp_path, 0).call(sys.executable, "-c", "import time; time.sleep(60)")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "feeding", "cifar10"], "feeding is left out: --cifar10 names a tar"),
        (["--only", "tests", "--minutes", "0"], "tests had no time: start again to go on"),
    ],
)
def test_without_data_or_time_parts_are_left_out(
    tmp_path: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu", "--dry", "--output", str(tmp_path), *arguments])
    with pytest.raises(SystemExit, match=message):
        gpu.main()
    assert not [*tmp_path.glob("*.json")]


def test_what_is_no_tar_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x").write_text("x")
    monkeypatch.setattr(sys, "argv", ["gpu", "--cifar10", str(tmp_path / "x")])
    with pytest.raises(SystemExit):
        gpu.main()
    assert "is no tar: give one" in capsys.readouterr().err


def test_failures_of_tests_are_a_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(run: Run, *arguments: str, **more: str) -> str:
        """Run a test file of our own in place of the project's."""
        file = tmp_path / "test_some.py"
        file.write_text("import pytest\ndef test_a(): pass\ndef test_b(): assert 0\ndef test_c(): pytest.skip('no')\n")
        report = next(argument for argument in arguments if argument.startswith("--junitxml"))
        call = [sys.executable, "-m", "pytest", "-q", "-c", "/dev/null", str(file), report]
        assert subprocess.run(call, capture_output=True, cwd=tmp_path).returncode == 1
        raise PartError("tests ended with exit code 1")

    monkeypatch.setattr(Run, "call", failing)
    gpu.tests(Run(Settings(tmp_path, True, None, 1), "tests", monotonic() + 60))
    result = json.loads((tmp_path / "tests.json").read_text())
    assert (result["tests"], result["failures"], result["skipped"]) == (3, 1, 1)
    assert result["failed"] == ["test_b"]
    assert "1 passed, 1 failed: test_b, 1 skipped" in page({"tests": result})


@given(st.floats(1, 80_000))
def test_the_trainer_reads_a_duration_as_it_was_meant(seconds: float) -> None:
    assert Timer(duration(seconds))._duration == timedelta(seconds=int(seconds)).total_seconds()


def test_the_page_in_the_docs_is_of_the_results_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = (ROOT / "docs/gpu.md").read_text()
    monkeypatch.chdir(ROOT)
    made = ROOT / "docs" / f".{tmp_path.name}.md"  # beside it, for paths are as seen from the page
    arguments = ["gpu", "--output", "docs/results/gpu", "--page", str(made)]
    monkeypatch.setattr(sys, "argv", arguments)
    try:
        gpu.main()
        assert made.read_text() == written
    finally:
        made.unlink(missing_ok=True)
