"""The most confident mistakes of a validation, from all processes."""

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from jsonargparse.typing import NonNegativeInt
from lightning import Callback, LightningModule, Trainer
from torch import Tensor

from callbacks.plots.colors import as_rgb
from callbacks.plots.confusion import class_names
from callbacks.plots.mistakes import Mistake, contact_sheet
from callbacks.plots.panels import garbage_kept_young, save
from callbacks.plots.prediction import mosaic
from callbacks.plots.wording import counted
from callbacks.reports.class_report import classes_folder
from callbacks.reports.due import draws_now
from callbacks.reports.ranks import of_all_ranks
from callbacks.reports.tables import write_csv
from callbacks.reports.tensorboard import add_figure
from mambaeye.batch import CanvasBatch
from mambaeye.contracts import data_of, model_of
from mambaeye.geometry.box import Box

SIDE = 160  # pixels of an image that is kept, at most


class ConfidentMistakes(Callback):
    """Shows the images that the model was surest of and wrong about, after the last glimpse of the middle condition.

    The folder classes/ of the run directory, or after `validate` of its folder validation/, has mistakes.csv: keys,
    labels, answers and confidence; and mistakes.png, the images with them (of clips the middle frames), which
    TensorBoard has too. Often it is the label that is wrong.

    Args:
        images: How many; 0 for none.
        every: In a fit, draw every so many validations, and the first and the last epoch's; 0 for none.
    """

    def __init__(self, images: NonNegativeInt = 18, every: NonNegativeInt = 1) -> None:
        self.images, self.every = images, every
        self.validations = 0
        self.found: list[Mistake] = []

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.found = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: CanvasBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self.images and batch.condition == len(data_of(trainer).conditions) // 2:
            least = self.found[-1].confidence if len(self.found) == self.images else 0.0
            new = mistakes_in(batch, outputs["logits"], self.images, data_of(trainer).patch_size, least)
            self.found = surest([*self.found, *new], self.images)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or not self.images:
            return
        found = surest(of_all_ranks(self.found), self.images)
        if trainer.is_global_zero and found:
            self._write(trainer, found, model_of(pl_module).classes)
        self.validations += 1

    def _write(self, trainer: Trainer, found: Sequence[Mistake], names: Sequence[str]) -> None:
        data, folder = data_of(trainer), classes_folder(trainer)
        classes = class_names(names, data.num_classes)
        condition = data.conditions[len(data.conditions) // 2]
        rows = [
            condition.columns
            | {"key": one.key, "label": one.label, "class": classes[one.label], "answer": one.answer}
            | {"taken_for": classes[one.answer], "confidence": one.confidence}
            for one in found
        ]
        write_csv(folder / "mistakes.csv", rows)
        if draws_now(trainer, self.every, self.validations):
            title = f"{condition.title}: {counted(len(found), 'mistake')}, the most confident first"
            with garbage_kept_young():
                figure = contact_sheet(found, classes, title)
                save(figure, folder / "mistakes.png")
                add_figure(trainer, "mistakes", figure)
                del figure


def mistakes_in(batch: CanvasBatch, logits: Tensor, most: int, patch_size: int, least: float = 0.0) -> list[Mistake]:
    """Return the most confident mistakes of a batch.

    Args:
        batch: with B images.
        logits: (B, C), the last answers.
        most: how many at most.
        patch_size: side of a glimpse, pixels.
        least: confidence below which a mistake is of no interest; a GPU hands over no image of such a one.
    """
    confidence, answers = logits.float().softmax(-1).max(-1)  # (B,), (B,)
    wrong = (answers != batch.labels) & batch.valid
    sure = confidence.where(wrong, -1).topk(min(most, len(wrong))).indices
    columns = (part[sure].tolist() for part in (wrong, confidence, batch.labels, answers))
    return [
        Mistake(sureness, label, answer, batch.keys[row], small_image(batch, row, patch_size))
        for row, is_wrong, sureness, label, answer in zip(sure.tolist(), *columns, strict=True)
        if is_wrong and sureness >= least
    ]


def small_image(batch: CanvasBatch, row: int, patch_size: int) -> np.ndarray:
    """Return an image of a batch, or a clip's middle frame, without the canvas around it, small: (h, w, 3) uint8.

    Of an image that is too large to be there, its glimpses.
    """
    box, canvases = Box(*batch.scene.boxes[row].tolist()), batch.scene.canvases
    scale = min(1, SIDE / max(box.height, box.width))
    size = max(1, round(scale * box.width)), max(1, round(scale * box.height))
    if not isinstance(canvases, Tensor):
        return mosaic(canvases[row : row + 1], batch.scene.positions[row], box, patch_size, size)
    image = canvases[row][box.slices].cpu().numpy()
    image = as_rgb(image if box.axes == 2 else image[len(image) // 2])
    return image.copy() if scale == 1 else cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def surest(mistakes: Sequence[Mistake], most: int) -> list[Mistake]:
    """Return the most confident; among equals those whose keys come first, whoever found them."""
    return sorted(mistakes, key=lambda one: (-one.confidence, one.key))[:most]
