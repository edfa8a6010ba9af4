"""The most confident mistakes: against all answers of a validation, over processes, and as they are shown."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import start
from lightning import LightningModule, Trainer
from scenes import canvases_of
from test_callbacks import digits, fit

from callbacks.plots.mistakes import Mistake, contact_sheet
from callbacks.reports.confident_mistakes import ConfidentMistakes, mistakes_in, small_image, surest
from callbacks.reports.ranks import of_all_ranks
from mambaeye.batch import CanvasBatch, Scene
from mambaeye.evaluation.metrics import ConfusionMetric

WRONG = 7


class KeepAnswers(ConfidentMistakes):
    """Notes every answer down besides."""

    def __init__(self) -> None:
        super().__init__(images=WRONG, every=1)
        self.answers: list[tuple[float, str, int, int]] = []

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: dict, batch: CanvasBatch, *rest: int
    ) -> None:
        super().on_validation_batch_end(trainer, pl_module, outputs, batch, *rest)
        if batch.condition == 1:
            shares = torch.softmax(outputs["logits"].double(), -1)
            for share, label, key, valid in zip(shares, batch.labels, batch.keys, batch.valid, strict=True):
                if valid and share.argmax() != label:
                    self.answers.append((-float(share.max()), key, int(label), int(share.argmax())))


def test_they_are_the_most_confident_of_all_wrong_answers(data_dir: Path, tmp_path: Path) -> None:
    """397 images at two resolutions, of which the middle condition's count."""
    keep = KeepAnswers()
    trainer = fit(tmp_path, data_dir, keep, limit_val_batches=None, lr=0.01)
    keep.answers.clear()
    trainer.validate(trainer.lightning_module, datamodule=trainer.datamodule, verbose=False)
    expected = sorted(keep.answers)[:WRONG]
    assert [(one.key, one.label, one.answer) for one in keep.found] == [line[1:] for line in expected]
    assert [one.confidence for one in keep.found] == pytest.approx([-line[0] for line in expected], abs=1e-6)
    folder = tmp_path / "validation" / "classes"
    with (folder / "mistakes.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["key"] for row in rows] == [line[1] for line in expected]
    assert {row["resolution"] for row in rows} == {"40"}
    assert (folder / "mistakes.png").exists()
    assert (tmp_path / "classes" / "mistakes.png").exists()  # of the fit's own


def test_filler_is_no_mistake_and_images_have_no_canvas_around_them() -> None:
    batch = canvases_of(6, 3, 8, 4)  # whose first row does not count
    logits = torch.randn(6, 4)
    wrong = {str(row) for row in range(1, 6) if logits[row].argmax() != batch.labels[row]}
    found = mistakes_in(batch, logits, 6, 16)
    assert {one.key for one in found} == wrong
    for one in found:
        _, _, height, width = batch.scene.boxes[int(one.key)].tolist()
        assert one.image.shape == (height, width, 3)
        expected = batch.scene.canvases[int(one.key), 2 : 2 + height, 3 : 3 + width].numpy()
        assert (one.image == expected).all()


def test_of_a_clip_the_middle_frame_is_shown() -> None:
    canvases = torch.randint(256, (1, 9, 12, 14, 3), dtype=torch.uint8)
    scene = Scene(canvases, torch.tensor([[2, 3, 1, 5, 8, 11]]), torch.zeros(1, 4, 3), *torch.zeros(2, 1))
    shown = small_image(CanvasBatch(scene, *torch.zeros(4, 1), ["a"], torch.ones(1), 0), 0, 8)
    assert np.array_equal(shown, canvases[0, 4, 3:11, 1:12])


def test_without_images_nothing_is_kept(data_dir: Path, tmp_path: Path) -> None:
    none = ConfidentMistakes(images=0)
    fit(tmp_path, data_dir, none, limit_val_batches=1)
    assert none.found == []
    assert not (tmp_path / "classes").exists()
    assert digits(data_dir).axes == 2


@pytest.mark.parametrize("number", [1, 6, 13])
def test_a_sheet_shows_picture_label_answer_confidence_and_key(number: int) -> None:
    names = ["$<b>$ cat", "dog"]
    image = np.full((30, 20, 3), 200, np.uint8)
    sheet = contact_sheet([Mistake(0.987, 0, 1, f"key{place}", image) for place in range(number)], names, "title")
    assert len(sheet.axes) == number
    texts = [text.get_text() for text in sheet.texts]
    for place in range(number):
        assert texts[1 + 3 * place : 4 + 3 * place] == ["dog, 98.7 %", "label: $<b>$ cat", f"key{place}"]
    for axes in sheet.axes:
        assert axes.get_position().y0 > 0.05 / sheet.get_figheight()


def made_up(rank: int) -> list[Mistake]:
    draw = np.random.default_rng(rank)
    confidences = draw.choice([0.5, 0.75, 0.9], 8)  # with equals
    return [
        Mistake(share, 0, 1, f"{rank}-{place}", np.zeros((2, 2, 3), np.uint8))
        for place, share in enumerate(confidences)
    ]


def confusion_of(ranks: list[int]) -> ConfusionMetric:
    metric = ConfusionMetric(4)
    for rank in ranks:
        draw = torch.Generator().manual_seed(rank)
        for size in (6, 3 + rank):  # the last batches differ, and a row of each is filler
            labels = torch.randint(4, (size,), generator=draw)
            metric.update(torch.randn(size, 4, generator=draw), labels, torch.arange(size) > 0)
    return metric


def main(rank: int, folder: Path) -> None:
    """Be one of two processes."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    found = surest(of_all_ranks(made_up(rank)), 5)
    matrix = confusion_of([rank]).compute().tolist()
    (folder / f"{rank}.json").write_text(json.dumps([[one.key for one in found], matrix]))
    torch.distributed.destroy_process_group()


@pytest.mark.long
def test_two_processes_find_what_one_does(tmp_path: Path) -> None:
    ranks = [start([str(tmp_path), str(rank)], script=Path(__file__)) for rank in (0, 1)]
    said = [rank.communicate(timeout=240)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], said
    expected = sorted([*made_up(0), *made_up(1)], key=lambda one: (-one.confidence, one.key))[:5]
    for rank in (0, 1):
        keys, matrix = json.loads((tmp_path / f"{rank}.json").read_text())
        assert keys == [one.key for one in expected]
        assert matrix == confusion_of([0, 1]).compute().tolist()
    assert sum(map(sum, matrix)) == 5 + 2 + 5 + 3


if __name__ == "__main__":
    main(int(sys.argv[2]), Path(sys.argv[1]))
