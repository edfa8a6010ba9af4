"""The module that `train.py calibrate` runs in validation's place: it gathers answers and fits a temperature."""

from typing import Any, NamedTuple

import torch

from mambaeye.batch import CanvasBatch
from mambaeye.checkpoints import DATA
from mambaeye.contracts import data_of
from mambaeye.errors import InputError
from mambaeye.module import ClassifierModule
from mambaeye.temperature import (
    NUMBERS,
    TEMPERATURE,
    SeenAnswers,
    Temperature,
    fit_temperature,
    log_side,
)


class Measured(NamedTuple):
    """Answers on average, over all that were fitted."""

    nll: float
    """-log p[y], in nats."""
    confidence: float
    """The largest probability."""


class Calibration(NamedTuple):
    """A temperature, and what it does to the answers that it was fitted to."""

    temperature: Temperature
    answers: int
    top1: float
    before: Measured
    after: Measured


class CalibratingModule(ClassifierModule):
    """A classifier that is validated on training samples, and keeps its answers instead of measuring them.

    After the validation, `fitted` fits the temperature, and `checkpoint` is the one whose weights these are.
    """

    def setup(self, stage: str) -> None:
        super().setup(stage)
        steps = set(calibration_steps(data_of(self.trainer).num_glimpses))
        self.steps = torch.tensor([step for step in self.answers_at if step in steps])
        self.gathered: list[SeenAnswers] = []

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint that has a temperature, or was trained on other samples than it would seem.

        Raises:
            InputError: it is such.
        """
        path = self.trainer.ckpt_path
        if TEMPERATURE in checkpoint:
            raise InputError(f"{path} is calibrated already: give --ckpt_path the checkpoint that it was made of")
        asked, trained = data_of(self.trainer).held_out, checkpoint[DATA].get("held_out", 0.0)
        if asked != trained:
            raise InputError(f"data.held_out is {asked:g}, and {path} was trained with {trained:g}: leave the flag out")
        super().on_load_checkpoint(checkpoint)
        self.checkpoint = checkpoint

    def validation_step(self, batch: CanvasBatch, batch_idx: int) -> None:  # type: ignore[override]  # no answers
        """Keep the answers of a batch after some of its glimpses, on the CPU."""
        valid, sides = batch.valid, log_side(batch.scene.boxes)
        for step in self.rollout(batch):
            assert step.information_ratio is not None
            last = step.first + step.logits.shape[1]
            steps = self.steps[(self.steps > step.first) & (self.steps <= last)].to(valid.device)  # (k,)
            picked = steps - 1 - step.first
            logits, ratio = step.logits[valid][:, picked], step.information_ratio[valid][:, picked]  # (b, k, ...)
            columns = (batch.labels[valid][:, None], ratio, steps, sides[valid][:, None])
            labels, ratio, glimpses, side = (column.expand(logits.shape[:2]).flatten().cpu() for column in columns)
            self.gathered.append(SeenAnswers(logits.flatten(0, 1).float().cpu(), labels, ratio, glimpses, side))

    def on_validation_epoch_end(self) -> None:
        """Leave the metrics, which have counted nothing."""

    def fitted(self) -> Calibration:
        """Return the temperature that fits the answers, and what it does to them.

        Raises:
            InputError: it cannot be fitted.
        """
        answers = SeenAnswers(*(torch.cat(parts) for parts in zip(*self.gathered, strict=True)))
        temperature = fit_temperature(answers, data_of(self.trainer).canvas_range)
        right = answers.logits.argmax(-1) == answers.labels
        return Calibration(
            temperature,
            len(right),
            right.double().mean().item(),
            measured(answers, None),
            measured(answers, temperature),
        )


def calibration_steps(num_glimpses: int) -> list[int]:
    """Return glimpse counts to calibrate at, two an octave, so that octaves count alike: 1, 2, 3, 4, 6, 8, ..."""
    counts = {count << octave for octave in range(num_glimpses.bit_length()) for count in (1, 3)}
    return sorted({count for count in counts if count < num_glimpses} | {num_glimpses})


def measured(answers: SeenAnswers, temperature: Temperature | None) -> Measured:
    """Return how good and how sure answers are on average, tempered or as they are."""
    nll = confidence = 0.0
    for rows in torch.arange(len(answers.labels)).split(max(1, NUMBERS // answers.logits.shape[1])):
        some = SeenAnswers(*(part[rows] for part in answers))
        logits = some.logits.double()
        if temperature is not None:
            logits /= temperature.log(some.ratio, some.glimpses, some.log_side).double().exp()[:, None]
        logs = logits.log_softmax(-1)
        nll -= logs.gather(1, some.labels[:, None]).sum().item()
        confidence += logs.amax(-1).exp().sum().item()
    return Measured(nll / len(answers.labels), confidence / len(answers.labels))
