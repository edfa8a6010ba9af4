"""Tabulate the field at its published sizes: parameters, multiply-adds, and what authors report on ImageNet-1K.

    python -m benchmarks.field

Parameters and multiply-adds are counted here (benchmarks/macs.py says how), of the overlays in configs/encoders, for
one image of the side that it is tested at, or of as many glimpses. Top-1 is published, not measured: it comes from
benchmarks/published.yaml.
"""

from pathlib import Path

import torch
import yaml

from benchmarks.macs import multiply_adds
from benchmarks.markdown import markdown
from benchmarks.sizes import build
from mambaeye.encoders.base import GlimpseEncoder

PUBLISHED = Path(__file__).parent / "published.yaml"
TITLE = "At the published sizes, multiply-adds of one image in G, and top-1 in % on ImageNet-1K as published:"
HEADING = ("overlay", "parameters, M", "dense layers", "scans or attention", "side", "top-1, published", "by")
GLIMPSES = 4096  # of MambaEye's published top-1


def row(overlay: str, side: int, top1: float | None, source: str) -> list[object]:
    """Return an overlay's row of the table."""
    with torch.device("meta"):
        encoder = build(overlay).eval()
    size = GLIMPSES if isinstance(encoder, GlimpseEncoder) else side
    dense, mixing = multiply_adds(encoder, size)
    parameters = sum(parameter.numel() for parameter in encoder.parameters())
    costs = [f"{parameters / 1e6:.1f}", f"{dense / 1e9:.3g}", f"{mixing / 1e9:.2g}"]
    seen = f"{side}, {GLIMPSES} glimpses" if isinstance(encoder, GlimpseEncoder) else side
    return [overlay, *costs, seen, "" if top1 is None else top1, source]


def table() -> str:
    """Return the table as Markdown."""
    published = yaml.safe_load(PUBLISHED.read_text())
    return markdown(TITLE, [*HEADING], [row(overlay, *told) for overlay, told in published.items()])


if __name__ == "__main__":
    print(table())
