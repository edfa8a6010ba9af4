"""A film strip of the same few images after every validation."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse.typing import NonNegativeInt
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from callbacks.plots.film_strip import Film, film_strip
from callbacks.plots.panels import garbage_kept_young, save
from callbacks.reports.due import is_fitting, report_folder
from callbacks.reports.tensorboard import add_figure
from mambaeye.batch import CanvasBatch
from mambaeye.contracts import data_of, model_of
from mambaeye.rollout import Rollout


class FilmStrip(Callback):
    """Draws the same few validation images after every validation: in TensorBoard, and as film_strip.png.

    A row an image: the way of the first glimpses on it, then what has been seen after a few glimpse counts with the
    probabilities of the five classes that win in the end. The image itself is put together from all its glimpses; what
    none of them shows stays gray. The images are the first of the middle condition. There is none for an encoder that
    does not answer after every glimpse, none where positions have other axes than rows and columns, and none of
    canvases that are too large to be made.

    Args:
        images: How many; 0 for no film strip.
    """

    def __init__(self, images: NonNegativeInt = 3) -> None:
        self.images = images
        self.films: list[Film] = []
        self.side = 0  # of their canvas, in pixels
        self.condition: int | None = None  # whose images they are; None for no film strip

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data, encoder = data_of(trainer), model_of(pl_module).encoder
        in_steps = encoder.takes == "glimpses" and len(encoder.answers_at(data.num_glimpses)) == data.num_glimpses
        self.films = []
        self.condition = len(data.conditions) // 2 if self.images and in_steps and data.axes == 2 else None

    @rank_zero_only
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: CanvasBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self.films or batch.condition != self.condition or not isinstance(batch.scene.canvases, Tensor):
            return
        with trainer.precision_plugin.forward_context():
            films = films_of(model_of(pl_module).rollout(batch, self.images), batch.labels)
        self.side = max(batch.scene.canvases.shape[1:3])
        self.films = [film for film, valid in zip(films, batch.valid.tolist(), strict=False) if valid]

    @rank_zero_only
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or not self.films:
            return
        with garbage_kept_young():
            figure = film_strip(self.films, self.side, data_of(trainer).classes)
            add_figure(trainer, "film_strip", figure)
            folder = Path(trainer.default_root_dir) if is_fitting(trainer) else report_folder(trainer)
            save(figure, folder / "film_strip.png")
            del figure


def films_of(walk: Rollout, labels: Tensor) -> list[Film]:
    """Walk to the end, and return what was seen and answered on the way."""
    patches, positions, probabilities = [], [], []
    for step in walk:
        assert step.patches is not None
        patches.append(step.patches)
        positions.append(step.positions)
        probabilities.append(step.logits.float().softmax(-1))
    parts: list[np.ndarray] = [torch.cat(steps, dim=1).cpu().numpy() for steps in (patches, positions, probabilities)]
    return [Film(*film) for film in zip(*parts, labels.tolist(), strict=False)]
