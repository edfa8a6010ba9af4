"""What the callbacks write, against what it should be: on the digits, with a model of a few thousand parameters."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning import Callback, LightningModule, Trainer
from matplotlib.colors import to_rgb

from callbacks.reports.film_strip import UNSEEN, Film, FilmStrip, film_strip, seen
from callbacks.reports.records import CurveRecords, budgets, plain, read_records, validation_records
from callbacks.reports.throughput import Throughput
from callbacks.reports.training import TrainingCurves
from datamodules.datamodule import ShardDataModule
from datamodules.loading.loader import EpochLoader
from mambaeye.batch import GlimpseBatch
from mambaeye.encoders.mambaeye import EncoderConfig
from mambaeye.module import ClassifierModule
from mambaeye.optim import OptimizerConfig

LENGTH, BATCH = 9, 50


def fit(
    run_dir: Path, data_dir: Path, *callbacks: Callback, lr: float = 0.0, accumulate: int = 1, **trainer: Any
) -> Trainer:
    """A short fit without a logger; with no learning rate, so that weights stay."""
    shards = str(data_dir / "digits" / "val")
    batches = {"batch_size": accumulate * BATCH, "micro_batch_size": BATCH, "num_workers": 0}
    data = ShardDataModule(shards, shards, length=LENGTH, validation_length=LENGTH, resolutions=(32, 40), **batches)
    torch.manual_seed(0)
    sizes = EncoderConfig(num_classes=10, dim=16, depth=1, d_state=8, headdim=8)
    module = ClassifierModule(sizes, OptimizerConfig(lr=lr, warmup_epochs=0))
    settings = {"max_epochs": 1, "limit_train_batches": 4, "log_every_n_steps": 1, "limit_val_batches": 0} | trainer
    runner = Trainer(
        accelerator="cpu",
        default_root_dir=run_dir,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=list(callbacks),
        **settings,
    )
    runner.fit(module, data)
    return runner


def training_lines(run_dir: Path) -> list[dict[str, Any]]:
    return [line for line in read_records(run_dir / "curves.jsonl") if line["kind"] == "training"]


def test_training_curves_are_those_of_the_batch(data_dir: Path, tmp_path: Path) -> None:
    """Weights stay, so what is probed after a step is what the step had: thirds add up to the loss."""
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
    lines = training_lines(tmp_path)
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
    probed, probe = [], ClassifierModule.probe

    def counted(self: ClassifierModule, *arguments: Any) -> Any:
        probed.append(self.trainer.global_step)
        return probe(self, *arguments)

    monkeypatch.setattr(ClassifierModule, "probe", counted)
    settings = {"log_every_n_steps": every, "accumulate": accumulate}
    fit(tmp_path, data_dir, TrainingCurves(), Throughput(), CurveRecords(), **settings)
    assert [line["optimizer_step"] for line in training_lines(tmp_path)] == probed == steps


def test_throughput_counts_images_and_the_time_waited(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loader that sleeps before every batch: what is logged gives back the clock's time and the time slept."""
    nap, batches = 0.05, EpochLoader.batches

    def slowly(self: EpochLoader, *arguments: Any) -> Iterator[GlimpseBatch]:
        for batch in batches(self, *arguments):
            time.sleep(nap)
            yield batch

    monkeypatch.setattr(EpochLoader, "batches", slowly)
    start = time.perf_counter()
    trainer = fit(tmp_path, data_dir, Throughput(peak_flops=1e9), CurveRecords(), log_every_n_steps=2)
    passed = time.perf_counter() - start
    lines, seconds = training_lines(tmp_path), 0.0
    assert len(lines) == 2
    for line in lines:
        rate = line["throughput/images_per_second"]
        assert line["throughput/glimpses_per_second"] == pytest.approx(rate * LENGTH, rel=1e-4)
        window = 2 * BATCH / rate
        seconds += window
        assert 2 * nap <= line["throughput/data_wait"] * window <= window
        flops = trainer.lightning_module.flops_an_image(LENGTH)
        assert line["throughput/mfu"] == pytest.approx(rate * flops / 1e9, rel=1e-3)
        assert 0.01 < line["throughput/memory_gib"] < 100
    assert 4 * nap < seconds < passed


def test_a_continued_run_takes_its_steps_again(data_dir: Path, tmp_path: Path) -> None:
    """Lines after the checkpoint, and one that a kill cut off, are dropped; what was before stays."""
    lines = [{"kind": "training", "epoch": 0, "optimizer_step": step} for step in (-1, 0, 1, 5)]
    text = "".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "trai'
    (tmp_path / "curves.jsonl").write_text(text)
    fit(tmp_path, data_dir, CurveRecords())
    assert [line["optimizer_step"] for line in training_lines(tmp_path)] == [-1, 0, 1, 2, 3, 4]


def test_records_are_the_curves(data_dir: Path, tmp_path: Path) -> None:
    """What is written down is what the module says."""
    said = []

    class Ask(Callback):
        def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            said.append(pl_module.validation_curves)

    fit(tmp_path, data_dir, CurveRecords(), Ask(), limit_val_batches=None, max_epochs=2, lr=0.01)
    lines = [line for line in read_records(tmp_path / "curves.jsonl") if line["kind"] == "validation"]
    assert [(line["epoch"], line["resolution"]) for line in lines] == [(0, 32), (0, 40), (1, 32), (1, 40)]
    for line, curves in zip(lines, [*said[0], *said[1]], strict=True):
        assert line["steps"] == list(range(1, LENGTH + 1))
        assert line["samples"] == [397] * LENGTH
        for name in ("top1", "confidence", "ece", "adaptive_ece", "nll"):
            assert line[name] == pytest.approx(curves[name].tolist(), abs=1e-6)
        assert [bins["step"] for bins in line["reliability"]] == [1, 2, 4, 9]
        assert all(sum(bins["bin_count"]) == 397 for bins in line["reliability"])


@given(length=st.integers(1, 5000))
def test_budgets_are_few_kept_steps_from_first_to_last(length: int) -> None:
    steps = [step for step in range(1, length + 1) if step < 10 or step % 7 == 0 or step == length]
    some = budgets(steps)
    assert some == sorted(set(some))
    assert {1, length} <= set(some) <= set(steps)
    assert len(some) <= 4


def test_plain_numbers() -> None:
    assert plain(torch.tensor([[0.12345678, torch.nan], [1, 2]])) == [[0.123457, None], [1, 2]]
    assert plain(torch.tensor(7)) == 7


@given(
    places=st.lists(st.tuples(st.integers(-2, 7), st.integers(-2, 7)), min_size=1, max_size=6), steps=st.integers(0, 6)
)
def test_what_was_seen(places: list[tuple[int, int]], steps: int) -> None:
    """A pixel is gray until a glimpse shows it, and then as the image has it; glimpses may stand over the canvas."""
    around = np.random.default_rng(0).integers(0, 199, (14, 14, 3), dtype=np.uint8)
    image = around[3:-3, 3:-3]
    patches = np.stack([around[3 + row : 6 + row, 3 + col : 6 + col].transpose(2, 0, 1) for row, col in places])
    picture = seen(Film(patches, np.array(places), np.zeros((len(places), 2)), 0), steps, 8)
    for row in range(8):
        for col in range(8):
            shown = any(r <= row < r + 3 and c <= col < c + 3 for r, c in places[:steps])
            assert (picture[row, col] == (image[row, col] if shown else UNSEEN)).all()


def test_a_film_strip_of_one_glimpse_and_two_classes() -> None:
    film = Film(np.zeros((1, 3, 2, 2), np.uint8), np.zeros((1, 2), int), np.array([[0.25, 0.75]]), 1)
    bars, way = film_strip([film], 6, ["a", "b"]).axes[0].collections
    lengths = [end[0] - start[0] for start, end in bars.get_segments()]
    assert lengths == pytest.approx([0.95 * 0.75, 0.95 * 0.25])  # the winner first
    assert [tuple(color[:3]) for color in bars.get_colors()] == [to_rgb("tab:green"), to_rgb("0.7")]
    assert len(way.get_segments()) == 0  # no turn was taken


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


def test_a_validation_alone_has_records(data_dir: Path, tmp_path: Path) -> None:
    trainer = fit(tmp_path, data_dir)
    trainer.limit_val_batches = 1.0
    trainer.validate(trainer.lightning_module, datamodule=trainer.datamodule, verbose=False)
    assert [record["resolution"] for record in validation_records(trainer)] == [32, 40]
