"""curves.jsonl: everything that TensorBoard shows, as plain JSON lines."""

import json
import math
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from callbacks.reports.training import logs_now
from mambaeye.atomic import atomic_write
from mambaeye.contracts import model_of

BY_STEP = (
    "samples",
    "information_ratio",
    "top1",
    "top5",
    "confidence",
    "true_class_probability",
    "nll",
    "brier",
    "ece",
    "mce",
    "adaptive_ece",
)
BINS = ("bin_count", "bin_confidence", "bin_top1")
RATIO = (
    "ratio_count",
    "ratio_mean",
    "ratio_scheduled",
    "ratio_true_class_probability",
    "ratio_confidence",
    "ratio_top1",
)

Record = dict[str, Any]


class CurveRecords(Callback):
    """Writes <run directory>/curves.jsonl: a line for every cell of every validation, and for every logged step.

    Lines have `kind` ("validation" or "training"), `epoch` and `optimizer_step`; see validation_records for the rest
    of a validation's. A run that is continued drops the lines after its checkpoint, whose steps it takes again.
    """

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        path = records_path(trainer)
        kept = [line for line in read_records(path) if line["optimizer_step"] <= trainer.global_step]
        with atomic_write(path) as partial:
            partial.write_text("".join(json.dumps(line) + "\n" for line in kept))

    @rank_zero_only
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if logs_now(trainer, batch_idx):
            metrics = trainer.callback_metrics.items()
            values = {name: plain(value) for name, value in metrics if name.startswith(("train", "throughput"))}
            self._append(trainer, [{"kind": "training", **values}])

    @rank_zero_only
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if of_fit(trainer):
            self._append(trainer, [{"kind": "validation", **record} for record in validation_records(trainer)])

    def _append(self, trainer: Trainer, lines: list[Record]) -> None:
        place = {"epoch": trainer.current_epoch, "optimizer_step": trainer.global_step}
        text = "".join(json.dumps({**place, **line}) + "\n" for line in lines)
        with records_path(trainer).open("a") as file:
            file.write(text)


def of_fit(trainer: Trainer) -> bool:
    """Whether a validation that has ended is one of a training run's, not its rehearsal."""
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking


def records_path(trainer: Trainer) -> Path:
    """Where the records of a run are."""
    return Path(trainer.default_root_dir) / "curves.jsonl"


def read_records(path: Path, kind: str | None = None) -> list[Record]:
    """The lines of a curves.jsonl, of one kind or all; none if it is not there, and none that a kill cut off."""
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    return [record for record in records if kind in (None, record["kind"])]


def validation_records(trainer: Trainer) -> list[Record]:
    """Return the last validation in plain numbers, one dictionary for each condition."""
    result = model_of(trainer.lightning_module).result
    assert result is not None
    return [condition.record() for condition in result.conditions]


def budgets(steps: list[int], number: int = 4) -> list[int]:
    """A few glimpse counts among those kept, from the first to the last in even ratios: 1, 4, 16, 64 of 64."""
    wanted = [steps[-1] ** (k / (number - 1)) for k in range(number)]
    return sorted({min(steps, key=lambda step: abs(step - want)) for want in wanted})


def plain(values: Tensor) -> Any:
    """A tensor as (nested) lists of numbers, to six decimals; None for NaN."""

    def rounded(value: Any) -> Any:
        if isinstance(value, list):
            return [rounded(inner) for inner in value]
        return None if math.isnan(value) else round(value, 6)

    return rounded(values.tolist())
