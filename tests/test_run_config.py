"""A run goes on by its directory alone: its config.yaml is the user's own, flags win, and the last line says how."""

import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from commands import TINY, flags, ledger, start

from callbacks.run.continuation import say_how_to_continue
from train import main

SHORT = {
    **TINY,
    "data.resolutions": "[32]",
    "data.scans": "[random]",
    "trainer.limit_train_batches": 2,
    "trainer.limit_val_batches": 1,
    "trainer.num_sanity_val_steps": 0,
}
LEDGER = "--trainer.callbacks+=callbacks.run.ledger.SampleLedger"
LAST = "--ckpt_path=last"


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])


@pytest.fixture(scope="module")
def stopped(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch with clipping, a ledger and shards of its own."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["train.py"])
        shards = {f"data.{split}_shards": data_dir / "digits" / "val" for split in ("train", "val")}
        asked = {**SHORT, **shards, "run_dir": folder, "trainer.gradient_clip_val": 0.5, "nonfinite.patience": 7}
        main(["fit", *flags(asked), LEDGER])
    return folder


def config(run_dir: str) -> dict[str, Any]:
    return yaml.safe_load(Path(run_dir, "config.yaml").read_text())


@pytest.mark.parametrize("more", [[], [LEDGER]], ids=["alone", "with the flag again"])
def test_a_run_goes_on_by_its_directory_alone(
    more: list[str], stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a directory that was moved, too, and with one ledger however often it is asked for."""
    shutil.copytree(stopped, "moved")
    before = config("moved")
    main(["fit", "--run_dir=moved", LAST, "--trainer.max_epochs=2", "--model.optimizer.lr=0.01", *more])
    said = capsys.readouterr().out
    assert "fit takes moved/config.yaml, and what flags say otherwise\n" in said
    assert "not as in moved/config.yaml, and as said now:\n  trainer.max_epochs: 1 -> 2\n" in said
    assert said.count("model.optimizer.lr: 0.001 -> 0.01\n") == 1
    after = config("moved")
    assert (after["trainer"].pop("max_epochs"), before["trainer"].pop("max_epochs")) == (2, 1)
    assert after["trainer"]["gradient_clip_val"] == 0.5
    assert after["trainer"]["limit_train_batches"] == 2
    for name in ("trainer", "nonfinite", "last", "best", "seed_everything", "data"):
        assert after[name] == before[name], name
    checkpoint = torch.load("moved/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 4
    assert [line["epoch"] for line in ledger(Path("moved"))] == [0, 0, 1, 1]
    assert torch.load(stopped / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 2


def test_a_config_that_is_given_holds_instead(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(stopped, "run")
    Path("mine.yaml").write_text(yaml.safe_dump(config("run") | {"nonfinite": {"patience": 5}}))
    main(["fit", "--config=mine.yaml", "--run_dir=run", LAST, "--trainer.max_epochs=2"])
    assert "config.yaml, and what flags say otherwise" not in capsys.readouterr().out
    assert config("run")["nonfinite"]["patience"] == 5


def test_the_config_beside_a_checkpoint_of_another_run_is_not_taken(stopped: Path) -> None:
    """A path names one file, and no code or place of what lies beside it."""
    for directory in ([], ["--run_dir=mine"]):
        with pytest.raises(SystemExit, match="a file does not say what is read"):
            main(["fit", f"--ckpt_path={stopped}/checkpoints/last.ckpt", *directory])


def test_without_a_checkpoint_there_is_nothing_to_continue(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    say_how_to_continue("nowhere")
    assert capsys.readouterr().err == ""
    say_how_to_continue(str(stopped))
    assert capsys.readouterr().err == f"continue with: python train.py fit --run_dir {stopped} --ckpt_path last\n"


@pytest.mark.long
def test_after_ctrl_c_the_last_line_is_the_command_that_continues(data_dir: Path) -> None:
    asked = {**SHORT, "data.data_dir": data_dir, "run_dir": "a run", "trainer.max_epochs": 10_000}
    run = start(["fit", *flags(asked)])
    end = time.monotonic() + 120
    while not Path("a run/checkpoints/last.ckpt").exists():
        assert time.monotonic() < end, "there is no checkpoint"
        time.sleep(0.05)
    run.send_signal(signal.SIGINT)
    said, _ = run.communicate(timeout=120)
    assert run.returncode == 1
    assert said.splitlines()[-1].startswith("continue with: python ")
    assert said.endswith("train.py fit --run_dir 'a run' --ckpt_path last\n")


@pytest.mark.parametrize("named_by", ["overlay", pytest.param("flag", marks=pytest.mark.long)])
def test_a_run_of_another_encoder_goes_on_by_configs_that_name_it(
    named_by: str, data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first config has sizes of the default encoder; what flags said once, and say no more, the checkpoint has."""
    settings = {name: value for name, value in SHORT.items() if not name.startswith("model.encoder")}
    asked = {**settings, "data.data_dir": data_dir, "run_dir": "run", "trainer.limit_val_batches": 0}
    Path("base.yaml").write_text("model: {encoder: {dim: 16, d_state: 8, headdim: 8}}")
    overlay = "model: {encoder: {class_path: ViT, init_args: {depth: 1, patch: 16, grid: 2, heads: 2}}}"
    Path("overlay.yaml").write_text(overlay)
    named = ["--config=overlay.yaml"] if named_by == "overlay" else [*flags({"model.encoder": "ViT"})]
    named += [] if named_by == "overlay" else ["--model.encoder.depth=1", "--model.encoder.patch=16"]
    words = ["fit", "--config=base.yaml", *named, *flags(asked)]
    main([*words, "--model.encoder.mlp_ratio=2", "--model.encoder.heads=4", "--trainer.max_epochs=1"])
    before = config("run")["model"]["encoder"]
    assert before["init_args"].items() >= {"dim": 16, "depth": 1, "mlp_ratio": 2.0, "heads": 4}.items()
    more = ["--model.encoder.heads=4"] if named_by == "overlay" else []  # which the overlay says otherwise
    main([*words, *more, LAST, "--trainer.max_epochs=2"])
    assert config("run")["model"]["encoder"] == before
    assert "not as in the checkpoint" not in capsys.readouterr().out
