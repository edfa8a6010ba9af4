"""The table of answers to every image: against the measurements of the same validation, and the shards."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import NO_PICTURES, TINY, flags

from callbacks.reports.answers import BatchAnswers, by_key
from mambaeye.evaluation.metrics import StepMetrics
from mambaeye.evaluation.sums import answer_of
from mambaeye.ops.precision import wide
from mambaeye.temperature import TEMPERATURE, Temperature
from train import main

QUIET = [*flags(NO_PICTURES), "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
CONDITIONS = ("32_random", "32_row_raster", "40_random", "40_row_raster")
REPORTED = (1, 2, 3, 4, 8, 9)
FEW_STEPS = {"trainer.limit_val_batches": 0, "trainer.max_steps": 4}


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data_dir: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])
    Path("data").symlink_to(data_dir)


@pytest.fixture(scope="module")
def trained(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a tiny model that is hardly trained, with a temperature; its fit was asked for answers."""
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    settings = TINY | FEW_STEPS | {"data.data_dir": data_dir, "run_dir": run_dir, "trainer.limit_val_batches": 2}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["train.py"])
        main(["fit", *flags(settings), "--answers.write=true"])
    last = run_dir / "checkpoints" / "last.ckpt"
    content = torch.load(last, weights_only=True)
    torch.save(content | {TEMPERATURE: Temperature((-1.5, -1.0, 0.5, 0.0, 0.0), (32, 64)).saved()}, last)
    return last


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def labels_by_key(data_dir: Path) -> dict[str, int]:
    """Keys and labels of the validation images, from the shards' index."""
    shards = json.loads((data_dir / "digits/val/index.json").read_text())["shards"]
    return {key: label for shard in shards for key, label in zip(shard["keys"], shard["labels"], strict=True)}


@pytest.mark.parametrize(("command", "name"), [("validate", "validation"), ("test", "test")])
def test_what_is_counted_in_the_tables_is_what_was_measured(
    command: str, name: str, trained: Path, data_dir: Path
) -> None:
    """Under every condition and at every reported step: top-1 to the last digit, and confidence with its temperature.

    397 images in batches of 50, the last of which is filled up.
    """
    more = ["--answers.write=true", "--data.evaluate.report_at=[3]", "--data.loader.batch_size=50"]
    main([command, f"--ckpt_path={trained}", "--run_dir=run", *QUIET, *more])
    content = json.loads(Path(f"run/{name}.json").read_text())
    assert TEMPERATURE in content["protocol"]
    tables = {path.stem: table(path) for path in Path(f"run/{name}/answers").iterdir()}
    assert tuple(sorted(tables)) == CONDITIONS
    expected = labels_by_key(data_dir)
    for rows in tables.values():
        assert [*rows[0]] == ["key", "label", *(f"{what}_{at}" for at in REPORTED for what in ("answer", "confidence"))]
        assert [(row["key"], int(row["label"])) for row in rows] == sorted(expected.items())
    assert len(content["rows"]) == len(CONDITIONS) * len(REPORTED)
    for measured in content["rows"]:
        rows, step = tables[f"{measured['resolution']}_{measured['scan']}"], measured["step"]
        right = sum(row[f"answer_{step}"] == row["label"] for row in rows)
        assert right / len(rows) == pytest.approx(measured["top1"], abs=1e-12)
        confidence = np.mean([float(row[f"confidence_{step}"]) for row in rows])
        assert confidence == pytest.approx(measured["confidence"], abs=5e-5)


@pytest.mark.long
def test_nobody_who_does_not_ask_gets_them(trained: Path) -> None:
    """Nor does a fit, whose fixture has asked."""
    main(["validate", f"--ckpt_path={trained}", "--run_dir=run", *QUIET, "--trainer.limit_val_batches=1"])
    assert Path("run/validation.json").exists()
    assert not [*Path("run").rglob("answers"), *trained.parents[1].rglob("answers")]


@pytest.mark.long
def test_an_encoder_that_answers_once_has_one_reported_step() -> None:
    settings = {name: value for name, value in TINY.items() if not name.startswith("model.encoder")}
    settings |= FEW_STEPS | {"model.encoder": "ViT", "run_dir": "run"}
    sizes = {f"model.encoder.{name}": value for name, value in {"dim": 16, "depth": 1, "heads": 2}.items()}
    main(["fit", *flags(settings | sizes)])
    main(["validate", "--ckpt_path=run/checkpoints/last.ckpt", *QUIET, "--answers.write=true"])
    measured = json.loads(Path("run/validation.json").read_text())["rows"]
    assert len(measured) == 2
    for one in measured:
        rows = table(Path(f"run/validation/answers/{one['resolution']}_canvas.csv"))
        assert [*rows[0]] == ["key", "label", f"answer_{one['step']}", f"confidence_{one['step']}"]
        right = sum(row[f"answer_{one['step']}"] == row["label"] for row in rows)
        assert right / len(rows) == pytest.approx(one["top1"], abs=1e-12)


def test_images_of_any_process_come_in_the_order_of_their_keys() -> None:
    """And two images that have a key in common, in two shards, in an order that does not depend on the processes."""
    draw = np.random.default_rng(0)
    keys = ["c", "a", "b", "a"]
    one = BatchAnswers(keys, np.arange(4), draw.integers(9, size=(4, 2)), draw.random((4, 2), np.float32))
    halves = [BatchAnswers(*(part[some] for part in one)) for some in (slice(2, 4), slice(0, 2))]
    rows = by_key([one], (1, 2))
    assert rows == by_key(halves, (1, 2))
    assert [(row["key"], row["label"]) for row in rows] == [("a", 1), ("a", 3), ("b", 2), ("c", 0)]
    assert rows[3]["confidence_2"] == f"{one.confidence[0, 1]:.4f}"


def test_of_classes_that_are_as_likely_the_answer_is_the_one_that_metrics_count() -> None:
    """With logits in three values and bf16, in which most images have several likeliest classes."""
    draw = torch.Generator().manual_seed(0)
    logits = torch.randint(3, (200, 7), generator=draw).to(torch.bfloat16)
    labels = torch.randint(7, (200,), generator=draw)
    metrics = StepMetrics(1)
    metrics.update(logits[:, None], labels, torch.ones(200, 1), torch.ones(200, dtype=torch.bool))
    answers, confidence = answer_of(logits)
    assert answers.dtype == torch.int64
    assert confidence.dtype == wide(torch.bfloat16)
    assert (answers == labels).double().mean() == metrics.compute()["top1"]
    torch.testing.assert_close(confidence, logits.float().softmax(-1).amax(-1))
