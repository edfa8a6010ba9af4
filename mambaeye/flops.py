"""Floating-point operations of the encoder, counted on paper: matrix products and convolutions, two a multiply-add.

A glimpse costs, with the letters of mamba2.py and ssd.py (D width, I inner width, X = I + 2 N channels, H heads, N
d_state, W taps, Q steps a chunk, C classes, K axes, P patch side, M values that embed a move along an axis):

    projection   2 (3 P^2 + K M) D
    a block      2 D (I + X + H)           in_proj
                 2 W X                     convolution
                 2 Q N + 2 Q I + 4 N I     recurrence in chunks: C B^T, the mask times its inputs, states in and out
                 2 I D                     out_proj
    head         2 D C

Training costs three times as much: the backward pass computes two products for each (the gradients of both factors).
Only the pixels and moves need no gradient, so the projection counts twice. What norms, activations, the loss and the
optimizer compute is left out, and so is what is computed anew in the backward pass.
"""

from mambaeye.encoders.mambaeye import EncoderConfig
from mambaeye.ops.ssd import CHUNK


def projection_flops(config: EncoderConfig) -> int:
    """Of one glimpse."""
    return 2 * (3 * config.patch_size**2 + config.axes * config.move_embedding_dim) * config.dim


def forward_flops(config: EncoderConfig, length: int) -> int:
    """Of the logits after each of T glimpses of one image."""
    inner, state = config.expand * config.dim, config.d_state
    channels, heads = inner + 2 * state, inner // config.headdim
    chunks = -(-length // CHUNK)
    chunk = -(-length // chunks)  # as in ssd: as even as can be
    recurrence = chunks * chunk * (2 * chunk * (state + inner) + 4 * state * inner)
    block = 2 * config.dim * (inner + channels + heads) + 2 * config.d_conv * channels + 2 * inner * config.dim
    head = 2 * config.dim * config.num_classes
    return length * (projection_flops(config) + config.depth * block + head) + config.depth * recurrence


def training_flops(config: EncoderConfig, length: int) -> int:
    """Of the gradient of the loss of one image with T glimpses."""
    return 3 * forward_flops(config, length) - length * projection_flops(config)
