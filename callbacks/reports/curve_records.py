"""curves.jsonl: everything that TensorBoard shows, as plain JSON lines; and how training went, drawn from them."""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from callbacks.plots.calibration import EpochECE, ece_by_epoch
from callbacks.plots.curves import training_curves
from callbacks.plots.panels import save
from callbacks.reports.due import is_fitting, logs_now, report_folder, result_of
from callbacks.reports.tables import write_csv
from mambaeye.atomic import GO_ON, atomic_write, refusals
from mambaeye.batch import CanvasBatch, EvaluationCondition, GlimpseBatch
from mambaeye.evaluation.result import Row, to_builtin

NAME = "curves.jsonl"
LOGGED = ("train", "throughput")  # what names of training metrics begin with


class CurveRecords(Callback):
    """Writes <run directory>/curves.jsonl: a line for every condition of every validation, and for every logged step.

    Lines have `kind` ("validation" or "training"), `epoch` and `optimizer_step`; a validation's the rest of
    ConditionResult.record too, a training step's what was logged. A run that is continued drops the lines after its
    checkpoint, whose steps it takes again.

    After `validate` and `test`, their folder has a curves.jsonl of its own; and training.csv, training.png and
    ece_by_epoch.png, which show the training that led there, as far as the run directory has it.

    Args:
        plots: Draw the PNG files too.
    """

    def __init__(self, plots: bool = True) -> None:
        self.plots = plots

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        kept = [line for line in read_records(trainer) if line["optimizer_step"] <= trainer.global_step]
        with atomic_write(records_path(trainer)) as partial:
            partial.write_text("".join(json.dumps(line) + "\n" for line in kept))

    @rank_zero_only
    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: GlimpseBatch | CanvasBatch,
        batch_idx: int,
    ) -> None:
        if logs_now(trainer, batch_idx):
            metrics = trainer.callback_metrics.items()
            values = {name: to_builtin(value.cpu().numpy()) for name, value in metrics if name.startswith(LOGGED)}
            append(records_path(trainer), trainer, [{"kind": "training", **values}])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._report(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._report(trainer, pl_module)

    @rank_zero_only
    def _report(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add a fit's validation to the file; after other validations, draw what it has."""
        if trainer.sanity_checking:
            return
        lines = [{"kind": "validation", **condition.record()} for condition in result_of(pl_module).conditions]
        if is_fitting(trainer):
            append(records_path(trainer), trainer, lines)
        else:
            with atomic_write(report_folder(trainer) / NAME) as partial:
                append(partial, trainer, lines)
            write_history(trainer, report_folder(trainer), self.plots)


def records_path(trainer: Trainer) -> Path:
    """Return where the records of a run are."""
    return Path(trainer.default_root_dir) / NAME


def append(path: Path, trainer: Trainer, lines: list[Row]) -> None:
    """Add lines to a file, with the present epoch and optimizer step."""
    place = {"epoch": trainer.current_epoch, "optimizer_step": trainer.global_step}
    text = "".join(json.dumps({**place, **line}) + "\n" for line in lines)
    with refusals(path, GO_ON), path.open("a") as file:
        file.write(text)


def read_records(trainer: Trainer, kind: Literal["training", "validation"] | None = None) -> list[Row]:
    """Return a run's lines, of one kind or all; none if there is no file, and none that a kill cut off."""
    path = records_path(trainer)
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    return [record for record in records if kind in (None, record["kind"])]


def write_history(trainer: Trainer, folder: Path, plots: bool) -> None:
    """Write what the records tell of training, if there are any, as a table and plots."""
    training, validations = read_records(trainer, "training"), read_records(trainer, "validation")
    if training:
        write_csv(folder / "training.csv", training)
    if training and plots:
        save(training_curves(training), folder / "training.png")
    if validations and plots:
        save(ece_by_epoch([epoch_ece(record) for record in validations]), folder / "ece_by_epoch.png")


def epoch_ece(record: Row) -> EpochECE:
    """Return what a validation's line says of calibration."""
    title = EvaluationCondition(record["resolution"], record["scan"], record.get("frames")).title
    return EpochECE(record["epoch"], title, record["steps"], np.array(record["ece"], dtype=float))
