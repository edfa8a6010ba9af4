"""Weights of the vision Mambas with S6 mixers: their authors' names in our terms, and the sizes that shapes tell.

Their blocks are layers.{i}, with one set of tensors for every direction; ours stack these (see S6Mixer).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mambaeye.ops.shapes import layers_in, square_side

LAYERS, BLOCKS, MIXER = "layers.", "blocks.", "mixer."
# our stacked tensor -> each direction's, with its suffix for {}
STACKED = {
    "conv_weight": "conv1d{}.weight",
    "conv_bias": "conv1d{}.bias",
    "x_proj": "x_proj{}.weight",
    "dt_weight": "dt_proj{}.weight",
    "dt_bias": "dt_proj{}.bias",
    "D": "D{}",
}
BOTH_WAYS = ("", "_b")  # suffixes of Vim's directions
OTHERS = {"pos_embed_cls", "temporal_pos_embedding"}  # tensors of systems that have all of Vim's


def laid_out_as_vim(tensors: Mapping[str, Tensor]) -> bool:
    """Tell whether a state dict has the authors' layout of Vim, which VideoMamba's models for images have, too."""
    return {"cls_token", "pos_embed", "layers.0.mixer.A_b_log"} <= tensors.keys() and not tensors.keys() & OTHERS


def renamed(
    tensors: Mapping[str, Tensor], suffixes: Sequence[str], a_log: str, names: Mapping[str, str]
) -> dict[str, Tensor]:
    """Return a state dict by our names; what is unknown keeps its name.

    Args:
        tensors: by the authors' names.
        suffixes: of the directions.
        a_log: the name of A_log with {} for a suffix.
        names: further prefixes of names, theirs -> ours.

    Raises:
        KeyError: a direction's tensor is missing.
        ValueError: the directions' shapes differ.
    """
    state = dict(tensors)
    for layer in range(layers_in(tensors, LAYERS)):
        theirs, ours = f"{LAYERS}{layer}.{MIXER}", f"{BLOCKS}{layer}.{MIXER}"
        for name, of_direction in (STACKED | {"A_log": a_log}).items():
            parts = [state.pop(theirs + of_direction.format(suffix)) for suffix in suffixes]
            if len({part.shape for part in parts}) > 1:
                raise ValueError(f"{ours}{name} has other shapes in other directions")
            stacked = torch.stack(parts)
            state[ours + name] = stacked.squeeze(2) if name == "conv_weight" else stacked  # (K, E, 1, W) -> (K, E, W)
    prefixes = {LAYERS: BLOCKS, "norm_f.": "norm.", **names}
    return {
        next((to + name.removeprefix(old) for old, to in prefixes.items() if name.startswith(old)), name): tensor
        for name, tensor in state.items()
    }


def split_table(state: dict[str, Tensor], place: int | None) -> None:
    """Turn pos_embed (1, M, D) into positions (S, S, D), after taking the row of a class token out as class_position.

    Raises:
        KeyError: there is none.
        ValueError: it is of no square grid.
    """
    (table,) = state.pop("pos_embed")
    if place is not None:
        state["class_position"] = table[place : place + 1]
        table = torch.cat((table[:place], table[place + 1 :]))
    side = square_side(len(table))
    state["positions"] = table.unflatten(0, (side, side))


def sizes_in(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the sizes that a state dict by our names tells: all that the encoders with S6 mixers have in common.

    Raises:
        KeyError: a tensor is missing that tells one.
        ValueError: a tensor has other axes.
    """
    dim, _, patch, _ = state["patch_embed.proj.weight"].shape
    num_classes, _ = state["head.weight"].shape
    grid, _, _ = state["positions"].shape
    _, inner, d_state = state[f"{BLOCKS}0.{MIXER}A_log"].shape
    *_, d_conv = state[f"{BLOCKS}0.{MIXER}conv_weight"].shape
    return {
        "num_classes": num_classes,
        "dim": dim,
        "depth": layers_in(state, BLOCKS),
        "d_state": d_state,
        "d_conv": d_conv,
        "expand": inner // dim,
        "patch": patch,
        "grid": grid,
    }
