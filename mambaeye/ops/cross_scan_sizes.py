"""Sizes of pyramids of cross scans: which there can be, and what the names and shapes of a state dict tell of them."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from mambaeye.errors import InputError
from mambaeye.ops.shapes import LARGEST, layers_in, require_sizes

STAGES = "pyramid.stages."
FIRST = f"{STAGES}0.blocks.0."


def widths_of(dim: int, depths: Sequence[int], overlapping: bool) -> list[int]:
    """Return the width of every stage: the next one is twice as wide.

    Args:
        dim: of the first one.
        depths: blocks of each.
        overlapping: the stem has a convolution of half that width.

    Raises:
        InputError: there is no stage, or one without blocks, or a width cannot be.
    """
    if not depths:
        raise InputError("encoder.depths is empty: give the number of blocks of each stage")
    require_sizes(**{f"depths.{stage}": count for stage, count in enumerate(depths)})
    if overlapping and dim % 2:
        raise InputError(f"encoder.dim is {dim}, and the first convolution has half of it: give an even number")
    widths = [dim * 2**stage for stage in range(len(depths))]
    if widths[-1] > LARGEST:
        raise InputError(f"encoder.depths has {len(depths)} stages, which double dim {dim} too often: give fewer")
    return widths


def sizes_in(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the constructor's arguments that a state dict by our names tells, but for directions.

    Raises:
        KeyError: a tensor is missing that tells one.
        ValueError: a tensor has other axes.
        ZeroDivisionError: one has no width.
    """
    mixer = f"{FIRST}mixer."
    rows, dim = state[f"{mixer}in_proj.weight"].shape
    _, inner, d_state = state[f"{mixer}A_log"].shape
    num_classes, _ = state["head.weight"].shape
    hidden = 0
    if f"{FIRST}mlp.fc1.weight" in state:
        hidden, _ = state[f"{FIRST}mlp.fc1.weight"].shape
    return {
        "num_classes": num_classes,
        "dim": dim,
        "depths": [layers_in(state, f"{STAGES}{stage}.blocks.") for stage in range(layers_in(state, STAGES))],
        "expand": inner // dim,
        "d_state": d_state,
        "mlp_ratio": hidden / dim,
        "gated": rows == 2 * inner,
        "conv_bias": f"{mixer}conv.bias" in state,
        "overlapping": "pyramid.stem.3.weight" in state,
    }
