"""The words of a fit where there is no terminal: whole lines, how it ended and what comes next, and nothing else."""

import logging
import re
from pathlib import Path

import pytest
from commands import TINY, flags

from callbacks.reports.console import duration
from callbacks.reports.prediction_writer import say
from train import is_for_users, main


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])


def test_a_fit_says_how_it_goes_and_how_it_ended(
    data_dir: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    short = {"data.scans": "[random]", "trainer.limit_train_batches": 3, "trainer.limit_val_batches": 1}
    asked = {**TINY, **short, "run_dir": "run", "trainer.max_epochs": 2, "data.data_dir": data_dir}
    del asked["trainer.enable_progress_bar"]  # there is no terminal here
    main(["fit", *flags(asked)])
    said = capsys.readouterr().out
    assert "validation never" not in " ".join(said.split())
    epochs = re.findall(
        r"^epoch (\d) of 2: (\d) steps, loss [\d.]+, \d+ images/s, \d+% waiting for data(.*)$", said, re.M
    )
    assert [(epoch, steps, "left" in rest) for epoch, steps, rest in epochs] == [("1", "3", True), ("2", "6", False)]
    top1 = r"32 random [\d.]+%, 40 random [\d.]+%"
    assert re.findall(rf"^validation in epoch (\d): top-1 {top1}; [\d.]+ s$", said, re.M) == ["1", "2"]
    done = rf"done: 6 steps, .* in this process\nbest top-1: [\d.]+% in epoch [12] \({top1}\)\nnext: "
    end = re.search(done + r"(.*)\n {6}(.*)\n {6}tensorboard --logdir run\n\Z", said)
    assert end is not None
    assert end[1] == "python train.py validate --ckpt_path run/checkpoints/best.ckpt"
    assert end[2].startswith("python train.py predict --ckpt_path run/checkpoints/best.ckpt --data.images ")
    assert not re.search("litlogger|TPU", caplog.text)


def test_a_fit_that_never_validates_says_so_before_the_first_step(
    data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = {"trainer.limit_train_batches": 1, "trainer.check_val_every_n_epoch": 5, "data.data_dir": data_dir}
    main(["fit", *flags({**TINY, **short})])
    said = " ".join(capsys.readouterr().out.split())
    assert "validation never, so that there is no best.ckpt" in said
    assert said.index("validation never") < said.index("epoch 1 of 1: ")


def test_only_advertisements_are_left_out() -> None:
    lines = ("💡 Tip: try installing [litlogger]", "TPU available: False, using: 0 TPU cores", "GPU available: False")
    records = [logging.LogRecord("", logging.INFO, "", 0, line, None, None) for line in lines]
    assert [is_for_users(record) for record in records] == [False, False, True]


def test_a_predicted_image_is_one_line_whatever_it_is_called(capsys: pytest.CaptureFixture[str]) -> None:
    say("photos/cat.jpg", "cat", 0.9312, 23)
    say("a\nb\x1b[2J.jpg", "cat", 0.9312, 23)
    first, second = capsys.readouterr().out.splitlines()
    assert first == "photos/cat.jpg: cat, 93.1% sure after 23 glimpses"
    assert second == r"a\nb\x1b[2J.jpg: cat, 93.1% sure after 23 glimpses"


def test_times_are_said_in_a_fitting_unit() -> None:
    assert [duration(seconds) for seconds in (3.14159, 99, 150, 7200)] == ["3.14 s", "99 s", "2 min", "2.0 h"]
