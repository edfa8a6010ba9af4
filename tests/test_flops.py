"""Operations measured on meta tensors, against a count on paper.

A glimpse costs, with the letters of mamba2.py and ssd.py (D width, I inner width, X = I + 2 N channels, H heads, N
d_state, W taps, Q steps a chunk, C classes, K axes, P patch side, M values that embed a move along an axis):

    projection   2 (3 P^2 + K M) D
    a block      2 D (I + X + H)           in_proj
                 2 W X                     convolution
                 2 Q N + 2 Q I + 4 N I     recurrence in chunks: C B^T, the mask times its inputs, states in and out
                 2 I D                     out_proj
    head         2 D C

Training costs three times as much: the backward pass computes two products for each (the gradients of both factors).
Only the pixels and moves need no gradient, so the projection counts twice.
"""

import pytest
import torch
from torch import Tensor

from mambaeye.batch import CanvasBatch, GlimpseBatch, Scene
from mambaeye.encoders.base import CanvasEncoder
from mambaeye.encoders.mambaeye import EncoderConfig, MambaEye
from mambaeye.flops import training_flops
from mambaeye.ops.ssd import CHUNK

QUICKSTART = EncoderConfig(num_classes=10, dim=96, depth=3, d_state=32, headdim=32)
WIDE = EncoderConfig(num_classes=1000, depth=2, d_conv=3, patch_size=8, move_embedding_dim=64)


def projection_on_paper(config: EncoderConfig) -> int:
    return 2 * (3 * config.patch_size**2 + config.axes * config.move_embedding_dim) * config.dim


def forward_on_paper(config: EncoderConfig, num_glimpses: int) -> int:
    inner, state = config.expand * config.dim, config.d_state
    channels, heads = inner + 2 * state, inner // config.headdim
    chunks = -(-num_glimpses // CHUNK)
    chunk = -(-num_glimpses // chunks)  # as in ssd: as even as can be
    recurrence = chunks * chunk * (2 * chunk * (state + inner) + 4 * state * inner)
    block = 2 * config.dim * (inner + channels + heads) + 2 * config.d_conv * channels + 2 * inner * config.dim
    head = 2 * config.dim * config.num_classes
    return num_glimpses * (projection_on_paper(config) + config.depth * block + head) + config.depth * recurrence


def batch_of(images: int, num_glimpses: int, side: int) -> GlimpseBatch:
    patches = torch.zeros(images, num_glimpses, 3, side, side, dtype=torch.uint8)
    zeros = torch.zeros(images, dtype=torch.long)
    ratio = torch.zeros(images, num_glimpses)
    positions = torch.zeros(images, num_glimpses, 2, dtype=torch.int32)
    return GlimpseBatch(patches, positions, ratio, zeros, zeros, zeros, ["a"] * images, zeros.bool())


@pytest.mark.parametrize("num_glimpses", [2, 64, 65, 130])
@pytest.mark.parametrize("config", [QUICKSTART, WIDE], ids=["quickstart", "wide"])
def test_what_is_measured_is_the_count_on_paper(config: EncoderConfig, num_glimpses: int) -> None:
    measured = training_flops(MambaEye(config), batch_of(2, num_glimpses, config.patch_size))
    on_paper = 3 * forward_on_paper(config, num_glimpses) - num_glimpses * projection_on_paper(config)
    assert measured == pytest.approx(on_paper, rel=0.02)


class Convolution(CanvasEncoder):
    """Four channels each on its own, 3 x 3 taps, no padding, averaged."""

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__()
        self.spread = torch.nn.Conv2d(3, 4, 1)
        self.depthwise = torch.nn.Conv2d(4, 4, 3, groups=4)
        self.head = torch.nn.Linear(4, num_classes)

    def features(self, canvases: Tensor) -> Tensor:
        return self.depthwise(self.spread(canvases.permute(0, 3, 1, 2).float())).mean((2, 3))


def test_depthwise_convolutions_are_no_full_ones() -> None:
    canvases = torch.zeros(3, 12, 10, 3, dtype=torch.uint8)
    none = torch.zeros(3, dtype=torch.long)
    scene = Scene(canvases, none, none, none, none)
    batch = CanvasBatch(scene, none, none, none, none, ["a"] * 3, none, condition=0)
    spread, depthwise, head = 2 * 3 * 4 * 12 * 10, 2 * 4 * 9 * 10 * 8, 2 * 4 * 5
    assert training_flops(Convolution(), batch) == 2 * spread + 3 * depthwise + 3 * head  # pixels need no gradient
