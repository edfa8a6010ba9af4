"""H-Net over glimpses: an inner network sees what a router keeps (Hwang et al. 2025, arXiv 2507.07955; and ours).

MambaEye's embedding and blocks around them; stages in mambaeye/ops/hierarchy.py, routers in mambaeye/ops/routers.py.
Not the authors' network, which is for bytes: their chunking, with a re-summed move for each glimpse that is kept, since
the move that it carries starts at one that may have been dropped. Shapes: B images, T glimpses, K axes, D width.
"""

import math
from typing import NamedTuple, get_args

import torch
from torch import Tensor, nn

from mambaeye.batch import CanvasBatch, GlimpseBatch
from mambaeye.encoders.base import CausalEncoder, Encoded
from mambaeye.errors import InputError
from mambaeye.geometry.moves import moves
from mambaeye.ops.block import Block
from mambaeye.ops.checked_kernels import CheckedKernels
from mambaeye.ops.glimpses import embed_glimpses, require_glimpses
from mambaeye.ops.hierarchy import Main, Routing, Stage, StageState
from mambaeye.ops.kernel_selection import Kernels, require_kernels, select_backend, unsupported_reason
from mambaeye.ops.mamba2 import require_mixer
from mambaeye.ops.routers import ROUTERS, RouterName
from mambaeye.ops.shapes import require_sizes

THIRDS = ("early", "middle", "late")


class HNetState(NamedTuple):
    """All that the encoder carries from glimpse to glimpse, one row an image; its size never grows."""

    steps: Tensor
    """(B,) int64: glimpses seen."""
    position: Tensor
    """(B, K) int64: where the last one was."""
    stage: StageState


class HNet(CausalEncoder):
    """Blocks on all glimpses, an inner network on those that a router keeps, and blocks on all again.

    Args:
        num_classes: Number of classes that the head tells apart.
        patch_size: Side of a glimpse along rows and columns, in pixels.
        dim: Width of the residual stream: values a glimpse.
        blocks: Blocks before the router (and as many after), then of the inner network; one more number in front for
            each stage around these.
        router: What decides which glimpses the inner network sees: neighbours (published), novelty (ours); similarity,
            stride and random are controls.
        shrink: Glimpses for each that is kept: what the ratio loss asks for, or what stride and random do. A stage.
        ratio_weight: Weight of the ratio loss.
        resum: Tell the inner network the move from the last glimpse that was kept.
        smooth: Smooth what the inner network says by the router's probabilities.
        confidence: Train the router by how sure it was, too (straight-through).
        d_state: State values a channel of the recurrence.
        d_conv: Taps of the causal convolution, in glimpses.
        expand: Inner width of a block as a multiple of dim.
        headdim: Channels a head of the recurrence; divides expand * dim.
        move_embedding_dim: Values that embed a move along one axis, half sines and half cosines.
        axes: Axes of a position: 2 for (row, col), 3 for (frame, row, col) of clips.
        tube: Frames of a glimpse, where there are three axes.
        channels: Channels of a pixel.
        kernels: CUDA kernels of mamba-ssm and causal-conv1d: cuda, plain torch, or auto for those that can be had.

    Raises:
        InputError: a size cannot be; or kernels is "cuda", and the packages or the sizes do not allow it.
    """

    def __init__(
        self,
        num_classes: int = 1000,
        patch_size: int = 16,
        dim: int = 256,
        blocks: tuple[int, ...] = (2, 8),
        router: RouterName = "novelty",
        shrink: float = 2.0,
        ratio_weight: float = 0.03,
        resum: bool = True,
        smooth: bool = True,
        confidence: bool = True,
        d_state: int = 64,
        d_conv: int = 4,
        expand: int = 2,
        headdim: int = 64,
        move_embedding_dim: int = 256,
        axes: int = 2,
        tube: int = 1,
        channels: int = 3,
        kernels: Kernels = "auto",
    ) -> None:
        super().__init__()
        of_mixer = {"d_state": d_state, "d_conv": d_conv, "expand": expand, "headdim": headdim}
        require_sizes(num_classes=num_classes, patch_size=patch_size, dim=dim, axes=axes, tube=tube, **of_mixer)
        require_sizes(channels=channels)
        require_sizes(move_embedding_dim=move_embedding_dim, **{f"blocks.{i}": count for i, count in enumerate(blocks)})
        require_mixer(expand * dim, headdim, d_conv)
        if move_embedding_dim % 2:
            raise InputError(
                f"encoder.move_embedding_dim is {move_embedding_dim}: half are sines, so give an even number"
            )
        if len(blocks) < 2:
            raise InputError(
                f"encoder.blocks is {[*blocks]}: give blocks around the inner network, and then its own: [2,8]"
            )
        if router not in get_args(RouterName):
            raise InputError(f"encoder.router is {router!r}: choose one of {', '.join(get_args(RouterName))}")
        if shrink <= 1 or (router == "stride" and shrink % 1):
            raise InputError(f"encoder.shrink is {shrink}: give more than 1, and of router stride a whole number")
        if ratio_weight < 0:
            raise InputError(f"encoder.ratio_weight is {ratio_weight}: give 0 or more")
        self.patch_size, self.axes, self.tube, self.kernels = patch_size, axes, tube, kernels
        self.channels = channels
        self.shrink, self.ratio_weight = shrink, ratio_weight
        self.learns_ratio = router not in ("stride", "random")
        self.unsupported_reason = unsupported_reason(expand * dim, headdim, d_state, d_conv)
        if kernels == "cuda":
            require_kernels(self.unsupported_reason)
        self.projection = nn.Linear(channels * math.prod(self.glimpse) + axes * move_embedding_dim, dim)

        def some(count: int) -> list[Block]:
            return [Block(dim, **of_mixer) for _ in range(count)]

        inner: Stage | Main = Main(some(blocks[-1]), dim)
        for count in reversed(blocks[:-1]):
            decider = ROUTERS[router](dim, shrink)
            before, after = some(count), some(count)
            inner = Stage(
                before, after, decider, inner, dim, move_embedding_dim if resum else None, axes, smooth, confidence
            )
        assert isinstance(inner, Stage)
        self.stage = inner
        self.head = nn.Linear(dim, num_classes)
        self.reset_residuals(2 * sum(blocks[:-1]) + blocks[-1])

    @torch.no_grad()
    def reset_residuals(self, depth: int) -> None:
        """Scale down what every block adds, by the square root of the blocks on the longest way through."""
        for block in self.modules():
            if isinstance(block, Block):
                block.mixer.out_proj.weight.div_(math.sqrt(depth))

    def features(self, patches: Tensor, positions: Tensor) -> Tensor:
        return self.route(patches, positions)[0]

    def route(self, patches: Tensor, positions: Tensor) -> tuple[Tensor, list[Routing]]:
        """Return what the head sees, (B, T, D), and what each stage's router decided, the outermost first.

        Arguments as for features. An inner stage's routing is of what the one around it kept.
        """
        require_glimpses(patches, positions, self.glimpse, self.channels)
        x = embed_glimpses(self.projection, patches, moves(positions))
        x, _, routings = self.stage(x, positions, None, None, self.backend_for(x))
        return x, routings

    def feature_modules(self) -> tuple[list[nn.Module], nn.Module]:
        """Return the blocks on all glimpses; those of the inner network see but those that are kept."""
        return [*self.stage.encoder, *self.stage.decoder], self.stage.decoder_norm

    def encode_for_training(self, batch: GlimpseBatch | CanvasBatch) -> Encoded:
        assert isinstance(batch, GlimpseBatch)
        features, routings = self.route(batch.patches, batch.positions)
        losses = torch.stack([routing.ratio_loss(self.shrink) for routing in routings])
        curves = {"ratio_loss": losses.mean()}
        for stage, routing in enumerate(routings):
            kept = (routing.kept & routing.counts).float()
            name = "kept" if not stage else f"kept_of_stage_{stage}"
            curves[name] = kept.sum() / routing.counts.sum()
            if not stage:
                thirds = kept.mean(0).tensor_split(len(THIRDS))
                curves |= {
                    f"kept_{name}": third.mean() for name, third in zip(THIRDS, thirds, strict=True) if len(third)
                }
        penalty = self.ratio_weight * losses.sum() if self.learns_ratio else None
        return Encoded(features, penalty, curves)

    def initial_state(self, batch_size: int) -> HNetState:
        stage = self.stage.initial_state(batch_size)
        return HNetState(stage.kept, stage.position, stage)

    def stream_features(self, patches: Tensor, positions: Tensor, state: HNetState) -> tuple[Tensor, HNetState]:
        require_glimpses(patches, positions, self.glimpse, self.channels)
        previous = torch.where(state.steps[:, None] == 0, positions[:, 0], state.position)
        x = embed_glimpses(self.projection, patches, moves(positions, previous))
        x, stage, _ = self.stage(x, positions, state.stage, None, self.backend_for(x))
        return x, HNetState(state.steps + positions.shape[1], positions[:, -1].long(), stage)

    def backend_for(self, x: Tensor) -> CheckedKernels | None:
        """Return the kernels for an input, None for plain torch."""
        return select_backend(self.kernels, x, self.unsupported_reason)

    def backend(self, device: torch.device) -> str:
        if self.backend_for(torch.empty(0, device=device)):
            return "the CUDA kernels of mamba-ssm and causal-conv1d"
        return super().backend(device)
