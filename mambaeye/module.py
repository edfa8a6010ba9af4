"""The LightningModule: encoder, loss, metrics and optimizer, glued together and nothing else."""

import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn

from mambaeye import weights
from mambaeye.batch import CanvasBatch, FileBatch, GlimpseBatch
from mambaeye.encoders.mambaeye import EncoderConfig, MambaEye
from mambaeye.evaluation.diagnosis import Diagnosis, diagnose
from mambaeye.evaluation.early_exit import EarlyExitConfig, EarlyExitMetrics, EarlyExitState, ExitCriteria
from mambaeye.evaluation.metrics import MetricsConfig, StepMetrics, powers_of_two
from mambaeye.evaluation.prediction import Prediction, predict
from mambaeye.flops import training_flops
from mambaeye.geometry.patches import cut_from_canvases
from mambaeye.loss import LOGITS_AT_ONCE, Schedule, scheduled_cross_entropy_of_features, step_losses
from mambaeye.ops.kernels import Kernels
from mambaeye.optim import OptimizerConfig, build_optimizer, build_schedule, override_hparams

GLIMPSES_AT_ONCE = 256  # of an image in validation: what takes memory does not grow with their number beyond

# what is reported of every step
REPORTED = (
    "top1",
    "top5",
    "confidence",
    "true_class_probability",
    "information_ratio",
    "nll",
    "brier",
    "ece",
    "mce",
    "adaptive_ece",
)


class MambaEyeModule(LightningModule):
    """MambaEye with its loss, metrics and optimizer.

    The data module that it is trained with must have `cells` (what validation measures), `validation_length` (glimpses
    an image), `budgets` (glimpse counts to report after, besides powers of two), `train_batches` (batches an epoch and
    process) and `train_index.classes` (the names of the classes).

    For callbacks, after a validation: `validation_curves`, what StepMetrics.compute gives, on the CPU, for each of the
    data module's cells; `validation_rows`, a flat table of it, one dictionary for each resolution, scan and step; and
    `stopping_rows`, after `validate`, one for each resolution, scan and rule for stopping early.

    Args:
        encoder: Sizes of the encoder.
        optimizer: AdamW and its schedule.
        schedule: Target of the loss: follow the information ratio, or none for plain cross entropy at every step.
        init_from: Weights to start from, of the same sizes: a published mambaeye_*.pt, a checkpoint of ours, a
            .safetensors file, or hf://OWNER/REPOSITORY/FILE; null for random ones.
        new_head: Start with a new head, as for another number of classes than init_from has.
        kernels: CUDA kernels of mamba-ssm and causal-conv1d: cuda, plain torch, or auto for those that can be had.
        metrics: What validation keeps of every step.
        stopping: Rules for stopping early that `validate` tries.
        exit_criteria: When predict stops looking at an image before its last glimpse.
    """

    def __init__(
        self,
        encoder: EncoderConfig = EncoderConfig(),
        optimizer: OptimizerConfig = OptimizerConfig(),
        schedule: Schedule = "information_ratio",
        init_from: str | None = None,
        new_head: bool = False,
        kernels: Kernels = "auto",
        metrics: MetricsConfig = MetricsConfig(),
        stopping: EarlyExitConfig = EarlyExitConfig(),
        exit_criteria: ExitCriteria = ExitCriteria(),
    ) -> None:
        super().__init__()
        # plain containers, so that a checkpoint loads with weights_only=True
        self.save_hyperparameters(
            {
                "encoder": asdict(encoder),
                "optimizer": asdict(optimizer),
                "schedule": schedule,
                "metrics": asdict(metrics),
                "_instantiator": "lightning.pytorch.cli.instantiate_module",  # load_from_checkpoint builds with this
            },
            logger=False,
        )
        self.encoder = MambaEye(encoder, kernels)
        if init_from is not None:
            weights.init_from(self.encoder, init_from, new_head)
            head = f"; the head of {encoder.num_classes} classes is new" if new_head else ""
            rank_zero_info(f"the encoder starts from {init_from}{head}")
        self.optimizer_config = optimizer
        self.schedule = schedule
        self.metrics_config = metrics
        self.stopping = stopping
        self.exit_criteria = exit_criteria
        self.classes: list[str] = []
        """Names of the classes as in the training shards' index; none where they are not known."""
        self.cell_metrics = nn.ModuleList()
        self.stopping_metrics = nn.ModuleList()
        self.validation_curves: list[dict[str, Tensor]] = []
        self.validation_rows: list[dict[str, Any]] = []
        self.stopping_rows: list[dict[str, Any]] = []
        self.schedule_steps = (0, 0.0)
        """Optimizer steps of the warm-up, and in all."""

    def setup(self, stage: str) -> None:
        data = self.trainer.datamodule
        if stage == "fit":
            self.classes = list(data.train_index.classes)
        if stage != "predict":
            self.cell_metrics = nn.ModuleList(
                StepMetrics(data.validation_length, self.metrics_config, data.budgets) for _ in data.cells
            )
            rules = self.stopping.rules if stage == "validate" else []
            self.stopping_metrics = nn.ModuleList(
                EarlyExitMetrics(rules, self.metrics_config.bins) for _ in data.cells if rules
            )

    @property
    def kernels_found(self) -> str:
        """What the encoder runs on, in words."""
        return self.encoder.runs_on(self.device)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["classes"] = self.classes

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of other shapes before anything is changed; take class names that are not known."""
        weights.require_fit(self, checkpoint["state_dict"], "the checkpoint")
        self.classes = self.classes or checkpoint.get("classes", [])

    def on_train_start(self) -> None:
        """Flags win over the optimizer's numbers in a checkpoint, as they do over its sizes and data."""
        override_hparams(self.optimizers().optimizer, self.lr_schedulers(), self.optimizer_config)

    def training_step(self, batch: GlimpseBatch, batch_idx: int) -> Tensor:
        loss = scheduled_cross_entropy_of_features(
            self.encoder.features(batch.patches, batch.positions),
            self.encoder.head,
            batch.labels,
            batch.information_ratio,
            schedule=self.schedule,
            valid=batch.valid,
            partner_labels=batch.partner_labels,
            label_shares=batch.label_shares,
        )
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch.labels))
        return loss

    def validation_step(self, batch: CanvasBatch, batch_idx: int) -> None:
        cell = int(batch.cell[0])
        answers: EarlyExitState | None = None
        for first, logits in self.look(batch):
            if self.stopping_metrics:
                answers = answers or EarlyExitState(self.stopping.rules, len(batch.labels), logits)
                answers.look(logits)
            ratio = batch.information_ratio[:, first : first + logits.shape[1]]
            self.cell_metrics[cell].update(logits, batch.labels, ratio, batch.valid, first)
        if answers:
            self.stopping_metrics[cell].update(answers, batch.labels, batch.information_ratio, batch.valid)

    def look(self, batch: CanvasBatch) -> Iterator[tuple[int, Tensor]]:
        """Logits of one piece of the sequence after another, (B, t, C), and before each the index of its first step.

        Patches are cut, and glimpses taken, chunk by chunk with a carried state, so that memory does not grow with T.
        """
        images, length = batch.positions.shape[:2]
        config = self.encoder.config
        logits_at_once = max(1, LOGITS_AT_ONCE // (images * config.num_classes))
        state = self.encoder.initial_state(images)
        for chunk in range(0, length, GLIMPSES_AT_ONCE):
            positions = batch.positions[:, chunk : chunk + GLIMPSES_AT_ONCE]
            patches = cut_from_canvases(batch.canvases, positions, config.patch_size)
            features, state = self.encoder.stream_features(patches, positions, state)  # (B, t, D)
            for first in range(0, features.shape[1], logits_at_once):
                yield chunk + first, self.encoder.head(features[:, first : first + logits_at_once])

    def test_step(self, batch: CanvasBatch, batch_idx: int) -> None:
        self.validation_step(batch, batch_idx)

    def predict_step(self, batch: FileBatch, batch_idx: int) -> list[Prediction | None]:
        """A prediction for each of the batch's files, None for one that could not be read."""
        if batch.canvases is None:
            return [None] * len(batch.files)
        boxes = [file.box for file in batch.files]
        return predict(self.encoder, batch.canvases, batch.positions, boxes, self.exit_criteria.rules)

    def on_validation_epoch_end(self) -> None:
        self._finish_cells("val")

    def on_test_epoch_end(self) -> None:
        self._finish_cells("test")

    def _finish_cells(self, stage: str) -> None:
        """Sums -> rows by step; the last step of every cell as scalars, whose mean top-1 picks the best checkpoint."""
        self.validation_rows, self.validation_curves, self.stopping_rows = [], [], []
        if self.trainer.sanity_checking:  # a rehearsal does not come to every cell
            for metric in self.cell_metrics:
                metric.reset()
            return
        data = self.trainer.datamodule
        reported = sorted({*powers_of_two(data.validation_length), *data.budgets})
        for cell, metric in zip(data.cells, self.cell_metrics, strict=True):
            curves = computed(metric)
            self.validation_curves.append(curves)
            kept = curves["steps"].tolist()
            for step in reported:
                row = cell._asdict() | {"step": step} | row_of(curves, kept.index(step))
                self.validation_rows.append(row)
            name = f"{cell.resolution}_{cell.scan}"
            scalars = {f"{stage}/{key}/{name}": float(curves[key][-1]) for key in REPORTED}
            self.log_dict(scalars, sync_dist=True)  # the same on every rank already; Lightning warns without
        last = [float(curves["top1"][-1]) for curves in self.validation_curves]
        self.log(f"{stage}/top1", sum(last) / len(last), prog_bar=True, sync_dist=True)
        for cell, metric in zip(data.cells, self.stopping_metrics, strict=False):
            answers = computed(metric)
            for at, rule in enumerate(metric.rules):
                taken = {"glimpses": float(answers["glimpses"][at]), "stopped": float(answers["stopped"][at])}
                row = cell._asdict() | {"rule": rule.kind, "threshold": rule.threshold} | taken | row_of(answers, at)
                self.stopping_rows.append(row)

    @torch.no_grad()
    def probe(self, batch: GlimpseBatch, images: int) -> tuple[Tensor, Tensor]:
        """Loss and confidence of a batch's first images after every glimpse, for callbacks to log: (images, T) each."""
        some = GlimpseBatch(*(part[:images] for part in batch))
        logits = self.encoder(some.patches, some.positions).float()  # (images, T, C)
        partners, shares = some.partner_labels, some.label_shares
        losses = step_losses(logits, some.labels, some.information_ratio, self.schedule, partners, shares)
        return losses, logits.softmax(-1).amax(-1)

    @torch.no_grad()
    def watch(self, batch: CanvasBatch, images: int) -> tuple[Tensor, Tensor]:
        """A batch's first images for callbacks to draw: all their glimpses (images, T, 3, P, P) uint8, and the
        probabilities after each (images, T, C)."""
        some = CanvasBatch(*(part[:images] for part in batch))
        patches = cut_from_canvases(some.canvases, some.positions, self.encoder.config.patch_size)
        logits = torch.cat([logits for _, logits in self.look(some)], dim=1)
        return patches, logits.float().softmax(-1)

    def diagnose(self, batch: CanvasBatch, images: int) -> tuple[Diagnosis, Tensor]:
        """What its glimpses do to the states of a batch's first valid images, and their positions (images, T, 2)."""
        some = batch.valid.nonzero()[:images, 0]
        canvases, positions = batch.canvases[some], batch.positions[some]
        patches = cut_from_canvases(canvases, positions, self.encoder.config.patch_size)
        return diagnose(self.encoder, patches, positions), positions

    def flops_an_image(self, length: int) -> int:
        """Floating-point operations that training takes for one image of so many glimpses: see mambaeye/flops.py."""
        return training_flops(self.encoder.config, length)

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = build_optimizer(self.encoder, self.optimizer_config)
        epoch = self._optimizer_steps_an_epoch()
        total = epoch * self.trainer.max_epochs if self.trainer.max_epochs != -1 else math.inf
        if self.trainer.max_steps != -1:
            total = min(total, self.trainer.max_steps)
        warmup = min(round(self.optimizer_config.warmup_epochs * epoch), total)
        self.schedule_steps = warmup, total
        schedule = build_schedule(optimizer, warmup, total)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _optimizer_steps_an_epoch(self) -> int:
        # Not trainer.estimated_stepping_batches: it sets the loader up, and a loader that is set up cannot be resumed.
        batches, limit = self.trainer.datamodule.train_batches, self.trainer.limit_train_batches
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        return max(1, math.ceil(batches / self.trainer.accumulate_grad_batches))


def computed(metric: StepMetrics) -> dict[str, Tensor]:
    """What a metric says, which then begins anew; torchmetrics takes the axis from what has one entry."""
    curves = {name: torch.atleast_1d(value) for name, value in metric.compute().items()}
    metric.reset()
    return curves


def row_of(curves: dict[str, Tensor], at: int) -> dict[str, Any]:
    """What is reported of one step, or one rule."""
    return {"samples": int(curves["samples"][at])} | {name: float(curves[name][at]) for name in REPORTED}
