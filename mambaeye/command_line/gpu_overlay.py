"""Configs with sizes for a GPU: they lie beside the one that fits a CPU, and are named where a GPU is there."""

from collections.abc import Iterable
from pathlib import Path

import torch

SUFFIX = "_gpu"


def gpu_overlay(configs: Iterable[object], device: torch.device) -> str | None:
    """Return the sentence that names the overlays which a fit on a GPU could take and was not given.

    An overlay is not taken unasked: sizes are part of a model, and would differ between the machines that go on with a
    run or validate its checkpoint.

    Args:
        configs: paths of the --config files that were given.
        device: what trains.
    """
    given = [Path(str(config)) for config in configs]
    beside = [path.with_stem(path.stem + SUFFIX) for path in given]
    new = [str(path) for path in beside if path.is_file() and path not in given]
    if device.type != "cuda" or not new:
        return None
    flags = " ".join(f"--config {path}" for path in new)
    return f"the sizes are for a CPU, and a GPU is here: {flags} after the other configs takes larger ones"
