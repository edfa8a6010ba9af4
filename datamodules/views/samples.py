"""One sample as a row of a batch: the parts that all views make alike."""

from typing import cast

import numpy as np
import torch
from torch import Tensor

from mambaeye.batch import POLICY, Regions, Scene
from mambaeye.geometry.box import Box


def scene_of(canvas: np.ndarray | Regions, box: Box, positions: np.ndarray, seed: int, scan: str) -> Scene:
    """Return one image as a Scene without its first axis; scan is the name of what its positions follow."""
    return Scene(
        torch.from_numpy(canvas) if isinstance(canvas, np.ndarray) else canvas,
        torch.tensor(box, dtype=torch.int32),
        torch.from_numpy(positions),
        torch.tensor(seed),
        torch.tensor(scan == POLICY),
    )


def row_of(
    key: str, valid: bool, label: int = 0, partner_label: int = 0, label_share: float = 1.0
) -> tuple[Tensor, Tensor, Tensor, list[str], Tensor]:
    """Return what both batches say of an image: labels, partner_labels, label_shares, keys, valid."""
    return (
        torch.tensor(label),
        torch.tensor(partner_label),
        torch.tensor(label_share, dtype=torch.float32),
        cast(list[str], key),  # a batch has a list of them
        torch.tensor(valid),
    )
