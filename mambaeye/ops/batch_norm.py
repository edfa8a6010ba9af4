"""Batch norm over the images of all processes, and a convolution with it.

Statistics are those of what one forward pass of training sees: a micro-batch of every process together, so that two
processes with half of the images each compute what one does. They are taken, and their running means moved, only where
the norm is trained: whatever else runs the network while it is in training mode (curves without gradients, a frozen
backbone, a block's second computation in the backward pass) leaves the running means alone.

Shapes: B images, C channels, H and W sides of a map, P processes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from mambaeye.ops.precision import no_autocast, wide

MOMENTUM, EPS = 0.1, 1e-5


class BatchNorm(nn.Module):
    """Normalises the channels of maps, in evaluation by the running means of what training saw. Names as torch's.

    Unlike torch's SyncBatchNorm it is the same on every device, and a batch that is not finite, whose step is skipped,
    leaves no trace in the running means.

    Args:
        channels: C.
    """

    moves: ClassVar[bool] = True
    """Allowance to move running means, of all norms: not while a block is computed again."""
    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (B, C, H, W)."""
        alone = processes() == 1
        measured = self.training and self.weight.requires_grad and torch.is_grad_enabled()
        if not measured or (alone and x.numel() == x.shape[1]):  # a single value a channel has no variance
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=EPS)
        mean, var = self.running_mean.clone(), self.running_var.clone()
        if alone:
            y = F.batch_norm(x, mean, var, self.weight, self.bias, True, MOMENTUM, EPS)
        else:
            y = self.of_all(x, mean, var)
        if self.moves:
            finite = mean.isfinite().all() & var.isfinite().all()
            self.running_mean.copy_(torch.where(finite, mean, self.running_mean))
            self.running_var.copy_(torch.where(finite, var, self.running_var))
            self.num_batches_tracked.add_(1)
        return y

    def of_all(self, x: Tensor, running_mean: Tensor, running_var: Tensor) -> Tensor:
        """Normalise x (B, C, H, W) by the statistics of all processes, and move these running means, (C,) each."""
        values = x.to(wide(x.dtype))
        with no_autocast(x.device):
            var, mean = torch.var_mean(values, (0, 2, 3), correction=0)
            count = mean.new_full((1,), x.numel() // x.shape[1])
            means, variances, counts = gather(torch.cat((mean, var, count))).split((*mean.shape, *var.shape, 1), dim=1)
            share = counts / counts.sum()  # (P, 1)
            mean = (share * means).sum(0)
            var = (share * (variances + (means - mean).square())).sum(0)
            y = (values - mean[:, None, None]) * (torch.rsqrt(var + EPS) * self.weight)[:, None, None]
            y = (y + self.bias[:, None, None]).to(x.dtype)
        with torch.no_grad():
            running_mean.lerp_(mean.to(running_mean.dtype), MOMENTUM)
            unbiased = var * counts.sum() / (counts.sum() - 1)
            running_var.lerp_(unbiased.to(running_var.dtype), MOMENTUM)
        return y


class ConvNorm(nn.Sequential):
    """A convolution without a bias, its batch norm, and ReLU if asked. Sides of a map are kept, or halved upwards.

    Args:
        channels: channels in.
        out: channels out.
        taps: side of the kernel, odd.
        stride: from one place to the next.
        groups: of channels.
        relu: end in ReLU.
    """

    def __init__(
        self, channels: int, out: int, taps: int = 1, stride: int = 1, groups: int = 1, relu: bool = False
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, taps, stride, taps // 2, groups=groups, bias=False)
        self.norm = BatchNorm(out)
        if relu:
            self.act = nn.ReLU()


@contextmanager
def running_means_kept() -> Iterator[None]:
    """Leave the running means of all batch norms as they are in here: for a second pass over the same images."""
    allowed, BatchNorm.moves = BatchNorm.moves, False
    try:
        yield
    finally:
        BatchNorm.moves = allowed


def processes() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


@torch.library.custom_op("mambaeye::gather", mutates_args=())
def gather(values: Tensor) -> Tensor:
    """Return the values (K,) of all processes, (P, K); gradients go back to the process that they came from."""
    gathered = [torch.empty_like(values) for _ in range(processes())]
    dist.all_gather(gathered, values.contiguous())
    return torch.stack(gathered)


@gather.register_fake
def _(values: Tensor) -> Tensor:
    return values.new_empty(processes(), *values.shape)


@torch.library.custom_op("mambaeye::gather_backward", mutates_args=())
def gather_backward(g: Tensor) -> Tensor:
    """Return what all processes' gradients (P, K) say of this one's values, (K,)."""
    total = g.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total[dist.get_rank()].clone()


@gather_backward.register_fake
def _(g: Tensor) -> Tensor:
    return g.new_empty(g.shape[1:])


def _backward(ctx: Any, g: Tensor) -> Tensor:
    return gather_backward(g)


gather.register_autograd(_backward)
