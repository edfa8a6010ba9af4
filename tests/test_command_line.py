"""The parser: help that is ours, two lines for what does not parse, and no abbreviations."""

import re
from pathlib import Path

import pytest

from mambaeye.command_line.help import COMMON, plain
from mambaeye.exporting.command import COMMANDS as WITHOUT_TRAINER
from train import main

COMMANDS = ("fit", "validate", "test", "predict", "calibrate")


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])


def shown(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["-h"], ["--help"]], ids=str)
def test_the_overview_has_every_command_with_an_example(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    main(arguments)
    text = capsys.readouterr().out
    for command in (*COMMANDS, *WITHOUT_TRAINER):
        assert re.search(rf"^  {command} ", text, re.MULTILINE)
        assert f"            python train.py {command} --" in text


@pytest.mark.parametrize("command", COMMANDS)
def test_help_leads_with_the_flags_that_people_change(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown([command, "--help"], capsys)
    assert re.findall(r"^  --([\w.]+)$", text, re.MULTILINE) == list(COMMON[command])
    assert 10 < len(COMMON[command]) <= 20
    assert f"python train.py {command} --help.all" in text
    assert len(text.splitlines()) < 80


@pytest.mark.parametrize("command", COMMANDS)
def test_all_of_help_is_plain_text_and_whole_sentences(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown([command, "--help.all"], capsys)
    assert len(text.splitlines()) > 500
    assert not re.search(r"``|:\w+:`|`_|~lightning|\.\. note", text)
    assert "are passed to the:" not in text
    for name in COMMON[command]:
        assert re.search(rf"--{name}[ ,\n]", text)


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (":class:`~lightning.pytorch.Trainer` and ``None``", "Trainer and None"),
        (":paramref:`~a.b.c.logger`, :func:`torch.no_grad`", "logger, torch.no_grad"),
        ("read :ref:`the docs <place>` or `these <https://x.y/z>`_", "read the docs or these"),
        ("one\n    line .. note:: of `it`", "one line of it"),
        ("100%% of %(default)s", "100%% of %(default)s"),
    ],
)
def test_markup_becomes_words(written: str, read: str) -> None:
    assert plain(written) == read


def test_a_class_has_help_of_its_own(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--model.encoder.depth" in shown(["fit", "--model.encoder.help", "MambaEye"], capsys)


def write(name: str, text: str) -> str:
    Path(name).write_text(text)
    return f"--config={name}"


@pytest.mark.parametrize(
    ("words", "given", "expected"),
    [
        (["--model.optimizer.lrr", "3"], "--model.optimizer.lrr is no argument", "did you mean --model.optimizer.lr?"),
        (["--trainer.max_epoch=3"], "--trainer.max_epoch is no argument of fit", "did you mean --trainer.max_epochs?"),
        (["--model.encoder.dpeth=3"], "--model.encoder.dpeth is no argument", "did you mean --model.encoder.depth?"),
        (["--no.such=1"], "--no.such is no argument of fit", "python train.py fit --help.all lists all"),
        (["extra"], "'extra' is behind no flag", "python train.py fit --help.all lists all"),
        (["--data.patch_size", "foo"], "--data.patch_size is foo", "an integer"),
        (["--model.encoder.depth=foo"], "--model.encoder.depth is foo", "an integer"),
        (["--data.loader.batch_size=1.5"], "--data.loader.batch_size is 1.5", "an integer"),
        (["--model.schedule=foo"], "--model.schedule is foo", "one of information_ratio, none"),
        (["--model.optimizer.betas=3"], "--model.optimizer.betas is 3", "a list such as [1,2]"),
        (["--trainer.precision=8"], "--trainer.precision is 8", "bf16-mixed"),
        (["--seed_everything=foo"], "--seed_everything is foo", "true or false or an integer"),
        (["--run_dir"], "--run_dir has no value", "one value after it"),
        (["--trainer", "foo"], "--trainer is not the name of a YAML file", "--trainer.NAME VALUE"),
        (["--model.policy.x=3"], "--model.policy.x needs its class first", "--model.policy CLASS before it"),
        (["--config=nowhere.yaml"], "--config: File does not exist", "a YAML file"),
        (["--config=key.yaml"], "--model.optimizer.lrr is no argument", "did you mean --model.optimizer.lr?"),
        (["--config=type.yaml"], "--trainer.max_epochs is many", "an integer or null"),
        (["--config=args.yaml"], "--model.encoder.dmi is no argument of fit", "did you mean --model.encoder.dim?"),
    ],
    ids=str,
)
def test_what_does_not_parse_is_answered_in_two_lines(
    words: list[str], given: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write("key.yaml", "model: {optimizer: {lrr: 3}}")
    write("type.yaml", "trainer: {max_epochs: many}")
    write("args.yaml", "model: {encoder: {class_path: MambaEye, init_args: {dmi: 3}}}")
    with pytest.raises(SystemExit) as stop:
        main(["fit", *words])
    assert stop.value.code == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("error: ")
    assert given in first
    assert second.startswith("expected: ")
    assert expected in second


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["foo"], f"'foo' is no command: give one of {', '.join((*COMMANDS, *WITHOUT_TRAINER))} first, or --help"),
        (["vaildate"], "'vaildate' is no command: did you mean validate, or --help"),
        (["fit", "--config=empty.yaml"], "--config empty.yaml is empty: give a file such as configs/quickstart.yaml"),
        (["fit", "--config", "list.yaml"], "--config list.yaml has no flags by name"),
        (["fit", "-c", "syntax.yaml"], "--config syntax.yaml is not YAML in line 2"),
        (["fit", "--config=class.yaml"], "no encoder is called 'Nobody': choose one of Adventurer, "),
        (["fit", "--config=path.yaml"], "no encoder is called 'Mambaeye': did you mean MambaEye, or give an import"),
        (
            ["fit", "--config=callback.yaml"],
            "no class for trainer.callbacks is called 'EarlyStoping': did you mean E",
        ),
        (["fit", "--trainer.callbacks+=Nobody"], "no class for trainer.callbacks is called 'Nobody': give an import"),
        (["fit", "--model.policy=FixdScan"], "no policy is called 'FixdScan': did you mean FixedScan"),
        (["fit", "--model.encoder=no.such.Class"], "is no.such.Class, which cannot be imported (No module named 'no')"),
    ],
    ids=str,
)
def test_wrong_names_and_files_are_answered_in_one_sentence(words: list[str], said: str) -> None:
    write("empty.yaml", "# nothing\n")
    write("list.yaml", "- 3")
    write("syntax.yaml", "model: {encoder: [\n")
    write("class.yaml", "model: {encoder: Nobody}")
    write("path.yaml", "model: {encoder: {class_path: Mambaeye}}")
    write("callback.yaml", "trainer: {callbacks: [{class_path: EarlyStoping}]}")
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert said in str(stop.value)
    assert str(stop.value).startswith("error: ")
    assert "\n" not in str(stop.value)
