"""Steps whose loss or gradient is not finite: skipped by all ranks together, and the end of the run if they go on."""

import logging
from dataclasses import asdict, dataclass
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.amp import GradScaler
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from callbacks.run.shutdown import detach_launcher, save_last
from mambaeye.batch import CanvasBatch, GlimpseBatch
from mambaeye.errors import InputError

OVERFLOWN = torch.finfo(torch.float32).max ** 0.5  # the square of such a weight is no float32
SEARCHED = 1.0  # a gradient scaler that has come down to this scale is no longer searching for one

log = logging.getLogger(__name__)


@dataclass
class Skipped:
    """An optimizer step that was skipped, with the losses and sample keys of this rank's micro-batches."""

    step: int
    losses: list[float]
    keys: list[list[str]]

    def __str__(self) -> str:
        batches = (f"loss {loss:g} of {', '.join(keys)}" for loss, keys in zip(self.losses, self.keys, strict=True))
        return f"step {self.step} ({'; '.join(batches)})"


@dataclass
class Taken:
    """An optimizer step that is over, and whether it was skipped: a bool on the device, which may not know it yet."""

    step: int
    skip: Tensor
    scale: float | None
    """Scale of its gradients, if it was skipped and there is a scaler."""
    micro_batches: list[tuple[Tensor, list[str], Tensor]]
    """Loss, keys and valid rows of each."""


class NonFiniteGuard(Callback):
    """Skips optimizer steps with a loss or gradient that is not finite, on all ranks; stops after some in a row.

    A skipped step changes neither weights nor the optimizer's moments; the schedule goes on. What is skipped is
    reported with the step and this rank's sample keys. Weights that have overflowed end the run at once, and are not
    saved: no sample is to blame then, and no later step is finite.

    A fused optimizer is told on the device, and what it did is read one step later, or before a checkpoint is saved or
    the epoch ends: so nothing waits for the device. Steps that a gradient scaler skips to find its scale are no
    failures.

    Args:
        last_checkpoint: Path of the checkpoint that is saved before the run stops.
        patience: Steps skipped in a row after which the run saves and stops.
    """

    def __init__(self, last_checkpoint: str, patience: int = 10) -> None:
        if patience < 1:
            raise InputError(f"nonfinite.patience is {patience}: give at least 1 step")
        self.last_checkpoint, self.patience = last_checkpoint, patience
        self.in_a_row: list[Skipped] = []
        self.micro_batches: list[tuple[Tensor, list[str], Tensor]] = []  # loss, keys, valid rows of the current step
        self.taken: list[Taken] = []  # steps that were not read yet, one at most between batches
        self.run: tuple[Trainer, LightningModule] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.step, self.run = trainer.global_step, (trainer, pl_module)
        self.skip, self.taken = torch.tensor(False), []
        self.scale: float | None = None

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        # the gradients say it too, then, and averaged over the ranks they tell every rank
        finite = loss.detach().isfinite()
        loss.register_hook(lambda gradient: torch.where(finite, gradient, torch.nan))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
        norm = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        self.skip, self.scale = norm.isfinite().logical_not(), None
        scaler = scaler_of(trainer)
        if scaler is None and is_fused(optimizer):
            optimizer.found_inf = self.skip.float()  # type: ignore[attr-defined]  # it looks there, on the device
        elif self.skip:
            self.scale = scaler.get_scale() if scaler else None
            # an optimizer leaves parameters without a gradient alone; a scaler lets finite ones of infinite norm pass
            optimizer.zero_grad(set_to_none=True)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: GlimpseBatch | CanvasBatch,
        batch_idx: int,
    ) -> None:
        loss = outputs["loss"] * trainer.accumulate_grad_batches  # Lightning has divided it
        self.micro_batches.append((loss, batch.keys, batch.valid))
        if trainer.global_step == self.step:
            return
        self._read()
        self.taken.append(Taken(self.step, self.skip, self.scale, self.micro_batches))
        self.step, self.micro_batches = trainer.global_step, []
        if not reads_late(trainer):
            self._read()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._read()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._read()

    def _read(self) -> None:
        """Report the step that was not read yet, if it was skipped, and stop after too many."""
        if not self.taken or self.run is None:
            return
        (trainer, pl_module), taken = self.run, self.taken.pop()
        if not taken.skip:  # waits for the device
            self.in_a_row = []
            return
        skipped = skipped_in(taken)
        if is_searching(trainer, taken.scale, skipped):
            log.info("the gradient scaler skipped optimizer step %d, and halves its scale", taken.step)
        else:
            self.in_a_row.append(skipped)
            log.warning("loss or gradient not finite: skipped optimizer %s", skipped)
        require_weights(trainer, pl_module)
        if len(self.in_a_row) >= self.patience:
            self._stop(trainer)

    def _stop(self, trainer: Trainer) -> None:
        save_last(trainer, self.last_checkpoint, "loss or gradient not finite")
        detach_launcher(trainer)
        raise InputError(
            f"loss or gradient were not finite at {len(self.in_a_row)} optimizer steps in a row (--nonfinite.patience "
            f"{self.patience}): {', '.join(map(str, self.in_a_row))}; inspect these samples, or go on from an earlier "
            f"checkpoint with a lower learning rate"
        )

    def state_dict(self) -> dict[str, Any]:
        self._read()  # before anything is saved
        return {"in_a_row": [asdict(skipped) for skipped in self.in_a_row]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.in_a_row = [Skipped(**skipped) for skipped in state_dict["in_a_row"]]


def scaler_of(trainer: Trainer) -> GradScaler | None:
    """Return the gradient scaler of 16-mixed precision; None of any other."""
    return getattr(trainer.precision_plugin, "scaler", None)


def is_fused(optimizer: Optimizer) -> bool:
    """Tell whether an optimizer updates all parameters in one kernel, which skips a step that found_inf tells it to."""
    return all(group.get("fused") for group in optimizer.param_groups)


def reads_late(trainer: Trainer) -> bool:
    """Tell whether a step is read when the next is over: where reading it at once would wait for a device.

    A checkpoint of weights alone is saved without a word to callbacks, so that reading late could be too late for it.
    """
    if scaler_of(trainer) is not None or not is_fused(trainer.optimizers[0]):
        return False
    return not any(getattr(callback, "save_weights_only", False) for callback in trainer.checkpoint_callbacks)


def skipped_in(taken: Taken) -> Skipped:
    """Return what is to be said of a step that was skipped."""
    rows = (zip(keys, valid.tolist(), strict=True) for _, keys, valid in taken.micro_batches)
    keys = [[key for key, real in batch if real] for batch in rows]
    return Skipped(taken.step, [loss.item() for loss, _, _ in taken.micro_batches], keys)


def is_searching(trainer: Trainer, scale: float | None, skipped: Skipped) -> bool:
    """Tell whether a step was skipped because of its scale alone, now lowered: losses were finite on every rank."""
    scaler = scaler_of(trainer)
    if scaler is None or scale is None or scale <= SEARCHED or scaler.get_scale() >= scale:
        return False
    finite = bool(torch.tensor(skipped.losses).isfinite().all())
    return trainer.strategy.reduce_boolean_decision(finite, all=True)


def require_weights(trainer: Trainer, pl_module: LightningModule) -> None:
    """Refuse to go on with weights that have overflowed; the same on every rank, for all have the same weights.

    Raises:
        InputError: they have.
    """
    for name, parameter in pl_module.named_parameters():
        largest = parameter.detach().abs().amax().item() if parameter.numel() else 0.0
        if not largest < OVERFLOWN:
            detach_launcher(trainer)
            raise InputError(
                f"the weights have overflowed by optimizer step {trainer.global_step} ({name} has {largest:g}) and are "
                f"not saved: start again, or from an earlier checkpoint, with a lower --model.optimizer.lr (or "
                f"weight_decay)"
            )
