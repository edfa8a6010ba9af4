"""MambaEye: a causal encoder that predicts after every glimpse (paper section 3; figure 2).

Shapes: B images, T glimpses, C channels, P... the sides of a glimpse, K axes of a position, D model width.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, NamedTuple, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mambaeye.encoders.base import CausalEncoder, PublishedWeights
from mambaeye.errors import InputError
from mambaeye.geometry.moves import moves
from mambaeye.ops import stack
from mambaeye.ops.block import Block
from mambaeye.ops.dense import picked
from mambaeye.ops.glimpses import embed_glimpses, require_glimpses
from mambaeye.ops.kernel_selection import Kernels, require_kernels, select_backend, unsupported_reason
from mambaeye.ops.mamba2 import Mamba2, require_mixer
from mambaeye.ops.precision import wide
from mambaeye.ops.registers import register_places, with_registers
from mambaeye.ops.shapes import require_sizes
from mambaeye.ops.stack import StackState

STD = 0.02  # that a register starts with
DEPTHS = {"tiny": 12, "small": 24, "base": 48}
# the published files' names -> ours; below a block the names agree
PUBLISHED = {
    "init_fc.0.": "projection.",
    "mamba2_net.layers.": "blocks.",
    "mamba2_net.norm_f.": "norm.",
    "classification_head.0.": "head.",
}

Coordinates = Literal["moves", "positions", "moves_in_space"]


@dataclass(frozen=True)
class EncoderConfig:
    """Sizes of the encoder, and what it is told of where it looks."""

    num_classes: int = 1000
    """Number of classes that the head tells apart."""
    patch_size: int = 16
    """Side of a glimpse along rows and columns, in pixels."""
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
    """Axes of a position: 2 for (row, col), 3 for (frame, row, col) of clips."""
    tube: int = 1
    """Frames of a glimpse, where there are three axes."""
    channels: int = 3
    """Channels of a pixel."""
    coordinates: Coordinates = "moves"
    """Place of a glimpse, as the model is told: its move from the one before (the paper), its position on the canvas,
    or the move but for its frames, which are told as zero (ablations)."""
    registers_every: int = 0
    """Glimpses between registers, learned tokens that answer nothing (an ablation); 0 for none (the paper)."""

    @classmethod
    def named(cls, size: str, **changes: Any) -> "EncoderConfig":
        """Return the paper's tiny, small or base (5.8, 11.0 and 21.3 M parameters with 1000 classes), with changes."""
        if size not in DEPTHS:
            raise InputError(f"no encoder size is called {size!r}: choose one of {', '.join(DEPTHS)}")
        return replace(cls(depth=DEPTHS[size]), **changes)

    def __post_init__(self) -> None:
        sizes = {name: value for name, value in vars(self).items() if name not in ("coordinates", "registers_every")}
        require_sizes(**sizes)
        if self.coordinates not in get_args(Coordinates):
            raise InputError(
                f"encoder.coordinates is {self.coordinates!r}: choose one of {', '.join(get_args(Coordinates))}"
            )
        if self.coordinates == "moves_in_space" and self.axes < 3:
            raise InputError(
                f"encoder.coordinates is moves_in_space and encoder.axes {self.axes}: images have no frames to hide: "
                f"give moves"
            )
        if self.registers_every < 0:
            raise InputError(
                f"encoder.registers_every is {self.registers_every}: give 0 for none, or the glimpses between two"
            )
        if self.move_embedding_dim % 2:
            raise InputError(
                f"encoder.move_embedding_dim is {self.move_embedding_dim}: half are sines, so give an even number"
            )
        require_mixer(self.expand * self.dim, self.headdim, self.d_conv)


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
        """Return the state of some of the images: index is what a tensor takes along its first axis."""
        return EncoderState(*(part[index] for part in self))

    def to(self, device: torch.device | str) -> "EncoderState":
        """Return the state on another device."""
        return EncoderState(*(part.to(device) for part in self))


class MambaEye(CausalEncoder):
    """Glimpses and their positions -> class logits after every glimpse.

    Args:
        _config: all sizes at once, instead of single ones; not a flag.
        kernels: CUDA kernels of mamba-ssm and causal-conv1d: cuda, plain torch, or auto for those that can be had.
        sizes: fields of EncoderConfig.

    Raises:
        InputError: a size cannot be; or kernels is "cuda", and the packages or the sizes do not allow it.
    """

    published_as = "mambaeye"

    def __init__(self, _config: EncoderConfig | None = None, kernels: Kernels = "auto", **sizes: Any) -> None:
        super().__init__()
        config = EncoderConfig(**sizes) if _config is None else replace(_config, **sizes)
        self.config, self.settings = config, asdict(config)
        self.patch_size, self.axes, self.tube = config.patch_size, config.axes, config.tube
        self.channels = config.channels
        self.kernels = kernels
        inner = config.expand * config.dim
        self.unsupported_reason = unsupported_reason(inner, config.headdim, config.d_state, config.d_conv)
        if kernels == "cuda":
            require_kernels(self.unsupported_reason)
        glimpse = config.channels * math.prod(self.glimpse) + config.axes * config.move_embedding_dim
        self.projection = nn.Linear(glimpse, config.dim)
        mixer = (config.dim, config.d_state, config.d_conv, config.expand, config.headdim)
        self.blocks = nn.ModuleList(Block(*mixer) for _ in range(config.depth))
        self.norm = nn.RMSNorm(config.dim, eps=1e-5)
        self.head = nn.Linear(config.dim, config.num_classes)
        self.reset_residuals()
        self.register = nn.Parameter(STD * torch.randn(config.dim)) if config.registers_every else None

    @torch.no_grad()
    def reset_residuals(self) -> None:
        """Scale down what every block adds; all else starts as torch's layers or Mamba2's recurrence draw it.

        So projection and head start with torch's uniform biases, as the authors' do.
        """
        for block in self.layers():
            block.mixer.out_proj.weight.div_(math.sqrt(self.config.depth))

    def features(self, patches: Tensor, positions: Tensor) -> Tensor:
        """Return what the head sees after every glimpse, the whole sequence at once.

        Args:
            patches: (B, T, C, P...) uint8 or uint16, or floating in [0, 1]; of three channels RGB.
            positions: (B, T, K) integers, (row, col) or (frame, row, col) of each glimpse's first pixel.

        Returns:
            (B, T, D), after the final norm.

        Raises:
            InputError: shapes or dtypes are others than these.
        """
        require_glimpses(patches, positions, self.glimpse, self.channels)
        return self._run(patches, positions, None, 0)[0]

    def feature_modules(self) -> tuple[list[nn.Module], nn.Module]:
        return [*self.blocks], self.norm

    def extra_places(self, tokens: int) -> Sequence[int]:
        return register_places(tokens, self.config.registers_every) if self.register is not None else ()

    def layers(self) -> Iterator[Block]:
        """Yield the blocks, the first one first."""
        yield from cast(Iterable[Block], self.blocks)

    def backend(self, device: torch.device) -> str:
        if select_backend(self.kernels, torch.empty(0, device=device), self.unsupported_reason):
            return "the CUDA kernels of mamba-ssm and causal-conv1d"
        return super().backend(device)

    def initial_state(self, batch_size: int) -> EncoderState:
        """Return the state of batch_size images of which nothing was seen: zeros."""
        weight = self.projection.weight
        return EncoderState(
            weight.new_zeros(batch_size, dtype=torch.long),
            weight.new_zeros(batch_size, self.config.axes, dtype=torch.long),
            *stack.initial_state([*self.layers()], batch_size),
        )

    def stream_features(self, patches: Tensor, positions: Tensor, state: EncoderState) -> tuple[Tensor, EncoderState]:
        """Return what the head sees of the next chunk, (B, T, D), and the state to go on from.

        Any split of a sequence into chunks gives what the whole does. Arguments as for features, T from 1 up.
        """
        require_glimpses(patches, positions, self.glimpse, self.channels)
        self._check_state(state, patches.shape[0])
        every = self.config.registers_every
        phases = sorted(set((state.steps % every).tolist())) if every else [0]
        if len(phases) > 1:  # these images' registers come after other glimpses
            runs = [(state.steps % every == phase).nonzero().squeeze(1) for phase in phases]
            parts = [self.stream_features(patches[rows], positions[rows], state.rows(rows)) for rows in runs]
            order = torch.cat(runs).argsort()
            states = zip(*(state for _, state in parts), strict=True)
            state = EncoderState(*(torch.cat(of_rows) for of_rows in states)).rows(order)
            return torch.cat([features for features, _ in parts])[order], state
        features, layers = self._run(patches, positions, state, phases[0] if phases else 0)
        assert layers is not None
        return features, EncoderState(state.steps + positions.shape[1], positions[:, -1].long(), *layers)

    def recurrent_states(self, state: EncoderState) -> Tensor:
        """Return the SSM states of all layers: (B, depth, H, P, N)."""
        return state.ssm

    @contextmanager
    def record_log_decays(self) -> Iterator[list[Tensor]]:
        """Yield a list that grows by (B, H) log decays dt A whenever a layer takes one glimpse, first layer first."""
        recorded: list[Tensor] = []
        hooks = []
        for block in self.layers():
            mixer = block.mixer

            def record(module: nn.Module, inputs: Any, projected: Tensor, mixer: Mamba2 = mixer) -> None:
                dt = projected[:, 0, -mixer.heads :]  # (B, H), the last columns of (z, x, B, C, dt)
                dtype = wide(mixer.A_log.dtype)
                recorded.append(F.softplus(dt.to(dtype) + mixer.dt_bias) * -mixer.A_log.to(dtype).exp())

            hooks.append(mixer.in_proj.register_forward_hook(record))
        try:
            yield recorded
        finally:
            for hook in hooks:
                hook.remove()

    @classmethod
    def from_published(cls, tensors: Mapping[str, Tensor], where: str) -> PublishedWeights | None:
        if not any(name.startswith(tuple(PUBLISHED)) for name in tensors):
            return None
        state = {}
        for name, tensor in tensors.items():
            prefix = next((p for p in PUBLISHED if name.startswith(p)), "")
            state[PUBLISHED.get(prefix, "") + name.removeprefix(prefix)] = tensor  # an unknown key keeps its name
        return PublishedWeights(asdict(sizes(state, where)), state)

    @classmethod
    def settings_in(cls, tensors: Mapping[str, Tensor]) -> dict[str, Any] | None:
        try:
            told = asdict(sizes(tensors, "the state dict"))
        except InputError:
            return None
        del told["coordinates"]  # which no shape tells
        if "register" in tensors:
            del told["registers_every"]  # nor of registers that there are how many
        return told

    def _run(
        self, patches: Tensor, positions: Tensor, state: EncoderState | None, phase: int
    ) -> tuple[Tensor, StackState | None]:
        """Return features (B, T, D), and with a state its new convolution and SSM parts; phase is that of registers."""
        x = self.embed(patches, positions, state)  # (B, T, D)
        if self.register is not None:
            x, places = with_registers(x, self.register, self.config.registers_every, phase)  # (B, T + E, D)
        kernels = select_backend(self.kernels, x, self.unsupported_reason)
        before = None if state is None else StackState(state.conv, state.ssm)
        x, after = stack.run([*self.layers()], self.norm, x, before, kernels)
        if self.register is not None:
            x = picked(x, places)  # (B, T, D)
        return x, after

    def embed(self, patches: Tensor, positions: Tensor, state: EncoderState | None) -> Tensor:
        """Project patch vector and embedded move or position, then SiLU: (B, T, D)."""
        place = positions
        if self.config.coordinates != "positions":
            previous = positions[:, 0]  # the first move is zero
            if state is not None:
                previous = torch.where(state.steps[:, None] == 0, previous, state.position)
            place = moves(positions, previous)
        if self.config.coordinates == "moves_in_space":
            place = torch.cat((torch.zeros_like(place[..., :1]), place[..., 1:]), dim=-1)
        return embed_glimpses(self.projection, patches, place)

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


def sizes(state: Mapping[str, Tensor], where: str) -> EncoderConfig:
    """Return the sizes that the shapes of a state dict (our names) tell; the embedding has 256 values an axis.

    Raises:
        InputError: they tell none; where names the file.
    """
    embedding = EncoderConfig.move_embedding_dim
    try:
        dim, glimpse = state["projection.weight"].shape
        num_classes, _ = state["head.weight"].shape
        (inner,) = state["blocks.0.mixer.norm.weight"].shape
        (heads,) = state["blocks.0.mixer.A_log"].shape
        channels, _, d_conv = state["blocks.0.mixer.conv1d.weight"].shape
        last = max(int(name.split(".")[1]) for name in state if name.startswith("blocks."))
        if last >= len(state):
            raise ValueError(f"there is a block {last} in {len(state)} tensors")
        return EncoderConfig(
            num_classes=num_classes,
            patch_size=math.isqrt((glimpse - 2 * embedding) // 3),
            dim=dim,
            depth=1 + last,
            d_state=(channels - inner) // 2,
            d_conv=d_conv,
            expand=inner // dim,
            headdim=inner // heads,
            move_embedding_dim=embedding,
        )
    except KeyError as error:
        raise InputError(f"{where} is not a MambaEye: {error} is missing") from None
    except (ValueError, ZeroDivisionError) as error:
        raise InputError(f"{where} is not a MambaEye: its shapes do not belong together ({error})") from None
