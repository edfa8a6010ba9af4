"""Files of the callbacks, against what they should hold: on the digits, with a model of a few thousand parameters."""

import csv
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from mean_colour import MeanColour
from scenes import glimpses_of

from callbacks.reports.curve_records import CurveRecords
from callbacks.reports.film_strip import FilmStrip
from callbacks.reports.glimpse_axis import GlimpseAxis
from callbacks.reports.throughput import Throughput
from callbacks.reports.training_curves import TrainingCurves
from callbacks.reports.validation_figures import ValidationFigures
from callbacks.reports.validation_report import ValidationReport
from datamodules.datamodule import ShardDataModule
from datamodules.loading.config import LoaderConfig
from datamodules.loading.loader import ShardAccess
from datamodules.views.evaluate import EvaluateView
from datamodules.views.train import TrainView
from mambaeye.batch import GlimpseBatch
from mambaeye.encoders.base import Encoder
from mambaeye.encoders.mambaeye import MambaEye
from mambaeye.evaluation.result import METRICS, ValidationResult
from mambaeye.flops import training_flops
from mambaeye.module import ClassifierModule
from mambaeye.optim import OptimizerConfig

LENGTH, BATCH = 9, 50


def small_encoder() -> Encoder:
    torch.manual_seed(0)
    return MambaEye(num_classes=10, dim=16, depth=1, d_state=8, headdim=8)


def digits(data_dir: Path, accumulate: int = 1, **arguments: Any) -> ShardDataModule:
    """397 digits to train on, and to validate on at two resolutions."""
    shards = str(data_dir / "digits" / "val")
    return ShardDataModule(
        shards,
        shards,
        resolutions=(32, 40),
        train=TrainView(num_glimpses=LENGTH),
        evaluate=EvaluateView(num_glimpses=LENGTH),
        loader=LoaderConfig(batch_size=accumulate * BATCH, micro_batch_size=BATCH, num_workers=0),
        **arguments,
    )


def fit(
    run_dir: Path,
    data_dir: Path,
    *callbacks: Callback,
    lr: float = 0.0,
    accumulate: int = 1,
    encoder: Encoder | None = None,
    ckpt_path: Path | None = None,
    **trainer: Any,
) -> Trainer:
    """A short fit without a logger; with no learning rate, so that weights stay."""
    module = ClassifierModule(encoder or small_encoder(), optimizer=OptimizerConfig(lr=lr, warmup_epochs=0))
    settings = {"max_epochs": 1, "limit_train_batches": 4, "log_every_n_steps": 1, "limit_val_batches": 0} | trainer
    runner = Trainer(
        accelerator="cpu",
        default_root_dir=run_dir,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=list(callbacks),
        **{"logger": False} | settings,
    )
    runner.fit(module, digits(data_dir, accumulate), ckpt_path=ckpt_path, weights_only=True)
    return runner


def lines_of(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run_dir / "curves.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def test_training_curves_are_those_of_the_batch(data_dir: Path, tmp_path: Path) -> None:
    """Weights stay, so the loss after a step is what the step had: thirds add up to it."""
    seen_norms, confidences = [], []

    class Independently(Callback):
        def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
            seen_norms.append(sum(float((p.grad**2).sum()) for p in pl_module.parameters()) ** 0.5)

        def on_train_batch_end(
            self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: GlimpseBatch, batch_idx: int
        ) -> None:
            with torch.no_grad():
                confidence = pl_module.encoder(batch.patches, batch.positions).softmax(-1).amax(-1)
            ratio = batch.information_ratio
            confidences.append([confidence[(low <= ratio) & (ratio < high)].mean() for low, high in fifths])

    fifths = [(0, 0.2), (0.2, 0.4), (0.4, 0.6), (0.6, 0.8), (0.8, 1.1)]
    fit(tmp_path, data_dir, Independently(), TrainingCurves(images=BATCH), CurveRecords())
    lines = lines_of(tmp_path, "training")
    assert [line["optimizer_step"] for line in lines] == [1, 2, 3, 4]
    for line, norm, expected in zip(lines, seen_norms, confidences, strict=True):
        thirds = [line[f"train_loss_by_glimpse/{name}"] for name in ("early", "middle", "late")]
        assert sum(thirds) / 3 == pytest.approx(line["train/loss"], abs=1e-5)
        assert line["train/gradient_norm"] == pytest.approx(norm, abs=1e-5)
        assert line["train/lr"] == 0
        for (low, _), value in zip(fifths, expected, strict=True):
            logged = line.get(f"train_confidence_by_information_ratio/{low:.1f}")
            assert value.isnan() if logged is None else logged == pytest.approx(float(value), abs=1e-5)


@pytest.mark.parametrize(("every", "accumulate", "steps"), [(2, 1, [2, 4]), (1, 3, [1, 2]), (3, 1, [3]), (0, 1, [])])
def test_only_logged_steps_cost(
    every: int, accumulate: int, steps: list[int], data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, per_step_loss = [], ClassifierModule.per_step_loss

    def counted(self: ClassifierModule, *arguments: Any) -> Any:
        asked.append(self.trainer.global_step)
        return per_step_loss(self, *arguments)

    monkeypatch.setattr(ClassifierModule, "per_step_loss", counted)
    settings = {"log_every_n_steps": every, "accumulate": accumulate}
    fit(tmp_path, data_dir, TrainingCurves(), Throughput(), CurveRecords(), **settings)
    assert [line["optimizer_step"] for line in lines_of(tmp_path, "training")] == asked == steps


def test_throughput_counts_images_and_the_time_waited(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loader that sleeps before every batch: what is logged gives back the clock's time and the time slept."""
    nap, batches = 0.05, ShardAccess.batches

    def slowly(self: ShardAccess, *arguments: Any) -> Iterator[GlimpseBatch]:
        for batch in batches(self, *arguments):
            time.sleep(nap)
            yield batch

    monkeypatch.setattr(ShardAccess, "batches", slowly)
    start = time.perf_counter()
    trainer = fit(tmp_path, data_dir, Throughput(peak_flops=1e9), CurveRecords(), log_every_n_steps=2)
    passed = time.perf_counter() - start
    lines, seconds = lines_of(tmp_path, "training"), 0.0
    assert len(lines) == 2
    for line in lines:
        rate = line["throughput/images_per_second"]
        assert line["throughput/glimpses_per_second"] == pytest.approx(rate * LENGTH, rel=1e-4)
        window = 2 * BATCH / rate
        seconds += window
        assert 2 * nap <= line["throughput/data_wait"] * window <= window
        flops = training_flops(trainer.lightning_module.encoder, glimpses_of(2, LENGTH, 16, 10))
        assert line["throughput/mfu"] == pytest.approx(rate * flops / 1e9, rel=1e-3)
        assert 0.01 < line["throughput/memory_gib"] < 100
    assert 4 * nap < seconds < passed


def test_a_continued_run_takes_its_steps_again(data_dir: Path, tmp_path: Path) -> None:
    """Lines after the checkpoint, and one that a kill cut off, are dropped; what was before stays."""
    lines = [{"kind": "training", "epoch": 0, "optimizer_step": step} for step in (-1, 0, 1, 5)]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "trai'
    (tmp_path / "curves.jsonl").write_text(text)
    fit(tmp_path, data_dir, CurveRecords())
    assert [line["optimizer_step"] for line in lines_of(tmp_path, "training")] == [-1, 0, 1, 2, 3, 4]


class KeepResults(Callback):
    """Keeps what every validation measured."""

    def __init__(self) -> None:
        self.results: list[ValidationResult] = []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.results.append(pl_module.result)


def test_records_are_the_results(data_dir: Path, tmp_path: Path) -> None:
    """The module's own results are written down."""
    keep = KeepResults()
    fit(tmp_path, data_dir, CurveRecords(), keep, limit_val_batches=None, max_epochs=2, lr=0.01)
    lines = lines_of(tmp_path, "validation")
    assert [(line["epoch"], line["resolution"]) for line in lines] == [(0, 32), (0, 40), (1, 32), (1, 40)]
    for line, result in zip(lines, [one for told in keep.results for one in told.conditions], strict=True):
        assert line["steps"] == list(range(1, LENGTH + 1))
        assert line["samples"] == [397] * LENGTH
        for name in METRICS:
            assert line[name] == pytest.approx(result[name].tolist(), abs=1e-6)
        assert [bins["step"] for bins in line["reliability"]] == [1, 2, 4, 9]
        assert all(sum(bins["bin_count"]) == 397 for bins in line["reliability"])


def test_the_history_of_figures_goes_through_a_checkpoint(data_dir: Path, tmp_path: Path) -> None:
    """A continued run knows the ECE of the epochs before, whatever files there are."""

    class Save(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            trainer.save_checkpoint(tmp_path / f"{trainer.current_epoch}.ckpt")

    settings = {"limit_val_batches": 2, "max_epochs": 3, "lr": 0.01, "limit_train_batches": 2}
    whole, keep = ValidationFigures(), KeepResults()
    fit(tmp_path / "one", data_dir, whole, keep, Save(), **settings)
    assert [(entry.epoch, entry.title) for entry in whole.history] == [
        (epoch, f"{side} px, random") for epoch in range(3) for side in (32, 40)
    ]
    measured = [one["ece"] for result in keep.results for one in result.conditions]
    for entry, ece in zip(whole.history, measured, strict=True):
        assert entry.ece == pytest.approx(ece, abs=5e-4)  # half precision
    continued = ValidationFigures()
    fit(tmp_path / "two", data_dir, continued, ckpt_path=tmp_path / "1.ckpt", **settings)
    for entry, other in zip(whole.history, continued.history, strict=True):
        assert entry[:3] == other[:3]
        assert entry.ece.tolist() == other.ece.tolist()


def test_without_figures_no_history(data_dir: Path, tmp_path: Path) -> None:
    figures = ValidationFigures(every=0)
    fit(tmp_path, data_dir, figures, limit_val_batches=1)
    assert figures.history == []
    assert figures.state_dict() == {}


@pytest.mark.long
def test_a_validation_shows_the_training_that_led_there(data_dir: Path, tmp_path: Path) -> None:
    """Drawn by who owns curves.jsonl, from it alone; a directory without one has no training to show."""
    trainer = fit(tmp_path, data_dir, CurveRecords(), ValidationReport(), limit_val_batches=1, max_epochs=2, lr=0.01)
    folder = tmp_path / "validation"
    assert not folder.exists()
    trainer.validate(trainer.lightning_module, datamodule=trainer.datamodule, verbose=False)
    assert {"training.csv", "training.png", "ece_by_epoch.png"} <= {path.name for path in folder.iterdir()}
    with (folder / "training.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["optimizer_step"]) for row in rows] == list(range(1, 9))
    (tmp_path / "curves.jsonl").unlink()
    trainer.test(trainer.lightning_module, datamodule=trainer.datamodule, verbose=False)
    assert (tmp_path / "test" / "curves.csv").exists()
    assert not (tmp_path / "test" / "training.png").exists()


@pytest.mark.long
def test_every_report_copes_with_an_encoder_that_answers_once(
    data_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An encoder of canvases: no film, no glimpses a second, no loss by glimpse; all else as for others."""
    film, figures = FilmStrip(), ValidationFigures()
    reports = [Throughput(peak_flops=1e9), TrainingCurves(), ValidationReport(), CurveRecords(), GlimpseAxis()]
    logger = TensorBoardLogger(tmp_path, name="", version="")
    trainer = fit(
        tmp_path, data_dir, film, figures, *reports, encoder=MeanColour(10), limit_val_batches=1, logger=logger
    )
    assert film.films == []
    assert len(figures.history) == 2
    (line, *_) = lines_of(tmp_path, "training")
    assert line["throughput/images_per_second"] > 0
    assert line["throughput/mfu"] > 0
    assert "throughput/glimpses_per_second" not in line
    assert not [name for name in line if name.startswith("train_loss_by_glimpse")]
    known = [name for name, value in line.items() if "information_ratio" in name and value is not None]
    assert known == ["train_confidence_by_information_ratio/0.8"]
    assert list((tmp_path / "by_glimpse/epoch_000").glob("events*"))
    trainer.validate(trainer.lightning_module, datamodule=trainer.datamodule, verbose=False)
    said = capsys.readouterr().out
    assert re.search(r"\b100 canvases in [\d.]+ s", said), said
    assert not (tmp_path / "validation" / "film_strip.png").exists()
    assert (tmp_path / "validation" / "reliability.png").exists()
    assert not list((tmp_path / "validation").glob("early_exit*"))  # nothing to stop before a single answer
    assert "early_exit" not in json.loads((tmp_path / "validation.json").read_text())


def test_films_are_of_the_same_images_every_epoch(data_dir: Path, tmp_path: Path) -> None:
    films = []

    class Keep(FilmStrip):
        def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            films.append(self.films)
            super().on_validation_end(trainer, pl_module)

    fit(tmp_path, data_dir, Keep(images=2), limit_val_batches=None, max_epochs=2, lr=0.01)
    assert len(films[0]) == 2
    for before, after in zip(*films, strict=True):
        assert (before.patches == after.patches).all()
        assert (before.positions == after.positions).all()
        assert before.label == after.label
        assert not np.allclose(before.probabilities, after.probabilities)
