"""Sweeps on the command line: one validate under many conditions is what separate runs give; what it leaves behind."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from commands import NO_PICTURES, TINY, flags

from callbacks.reports.tables import accuracy_table, early_exit_table, markdown
from mambaeye.batch import EvaluationCondition
from mambaeye.evaluation.result import METRICS, ConditionResult, EarlyExitResult, ValidationResult
from train import main

SIDES, SCANS, BUDGETS = (24, 40, 33), ("random", "spiral", "sobol"), (5, 40, 12)
RULES = {
    "model.early_exit.confidence": "[0.1,0.11,0.2]",
    "model.early_exit.stable": "[3]",
    "model.early_exit.entropy": "[2.29]",
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> str:
    run_dir = tmp_path_factory.mktemp("sweep") / "run"
    settings = {**TINY, "run_dir": run_dir, "data.data_dir": data_dir, "trainer.limit_val_batches": 0}
    main(["fit", *flags(settings), "--trainer.limit_train_batches=6"])
    return str(run_dir / "checkpoints" / "last.ckpt")


def validate(checkpoint: str, run_dir: Path, sides: tuple, scans: tuple, budgets: tuple, *more: str) -> dict:
    settings = {
        "data.resolutions": list(sides),
        "data.scans": f"[{','.join(scans)}]",
        "data.evaluate.num_glimpses": max(budgets),
        "data.evaluate.report_at": list(budgets),
    }
    settings = {name: str(value).replace(" ", "") for name, value in settings.items()} | RULES
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
    main(["validate", f"--ckpt_path={checkpoint}", f"--run_dir={run_dir}", *flags(settings), *quiet, *more])
    return json.loads((run_dir / "validation.json").read_text())


@pytest.fixture(scope="module")
def sweep(checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("swept")
    validate(checkpoint, run_dir, SIDES, SCANS, BUDGETS, "--data.loader.num_workers=2", *flags(NO_PICTURES))
    return run_dir


@pytest.mark.long
def test_a_sweep_is_its_conditions_one_by_one(sweep: Path, checkpoint: str, tmp_path: Path) -> None:
    """Other runs, each with one resolution, one scan and one budget, in other batches."""
    whole = json.loads((sweep / "validation.json").read_text())
    steps = {1, 2, 4, 8, 16, 32, 40, 5, 12}
    assert len(whole["rows"]) == len(SIDES) * len(SCANS) * len(steps)
    for side, scan, budget in zip(SIDES, SCANS, BUDGETS, strict=True):
        other = ["--data.loader.batch_size=50", *flags(NO_PICTURES)]
        alone = validate(checkpoint, tmp_path / scan, (side,), (scan,), (budget,), *other)
        same = [r for r in whole["rows"] if (r["resolution"], r["scan"]) == (side, scan) and r["step"] <= budget]
        same = [row for row in same if row["step"] in {1, 2, 4, 8, 16, 32, budget}]
        assert len(same) == len(alone["rows"])
        for one, other in zip(same, alone["rows"], strict=True):
            assert one == pytest.approx(other, abs=1e-6)
        if budget == max(BUDGETS):
            early = [row for row in whole["early_exit"] if (row["resolution"], row["scan"]) == (side, scan)]
            assert [pytest.approx(row, abs=1e-6) for row in early] == alone["early_exit"]


def test_what_a_sweep_leaves_behind(sweep: Path) -> None:
    content = json.loads((sweep / "validation.json").read_text())
    assert content["protocol"] == {
        "num_glimpses": 40,
        "report_at": list(BUDGETS),
        "shift": [0, 0],
        "resize": "fit",
        "interpolation": "lanczos",
        "truncate": False,
        "skip_edge": False,
    }
    assert {(row["resolution"], row["scan"]) for row in content["early_exit"]} == {(r, s) for r in SIDES for s in SCANS}
    assert len(content["early_exit"]) == 9 * 5
    last = {(row["resolution"], row["scan"]): row for row in content["rows"] if row["step"] == 40}
    for row in content["early_exit"]:
        if row["rule"] == "confidence" and row["threshold"] == 0.1:  # of ten classes, one always has that much
            assert (row["glimpses"], row["stopped"]) == (1, 1)
        if not row["stopped"]:  # never met: the last answer
            assert row["glimpses"] == 40
            assert row["top1"] == pytest.approx(last[row["resolution"], row["scan"]]["top1"])
    *table, between, protocol = (sweep / "validation" / "table.md").read_text().splitlines()
    assert (between, protocol) == ("", f"data.evaluate: {json.dumps(content['protocol'])}")
    assert len(table) == 2 + 2 + 9
    assert len({line.count("|") for line in table[2:]}) == 1
    with (sweep / "validation" / "early_exit.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["glimpses"]) for row in rows] == [row["glimpses"] for row in content["early_exit"]]


@pytest.mark.long
def test_a_sweep_is_drawn(checkpoint: str, tmp_path: Path) -> None:
    """By resolution too: two of them, of a few images."""
    few = ["--trainer.limit_val_batches=2", *flags({**NO_PICTURES, "report.plots": "true"})]
    validate(checkpoint, tmp_path, SIDES[:2], SCANS[:2], BUDGETS, *few)
    pictures = {path.stem for path in (tmp_path / "validation").glob("*.png")}
    assert pictures >= {
        "resolution",
        "token_budgets",
        "area",
        "early_exit",
        "early_exit_ece",
        "reliability",
        "confidence",
    }


def test_a_validation_says_how_long_it_waited(checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    few = ["--trainer.limit_val_batches=2", "--data.loader.batch_size=40", *flags(NO_PICTURES)]
    validate(checkpoint, tmp_path, (24,), ("random",), (7,), *few)
    found = re.search(r"([\d,]+) glimpses in ([\d.]+) s, (\d+)% of it waiting for data", capsys.readouterr().out)
    assert found[1] == str(2 * 40 * 7)
    assert 0 <= int(found[3]) <= 100


def accuracies(*exits: EarlyExitResult) -> ValidationResult:
    """Nine images, whose top-1 grows with what was seen of them."""
    steps = [1, 2, 4, 8]
    metrics = {name: np.zeros(4) for name in METRICS} | {"top1": np.array([0.2, 0.3, 0.5, 0.8]), "top5": np.ones(4)}
    empty: dict[str, np.ndarray] = {}
    one = ConditionResult(CONDITION, 10, steps, steps, np.full(4, 9), metrics, np.zeros(0), empty, empty)
    return ValidationResult([one], list(exits), {})


CONDITION = EvaluationCondition(8, "random")


@pytest.mark.parametrize(("most", "columns"), [(None, "1 2 4 8"), (4, "1 2 4 8"), (3, "2 8"), (1, "8")])
def test_a_table_has_no_more_columns_than_asked(most: int | None, columns: str) -> None:
    title, headings, lines = accuracy_table(accuracies(), most)
    assert title == "Top-1 (%) after so many glimpses, 9 images"
    assert headings == ["side", "scan", *columns.split(), "top-5", "sure", "ECE"]
    shares = {"1": "20.0", "2": "30.0", "4": "50.0", "8": "80.0"}
    assert lines == [["8", "random", *(shares[column] for column in columns.split()), "100.0", "0.0", "0.0"]]


def test_the_table_of_early_answers_takes_the_cheapest_that_is_as_good() -> None:
    thresholds = {0.5: (2.0, 0.5), 0.7: (4.0, 0.796), 0.9: (5.5, 0.81), 1.0: (8.0, 0.8)}
    early = [
        EarlyExitResult(CONDITION, "confidence", tau, taken, 1.0, 9, {"top1": top1})
        for tau, (taken, top1) in thresholds.items()
    ]
    early.append(replace(early[0], rule="stable", threshold=2))
    table = early_exit_table(accuracies(*early))
    assert table.headings == ["side", "scan", "at 8", "conf", "took", "stab", "took"]
    assert table.lines == [["8", "random", "80.0", "0.7", "4.0", "-", "-"]]
    assert markdown(table).splitlines()[-1] == "| 8 | random | 80.0 | 0.7 | 4.0 | - | - |"


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        (
            "--model.early_exit.confidence=[0.5,1.5]",
            "model.early_exit.confidence has 1.5: give confidences above 0 and up to",
        ),
        ("--model.early_exit.stable=[0]", "model.early_exit.stable has 0: give at least 1 glimpse"),
        ("--data.evaluate.num_glimpses=0", "data.evaluate.num_glimpses is 0: give at least 1"),
        ("--data.scans=[random,zigzag]", "no scan pattern is called 'zigzag': choose one of random, random_grid, row"),
        ("--data.resolutions=[8]", "data.resolutions has 8, less than a glimpse of 16 pixels"),
    ],
)
def test_what_cannot_be_swept(
    checkpoint: str, tmp_path: Path, flag: str, message: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["validate", f"--ckpt_path={checkpoint}", f"--run_dir={tmp_path}", flag])
    assert message in re.sub(r"\s+", " ", f"{ended.value} {capsys.readouterr().err}")


@pytest.mark.long
def test_one_glimpse_and_one_rule(checkpoint: str, tmp_path: Path) -> None:
    one = ["--model.early_exit.confidence=[0.5]", "--model.early_exit.stable=[]", "--model.early_exit.entropy=[]"]
    content = validate(checkpoint, tmp_path, (24,), ("random",), (1,), *one)
    assert [(row["step"], row["samples"]) for row in content["rows"]] == [(1, 397)]
    assert [(row["threshold"], row["glimpses"]) for row in content["early_exit"]] == [(0.5, 1)]


@pytest.mark.long
def test_no_rules(checkpoint: str, tmp_path: Path) -> None:
    none = [f"--model.early_exit.{kind}=[]" for kind in ("confidence", "stable", "entropy")]
    content = validate(checkpoint, tmp_path, (24,), ("random",), (2,), *none, "--trainer.limit_val_batches=2")
    assert content.keys() == {"protocol", "rows"}
