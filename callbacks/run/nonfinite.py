"""Steps whose loss or gradient is not finite: skipped by all ranks together, and the end of the run if they go on."""

import logging
from dataclasses import asdict, dataclass
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from callbacks.run.shutdown import detach_launcher, save_last
from mambaeye.batch import CanvasBatch, GlimpseBatch
from mambaeye.errors import InputError

OVERFLOWN = torch.finfo(torch.float32).max ** 0.5  # the square of such a weight is no float32

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


class NonFiniteGuard(Callback):
    """Skips optimizer steps with a loss or gradient that is not finite, on all ranks; stops after some in a row.

    A skipped step changes neither weights nor the optimizer's moments; the schedule goes on. What is skipped is
    reported with the step and this rank's sample keys. Weights that have overflowed end the run at once, and are not
    saved: no sample is to blame then, and no later step is finite.

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

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.step, self.skip = trainer.global_step, False

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        # the gradients say it too, then, and averaged over the ranks they tell every rank
        finite = loss.detach().isfinite()
        loss.register_hook(lambda gradient: torch.where(finite, gradient, torch.nan))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        parameters = (parameter for group in optimizer.param_groups for parameter in group["params"])
        norm = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
        self.skip = not norm.isfinite().item()  # waits for the device
        if self.skip:
            optimizer.zero_grad(set_to_none=True)  # an optimizer leaves parameters without a gradient alone

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
        if self.skip:
            self.in_a_row.append(self._skipped())
            log.warning("loss or gradient not finite: skipped optimizer %s", self.in_a_row[-1])
        else:
            self.in_a_row = []
        self.step, self.micro_batches = trainer.global_step, []
        if self.skip:
            require_weights(trainer, pl_module)
        if len(self.in_a_row) >= self.patience:
            self._stop(trainer)

    def _skipped(self) -> Skipped:
        rows = (zip(keys, valid.tolist(), strict=True) for _, keys, valid in self.micro_batches)
        keys = [[key for key, real in batch if real] for batch in rows]
        return Skipped(self.step, [loss.item() for loss, _, _ in self.micro_batches], keys)

    def _stop(self, trainer: Trainer) -> None:
        save_last(trainer, self.last_checkpoint, "loss or gradient not finite")
        detach_launcher(trainer)
        raise InputError(
            f"loss or gradient were not finite at {len(self.in_a_row)} optimizer steps in a row (--nonfinite.patience "
            f"{self.patience}): {', '.join(map(str, self.in_a_row))}; inspect these samples, or go on from an earlier "
            f"checkpoint with a lower learning rate"
        )

    def state_dict(self) -> dict[str, Any]:
        return {"in_a_row": [asdict(skipped) for skipped in self.in_a_row]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.in_a_row = [Skipped(**skipped) for skipped in state_dict["in_a_row"]]


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
