"""Checkpoints of version 0.1 go on as if nothing had happened; and a checkpoint makes Python import nothing."""

import inspect
import json
from dataclasses import asdict, is_dataclass
from pathlib import Path

import pytest
import torch
from commands import NO_PICTURES, flags, ledger

import mambaeye
from datamodules.datamodule import ShardDataModule
from mambaeye.checkpoints import DATA, MODEL, command_line_defaults, migrate, read_checkpoint, unsaid
from mambaeye.errors import InputError
from mambaeye.module import ClassifierModule
from train import main

# six of fourteen steps of one epoch on the digits, and what version 0.1 did in the other eight
OLD = Path(__file__).with_name("version_0_1.ckpt")
EXPECTED = json.loads(OLD.with_suffix(".json").read_text())


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_an_old_run_goes_on_where_it_was(data_dir: Path) -> None:
    """The same batches as version 0.1's uninterrupted run, and losses and validation but for how images are resized."""
    quiet = ["--trainer.enable_progress_bar=false", *flags(NO_PICTURES)]
    short = ["--trainer.max_epochs=1", "--trainer.accelerator=cpu", f"--data.data_dir={data_dir}"]
    ledger_on = ["--trainer.callbacks+=callbacks.run.ledger.SampleLedger"]
    main(["fit", f"--ckpt_path={OLD}", "--run_dir=run", *quiet, *short, *ledger_on])
    lines = ledger(Path("run"))
    assert [line["batch"] for line in lines] == [batch["batch"] for batch in EXPECTED["batches"]]
    for line, batch in zip(lines, EXPECTED["batches"], strict=True):
        assert (line["keys"][0], line["keys"][-1]) == (batch["first_key"], batch["last_key"])
        assert line["loss"] == pytest.approx(batch["loss"], rel=2e-3)  # augmentation is sharper than it was
    rows = json.loads(Path("run/validation.json").read_text())["rows"]
    assert len(rows) == len(EXPECTED["rows"])
    for row, expected in zip(rows, EXPECTED["rows"], strict=True):
        assert {name: row[name] for name in expected} == pytest.approx(expected, abs=2e-2)


def test_its_arguments_are_todays() -> None:
    defaults = command_line_defaults(read_checkpoint(OLD, "--ckpt_path"), ClassifierModule, ShardDataModule)
    assert defaults["model.encoder"]["class_path"] == "mambaeye.encoders.mambaeye.MambaEye"
    assert defaults["model.encoder"]["init_args"]["dim"] == 16
    expected = {
        "data.train.num_glimpses": 5,
        "data.evaluate.num_glimpses": 9,
        "data.evaluate.report_at": [5],
        "data.evaluate.interpolation": "area",
        "data.train.canvas": [32, 64],
        "data.loader.batch_size": 100,
        "data.loader.max_unreadable": 2,
        "data.resolutions": [32, 40],
        "data.scans": ["random", "row_raster"],
        "model.optimizer.warmup_epochs": 0.5,
        "seed_everything": 3,
    }
    assert {name: to_lists(defaults[name]) for name in expected} == expected
    assert defaults["data.train.augmentation"]["blur"] == 0.1


def to_lists(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def test_todays_checkpoints_are_left_alone() -> None:
    today = migrate(torch.load(OLD, weights_only=True))
    assert migrate(today) is today


def test_the_encoder_comes_out_of_a_checkpoint() -> None:
    encoder = mambaeye.load(OLD)
    state = torch.load(OLD, weights_only=True)["state_dict"]
    assert isinstance(encoder, mambaeye.MambaEye)
    assert encoder.config.move_embedding_dim == 8
    for name, tensor in encoder.state_dict().items():
        assert tensor.equal(state[f"encoder.{name}"])


@pytest.mark.parametrize("name", ["subprocess.Popen", "antigravity.Encoder", "mambaeye.module.ClassifierModule"])
@pytest.mark.parametrize("part", ["encoder", "policy"])
def test_a_checkpoint_names_no_code(part: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = migrate(torch.load(OLD, weights_only=True))
    checkpoint[MODEL][part] = {"class_path": name, "init_args": {}}
    torch.save(checkpoint, "evil.ckpt")
    sentence = f"is of '{name}', which is none of the project's own: name it with --model.{part}"
    with pytest.raises(InputError, match=sentence):
        command_line_defaults(read_checkpoint("evil.ckpt", "--ckpt_path"), ClassifierModule, ShardDataModule)
    with pytest.raises(SystemExit) as stop:
        main(["validate", "--ckpt_path=evil.ckpt"])
    assert sentence in str(stop.value)


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        ("scans", ["random", "trap.scan"]),
        ("train_scan", "trap.scan"),
        ("train_scan", {"random": 1.0, "trap.scan": 2.0}),
    ],
)
def test_a_checkpoint_imports_no_scan(argument: str, value: object) -> None:
    checkpoint = migrate(torch.load(OLD, weights_only=True))
    Path("trap.py").write_text("raise SystemExit('the trap was imported')")
    checkpoint[DATA][argument] = value
    torch.save(checkpoint, "evil.ckpt")
    with pytest.raises(SystemExit) as stop:
        main(["validate", "--ckpt_path=evil.ckpt"])
    expected = (
        f"the checkpoint's data.{argument} is trap.scan, code outside the project: give it with --data.{argument}"
    )
    assert str(stop.value) == f"error: {expected}"


def test_what_a_checkpoint_of_another_version_lacks_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = migrate(torch.load(OLD, weights_only=True))
    assert "model.balanced" in unsaid(checkpoint, ClassifierModule, ShardDataModule)
    for module, saved in ((ClassifierModule, MODEL), (ShardDataModule, DATA)):
        for name, parameter in inspect.signature(module).parameters.items():
            if is_dataclass(parameter.default):
                checkpoint[saved][name] = asdict(parameter.default) | checkpoint[saved].get(name, {})
            elif parameter.default is not parameter.empty:
                checkpoint[saved].setdefault(name, parameter.default)
    assert unsaid(checkpoint, ClassifierModule, ShardDataModule) == []
    del checkpoint[DATA]["evaluate"]["skip_edge"]
    assert unsaid(checkpoint, ClassifierModule, ShardDataModule) == ["data.evaluate.skip_edge"]
    with pytest.raises(SystemExit):
        main(["validate", f"--ckpt_path={OLD}", "--data.val_shards=nowhere"])
    assert (
        "of another version, without model.optimizer.backbone_lr, model.head_only, model.balanced"
        in capsys.readouterr().out
    )
