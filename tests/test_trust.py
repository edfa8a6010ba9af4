"""A file names no command and no place: what is read, written or run comes from flags and --config alone."""

import json
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from commands import NO_PICTURES, TINY, flags

from callbacks.run.checkpointing import AtomicCheckpointIO
from datamodules.datamodule import ShardDataModule
from mambaeye.checkpoints import DATA, MODEL, PLACES, command_line_defaults, migrate, read_checkpoint
from mambaeye.errors import InputError
from mambaeye.module import ClassifierModule
from mambaeye.saved_values import misfits
from train import main

OLD = Path(__file__).with_name("version_0_1.ckpt")
QUICK = {
    "trainer.accelerator": "cpu",
    "trainer.enable_progress_bar": "false",
    "trainer.enable_model_summary": "false",
    "trainer.max_epochs": 2,
    "trainer.limit_train_batches": 2,
    "trainer.limit_val_batches": 2,
    "trainer.limit_test_batches": 2,
    "data.loader.num_workers": 0,
    **NO_PICTURES,
}
SOURCES = [name.removeprefix("data.") for name in PLACES]
COMMAND = "pipe:touch {}/was_run; cat {}/index.json"


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data_dir: Path) -> None:
    """The digits are where they are by default, so that no run packs them again."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])
    Path("data").symlink_to(data_dir)
    cv2.imwrite("image.png", np.zeros((32, 32, 3), np.uint8))


@pytest.fixture
def checkpoint() -> dict[str, Any]:
    today = migrate(torch.load(OLD, weights_only=True))
    today[DATA].setdefault("folder", None)
    return today


def run(command: str, checkpoint: dict[str, Any], *more: str) -> str:
    """Run a command on a checkpoint: what it ended with, one sentence, or nothing."""
    torch.save(checkpoint, "evil.ckpt")
    images = ["--data.images=image.png"] if command == "predict" else []
    try:
        main([command, "--ckpt_path=evil.ckpt", f"--run_dir=out_{command}", *flags(QUICK), *images, *more])
    except SystemExit as stop:
        said = str(stop)
    else:
        return ""
    assert said.startswith("error: ")
    assert "\n" not in said
    return said


def strings(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in nested containers where there is a string, or nothing."""
    inside = content.items() if isinstance(content, dict) else enumerate(content)
    for key, value in inside:
        if isinstance(value, dict | list | tuple):
            yield from strings(value, (*path, key))
        elif value is None or isinstance(value, str):
            yield (*path, key)


def poisoned(content: Any, places: set[tuple[Any, ...]], command: str, path: tuple[Any, ...] = ()) -> Any:
    """A copy of nested containers with the command at some places."""
    if path in places:
        return command
    if isinstance(content, dict):
        return {key: poisoned(value, places, command, (*path, key)) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return type(content)(poisoned(value, places, command, (*path, key)) for key, value in enumerate(content))
    return content


@pytest.mark.parametrize(
    "command", ["predict", *(pytest.param(name, marks=pytest.mark.long) for name in ("fit", "validate", "test"))]
)
def test_a_command_in_every_string_of_a_checkpoint_is_not_run(
    command: str, checkpoint: dict[str, Any], tmp_path: Path, data_dir: Path
) -> None:
    evil = COMMAND.format(tmp_path, data_dir / "digits" / "val")
    everywhere = {part: set(strings(checkpoint[part])) for part in (MODEL, DATA)}
    assert len(everywhere[MODEL]) + len(everywhere[DATA]) > 12
    both = checkpoint | {part: poisoned(checkpoint[part], places, evil) for part, places in everywhere.items()}
    assert run(command, both)
    assert run(command, checkpoint | {DATA: both[DATA]})
    # where a run would get furthest: only places, and all that is not looked at
    inert = {"_instantiator", *SOURCES}
    places = {place for place in everywhere[DATA] if place[0] in inert}
    assert len(places) == len(inert)
    named = {name: checkpoint[name] for name in ("callbacks", "classes", "hparams_name", "datamodule_hparams_name")}
    run(command, checkpoint | poisoned(named, set(strings(named)), evil))
    run(command, checkpoint | {DATA: poisoned(checkpoint[DATA], places, evil)})
    given = [f"--data.{split}_shards={data_dir}/digits/{split}" for split in ("train", "val")]
    assert run(command, checkpoint | {DATA: poisoned(checkpoint[DATA], places, evil)}, *given) == ""
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize("source", [*(pytest.param(source, marks=pytest.mark.long) for source in SOURCES), "images"])
def test_a_checkpoint_gives_no_place(source: str, checkpoint: dict[str, Any], tmp_path: Path, data_dir: Path) -> None:
    checkpoint[DATA] |= {"val_shards": None, source: COMMAND.format(tmp_path, data_dir / "digits" / "val")}
    run("validate", checkpoint)
    assert {path.name for path in tmp_path.iterdir()} <= {"data", "image.png", "evil.ckpt", "out_validate"}


def test_validation_asks_for_the_shards_that_a_checkpoint_names(checkpoint: dict[str, Any], data_dir: Path) -> None:
    checkpoint[DATA] |= {"train_shards": "elsewhere/train", "val_shards": "elsewhere/val\n\x1b[2J"}
    why = "and a file does not say what is read: give"
    there = r"'elsewhere/val\n\x1b[2J'"
    for command in ("validate", "test"):
        expected = f"error: the checkpoint was validated on {there}, {why} --data.val_shards, or the run's --config"
        assert run(command, checkpoint) == expected
    fit = f"error: the checkpoint was trained on elsewhere/train and validated on {there}, {why} --data.train_shards"
    assert run("fit", checkpoint) == f"{fit} and --data.val_shards, or the run's --config"
    assert run("predict", checkpoint) == ""
    assert run("validate", checkpoint, f"--data.val_shards={data_dir}/digits/val") == ""
    assert json.loads(Path("out_validate/validation.json").read_text())["rows"]


@pytest.mark.long
def test_a_validation_of_given_shards_packs_no_digits(checkpoint: dict[str, Any], data_dir: Path) -> None:
    Path("data").unlink()
    assert run("validate", checkpoint, f"--data.val_shards={data_dir}/digits/val") == ""
    assert not Path("data").exists()
    assert run("validate", checkpoint) == ""
    assert Path("data/digits/val").exists()


@pytest.mark.long
def test_a_run_goes_on_by_its_own_config(data_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split in ("train", "val"):
        shutil.copytree(data_dir / "digits" / split, f"mine/{split}")
    places = {f"data.{split}_shards": f"mine/{split}" for split in ("train", "val")}
    main(["fit", "--run_dir=run", *flags(TINY | QUICK | places | {"trainer.max_epochs": 1})])
    with pytest.raises(SystemExit, match="the checkpoint was trained on mine/train and validated on mine/val"):
        main(["fit", "--ckpt_path=run/checkpoints/last.ckpt", "--trainer.max_epochs=2"])
    more = ["--ckpt_path=last", "--trainer.max_epochs=2"]
    main(["fit", "--config=run/config.yaml", *more])
    assert torch.load("run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 4
    main(["fit", "--run_dir=run", *flags(QUICK | places), "--ckpt_path=last", "--trainer.max_epochs=3"])
    checkpoint = torch.load("run/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 6
    assert checkpoint[DATA]["train_shards"] == "mine/train"
    assert "not as in the checkpoint" not in capsys.readouterr().out.replace("max_epochs", "")


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        (DATA, "num_classes", "10"),
        (DATA, "num_classes", True),
        (DATA, "num_classes", 10.0),
        (DATA, "patch_size", [16]),
        (DATA, "resolutions", ["pipe:x"]),
        (DATA, "scans", "random"),
        (DATA, "scans", ["../scan"]),
        (DATA, "seed", None),
        (DATA, "train", {"canvas": [32, 64, 96]}),
        (DATA, "train", {"augmentation": {"flip": "often"}}),
        (DATA, "train", {"nothing": 1}),
        (DATA, "evaluate", {"resize": "pipe:x"}),
        (DATA, "loader", None),
        (DATA, "images", "image.png"),
        (MODEL, "init_from", "hf://someone/something/file.pt"),
        (MODEL, "optimizer", {"lr": "1e-3"}),
        (MODEL, "schedule", "evil"),
        (MODEL, "policy", 3),
        (MODEL, "policy", {"class_path": "mambaeye.policies.fixed.FixedScan", "init_args": {"file": "/etc/passwd"}}),
    ],
    ids=str,
)
def test_what_a_checkpoint_gives_has_its_type(part: str, name: str, value: object, checkpoint: dict[str, Any]) -> None:
    checkpoint[part][name] = value
    side = "model" if part == MODEL else "data"
    with pytest.raises(InputError, match=rf"^the checkpoint is damaged, or of another version: its {side}\.{name}"):
        command_line_defaults(checkpoint, ClassifierModule, ShardDataModule)


def test_nested_values_end_somewhere() -> None:
    value: Any = 1
    for _ in range(1000):
        value = [value]
    assert list(misfits("deep", value, Any)) == [("deep", value)]
    assert not list(misfits("flat", {"a": [1, 2.5, None, "word", (True, {"b": "module.name"})]}, Any))
    shares = str | dict[str, float]
    assert not [*misfits("x", "random", shares), *misfits("x", {"random": 1, "my.own": 0.5}, shares)]
    assert [name for name, _ in misfits("x", {"random": 1, "sobol": "pipe:"}, shares)] == ["x.sobol"]
    assert [name for name, _ in misfits("x", {"rm -rf": 1.0}, shares)] == ["x.rm -rf"]
    assert [name for name, _ in misfits("x", {"a": {"b": ["/etc"]}, "c d": 1}, Any)] == ["x.a.b", "x.c d"]


@pytest.mark.parametrize(("entry", "value"), [("global_step", "\x1b[2J"), ("classes", [["pipe:x"]]), (DATA, "pipe:x")])
def test_what_is_printed_of_a_checkpoint_is_what_it_should_be(
    entry: str, value: object, checkpoint: dict[str, Any]
) -> None:
    torch.save(checkpoint | {entry: value}, "evil.ckpt")
    with pytest.raises(InputError, match="evil.ckpt is damaged or not a checkpoint of a MambaEye run"):
        read_checkpoint("evil.ckpt", "--ckpt_path")


def test_a_continued_run_removes_no_file_but_its_checkpoints(tmp_path: Path) -> None:
    """Which file a better one replaces is in the checkpoint too."""
    files = AtomicCheckpointIO()
    (tmp_path / "run").mkdir()
    precious = [tmp_path / name for name in ("precious.ckpt", "run/notes.txt")]
    for path in [*precious, tmp_path / "run/old.ckpt"]:
        path.touch()
    files.remove_checkpoint(f"{tmp_path}/run/../precious.ckpt")
    files.remove_checkpoint(precious[1])
    files.remove_checkpoint(tmp_path / "run/old.ckpt")
    files.remove_checkpoint(tmp_path / "run/never.ckpt")
    assert sorted(path for path in tmp_path.rglob("*") if path.suffix in (".ckpt", ".txt")) == precious


HUGE = 10**9


@pytest.mark.parametrize(
    ("part", "path", "value", "said"),
    [
        (MODEL, ("encoder", "init_args", "depth"), HUGE, "encoder.depth is 1000000000: give at most 1048576"),
        (MODEL, ("encoder", "init_args", "depth"), 2**20, "they make more than the 14 tensors that it has"),
        (MODEL, ("encoder", "init_args", "dim"), 2**20, "does not fit this encoder: projection.weight is"),
        (MODEL, ("encoder", "init_args", "headdim"), 7, "encoder.headdim is 7, which does not divide"),
        (MODEL, ("metrics", "bins"), HUGE, "the checkpoint's model.metrics.bins is 1000000000, which is more than"),
        (DATA, ("num_classes",), 2**20, "its data.num_classes is 1048576, and its encoder's num_classes 10"),
        (DATA, ("patch_size",), 64, "its data.patch_size is 64, and its encoder's patch_size 16"),
        (DATA, ("resolutions",), [2**14], "the checkpoint's data.resolutions is [16384], which is more than a file"),
        (DATA, ("resolutions",), [32] * 5000, "the checkpoint's data.resolutions is [32, 32"),
        (DATA, ("train", "canvas"), [32, HUGE], "the checkpoint's data.train.canvas is [32, 1000000000], which is"),
        (DATA, ("train", "num_glimpses"), HUGE, "the checkpoint's data.train.num_glimpses is 1000000000, which is"),
        (DATA, ("train", "augmentation", "blur_kernel"), [5, HUGE], "data.train.augmentation.blur_kernel is [5, 10000"),
        (DATA, ("loader", "num_workers"), HUGE, "the checkpoint's data.loader.num_workers is 1000000000, which is"),
        (DATA, ("loader", "batch_size"), HUGE, "the checkpoint's data.loader.batch_size is 1000000000, which is"),
    ],
    ids=str,
)
def test_a_size_in_a_checkpoint_takes_no_memory(
    part: str, path: tuple[str, ...], value: object, said: str, checkpoint: dict[str, Any]
) -> None:
    inner = checkpoint[part]
    for name in path[:-1]:
        inner = inner.setdefault(name, {})
    inner[path[-1]] = value
    if path[0] != "resolutions":
        checkpoint[DATA]["loader"] |= {"batch_size": 1} if value != HUGE or path[-1] != "batch_size" else {}
    else:
        checkpoint[DATA]["loader"]["batch_size"] = 64
    started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert said in run("predict", checkpoint)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - started < 500_000  # kB


def test_a_checkpoint_does_not_raise_the_limit_of_pixels(
    checkpoint: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint[DATA]["loader"]["max_pixels"] = 10**10
    assert "data.loader.max_pixels" not in command_line_defaults(checkpoint, ClassifierModule, ShardDataModule)
    assert run("predict", checkpoint) == ""
    assert "data.loader.max_pixels: 10000000000 -> 178956970" in capsys.readouterr().out
    checkpoint[DATA]["loader"]["max_pixels"] = 100
    assert command_line_defaults(checkpoint, ClassifierModule, ShardDataModule)["data.loader.max_pixels"] == 100


@pytest.mark.parametrize("version", ["\x1b[2J garbage", "pipe:x", "", 3, None])
def test_a_version_of_lightning_is_a_version(version: object, checkpoint: dict[str, Any]) -> None:
    assert "damaged or not a checkpoint of a MambaEye run" in run(
        "predict", checkpoint | {"pytorch-lightning_version": version}
    )
    del checkpoint["pytorch-lightning_version"]
    assert "its arguments are no run's ('pytorch-lightning_version')" in run("predict", checkpoint)
