"""Why scans differ, measured during a validation."""

import json
from pathlib import Path
from typing import Any

from jsonargparse.typing import NonNegativeInt
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn

from callbacks.plots.diagnosis import ConditionDiagnosis, TrainingMoves, diagnosis_figure
from callbacks.plots.panels import garbage_kept_young, save
from callbacks.reports.diagnosis_statistics import DiagnosisSums, move_edges, training_moves
from callbacks.reports.due import is_fitting, report_folder, result_of
from callbacks.reports.tables import write_csv
from callbacks.reports.tensorboard import add_figure
from mambaeye.atomic import atomic_write
from mambaeye.batch import CanvasBatch
from mambaeye.contracts import DataSpec, data_of, model_of
from mambaeye.evaluation.diagnosis import diagnose, require_recurrent
from mambaeye.evaluation.result import Row


class ScanDiagnosis(Callback):
    """Looks into the encoder during a validation: states, decays and moves of every condition, side by side.

    After `validate`, the folder validation/ has diagnosis.png, diagnosis.csv (a row for each condition, kept step and
    layer) and diagnosis.json (each condition's means over glimpses, and its moves); in a fit, every validation's figure
    is in TensorBoard. docs/scans.md says how to read it.

    Args:
        images: Of how many images in each condition, the first of the first process; 0 for no diagnosis. It takes
            glimpses one by one, which on CPU takes about ten times as long as validating these images.
    """

    def __init__(self, images: NonNegativeInt = 0) -> None:
        self.images = images
        self.sums: dict[int, DiagnosisSums] = {}  # by condition

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse an encoder without recurrent states."""
        if not self.images or stage not in ("fit", "validate"):
            return
        require_recurrent(model_of(pl_module).encoder)
        if data_of(trainer).axes != 2:
            rank_zero_warn(f"there is no diagnosis of positions with {data_of(trainer).axes} axes")
            self.images = 0

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.sums = {}

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
        if not self.images or trainer.sanity_checking:
            return
        sums = self.sums.setdefault(batch.condition, DiagnosisSums())
        wanted = self.images - sums.images
        valid = batch.valid[:wanted].cpu()
        if valid.any():
            with trainer.precision_plugin.forward_context():
                sums.add(diagnose(model_of(pl_module).rollout(batch, wanted, num_glimpses_at_once=1)), valid)

    @rank_zero_only
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or not self.sums:
            return
        training, farthest = moves_in_training(data_of(trainer))
        conditions = [
            self.sums[place].finish(result, training, farthest)
            for place, result in enumerate(result_of(pl_module).conditions)
        ]
        with garbage_kept_young():
            figure = diagnosis_figure(conditions, training)
            if is_fitting(trainer):
                add_figure(trainer, "diagnosis", figure)
            else:
                folder = report_folder(trainer)
                save(figure, folder / "diagnosis.png")
                write_csv(folder / "diagnosis.csv", [row for condition in conditions for row in rows(condition)])
                write_summary(folder / "diagnosis.json", conditions, training)
            del figure


def moves_in_training(data: DataSpec) -> tuple[TrainingMoves, int]:
    """Return the moves of training in bins that moves of validation fit into too, and the largest of them in pixels."""
    largest = max(data.canvas_range[1], *(condition.resolution for condition in data.conditions))
    edges = move_edges(largest - data.patch_size)
    return training_moves(edges, data.canvas_range, data.patch_size), data.canvas_range[1] - data.patch_size


def rows(condition: ConditionDiagnosis) -> list[Row]:
    """Return a row for each kept step and layer, layers counted from 1."""
    return [
        condition.result.condition.columns
        | {"step": step, "layer": layer + 1}
        | {name: float(f"{values[at, layer]:.6g}") for name, values in condition.by_step.items()}
        for at, step in enumerate(condition.result.steps)
        for layer in range(len(condition.memory))
    ]


def write_summary(path: Path, conditions: list[ConditionDiagnosis], training: TrainingMoves) -> None:
    """Write each condition's layers in a few numbers, and moves as shares by (rows, cols) bin, training's too."""
    summaries = []
    for condition in conditions:
        layers = [
            {"memory": memory.mean(), "memory_least": memory.min(), "memory_most": memory.max()}
            | {name: values[layer] for name, values in condition.means.items()}
            for layer, memory in enumerate(condition.memory)
        ]
        summaries.append(
            condition.result.condition.columns
            | {"images": condition.images, "moves_beyond_training": condition.moves_beyond_training}
            | {"top1": condition.result["top1"][-1], "layers": layers, "moves": condition.moves.tolist()}
        )
    moves = {"edges": training.edges.tolist(), "shares": training.shares.tolist()}
    with atomic_write(path) as partial:
        partial.write_text(json.dumps({"conditions": summaries, "training_moves": moves}) + "\n")
