"""AdamW with decay groups, and a learning rate that warms up and falls along a cosine, stepped every optimizer step."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from mambaeye.errors import InputError


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its schedule; the defaults are the paper's, but for what decays."""

    lr: float = 1e-3
    """Peak learning rate, reached at the end of the warm-up."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the running means of gradients and of their squares."""
    eps: float = 1e-8
    """Added to the denominator of the update."""
    weight_decay: float = 0.05
    """Decoupled weight decay."""
    decay: Literal["weights", "all"] = "weights"
    """Subject to decay: weights alone (not norms, biases, dt_bias, A_log, D), or all, as in the paper's recipe."""
    warmup_epochs: float = 20.0
    """Epochs of linear warm-up from zero."""

    def __post_init__(self) -> None:
        for name in ("lr", "weight_decay", "warmup_epochs"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"model.optimizer.{name} is {getattr(self, name)}: give zero or more")
        if not self.eps > 0:
            raise InputError(f"model.optimizer.eps is {self.eps}: give a number above 0")
        if len(self.betas) != 2 or not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"model.optimizer.betas is {list(self.betas)}: give two numbers of at least 0 and below 1")


class Decaying(Protocol):
    """A part of the model that says which of its parameters weight decay must not touch."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...
    def no_weight_decay(self) -> set[str]: ...


def build_optimizer(parts: Iterable[Decaying], config: OptimizerConfig) -> AdamW:
    """Build AdamW over the trainable parameters of all parts, in two groups: those that decay, and those exempt.

    Raises:
        InputError: a step would be too large for a float32, which torch answers with a conversion error.
    """
    if config.lr * max(1 / (1 - config.betas[0]), config.weight_decay) > torch.finfo(torch.float32).max:
        raise InputError(
            f"model.optimizer.lr is {config.lr:g} (weight_decay {config.weight_decay:g}), whose steps are too large "
            f"for float32: give a learning rate such as 1e-3"
        )
    decaying: list[nn.Parameter] = []
    exempt: list[nn.Parameter] = []
    for part in parts:
        untouched = part.no_weight_decay()
        for name, parameter in part.named_parameters():
            if parameter.requires_grad:
                (exempt if name in untouched else decaying).append(parameter)
    groups = [{"params": decaying}, {"params": exempt}]
    optimizer = AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps)
    set_weight_decay(optimizer, config)
    return optimizer


def set_weight_decay(optimizer: Optimizer, config: OptimizerConfig) -> None:
    """Set the weight decay of both groups of build_optimizer's."""
    decaying, exempt = optimizer.param_groups
    decaying["weight_decay"] = config.weight_decay
    exempt["weight_decay"] = config.weight_decay if config.decay == "all" else 0.0


def warmup_cosine(step: int, warmup: int, total: float) -> float:
    """Return the share of the peak learning rate at an optimizer step: a line up to warmup, a cosine to 0 at total."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def build_schedule(optimizer: AdamW, warmup: int, total: float) -> LambdaLR:
    """Build warmup_cosine as a scheduler; both lengths in optimizer steps."""
    return LambdaLR(optimizer, lambda step: warmup_cosine(step, warmup, total))


def override_hparams(optimizer: Optimizer, schedule: LRScheduler, config: OptimizerConfig) -> None:
    """Let the config's numbers hold for an optimizer and schedule that were restored with those of a checkpoint.

    The moments and the place in the schedule stay; with the checkpoint's own numbers nothing changes.
    """
    assert isinstance(schedule, LambdaLR)
    schedule.base_lrs = [config.lr] * len(optimizer.param_groups)
    share = schedule.lr_lambdas[0](schedule.last_epoch)
    for group in optimizer.param_groups:
        group |= {"lr": config.lr * share, "initial_lr": config.lr, "betas": config.betas, "eps": config.eps}
    set_weight_decay(optimizer, config)
