"""The worked examples of CONTRIBUTING.md, taken out of the page as they stand and run by the commands beside them."""

import json
import re
import shlex
import sys
from pathlib import Path

import pytest
from commands import NO_PICTURES, ROOT, flags

from train import main

PAGE = (ROOT / "CONTRIBUTING.md").read_text()
EXAMPLES = dict(re.findall(r"^`(\w+\.py)`:\n\n```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
COMMANDS = re.findall(r"^    python train\.py (.+)$", PAGE, re.MULTILINE)
FIT = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.check_val_every_n_epoch=1"]
QUIET = [
    "--trainer.limit_val_batches=2",
    "--trainer.enable_progress_bar=false",
    *flags(NO_PICTURES),
]
ENCODER = ["dim=16", "depth=1", "d_state=8", "headdim=8"]
FEW = ["--data.train.num_glimpses=6", "--data.evaluate.num_glimpses=6"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Path:
    """A folder as a user would have it: the examples, the configs, the data and a trained quickstart."""
    folder = tmp_path_factory.mktemp("user")
    for name, code in EXAMPLES.items():
        (folder / name).write_text(code)
    (folder / "configs").symlink_to(ROOT / "configs")
    (folder / "data").symlink_to(data_dir)
    return folder


def run(words: list[str]) -> None:
    small = [*QUIET, *FEW]
    if words[0] == "fit":
        small += FIT
        if "--model.encoder" not in words:
            small += [f"--model.encoder.{size}" for size in ENCODER]
    main([*words, *small])


def test_the_page_has_three_examples() -> None:
    assert list(EXAMPLES) == ["pooled.py", "checkerboard.py", "most_unseen.py"]
    assert len(COMMANDS) == 6
    for name in EXAMPLES:
        of_example = [words for words in COMMANDS if f" {Path(name).stem}." in words or f",{Path(name).stem}." in words]
        assert {words.split()[0] for words in of_example} == {"fit", "validate"}


@pytest.mark.long
def test_the_commands_do_what_they_say(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    run(["fit", "--config", "configs/quickstart.yaml"])
    for command in COMMANDS:
        words = shlex.split(command)
        run(words)
        run_dir = Path(words[words.index("--run_dir") + 1] if "--run_dir" in words else "runs/quickstart")
        if "--ckpt_path" in words:
            run_dir = Path(words[words.index("--ckpt_path") + 1]).parents[1]
        rows = json.loads((run_dir / "validation.json").read_text())["rows"]
        assert all(row["samples"] > 0 for row in rows)
        scans = {row["scan"] for row in rows}
        if "--model.encoder" in words:
            assert scans == {"canvas"}
        elif words[0] == "validate":
            assert scans == set(words[words.index("--data.scans") + 1].strip("[]").split(","))
    for name in EXAMPLES:
        assert Path(name).stem in sys.modules


def test_a_policy_needs_a_model_that_has_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for words in (["--data.train_scan=learned"], ["--data.scans=[learned]"]):
        with pytest.raises(SystemExit, match="learned, and the model has no policy: give --model.policy, or"):
            run(["fit", "--config", "configs/quickstart.yaml", "--run_dir=runs/none", *words])


def test_a_policy_leads_no_encoder_that_answers_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    both = ["--model.encoder=pooled.PooledConvolutions", "--model.policy=most_unseen.MostUnseen"]
    with pytest.raises(SystemExit, match="PooledConvolutions answers only once: choose an encoder with a carried"):
        main(["fit", "--run_dir=runs/both", *both])
