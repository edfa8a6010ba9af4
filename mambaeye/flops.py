"""Floating-point operations of a training step, measured: torch counts them while the step runs on meta tensors.

Counted are matrix products, convolutions and attention, two a multiply-add; norms, activations and the optimizer are
left out. Nothing is computed and no memory taken, and it holds for any encoder.
"""

import copy
from collections.abc import Sequence
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from mambaeye.batch import CanvasBatch, GlimpseBatch, Scene
from mambaeye.encoders.base import Encoder


def training_flops(encoder: Encoder, batch: GlimpseBatch | CanvasBatch) -> int:
    """Return the operations of forward and backward pass for one image of such a batch.

    Args:
        encoder: on any device; it is not touched.
        batch: of which only shapes and dtypes count.
    """
    on_meta = copy.deepcopy(encoder).to("meta")
    counts = {torch.ops.aten.convolution_backward: convolution_backward_flops}
    with FlopCounterMode(display=False, custom_mapping=counts) as counter:
        logits = on_meta.logits(on_meta.encode(one_image(batch)))  # (1, A, classes)
        logits.sum().backward()
    return int(counter.get_total_flops())


def convolution_backward_flops(
    grad_out: Sequence[int],
    inputs: Sequence[int],
    weight: Sequence[int],
    *settings: Any,
    out_shape: Any = None,
    **named: Any,
) -> int:
    """Count a convolution's backward pass from shapes: once the forward pass for each gradient that is wanted.

    torch's own count takes a depthwise convolution for a full one.
    """
    *_, wanted = settings  # gradients of input, weight and bias
    channels, per_group, *taps = weight
    forward = 2 * grad_out[0] * prod(grad_out[2:]) * channels * per_group * prod(taps)
    return forward * (bool(wanted[0]) + bool(wanted[1]))


def one_image(batch: GlimpseBatch | CanvasBatch) -> GlimpseBatch | CanvasBatch:
    """Return a batch of one image, on the meta device."""
    if isinstance(batch, CanvasBatch):
        _, *others = batch.scene
        scene = Scene(batch.scene.pixels[:1].to("meta"), *(part[:1].to("meta") for part in others))
        return batch._replace(scene=scene)
    return batch._replace(patches=batch.patches[:1].to("meta"), positions=batch.positions[:1].to("meta"))
