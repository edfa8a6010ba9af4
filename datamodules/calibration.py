"""The data module of `train.py calibrate`: training samples, those that were kept out if some were, as validation sees
them."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from lightning.pytorch.utilities import rank_zero_info

from datamodules.datamodule import LIMIT_VAL, ShardDataModule
from datamodules.loading.loader import FixedLoader
from datamodules.shards.held_out import to_calibrate_on
from datamodules.views.evaluate import EvaluationCanvases, evaluation_conditions
from datamodules.views.keys import CALIBRATION
from mambaeye.errors import InputError

SIDES = 5  # in the range of training's
BEYOND = (0.75, 1.5)  # times the smallest, and the largest: what it is worth there, training does not say
ANSWERS = 1 << 27  # logits at most, 512 MiB in float32


class CalibrationDataModule(ShardDataModule):
    """Hands over training samples in validation's place: without augmentation, on canvases of a few fixed sides.

    The sides are spread over those of training, with one below and one above. The scans are those of training; the
    glimpses and the way onto the canvas are validation's.
    """

    def prepare_data(self) -> None:
        """Pack your own pictures, or the embedded digits, if they are not packed yet."""
        self.splits.prepare({"train"}, self.loader)

    def setup(self, stage: str) -> None:
        """Open the training shards' index, for as many of the samples as answers fit into memory.

        Raises:
            InputError: shards that cannot be; arguments that do not go with the model.
        """
        takes, has_policy = self._model.takes, self._model.has_policy
        scans = [self.train_scan] if isinstance(self.train_scan, str) else [*self.train_scan]
        sides = calibration_sides(self.canvas_range, self.patch_size)
        self.conditions = evaluation_conditions(sides, scans, takes, has_policy)
        if takes == "canvas":
            self.evaluate = replace(self.evaluate, num_glimpses=1, report_at=())
        index = self.splits.open("train", self.loader.read_limits)
        if index.frames is not None:
            raise InputError(f"calibrate fits a temperature to images, and {index.name} holds clips: give other shards")
        steps = 2 * self.num_glimpses.bit_length()  # at most, see calibration_steps
        most = max(1, ANSWERS // (steps * self.num_classes * len(self.conditions)))
        self.indices["train"] = some = to_calibrate_on(index, self.held_out, most)
        self.classes = some.classes
        kind = (
            f"that data.held_out {self.held_out:g} kept out of training"
            if self.held_out
            else "that the model was trained on, for data.held_out kept none out of training"
        )
        rank_zero_info(
            f"calibrate looks at {len(some)} samples of {index.name} {kind}, at {', '.join(map(str, sides))} pixels"
        )
        self._take_limit(LIMIT_VAL)

    def val_dataloader(self) -> FixedLoader:
        """Load every sample once under every condition, at fixed positions."""
        layout = self.loader.evaluation_layout(self.indices["train"], 1)
        how = self.evaluate, None, self.pixels, self.loader.pixel_limit
        samples = EvaluationCanvases(self.conditions, self.patch_size, *how)
        limit = self.limits.get(LIMIT_VAL, 1.0)
        return FixedLoader(self._access("train", layout), samples, self.seed, limit, CALIBRATION)


def calibration_sides(canvas: Sequence[int], patch_size: int) -> list[int]:
    """Return canvas sides to calibrate at, in pixels: some from the smallest to the largest of training, and beyond."""
    smallest, largest = canvas
    inside = np.linspace(smallest, largest, SIDES).round().astype(int).tolist()
    below, above = (round(factor * side) for factor, side in zip(BEYOND, canvas, strict=True))
    return sorted({max(below, patch_size), *inside, above})
