"""EfficientViM: a convolutional hierarchy whose tokens are mixed through few hidden states (arXiv 2411.15241).

Its mixer has no recurrence: every state is a weighted mean of all tokens (a softmax over them), channels are mixed
within the states alone, and each token reads what it wants of these. Shapes: B images, C channels, H and W sides of a
map, L = H W tokens, N states, S stages.
"""

import re
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambaeye.encoders.base import DenseEncoder, PublishedWeights
from mambaeye.errors import InputError
from mambaeye.ops.batch_norm import ConvNorm
from mambaeye.ops.shapes import layers_in, of_layout, require_sizes

STD = 0.02  # that the head starts with
GATE = 1e-4  # what the gates' logits start with: half of a branch, half of what was there
A_MIN, A_MAX = 1.0, 16.0
STEM = 4  # convolutions, each of stride 2
EXPANSION, REDUCTION = 4, 4  # of channels between stages; and of these, where they are gated


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of tokens (B, C, L), or of maps (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise every token by itself."""
        return super().forward(x.movedim(1, -1)).movedim(-1, 1)


class HiddenStateMixer(nn.Module):
    """HSM-SSD: tokens into N hidden states, the states through a gated map, and back to the tokens.

    Args:
        dim: C.
        states: N.
        expand: width within the states as a multiple of dim.
    """

    def __init__(self, dim: int, states: int, expand: int) -> None:
        super().__init__()
        self.BCdt_proj = nn.Conv2d(dim, 3 * states, 1, bias=False)
        self.dw = nn.Conv2d(3 * states, 3 * states, 3, padding=1, groups=3 * states, bias=False)
        self.hz_proj = nn.Conv1d(dim, 2 * expand * dim, 1, bias=False)
        self.out_proj = nn.Conv1d(expand * dim, dim, 1, bias=False)
        self.A = nn.Parameter(torch.empty(states).uniform_(A_MIN, A_MAX))
        self.D = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Mix tokens x (B, C, L) of a map of these sides; return the tokens and the states, (B, C, N)."""
        B, C, dt = self.dw(self.BCdt_proj(x.unflatten(2, (height, width)))).flatten(2).chunk(3, dim=1)  # (B, N, L)
        # as published: A moves all tokens of a state alike, which a softmax over them takes out again
        share = (dt + self.A[:, None]).softmax(-1)
        h = x @ (share * B).transpose(1, 2)  # (B, C, N)
        h, z = self.hz_proj(h).chunk(2, dim=1)
        h = self.out_proj(h * F.silu(z) + self.D * h)
        return h @ C, h


class Block(nn.Module):
    """Local, mixing, local and channel-wise branches, each taken in by a learned share of every channel.

    Args:
        dim: C.
        states: N of the mixer.
        expand: of the mixer.
        hidden: width within the channel-wise branch.
    """

    def __init__(self, dim: int, states: int, expand: int, hidden: int) -> None:
        super().__init__()
        self.dwconv1 = ConvNorm(dim, dim, 3, groups=dim)
        self.norm = ChannelNorm(dim)
        self.mixer = HiddenStateMixer(dim, states, expand)
        self.dwconv2 = ConvNorm(dim, dim, 3, groups=dim)
        self.ffn = nn.Sequential(OrderedDict(fc1=ConvNorm(dim, hidden, relu=True), fc2=ConvNorm(hidden, dim)))
        self.alpha = nn.Parameter(torch.full((4, dim), GATE))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return maps x (B, C, H, W) with what the branches make of them, and the mixer's states (B, C, N)."""
        share = self.alpha.sigmoid()[:, :, None, None]
        x = x + share[0] * (self.dwconv1(x) - x)
        y, h = self.mixer(self.norm(x.flatten(2)), *x.shape[2:])
        x = x + share[1] * (y.unflatten(2, x.shape[2:]) - x)
        x = x + share[2] * (self.dwconv2(x) - x)
        return x + share[3] * (self.ffn(x) - x), h


class SqueezeExcite(nn.Module):
    """Channels times a gate of each, from the mean over the map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = max(1, channels // REDUCTION)
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.fc2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Gate maps (B, C, H, W)."""
        return x * self.fc2(F.relu(self.fc1(x.mean((2, 3), keepdim=True)))).sigmoid()


class Downsample(nn.Module):
    """Maps of half the sides, rounded up, and of other channels: an inverted bottleneck between two local branches."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        inner = EXPANSION * out
        self.dwconv1 = ConvNorm(dim, dim, 3, groups=dim)
        self.conv = nn.Sequential(
            ConvNorm(dim, inner, relu=True),
            ConvNorm(inner, inner, 3, stride=2, groups=inner, relu=True),
            SqueezeExcite(inner),
            ConvNorm(inner, out),
        )
        self.dwconv2 = ConvNorm(out, out, 3, groups=out)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, out, ceil(H / 2), ceil(W / 2))."""
        x = self.conv(x + self.dwconv1(x))
        return x + self.dwconv2(x)


class Stage(nn.Module):
    """Blocks of one width, and a way to the next width if there is one."""

    def __init__(self, blocks: list[Block], downsample: Downsample | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the maps for the next stage, or the last ones, and the states of the last block."""
        for block in self.blocks:
            x, h = block(x)
        return x if self.downsample is None else self.downsample(x), h


class EfficientViM(DenseEncoder):
    """Stages of hidden-state mixers; the states of each stage and the last maps answer together.

    Args:
        num_classes: Number of classes that the head tells apart.
        dims: Channels of each stage.
        depths: Blocks of each stage.
        states: Hidden states of each stage's mixers.
        expand: Width within the hidden states as a multiple of the stage's channels.
        mlp_ratio: Hidden width of a block's channel-wise branch as a multiple of its channels.
    """

    published_as = "efficientvim"
    patch = stride = 1  # its convolutions take any side

    def __init__(
        self,
        num_classes: int = 1000,
        dims: tuple[int, ...] = (128, 192, 320),
        depths: tuple[int, ...] = (2, 2, 2),
        states: tuple[int, ...] = (49, 25, 9),
        expand: int = 1,
        mlp_ratio: float = 4.0,
    ) -> None:
        super().__init__()
        stages = {"dims": tuple(dims), "depths": tuple(depths), "states": tuple(states)}
        self.settings |= {name: given for name, given in stages.items() if name in self.settings}  # lists in a file
        require_sizes(num_classes=num_classes, expand=expand, mlp_ratio=mlp_ratio)
        require_sizes(**{f"{name}.{i}": size for name, given in stages.items() for i, size in enumerate(given)})
        if not len(dims) == len(depths) == len(states) > 0:
            counts = ", ".join(f"{name} {len(given)}" for name, given in stages.items())
            raise InputError(f"encoder has stages by {counts}: give as many dims as depths and states")
        if dims[0] % 2 ** (STEM - 1):
            raise InputError(f"encoder.dims begins with {dims[0]}: give a multiple of {2 ** (STEM - 1)}, for the stem")
        widths = (3, *(dims[0] >> halved for halved in reversed(range(STEM))))
        convolutions = [
            ConvNorm(width, wider, 3, stride=2, relu=i < STEM - 1) for i, (width, wider) in enumerate(pairwise(widths))
        ]
        self.patch_embed = nn.Sequential(OrderedDict(conv=nn.Sequential(*convolutions)))
        self.stages = nn.Sequential(*(
            Stage(
                [Block(dim, count, expand, round(mlp_ratio * dim)) for _ in range(depth)],
                Downsample(dim, dims[i + 1]) if i + 1 < len(dims) else None,
            )
            for i, (dim, depth, count) in enumerate(zip(dims, depths, states, strict=True))
        ))  # fmt: skip
        fused = (*dims, dims[-1])
        self.norm = nn.Sequential(*(ChannelNorm(dim) for dim in fused))
        self.weights = nn.Parameter(torch.ones(len(fused)))
        self.head = nn.Linear(sum(fused) + len(dims), num_classes)
        nn.init.trunc_normal_(self.head.weight, std=STD)
        nn.init.zeros_(self.head.bias)
        with torch.no_grad():
            self.head.weight[:, sum(fused) :] = 0  # biases, too

    def image_features(self, images: Tensor) -> Tensor:
        x = self.patch_embed(images)
        pooled = []
        for stage in self.stages:
            x, h = stage(x)
            pooled.append(h)
        pooled.append(x.flatten(2))
        # logits are a weighted mean of S + 1 heads', which is one head on what all of them see, weighted, and on the
        # weights themselves for their biases; the last weight is what the others leave
        share = self.weights.softmax(0)
        parts = [
            w * norm(tokens.to(norm.weight.dtype)).mean(2)
            for w, norm, tokens in zip(share, cast(Any, self.norm), pooled, strict=True)
        ]
        return torch.cat((*parts, share[:-1].expand(len(x), -1)), dim=1)

    def feature_modules(self) -> tuple[list[nn.Module], nn.Module]:
        return [cast(Stage, stage).blocks[-1] for stage in self.stages], self.norm[-1]

    def as_map(self, output: Tensor, sides: Sequence[int]) -> tuple[Tensor, None]:
        return output, None  # it is one

    def no_weight_decay(self) -> set[str]:
        gates = {name for name, _ in self.named_parameters() if name.endswith(".alpha")}
        return super().no_weight_decay() | gates

    @classmethod
    def from_published(cls, tensors: Mapping[str, Tensor], where: str) -> PublishedWeights | None:
        if not {"weights", "heads.0.weight", "stages.0.blocks.0.mixer.hz_proj.conv.weight"} <= tensors.keys():
            return None
        with of_layout(cls.published_as, where):
            state = {
                re.sub(r"(\.mixer\.\w+)\.conv\.", r"\1.", name): ours_of(name, tensor)
                for name, tensor in tensors.items()
            }
            heads = range(layers_in(tensors, "heads."))
            matrices, biases = ([state.pop(f"heads.{i}.{kind}") for i in heads] for kind in ("weight", "bias"))
            if (
                len({(matrix.ndim, *matrix.shape[:1]) for matrix in matrices} | {(2, *bias.shape) for bias in biases})
                > 1
            ):
                raise ValueError("its heads are of several numbers of classes")
            of_weights = torch.stack([bias - biases[-1] for bias in biases[:-1]], dim=1)
            state |= {"head.weight": torch.cat((*matrices, of_weights), dim=1), "head.bias": biases[-1]}
            return PublishedWeights(sizes_in(state), state)

    @classmethod
    def settings_in(cls, tensors: Mapping[str, Tensor]) -> dict[str, Any] | None:
        if "stages.0.blocks.0.mixer.hz_proj.weight" not in tensors:
            return None
        try:
            return sizes_in(tensors)
        except (KeyError, ValueError, ZeroDivisionError):
            return None


def ours_of(name: str, tensor: Tensor) -> Tensor:
    """Return a tensor in our shape, given its name in the authors' layout: norms (C,), the first projection of maps."""
    if re.fullmatch(r"norm\.\d+\.\w+|stages\.\d+\.blocks\.\d+\.norm\.\w+", name):
        return tensor.flatten()
    return tensor.unsqueeze(-1) if name.endswith("BCdt_proj.conv.weight") else tensor


def sizes_in(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the constructor's arguments that a state dict by our names tells.

    Raises:
        KeyError: a tensor is missing that tells one.
        ValueError: a tensor has other axes.
    """
    count = layers_in(state, "stages.")
    first = [f"stages.{i}.blocks.0." for i in range(count)]
    dims = [width for _, width in (state[f"{block}alpha"].shape for block in first)]
    inner, _, _ = state[f"{first[0]}mixer.hz_proj.weight"].shape
    hidden, *_ = state[f"{first[0]}ffn.fc1.conv.weight"].shape
    num_classes, _ = state["head.weight"].shape
    return {
        "num_classes": num_classes,
        "dims": tuple(dims),
        "depths": tuple(layers_in(state, f"stages.{i}.blocks.") for i in range(count)),
        "states": tuple(states for (states,) in (state[f"{block}mixer.A"].shape for block in first)),
        "expand": inner // (2 * dims[0]),
        "mlp_ratio": hidden / dims[0],
    }
