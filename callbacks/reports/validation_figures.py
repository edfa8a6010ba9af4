"""The figures of a validation, in TensorBoard."""

from typing import Any

import numpy as np
import torch
from jsonargparse.typing import NonNegativeInt
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from callbacks.plots.calibration import EpochECE, confidence_by_information_ratio, ece_by_epoch, reliability
from callbacks.plots.curves import accuracy_and_confidence
from callbacks.plots.panels import garbage_kept_young
from callbacks.plots.resolutions import token_budgets
from callbacks.reports.due import draws_now, is_fitting, result_of
from callbacks.reports.tensorboard import add_figure
from mambaeye.contracts import data_of


class ValidationFigures(Callback):
    """Draws every validation of a fit: accuracy and confidence, reliability, information ratio, and ECE by epoch.

    Of several resolutions it draws accuracy at fixed token budgets, too.

    Remembers the ECE of earlier validations, in checkpoints too, in half precision: 2 bytes for each of them,
    condition and kept step.

    Args:
        every: Draw every so many validations, and the first and the last epoch's; 0 for none.
    """

    def __init__(self, every: NonNegativeInt = 1) -> None:
        self.every = every
        self.validations = 0
        self.history: list[EpochECE] = []

    @rank_zero_only
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not is_fitting(trainer) or not self.every:
            return
        result = result_of(pl_module)
        results = result.conditions
        epoch, steps = trainer.current_epoch, results[0].steps
        self.history = [entry for entry in self.history if entry.steps == steps]  # a continued run may keep others
        self.history += [EpochECE(epoch, result.title, steps, result["ece"].astype(np.float16)) for result in results]
        if draws_now(trainer, self.every, self.validations):
            with garbage_kept_young():
                add_figure(trainer, "accuracy_and_confidence", accuracy_and_confidence(results, small=True))
                add_figure(trainer, "reliability", reliability(results, small=True))
                add_figure(trainer, "information_ratio", confidence_by_information_ratio(results, small=True))
                add_figure(trainer, "ece_by_epoch", ece_by_epoch(self.history))
                if result.has_sizes:
                    add_figure(trainer, "token_budgets", token_budgets(results, data_of(trainer).canvas_range))
        self.validations += 1

    def state_dict(self) -> dict[str, Any]:
        if not self.history:
            return {}
        return {
            "steps": self.history[0].steps,
            "epochs": [entry.epoch for entry in self.history],
            "titles": [entry.title for entry in self.history],
            "ece": torch.from_numpy(np.stack([entry.ece for entry in self.history])),  # (entries, steps)
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        entries = zip(state_dict["epochs"], state_dict["titles"], state_dict["ece"].numpy(), strict=True)
        self.history = [EpochECE(epoch, title, state_dict["steps"], ece) for epoch, title, ece in entries]
