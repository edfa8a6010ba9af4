"""Largest values that a file may give: what it says must not take all memory, or all processes."""

from collections.abc import Iterator, Mapping
from typing import Any

LONGEST = 4096  # values in a list
MOST = {  # of integers, by the last part of their names
    "num_workers": 512,
    "batch_size": 2**17,
    "micro_batch_size": 2**17,
    "resolutions": 2**14,
    "canvas": 2**14,
    "num_glimpses": 2**20,
    "report_at": 2**20,
    "bins": 2**12,
    "num_classes": 2**20,
    "patch_size": 2**12,
    "tube": 2**8,
    "channels": 2**10,
    "frames": 2**12,
    "blur_kernel": 2**10,
}
PIXELS = 2**32  # of the images that a process takes at once, all channels of a pixel counted as one
SIDES = {"data.resolutions": "data.frames", "data.train.canvas": "data.train.frames"}  # and of clips their frames


def excesses(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield what is larger than a file may give, by its name: single values, then images times their pixels.

    Args:
        values: of a run, by their flags' names without dashes, each of its type.
    """
    for name, value in values.items():
        if isinstance(value, dict):
            yield from excesses({f"{name}.{inner}": part for inner, part in value.items()})
        parts = value if isinstance(value, list | tuple) else [value]
        most = MOST.get(name.rpartition(".")[2])
        if len(parts) > LONGEST or (most and any(isinstance(part, int) and abs(part) > most for part in parts)):
            yield name, value
    images = values.get("data.loader.micro_batch_size") or values.get("data.loader.batch_size", 1)
    of_clips = values.get("model.encoder", {}).get("init_args", {}).get("axes", 2) > 2
    for name, frames in SIDES.items():
        told = values.get(frames, 1) if of_clips else 1
        side = max(values.get(name, ()), default=1)
        most = side if isinstance(told, str) else told if isinstance(told, int) else max(told, default=1)
        if images * most * side**2 > PIXELS:
            yield name, values[name]
