"""Spatial-Mamba: one selective scan in reading order, whose states see their neighbours (arXiv 2410.15091).

A hierarchy of convolutions and blocks. The scan hands out its state at every token in place of an answer; states of
tokens that are near in the plane are then fused, and each token reads its own. Parameters have the authors' names.
Shapes: B images, C channels, H and W sides of a map, L = H W tokens, E inner width, R rank of the step sizes.
"""

import math
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambaeye.encoders.base import DenseEncoder, PublishedWeights
from mambaeye.errors import InputError
from mambaeye.ops.batch_norm import BatchNorm, ConvNorm
from mambaeye.ops.kernel_selection import Kernels, select_scan
from mambaeye.ops.precision import no_autocast, wide
from mambaeye.ops.s6 import selective_scan
from mambaeye.ops.s6_block import scan_backend
from mambaeye.ops.s6_directions import draw_step_sizes_
from mambaeye.ops.shapes import layers_in, of_layout, require_sizes
from mambaeye.ops.transformer import MLP, STD

DILATIONS = {"kernel_3": 1, "kernel_3_1": 3, "kernel_3_2": 5}  # of the kernels that fuse states, 3 x 3 each
EXPANSION = 4  # of channels on the way to the next stage
FIRST = "layers.0.blocks.0."


class StateFusion(nn.Module):
    """States plus their neighbours', by three dilated kernels of every channel; beyond the edge is what is at it.

    The kernels are applied as they are at every call: nothing is merged and kept, as in the authors' code, which goes
    stale when training goes on.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.kernel_3, self.kernel_3_1, self.kernel_3_2 = (
            nn.Parameter(torch.ones(channels, 1, 3, 3)) for _ in DILATIONS
        )
        self.alpha = nn.Parameter(torch.ones(len(DILATIONS)))

    def forward(self, h: Tensor) -> Tensor:
        """Fuse states (B, E, H, W)."""
        kernels = (self.kernel_3, self.kernel_3_1, self.kernel_3_2)
        fused = torch.zeros((), device=h.device)
        for kernel, weight, dilation in zip(kernels, self.alpha, DILATIONS.values(), strict=True):
            padded = F.pad(h, (dilation,) * 4, mode="replicate")
            taps = (weight * kernel).to(h.dtype)
            fused = fused + F.conv2d(padded, taps, dilation=dilation, groups=h.shape[1])
        return fused


class SpatialMixer(nn.Module):
    """Structure-aware state fusion: a convolution, a scan of one state a channel, the fusion of states, a gate.

    Args:
        dim: C.
        expand: E as a multiple of dim.
        kernels: what the scan runs on.
    """

    def __init__(self, dim: int, expand: int, kernels: Kernels) -> None:
        super().__init__()
        inner, self.rank, self.kernels = expand * dim, math.ceil(dim / 16), kernels
        self.in_proj = nn.Linear(dim, 2 * inner, bias=False)  # x, z
        self.conv2d = nn.Conv2d(inner, inner, 3, padding=1, groups=inner)
        self.x_proj_weight = nn.Parameter(torch.empty(self.rank + 2, inner))  # dt before its projection, B, C
        self.dt_projs_weight = nn.Parameter(torch.empty(inner, self.rank))
        self.dt_projs_bias = nn.Parameter(torch.empty(inner))
        self.A_logs = nn.Parameter(torch.zeros(inner, 1))
        self.Ds = nn.Parameter(torch.ones(inner))
        self.state_fusion = StateFusion(inner)
        self.out_norm = nn.LayerNorm(inner)
        self.out_proj = nn.Linear(inner, dim, bias=False)
        for weight in (self.x_proj_weight, self.dt_projs_weight):
            nn.init.uniform_(weight, -(weight.shape[1] ** -0.5), weight.shape[1] ** -0.5)
        draw_step_sizes_(self.dt_projs_bias)

    def forward(self, u: Tensor) -> Tensor:
        """Mix maps u (B, H, W, C)."""
        x, z = self.in_proj(u).chunk(2, dim=-1)
        x = F.silu(self.conv2d(x.permute(0, 3, 1, 2))).permute(0, 2, 3, 1)  # (B, H, W, E)
        h, C = self.states(x.flatten(1, 2))
        h = self.state_fusion(h.unflatten(1, x.shape[1:3]).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        y = h * C.unflatten(1, x.shape[1:3]) + self.Ds * x
        mixed: Tensor = self.out_proj((self.out_norm(y.to(u.dtype)) * F.silu(z)).to(u.dtype))
        return mixed

    def states(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Scan tokens x (B, L, E); return the state at each, (B, L, E), and what reads it there, (B, L, 1).

        In float32 or wider, whatever the autocast.
        """
        projected = F.linear(x, self.x_proj_weight)
        dtype = wide(x.dtype)
        with no_autocast(x.device):
            dt, B, C = projected.to(dtype).split((self.rank, 1, 1), dim=-1)
            dt = F.softplus(F.linear(dt, self.dt_projs_weight.to(dtype), self.dt_projs_bias.to(dtype)))
            A = -self.A_logs.to(dtype).exp()
            scan = select_scan(self.kernels, dt) or selective_scan
            # read by one, and nothing skipped: the answer is the state
            along = (part.unsqueeze(2) for part in (x.to(dtype), dt, B, torch.ones_like(B)))  # (B, L, 1, .)
            x, dt, B, ones = along
            h = scan(x, dt, A.unsqueeze(0), B, ones, torch.zeros_like(A).transpose(0, 1))
        return h.squeeze(2), C


class Block(nn.Module):
    """A mixer and an MLP, each behind a depthwise convolution and a layer norm, all added to the residual stream.

    Args:
        dim: C.
        expand: of the mixer.
        hidden: width of the MLP.
        kernels: what the scan runs on.
    """

    def __init__(self, dim: int, expand: int, hidden: int, kernels: Kernels) -> None:
        super().__init__()
        self.cpe1 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.ln_1 = nn.LayerNorm(dim)
        self.self_attention = SpatialMixer(dim, expand, kernels)
        self.cpe2 = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.ln_2 = nn.LayerNorm(dim)
        self.mlp = MLP(dim, hidden)

    def forward(self, x: Tensor) -> Tensor:
        """Return the residual stream (B, H, W, C) behind the block, in float32 or wider."""
        dtype = self.ln_1.weight.dtype
        x = x.to(wide(x.dtype))
        x = x + self.cpe1(x.to(dtype).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = x + self.self_attention(self.ln_1(x.to(dtype)))
        x = x + self.cpe2(x.to(dtype).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return x + self.mlp(self.ln_2(x.to(dtype)))


class Stem(nn.Module):
    """Images to maps of a fourth of their sides, rounded up: two strided convolutions with a residual pair between."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        half = dim // 2
        self.conv1 = ConvNorm(3, half, 3, stride=2, relu=True)
        self.conv2 = nn.Sequential(ConvNorm(half, half, 3, relu=True), ConvNorm(half, half, 3))
        self.conv3 = nn.Sequential(ConvNorm(half, 4 * dim, 3, stride=2, relu=True), ConvNorm(4 * dim, dim))

    def forward(self, images: Tensor) -> Tensor:
        """Map images (B, 3, H, W) to (B, ceil(H / 4), ceil(W / 4), C)."""
        x = self.conv1(images)
        return self.conv3(x + self.conv2(x)).permute(0, 2, 3, 1)


class Downsample(nn.Module):
    """Maps of half the sides, rounded up, and twice the channels."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        out, inner = 2 * dim, EXPANSION * 2 * dim
        strided = nn.Conv2d(inner, inner, 3, stride=2, padding=1, groups=inner)
        self.conv = nn.Sequential(
            nn.Sequential(OrderedDict(conv=nn.Conv2d(dim, inner, 1), act=nn.ReLU())),
            nn.Sequential(OrderedDict(conv=strided, act=nn.ReLU())),
            nn.Sequential(OrderedDict(conv=nn.Conv2d(inner, out, 1), norm=BatchNorm(out))),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, ceil(H / 2), ceil(W / 2), 2 C)."""
        x = x.to(next(self.parameters()).dtype)
        return self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class Stage(nn.Module):
    """Blocks of one width, and a way to the next width if there is one."""

    def __init__(self, blocks: list[Block], downsample: Downsample | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Return the maps (B, H, W, C) for the next stage, or the last ones."""
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class SpatialMamba(DenseEncoder):
    """Stages of blocks with one scan each, from maps of a fourth of the sides on; the mean of the last map answers.

    Args:
        num_classes: Number of classes that the head tells apart.
        dim: Channels of the first stage, an even number; every further one has twice as many.
        depths: Blocks of each stage.
        expand: Inner width of a mixer as a multiple of the stage's channels.
        mlp_ratio: Hidden width of an MLP as a multiple of the stage's channels.
        kernels: Selective scan of mamba-ssm on a GPU: cuda, plain torch, or auto for the kernel where it can be had.
    """

    published_as = "spatialmamba"
    patch = stride = 1  # its convolutions take any side

    def __init__(
        self,
        num_classes: int = 1000,
        dim: int = 64,
        depths: tuple[int, ...] = (2, 4, 8, 4),
        expand: int = 2,
        mlp_ratio: float = 4.0,
        kernels: Kernels = "auto",
    ) -> None:
        super().__init__()
        if "depths" in self.settings:
            self.settings["depths"] = tuple(depths)  # a list in a file
        require_sizes(num_classes=num_classes, dim=dim, expand=expand, mlp_ratio=mlp_ratio)
        require_sizes(**{f"depths.{i}": depth for i, depth in enumerate(depths)})
        if not depths:
            raise InputError("encoder.depths is empty: give the blocks of each stage, such as [2,4,8,4]")
        if dim % 2:
            raise InputError(f"encoder.dim is {dim}: give an even number, for the stem has half as many channels")
        self.kernels = kernels
        self.patch_embed = Stem(dim)
        widths = [dim << i for i in range(len(depths))]
        self.layers = nn.Sequential(*(
            Stage(
                [Block(width, expand, round(mlp_ratio * width), kernels) for _ in range(depth)],
                Downsample(width) if width < widths[-1] else None,
            )
            for width, depth in zip(widths, depths, strict=True)
        ))  # fmt: skip
        self.norm = nn.LayerNorm(widths[-1])
        self.head = nn.Linear(widths[-1], num_classes)
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.trunc_normal_(part.weight, std=STD)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)

    def image_features(self, images: Tensor) -> Tensor:
        x = self.layers(self.patch_embed(images))
        return self.norm(x.to(self.norm.weight.dtype)).mean((1, 2))  # (B, H, W, C) -> (B, C)

    def feature_modules(self) -> tuple[list[nn.Module], nn.Module]:
        return [cast(Stage, stage).blocks[-1] for stage in self.layers], self.norm

    def no_weight_decay(self) -> set[str]:
        return super().no_weight_decay() | {name for name, _ in self.named_parameters() if name.endswith(".A_logs")}

    def backend(self, device: torch.device) -> str:
        return scan_backend(self.kernels, device) or super().backend(device)

    @classmethod
    def from_published(cls, tensors: Mapping[str, Tensor], where: str) -> PublishedWeights | None:
        if f"{FIRST}self_attention.state_fusion.kernel_3" not in tensors:
            return None
        with of_layout(cls.published_as, where):
            return PublishedWeights(sizes_in(tensors), dict(tensors))


def sizes_in(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the constructor's arguments that a state dict's shapes tell.

    Raises:
        KeyError: a tensor is missing that tells one.
        ValueError: a tensor has other axes.
    """
    twice_inner, dim = state[f"{FIRST}self_attention.in_proj.weight"].shape
    hidden, _ = state[f"{FIRST}mlp.fc1.weight"].shape
    num_classes, _ = state["head.weight"].shape
    stages = range(layers_in(state, "layers."))
    return {
        "num_classes": num_classes,
        "dim": dim,
        "depths": tuple(layers_in(state, f"layers.{i}.blocks.") for i in stages),
        "expand": twice_inner // (2 * dim),
        "mlp_ratio": hidden / dim,
    }
