"""The LightningModule: encoder, policy, loss, metrics and optimizer, glued together and nothing else."""

import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any, Self, cast

import torch
from lightning import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from mambaeye import weights
from mambaeye.batch import POLICY, REMEDY, CanvasBatch, EvaluationCondition, FileBatch, GlimpseBatch, Takes, TubeBatch
from mambaeye.blocks import checkpoint_blocks, compile_blocks, kept_bytes
from mambaeye.contracts import data_of, limited
from mambaeye.encoders.base import Encoder
from mambaeye.errors import InputError
from mambaeye.evaluation.early_exit import EarlyExitConfig, ExitCriteria, go_by_value, require_value, rules_under
from mambaeye.evaluation.metrics import MetricsConfig
from mambaeye.evaluation.prediction import Prediction, predict
from mambaeye.evaluation.result import METRICS, ValidationResult
from mambaeye.evaluation.streaming import Stream, StreamAnswer
from mambaeye.evaluation.sums import ConditionSums
from mambaeye.flops import training_flops
from mambaeye.loss import Schedule, class_weights, scheduled_cross_entropy_of_features, step_losses, weights_of_images
from mambaeye.optim import (
    Decaying,
    OptimizerConfig,
    build_optimizer,
    build_schedule,
    override_hparams,
    schedule_steps,
)
from mambaeye.policies.base import Policy, ValuePolicy
from mambaeye.policy_learning import Lesson, PolicyLearning, glimpses_of, glimpses_under, walk, with_gradients_of
from mambaeye.rollout import GLIMPSES_AT_ONCE, Rollout, require_causal
from mambaeye.suiting import require_axes, require_channels, require_streamable
from mambaeye.temperature import TEMPERATURE, Temperature, temperature_in


class ClassifierModule(LightningModule):
    """An encoder with its loss, metrics and optimizer, and the policy that leads it if it has one.

    Knows no encoder and no policy by name. What it reads of the data module is mambaeye.contracts.DataSpec, and what
    data module and callbacks read of it is ModelSpec.

    Args:
        encoder: The system that is trained: a class name or import path, its arguments below.
        policy: What decides where to look under the scan called learned; null for fixed scans alone.
        policy_learning: How that policy learns, if it is one that does.
        optimizer: AdamW and its schedule.
        schedule: Target of the loss: follow the information ratio, or none for plain cross entropy at every step.
        balanced: Weight the loss of every image by the rarity of its class among the training images, so that all
            classes count alike. An epoch is still every image once.
        init_from: Weights to start from, which bring the encoder's sizes: a published mambaeye_*.pt, a checkpoint of
            ours, a .safetensors file, or hf://OWNER/REPOSITORY/FILE; null for random ones.
        new_head: Start with a new head; null for where init_from has another number of classes, in training.
        head_only: Train the encoder's head alone, and leave the rest of the encoder as it is.
        metrics: What validation keeps of every step.
        early_exit: Rules for exiting early that `validate` tries, unless the encoder takes whole canvases.
        exit_criteria: When predict stops looking at an image before its last glimpse.
        checkpoint_activations: Compute every block of the encoder again in the backward pass instead of keeping what is
            in it: much less memory, the same gradients, and a forward pass more.
        compile: Compile every block of the encoder with torch.compile, in plain torch. The first steps take a minute
            longer, and a CPU needs a C++ compiler.
        calibrated: Temper answers in validate, test and predict if the checkpoint is of `calibrate`.
    """

    def __init__(
        self,
        encoder: Encoder,
        policy: Policy | None = None,
        policy_learning: PolicyLearning = PolicyLearning(),
        optimizer: OptimizerConfig = OptimizerConfig(),
        schedule: Schedule = "information_ratio",
        balanced: bool = False,
        init_from: str | None = None,
        new_head: bool | None = None,
        head_only: bool = False,
        metrics: MetricsConfig = MetricsConfig(),
        early_exit: EarlyExitConfig = EarlyExitConfig(),
        exit_criteria: ExitCriteria = ExitCriteria(),
        checkpoint_activations: bool = False,
        compile: bool = False,  # noqa: A002  # named for its flag
        calibrated: bool = True,
    ) -> None:
        super().__init__()
        if policy is not None:
            policy.suit(encoder.feature_dim, encoder.num_classes, require_causal(encoder).axes)
        # plain containers, so that a checkpoint loads with weights_only=True
        self.save_hyperparameters(
            {
                "encoder": encoder.description(),
                "policy": policy.description() if policy else None,
                "policy_learning": asdict(policy_learning),
                "optimizer": asdict(optimizer),
                "schedule": schedule,
                "head_only": head_only,
                "balanced": balanced,
                "metrics": asdict(metrics),
                "_instantiator": "lightning.pytorch.cli.instantiate_module",  # load_from_checkpoint builds with this
            },
            logger=False,
        )
        self.encoder, self.policy, self.policy_learning = encoder, policy, policy_learning
        self.idle: list[nn.Module] = []  # parts that the current step does not train
        if init_from is not None:
            is_new = weights.init_from(self.encoder, init_from, new_head)
            head = f"; the head of {encoder.num_classes} classes is new" if is_new else ""
            rank_zero_info(f"the encoder starts from {init_from}{head}")
        elif new_head:
            rank_zero_info("model.new_head does nothing without --model.init_from: all of the encoder is new")
        self.head_only, self.is_random = head_only, init_from is None
        if head_only:
            for parameter in self.backbone():
                parameter.requires_grad_(False)
            self.train(self.training)
        if compile:
            compile_blocks(encoder)
        if checkpoint_activations:
            checkpoint_blocks(encoder)
        self.optimizer_config = optimizer
        self.schedule, self.balanced = schedule, balanced
        self.class_weights: Tensor | None = None  # (C,); not a buffer, which a narrower module would round
        self.metrics_config = metrics
        self.early_exit = early_exit
        self.exit_criteria = exit_criteria
        self.calibrated = calibrated
        self.temperature: Temperature | None = None  # never in training
        self.classes: list[str] = []
        """Names of the classes as in the training shards' index; none where they are not known."""
        self.result: ValidationResult | None = None
        """Result of the last validation."""
        self.schedule_steps: tuple[int, float] = (0, 0.0)
        """Optimizer steps of the warm-up, and in all."""
        self.sums = nn.ModuleList()  # ConditionSums of each evaluation condition
        self.stream: Stream | None = None  # the clip of which frames arrive, in predict
        self._flops: dict[tuple[int, ...], int] = {}

    @property
    def takes(self) -> Takes:
        """Return what the data module must hand over in training."""
        return self.encoder.takes

    @property
    def has_policy(self) -> bool:
        """Tell whether there is a policy to look by."""
        return self.policy is not None

    @property
    def backend(self) -> str:
        """Return what the encoder runs on, in words."""
        return self.encoder.backend(self.device)

    def setup(self, stage: str) -> None:
        data = data_of(self.trainer)
        require_axes(self.encoder, data.axes, data.tube)
        require_channels(self.encoder, data.channels)
        if stage == "fit":
            self.classes = list(data.classes)
            self.class_weights = class_weights(data.class_counts) if self.balanced else None
        if stage == "predict":
            require_value(self.exit_criteria, self.policy_under(data.conditions[0]))
            if data.streams:
                require_streamable(self.encoder, self.exit_criteria)
            return
        self.answers_at = self.encoder.answers_at(data.num_glimpses).tolist()
        several = self.takes != "canvas"  # of whole canvases there is but one answer, and nothing to stop before
        rules = self.early_exit.rules if stage == "validate" and several else []
        sizes = (self.encoder.num_classes, data.num_glimpses, self.metrics_config, data.report_at, self.answers_at)
        self.sums = nn.ModuleList(
            ConditionSums(condition, *sizes, rules_under(rules, self.policy_under(condition)))
            for condition in data.conditions
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["classes"] = self.classes

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of other shapes or classes before anything is changed; take its classes' names."""
        classes = checkpoint.get("classes", [])
        if classes and self._trainer is not None:  # load_from_checkpoint has no data
            data_of(self.trainer).take_classes(classes)
        weights.require_fit(self, checkpoint["state_dict"], "the checkpoint")
        self.classes = classes or self.classes
        if TEMPERATURE in checkpoint:
            self._take_temperature(temperature_in(checkpoint[TEMPERATURE]) if self.calibrated else None)

    def _take_temperature(self, temperature: Temperature | None) -> None:
        """Temper answers from now on, unless training goes on or a flag is against it, and say so."""
        if self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            rank_zero_info("the checkpoint's temperature is dropped, for other weights need another: calibrate again")
        elif temperature is None:
            rank_zero_info("the checkpoint's temperature is left out: model.calibrated is false")
        else:
            rank_zero_info("answers are tempered as calibrate found: --model.calibrated false leaves them as they are")
            self.temperature = temperature

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all parts, of an encoder of which only the head learns that of evaluation.

        So batch norms keep their statistics, and nothing is dropped out of what is frozen.
        """
        super().train(mode)
        if self.head_only:
            self.encoder.eval()
        return self

    def backbone(self) -> Iterator[nn.Parameter]:
        """Yield the encoder's parameters but those of its head."""
        yield from (
            parameter for name, parameter in self.encoder.named_parameters() if not name.startswith(weights.HEAD)
        )

    def on_train_start(self) -> None:
        """Let flags win over the optimizer's numbers in a checkpoint, as they do over its sizes and data."""
        (schedule,) = self.trainer.lr_scheduler_configs
        assert isinstance(schedule.scheduler, LambdaLR)
        override_hparams(self.trainer.optimizers[0], schedule.scheduler, self.optimizer_config)

    def training_step(self, batch: GlimpseBatch | CanvasBatch, batch_idx: int) -> Tensor:
        loss, images = torch.zeros((), device=self.device), len(batch.labels)
        self.idle = [] if self.policy is None else [self.policy]
        if isinstance(batch, CanvasBatch) and isinstance(self.policy, ValuePolicy):
            progress = self.global_step / self.schedule_steps[1]
            encoder = require_causal(self.encoder)
            lesson = walk(encoder, self.policy, batch, self.policy_learning, progress)
            loss = lesson.loss(batch.valid)
            curves = {"loss": loss, **lesson.curves(batch.valid)}
            self.log_dict({f"train_policy/{name}": value for name, value in curves.items()}, batch_size=images)
            self.idle = [self.encoder] if progress < self.policy_learning.frozen else []
            batch = glimpses_of(batch, lesson, encoder.glimpse)
        else:
            batch = self._led(batch)
        if self.encoder not in self.idle:
            loss = loss + self._encoder_loss(batch)
        self.log("train/loss", loss, prog_bar=True, batch_size=images)
        return with_gradients_of(loss, self.idle)

    def on_after_backward(self) -> None:
        """Leave parts that this step does not train as they are: without a gradient AdamW does not touch them."""
        for part in self.idle:
            part.zero_grad(set_to_none=True)

    def _encoder_loss(self, batch: GlimpseBatch | CanvasBatch) -> Tensor:
        encoded = self.encoder.encode_for_training(batch)
        curves = {f"train_encoder/{name}": value for name, value in encoded.curves.items()}
        self.log_dict(curves, batch_size=len(batch.labels))
        loss = scheduled_cross_entropy_of_features(
            encoded.features,
            self.encoder.head,
            batch.labels,
            self._ratio_at_answers(batch),
            schedule=self.schedule,
            valid=batch.valid,
            partner_labels=batch.partner_labels,
            label_shares=batch.label_shares,
            image_weights=self._weights_of(batch),
        )
        return loss if encoded.penalty is None else loss + encoded.penalty

    def _led(self, batch: GlimpseBatch | CanvasBatch) -> GlimpseBatch | CanvasBatch:
        """Return the glimpses that the policy takes of canvases, if these are for it; otherwise the batch itself."""
        if isinstance(batch, GlimpseBatch) or self.takes == "canvas":
            return batch
        if self.policy is None:
            raise InputError(f"data.train_scan has {POLICY}, and the model has no policy: {REMEDY}")
        return glimpses_under(self.encoder, self.policy, batch)

    def _weights_of(self, batch: GlimpseBatch | CanvasBatch) -> Tensor | None:
        """Return the weights of a batch's images in the loss, (B,); None where all have the same."""
        if self.class_weights is None:
            return None
        return weights_of_images(self.class_weights, batch.labels, batch.partner_labels, batch.label_shares)

    def _ratio_at_answers(self, batch: GlimpseBatch | CanvasBatch) -> Tensor:
        """Return the information ratio after every glimpse that the encoder answers after: (B, A)."""
        ratio = batch.information_ratio
        answers = self.encoder.answers_at(ratio.shape[1])
        if len(answers) == ratio.shape[1]:
            return ratio
        return ratio[:, (answers - 1).to(ratio.device, non_blocking=True)]

    def validation_step(self, batch: CanvasBatch, batch_idx: int) -> dict[str, Tensor]:
        """Measure a batch under its condition, and return its answers for callbacks: see ConditionSums.update."""
        sums = cast(ConditionSums, self.sums[batch.condition])
        return sums.update(self.rollout(batch, valued=go_by_value(sums.rules)), batch)

    def policy_under(self, condition: EvaluationCondition) -> Policy | None:
        """Return the policy that leads under a condition, None for fixed scans."""
        return self.policy if condition.scan == POLICY else None

    def rollout(
        self,
        batch: CanvasBatch,
        images: int | None = None,
        num_glimpses_at_once: int | None = None,
        valued: bool = False,
    ) -> Rollout:
        """Return the walk over a batch that validation takes, or over its first images alone; valued as in Rollout."""
        scene, ratio = batch.scene.rows(slice(images)), batch.information_ratio[:images]
        policy = self.policy_under(data_of(self.trainer).conditions[batch.condition])
        at_once = num_glimpses_at_once or GLIMPSES_AT_ONCE
        return Rollout(self.encoder, scene, policy, ratio, at_once, self.temperature, valued)

    @torch.no_grad()
    def lesson(self, batch: CanvasBatch) -> Lesson | None:
        """Return what the policy expects on its own walks over a batch, and what comes; None if it values nothing."""
        if not isinstance(self.policy, ValuePolicy):
            return None
        config = replace(self.policy_learning, random_walks=(0.0, 0.0), random_picks=0.0)
        return walk(require_causal(self.encoder), self.policy, batch, config, progress=0.0)

    def test_step(self, batch: CanvasBatch, batch_idx: int) -> dict[str, Tensor]:
        return self.validation_step(batch, batch_idx)

    def predict_step(self, batch: FileBatch | TubeBatch, batch_idx: int) -> list[Prediction | StreamAnswer | None]:
        """Return a prediction for each of the batch's files, None for one that could not be read.

        Of a clip that arrives, return the answer so far, None as long as there is none and where it has ended.
        """
        if isinstance(batch, TubeBatch):
            return [self._look_at(batch)]
        if batch.scene is None:
            return [None] * len(batch.files)
        policy = self.policy_under(data_of(self.trainer).conditions[0])
        try:
            return [*predict(self.encoder, batch.scene, policy, self.exit_criteria.rules, self.temperature)]
        except InputError as error:
            if isinstance(batch.scene.canvases, Tensor):
                raise
            # found where glimpses fell; whoever writes the prediction finds it there, as of a file that is read whole
            batch.files[0] = batch.files[0]._replace(error=str(error))
            return [None]

    def _look_at(self, tube: TubeBatch) -> StreamAnswer | None:
        if tube.scene is None:
            self.stream = None
            return None
        if self.stream is None:
            self.stream = Stream(require_causal(self.encoder))
        return self.stream.look(tube)

    def on_validation_epoch_end(self) -> None:
        self._finish_conditions("val")

    def on_test_epoch_end(self) -> None:
        self._finish_conditions("test")

    def _finish_conditions(self, stage: str) -> None:
        """Turn sums into the result; log the last step of every condition, and the mean top-1 that picks the best."""
        sums = [cast(ConditionSums, one) for one in self.sums]
        if self.trainer.sanity_checking:  # a rehearsal does not come to every condition
            for one in sums:
                one.reset()
            return
        finished = [one.finish() for one in sums]
        results, exits = [result for result, _ in finished], [early for _, of_rules in finished for early in of_rules]
        for result in results:
            scalars = {f"{stage}/{name}/{result.condition.name}": float(result[name][-1]) for name in METRICS}
            self.log_dict(scalars, sync_dist=True)  # the same on every rank already; Lightning warns without
        tempered = {} if self.temperature is None else {TEMPERATURE: self.temperature.saved()}
        protocol = {**data_of(self.trainer).protocol, **tempered}
        self.result = ValidationResult(results, exits, protocol)
        self.log(f"{stage}/top1", self.result.top1, prog_bar=True, sync_dist=True)

    @torch.no_grad()
    def per_step_loss(self, batch: GlimpseBatch | CanvasBatch, images: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return loss, confidence and information ratio of a batch's first images, answer by answer: (images, A)."""
        some = self._led(batch.first(images))
        logits = self.encoder.logits(self.encoder.encode(some))  # (images, A, C)
        ratio = self._ratio_at_answers(some)
        losses = step_losses(logits, some.labels, ratio, self.schedule, some.partner_labels, some.label_shares)
        of_images = self._weights_of(some)
        losses = losses if of_images is None else losses * of_images[:, None]
        return losses, logits.softmax(-1).amax(-1), ratio

    def training_flops(self, batch: GlimpseBatch | CanvasBatch) -> int:
        """Return the floating-point operations of forward and backward for one image of such a batch, measured once."""
        shape = tuple(batch.scene.canvases.shape if isinstance(batch, CanvasBatch) else batch.patches.shape)[1:]
        if shape not in self._flops:
            self._flops[shape] = training_flops(self.encoder, self._led(batch))
        return self._flops[shape]

    def kept_bytes(self, batch: GlimpseBatch | CanvasBatch) -> int:
        """Return the bytes that a training step holds at once for the backward pass of such a batch, counted."""
        return kept_bytes(self.encoder, self._led(batch))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        parts: list[Decaying] = [self.encoder] if self.policy is None else [self.encoder, self.policy]
        optimizer = build_optimizer(parts, self.optimizer_config, self.backbone())
        if self.head_only and self.is_random and not self.trainer.ckpt_path:
            rank_zero_info("model.head_only without --model.init_from: the rest of the encoder stays random")
        # Not trainer.estimated_stepping_batches: it sets the loader up, and a loader that is set up cannot be resumed.
        batches = limited(data_of(self.trainer).train_batches, self.trainer.limit_train_batches)
        epoch = max(1, math.ceil(batches / self.trainer.accumulate_grad_batches))
        limits = self.trainer.max_epochs, self.trainer.max_steps
        self.schedule_steps = schedule_steps(self.optimizer_config.warmup_epochs, epoch, *limits)
        if isinstance(self.policy, ValuePolicy) and math.isinf(self.schedule_steps[1]):
            raise InputError(
                "a policy learns by shares of all steps, and there is no last one: give trainer.max_epochs"
            )
        schedule = build_schedule(optimizer, *self.schedule_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
