"""docs/recipes/: what one copies is what the project is."""

import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import pytest

from train import main

ROOT = Path(__file__).parents[1]
RECIPES = ROOT / "docs/recipes"


@pytest.mark.long
def test_the_batch_script_is_bash_and_its_command_parses(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Run by bash itself, with srun and what it is given written down, as a job of two nodes."""
    monkeypatch.chdir(ROOT)
    (tmp_path / "srun").write_text('#!/bin/sh\nprintf "%s\\n" "$@" > "$WORDS"\n')
    (tmp_path / "srun").chmod(0o755)
    job = (RECIPES / "train.sbatch").read_text().replace("source .venv/bin/activate", "")
    given = {"SLURM_NNODES": "2", "SLURM_NTASKS_PER_NODE": "8", "SLURM_CPUS_PER_TASK": "12"}
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "WORDS": str(tmp_path / "words"), **given}
    flags = ["--run_dir", str(tmp_path / "run"), "--print_config"]
    subprocess.run(["bash", "-c", job, "job", *flags], env=environment, check=True, cwd=ROOT)
    words = (tmp_path / "words").read_text().splitlines()
    command = words[words.index("train.py") + 1 :]
    with pytest.raises(SystemExit) as stop:
        main(command)
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    for line in ("num_nodes: 2", "devices: '?8'?", "num_workers: 10", "dim: 256"):
        assert re.search(rf"^ *{line}$", printed, re.MULTILINE), line


def test_the_image_has_all_that_is_installed() -> None:
    text = (RECIPES / "Dockerfile").read_text()
    copied = {word for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE) for word in shlex.split(line)[:-1]}
    assert all((ROOT / name).exists() for name in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = {name.rstrip("*") for name in project["tool"]["setuptools"]["packages"]["find"]["include"]}
    modules = {f"{name}.py" for name in project["tool"]["setuptools"]["py-modules"]}
    assert packages | modules | {project["project"]["readme"], *project["project"]["license-files"]} <= copied
    (extras,) = re.findall(r"^ARG EXTRAS=(\S+)$", text, re.MULTILINE)
    assert set(extras.split(",")) <= project["project"]["optional-dependencies"].keys()
    (entry,) = re.findall(r'^ENTRYPOINT \["(\w+)"\]$', text, re.MULTILINE)
    assert entry in project["project"]["scripts"]
