"""Folders that a normal user may not write to: one sentence each, from a process without root's rights."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import ROOT, TINY, flags

from train import main

# root may write anywhere, and without these rights where the bits of a file let it, as anybody
RIGHTS = "-dac_override,-dac_read_search,-fowner"
# runs commands one after the other, and prints what each ended with
COMMANDS = """
import json, sys
import datamodules.pack, train
for name, words in json.loads(sys.argv[1]):
    sys.argv[:] = ["train.py"]
    try:
        (train if name == "train" else datamodules.pack).main(words)
        ended = None
    except SystemExit as stop:
        ended = stop.code
    print("\\nended", json.dumps(ended), flush=True)
"""


@pytest.fixture
def folder(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with data, a run and images that may not be written to."""
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", ["train.py"])
    shutil.copytree(data_dir, "data")
    main(["fit", *flags({**SETTINGS, "run_dir": "run"})])
    shutil.copytree("run", "half")
    Path("images/a").mkdir(parents=True)
    Path("free").mkdir()
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    for path in (Path("half"), Path("free")):
        path.chmod(0o777)
    yield folder
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o755)


SETTINGS = {
    **TINY,
    "data.data_dir": "data",
    "data.resolutions": "[32]",
    "data.scans": "[random]",
    "data.loader.batch_size": 200,
    "trainer.limit_train_batches": 2,
    "trainer.limit_val_batches": 0,
}
ASKED = {
    "run_dir in a folder that is read-only": (
        ["train", ["fit", *flags(SETTINGS | {"run_dir": "new/run"})]],
        "error: new/run cannot be made (Permission denied): choose another --run_dir",
    ),
    "run_dir read-only": (
        ["train", ["fit", *flags(SETTINGS | {"run_dir": "run", "ckpt_path": "last"})]],
        "error: run cannot be written to: choose another --run_dir",
    ),
    "validating another's run": (
        ["train", ["validate", *flags(SETTINGS | {"ckpt_path": "run/checkpoints/last.ckpt"})]],
        "error: run cannot be written to: choose another --run_dir",
    ),
    "and saying where": (
        ["train", ["validate", *flags(SETTINGS | {"ckpt_path": "run/checkpoints/last.ckpt", "run_dir": "free/mine"})]],
        None,
    ),
    "its checkpoints alone": (
        ["train", ["fit", *flags(SETTINGS | {"run_dir": "half", "ckpt_path": "last", "trainer.max_epochs": 2})]],
        "cannot be written (Permission denied): make room or repair the folder",
    ),
    "data that are not there": (
        ["train", ["fit", *flags(SETTINGS | {"run_dir": "free/other", "data.data_dir": "images"})]],
        "error: images/digits cannot be written (Permission denied): make room or repair the folder, or choose "
        "another --data.data_dir",
    ),
    "packing": (["pack", ["images", "shards"]], "cannot be written (Permission denied)"),
    "packing deeper": (["pack", ["images", "shards/deep"]], "cannot be written (Permission denied)"),
}


@pytest.mark.long
def test_what_may_not_be_written_is_one_sentence(folder: Path) -> None:
    commands = json.dumps([words for words, _ in ASKED.values()])
    child = [sys.executable, "-c", COMMANDS, commands]
    if os.geteuid() == 0:
        child = ["setpriv", f"--bounding-set={RIGHTS}", f"--inh-caps={RIGHTS}", *child]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run(child, capture_output=True, text=True, env=environment, check=False)
    assert "Traceback" not in run.stderr
    ended = [json.loads(line[6:]) for line in run.stdout.splitlines() if line.startswith("ended ")]
    for (name, (_, expected)), said in zip(ASKED.items(), ended, strict=True):
        if expected is None:
            assert said is None, name
        else:
            assert said.startswith("error: "), name
            assert expected in said, name
            assert "\n" not in said, name
