"""AdamW with decay groups, and a learning rate that warms up and falls along a cosine, stepped every optimizer step."""

import math
from dataclasses import dataclass
from typing import Literal

from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from mambaeye.errors import InputError


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its schedule; the defaults are the paper's recipe."""

    lr: float = 1e-3
    """Peak learning rate, reached at the end of the warm-up."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of the running means of gradients and of their squares."""
    eps: float = 1e-8
    """Added to the denominator of the update."""
    weight_decay: float = 0.05
    """Decoupled weight decay."""
    decay: Literal["weights", "all"] = "weights"
    """What decays: weights alone (norms, biases, dt_bias, A_log and D are exempt), or all, as the authors do."""
    warmup_epochs: float = 20.0
    """Epochs of linear warm-up from zero."""

    def __post_init__(self) -> None:
        if self.warmup_epochs < 0:
            raise InputError(f"optimizer.warmup_epochs is {self.warmup_epochs}: give zero or more")


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> AdamW:
    """AdamW over the model's parameters: vectors and scalars do not decay unless the config says all do."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    decays = [config.decay == "all" or p.ndim >= 2 for p in parameters]
    groups = [
        {"params": [p for p, d in zip(parameters, decays, strict=True) if d], "weight_decay": config.weight_decay},
        {"params": [p for p, d in zip(parameters, decays, strict=True) if not d], "weight_decay": 0.0},
    ]
    return AdamW([g for g in groups if g["params"]], lr=config.lr, betas=tuple(config.betas), eps=config.eps)


def warmup_cosine(step: int, warmup: int, total: int) -> float:
    """Share of the peak learning rate at an optimizer step: a line up to warmup, then a cosine down to 0 at total."""
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def build_schedule(optimizer: AdamW, warmup: int, total: int) -> LambdaLR:
    """warmup_cosine as a scheduler; both lengths in optimizer steps."""
    return LambdaLR(optimizer, lambda step: warmup_cosine(step, warmup, total))


def override_hparams(optimizer: AdamW, schedule: LambdaLR, config: OptimizerConfig) -> None:
    """Let the config's numbers hold for an optimizer and schedule that were restored with those of a checkpoint.

    The moments and the place in the schedule stay; with the checkpoint's own numbers nothing changes.
    """
    schedule.base_lrs = [config.lr] * len(optimizer.param_groups)
    share = schedule.lr_lambdas[0](schedule.last_epoch)
    for group in optimizer.param_groups:
        decays = config.decay == "all" or group["params"][0].ndim >= 2
        group |= {"lr": config.lr * share, "initial_lr": config.lr, "betas": tuple(config.betas), "eps": config.eps}
        group["weight_decay"] = config.weight_decay if decays else 0.0
