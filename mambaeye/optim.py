"""AdamW with decay groups, and a learning rate that warms up and falls along a cosine, stepped every optimizer step."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Literal, Protocol

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
    backbone_lr: float = 1.0
    """Learning rate of all of the encoder but its head, as a share of lr; for fine-tuning, less than 1."""

    def __post_init__(self) -> None:
        if not self.backbone_lr > 0:
            raise InputError(
                f"model.optimizer.backbone_lr is {self.backbone_lr}: give more than zero, or --model.head_only true"
            )
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


def build_optimizer(parts: Iterable[Decaying], config: OptimizerConfig, backbone: Iterable[nn.Parameter] = ()) -> AdamW:
    """Build AdamW over the trainable parameters of all parts.

    Its groups are those that decay and those exempt; then the same of the backbone, if it has its own learning rate.

    Args:
        parts: of the model.
        config: of the optimizer.
        backbone: the parameters for which config.backbone_lr holds.

    Raises:
        InputError: a step would be too large for a float32, which torch answers with a conversion error.
    """
    if config.lr * max(1 / (1 - config.betas[0]), config.weight_decay) > torch.finfo(torch.float32).max:
        raise InputError(
            f"model.optimizer.lr is {config.lr:g} (weight_decay {config.weight_decay:g}), whose steps are too large "
            f"for float32: give a learning rate such as 1e-3"
        )
    slow = {id(parameter) for parameter in backbone} if config.backbone_lr != 1 else set()
    groups: list[list[nn.Parameter]] = [[], [], *([[], []] if slow else [])]
    for part in parts:
        untouched = part.no_weight_decay()
        for name, parameter in part.named_parameters():
            if parameter.requires_grad:
                groups[2 * (id(parameter) in slow) + (name in untouched)].append(parameter)
    rates = [
        {"params": group, "lr": rate} for group, rate in zip(groups, learning_rates(len(groups), config), strict=True)
    ]
    optimizer = AdamW(rates, betas=config.betas, eps=config.eps)
    set_weight_decay(optimizer, config)
    set_fused(optimizer, can_fuse(optimizer))
    return optimizer


def can_fuse(optimizer: Optimizer) -> bool:
    """Tell whether one kernel can update all parameters: on a GPU. On a CPU it would change results for nothing."""
    return all(parameter.is_cuda for group in optimizer.param_groups for parameter in group["params"])


def set_fused(optimizer: Optimizer, fused: bool) -> None:
    """Let one kernel update all parameters, or not; with the moments that there are, whichever way they came about.

    The kernel looks up `found_inf` on the device, and does nothing where it is 1. That a gradient scaler unscales
    before it, as before any other optimizer, is what clipping needs: so the optimizer does not say that it does itself.
    """
    for group in optimizer.param_groups:
        group["fused"] = fused or None  # torch's choice of another way
        for parameter in group["params"]:
            if "step" in optimizer.state.get(parameter, {}):
                state = optimizer.state[parameter]
                state["step"] = state["step"].to(parameter.device if fused else "cpu")


def learning_rates(groups: int, config: OptimizerConfig) -> list[float]:
    """Return the peak learning rate of each of build_optimizer's groups, two or four."""
    return [config.lr, config.lr, *[config.lr * config.backbone_lr] * (groups - 2)]


def set_weight_decay(optimizer: Optimizer, config: OptimizerConfig) -> None:
    """Set the weight decay of build_optimizer's groups."""
    for group, exempt in zip(optimizer.param_groups, cycle((False, True)), strict=False):
        group["weight_decay"] = 0.0 if exempt and config.decay != "all" else config.weight_decay


def schedule_steps(
    warmup_epochs: float, steps_an_epoch: int, max_epochs: int | None, max_steps: int
) -> tuple[int, float]:
    """Return the optimizer steps of the warm-up, and in all: math.inf where neither limit is given (None or -1)."""
    total = math.inf if max_epochs is None or max_epochs == -1 else steps_an_epoch * max_epochs
    if max_steps != -1:
        total = min(total, max_steps)
    return int(min(round(warmup_epochs * steps_an_epoch), total)), total


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
    peaks = learning_rates(len(optimizer.param_groups), config)
    schedule.base_lrs = [*peaks]
    share = schedule.lr_lambdas[0](schedule.last_epoch)
    for group, peak in zip(optimizer.param_groups, peaks, strict=True):
        group |= {"lr": peak * share, "initial_lr": peak, "betas": config.betas, "eps": config.eps}
    set_weight_decay(optimizer, config)
    set_fused(optimizer, can_fuse(optimizer))  # a checkpoint says how it was where it was saved


def require_same_groups(began: Mapping[str, Any], head_only: bool, backbone_lr: float) -> None:
    """Refuse to go on with an optimizer of other parameters or groups than a checkpoint's.

    Args:
        began: the module's arguments in the checkpoint; those that are missing, it was saved without.
        head_only: whether only the head learns now.
        backbone_lr: the backbone's share of the learning rate now.

    Raises:
        InputError: they are others.
    """
    shares = began.get("optimizer", {}).get("backbone_lr", 1.0), backbone_lr
    for name, before, now, same in (
        ("head_only", began.get("head_only", False), head_only, began.get("head_only", False) == head_only),
        ("optimizer.backbone_lr", *shares, (shares[0] == 1) == (shares[1] == 1)),
    ):
        if not same:
            raise InputError(
                f"the checkpoint's run began with model.{name} {before}, and its optimizer cannot go on with {now}: "
                "start anew from the checkpoint, with --model.init_from in place of --ckpt_path"
            )
