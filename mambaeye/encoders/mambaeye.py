"""MambaEye: a causal encoder that predicts after every glimpse (paper section 3; figure 2).

Shapes: B images, T glimpses, P patch side, K axes of a position, D model width.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambaeye.errors import InputError
from mambaeye.geometry.moves import embed_moves, moves
from mambaeye.ops.kernels import (
    CudaKernels,
    Kernels,
    choose,
    in_place,
    require_kernels,
    unsupported_reason,
)
from mambaeye.ops.mamba2 import Mamba2, MixerState

DEPTHS = {"tiny": 12, "small": 24, "base": 48}

Coordinates = Literal["moves", "positions"]


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of the encoder, and what it is told of where it looks."""

    num_classes: int = 1000
    """Number of classes that the head tells apart."""
    patch_size: int = 16
    """Side of a glimpse in pixels."""
    dim: int = 256
    """Width of the residual stream: values a glimpse."""
    depth: int = DEPTHS["tiny"]
    """Number of Mamba2 blocks: 12 is the paper's tiny, 24 small, 48 base."""
    d_state: int = 64
    """State values a channel of the recurrence."""
    d_conv: int = 4
    """Taps of the causal convolution, in glimpses."""
    expand: int = 2
    """Inner width of a block as a multiple of dim."""
    headdim: int = 64
    """Channels a head of the recurrence; divides expand * dim."""
    move_embedding_dim: int = 256
    """Values that embed a move along one axis, half sines and half cosines."""
    axes: int = 2
    """Axes of a position: 2 for (row, col)."""
    coordinates: Coordinates = "moves"
    """What tells the model where a glimpse is: its move from the one before (the paper), or its position on the canvas
    (an ablation)."""

    @classmethod
    def named(cls, size: str, **changes: int | str) -> "EncoderConfig":
        """The paper's tiny, small or base (5.8, 11.0 and 21.3 M parameters with 1000 classes), with changes."""
        if size not in DEPTHS:
            raise InputError(f"no encoder size is called {size!r}: choose one of {', '.join(DEPTHS)}")
        return replace(cls(depth=DEPTHS[size]), **changes)

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name != "coordinates" and value < 1:
                raise InputError(f"encoder.{name} is {value}: give at least 1")
        if self.coordinates not in get_args(Coordinates):
            raise InputError(
                f"encoder.coordinates is {self.coordinates!r}: choose one of {', '.join(get_args(Coordinates))}"
            )
        if self.move_embedding_dim % 2:
            raise InputError(
                f"encoder.move_embedding_dim is {self.move_embedding_dim}: half are sines, so give an even number"
            )
        if self.d_conv < 2:
            raise InputError("encoder.d_conv is 1: a causal convolution needs 2 taps or more")
        inner = self.expand * self.dim
        if inner % self.headdim:
            divisors = (d for d in range(1, inner + 1) if inner % d == 0)
            nearest = min(divisors, key=lambda d: abs(d - self.headdim))
            raise InputError(
                f"encoder.headdim is {self.headdim}, which does not divide expand * dim = {inner}: "
                f"the nearest that does is {nearest}"
            )


class EncoderState(NamedTuple):
    """All that the encoder carries from glimpse to glimpse, one row an image; its size never grows."""

    steps: Tensor
    """(B,) int64: glimpses seen."""
    position: Tensor
    """(B, K) int64: where the last one was."""
    conv: Tensor
    """(B, depth, X, W - 1): see MixerState."""
    ssm: Tensor
    """(B, depth, H, P, N): see MixerState."""

    def rows(self, index: Tensor | slice) -> "EncoderState":
        """The state of some of the images: index is what a tensor takes along its first axis."""
        return EncoderState(*(part[index] for part in self))

    def to(self, device: torch.device | str) -> "EncoderState":
        """The state on another device."""
        return EncoderState(*(part.to(device) for part in self))


class Block(nn.Module):
    """Pre-norm residual block: x + Mamba2(RMSNorm(x)), with the sum left to the next norm."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(config.dim, eps=1e-5)
        self.mixer = Mamba2(config.dim, config.d_state, config.d_conv, config.expand, config.headdim)

    def forward(
        self, x: Tensor, residual: Tensor | None, state: MixerState | None, kernels: CudaKernels | None
    ) -> tuple[Tensor, Tensor, MixerState | None]:
        """Add x to the residual stream, norm, mix.

        Returns:
            What the mixer adds, the residual stream to add it to, and the mixer's state.
        """
        if kernels is None:
            x, residual = add_norm(x, residual, self.norm)
            x, state = self.mixer(x, state)
        else:
            x, residual = kernels.add_norm(x, residual, self.norm)
            x, state = kernels.mix(self.mixer, x, state)
        return x, residual, state


def add_norm(x: Tensor, residual: Tensor | None, norm: nn.RMSNorm) -> tuple[Tensor, Tensor]:
    """norm(residual + x), and the sum, which stays as wide as the residual stream."""
    residual = x if residual is None else residual + x
    return norm(residual).to(norm.weight.dtype), residual


class MambaEye(nn.Module):
    """Glimpses and their positions -> class logits after every glimpse.

    Args:
        config: sizes; see EncoderConfig.
        kernels: "cuda" for those of mamba-ssm and causal-conv1d, "torch" for none, "auto" for those that can be had.

    Raises:
        InputError: kernels is "cuda", and the packages or the sizes do not allow it.
    """

    def __init__(self, config: EncoderConfig, kernels: Kernels = "auto") -> None:
        super().__init__()
        self.config = config
        self.kernels = kernels
        self.unsupported_reason = unsupported_reason(
            config.expand * config.dim, config.headdim, config.d_state, config.d_conv
        )
        if kernels == "cuda":
            require_kernels(self.unsupported_reason)
        glimpse = 3 * config.patch_size**2 + config.axes * config.move_embedding_dim
        self.projection = nn.Linear(glimpse, config.dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.norm = nn.RMSNorm(config.dim, eps=1e-5)
        self.head = nn.Linear(config.dim, config.num_classes)
        self.reset_residuals()

    @torch.no_grad()
    def reset_residuals(self) -> None:
        """The paper's initialisation where it is not torch's or Mamba2's own: zero biases, residuals scaled down."""
        nn.init.zeros_(self.projection.bias)
        nn.init.zeros_(self.head.bias)
        for block in self.blocks:
            block.mixer.out_proj.weight.div_(math.sqrt(self.config.depth))

    def forward(self, patches: Tensor, positions: Tensor) -> Tensor:
        """Logits after every glimpse, the whole sequence at once.

        Args:
            patches: (B, T, 3, P, P) RGB, uint8 or floating in [0, 1].
            positions: (B, T, K) integers, (row, col) of each glimpse's top-left pixel.

        Returns:
            (B, T, num_classes).

        Raises:
            InputError: shapes or dtypes are others than these.
        """
        return self.head(self.features(patches, positions))

    def features(self, patches: Tensor, positions: Tensor) -> Tensor:
        """What the head sees: (B, T, D) after the final norm. Arguments as for a call."""
        self._check(patches, positions)
        return self._run(patches, positions, None)[0]

    def runs_on(self, device: torch.device) -> str:
        """What the mixers run on there, in words."""
        if choose(self.kernels, torch.empty(0, device=device), self.unsupported_reason):
            return "the CUDA kernels of mamba-ssm and causal-conv1d"
        return f"plain torch on {device.type}"

    def initial_state(self, batch_size: int) -> EncoderState:
        """The state of batch_size images of which nothing was seen."""
        mixer = self.blocks[0].mixer.initial_state(0)

        def of_all_layers(part: Tensor) -> Tensor:
            return part.new_zeros(batch_size, len(self.blocks), *part.shape[1:])

        weight = self.projection.weight
        return EncoderState(
            weight.new_zeros(batch_size, dtype=torch.long),
            weight.new_zeros(batch_size, self.config.axes, dtype=torch.long),
            of_all_layers(mixer.conv),
            of_all_layers(mixer.ssm),
        )

    def stream(self, patches: Tensor, positions: Tensor, state: EncoderState) -> tuple[Tensor, EncoderState]:
        """Logits after every glimpse of the next chunk, and the state to go on from.

        Any split of a sequence into chunks gives the logits of the whole. Arguments as for a call, T from 1 up.
        """
        features, state = self.stream_features(patches, positions, state)
        return self.head(features), state

    def stream_features(self, patches: Tensor, positions: Tensor, state: EncoderState) -> tuple[Tensor, EncoderState]:
        """What the head sees of the next chunk, (B, T, D), and the state to go on from: stream without its head."""
        self._check(patches, positions)
        self._check_state(state, patches.shape[0])
        features, (conv, ssm) = self._run(patches, positions, state)
        return features, EncoderState(state.steps + positions.shape[1], positions[:, -1].long(), conv, ssm)

    def _run(
        self, patches: Tensor, positions: Tensor, state: EncoderState | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Features (B, T, D), and with a state its new convolution and SSM parts."""
        x, residual = self.embed(patches, positions, state), None  # (B, T, D)
        kernels = choose(self.kernels, x, self.unsupported_reason)
        layers: list[MixerState | None] = [None] * len(self.blocks)
        if state is not None:
            conv, ssm = state.conv, state.ssm
            if overwritten := kernels is not None and in_place(x):
                conv, ssm = conv.clone(), ssm.clone()
            layers = [MixerState(conv[:, i], ssm[:, i]) for i in range(len(self.blocks))]
        for i, block in enumerate(self.blocks):
            x, residual, layers[i] = block(x, residual, layers[i], kernels)
        x, _ = add_norm(x, residual, self.norm)
        if state is None:
            return x, None
        if not overwritten:
            conv, ssm = (torch.stack(parts, dim=1) for parts in zip(*layers, strict=True))
        return x, (conv, ssm)

    def embed(self, patches: Tensor, positions: Tensor, state: EncoderState | None) -> Tensor:
        """Patch vector (channel, row, column) and embedded move or position -> projection -> SiLU: (B, T, D)."""
        weight, bias = self.projection.weight, self.projection.bias
        dtype = weight.dtype
        of_patch, of_place = weight.split(
            (3 * self.config.patch_size**2, self.config.axes * self.config.move_embedding_dim), dim=1
        )
        if patches.dtype == torch.uint8:
            of_patch = of_patch / 255  # bytes to [0, 1], cheaper on the weight than on the pixels
        place = positions
        if self.config.coordinates == "moves":
            previous = positions[:, 0]  # the first move is zero
            if state is not None:
                previous = torch.where(state.steps[:, None] == 0, previous, state.position)
            place = moves(positions, previous)
        embedded = embed_moves(place, self.config.move_embedding_dim, dtype)
        # one projection of the concatenation (patch, move), without the copy that concatenating makes
        x = F.linear(patches.flatten(2).to(dtype), of_patch, bias) + F.linear(embedded, of_place)
        return F.silu(x).to(dtype)  # autocast must not narrow the residual stream

    def _check(self, patches: Tensor, positions: Tensor) -> None:
        side, axes = self.config.patch_size, self.config.axes
        if patches.ndim != 5 or patches.shape[2:] != (3, side, side):
            raise InputError(f"patches have shape {tuple(patches.shape)}: this encoder takes (B, T, 3, {side}, {side})")
        if positions.shape != (*patches.shape[:2], axes):
            raise InputError(
                f"positions have shape {tuple(positions.shape)}: these patches need {(*patches.shape[:2], axes)}"
            )
        if patches.shape[1] == 0:
            raise InputError("the sequence is empty: give at least one glimpse")
        if patches.dtype != torch.uint8 and not patches.is_floating_point():
            raise InputError(f"patches are {patches.dtype}: give uint8, or floating values in [0, 1]")
        if positions.is_floating_point() or positions.is_complex() or positions.dtype == torch.bool:
            raise InputError(f"positions are {positions.dtype}: give integers, the pixel of each glimpse's corner")

    def _check_state(self, state: EncoderState, batch_size: int) -> None:
        for name, part, fitting in zip(state._fields, state, self.initial_state(0), strict=True):
            shape = (batch_size, *fitting.shape[1:])
            if part.shape != shape or part.dtype != fitting.dtype:
                raise InputError(
                    f"the state's {name} is {tuple(part.shape)} {part.dtype}: this model and these patches need "
                    f"{shape} {fitting.dtype}, as from initial_state({batch_size})"
                )
            if part.device != fitting.device:
                raise InputError(f"the state is on {part.device}, the model on {fitting.device}: move it with to()")
