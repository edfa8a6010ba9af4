"""Multiply-adds of dense layers and of mixing, against what can be worked out by hand; and the table of the field."""

from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from benchmarks import field
from benchmarks.equal_cost import operations
from benchmarks.macs import MultiplyAdds, multiply_adds
from benchmarks.sizes import build
from mambaeye.encoders.base import Encoder
from mambaeye.encoders.efficient_vim import EfficientViM
from mambaeye.encoders.mambaeye import MambaEye
from mambaeye.encoders.vim import Vim
from mambaeye.encoders.vit import ViT
from mambaeye.ops import s6_directions
from mambaeye.ops.s6 import selective_scan

ROOT = Path(__file__).parents[1]


def without_values(encoder: type[Encoder], **settings: object) -> Encoder:
    with torch.device("meta"):
        return encoder(**settings).eval()


def weights_of(encoder: Encoder, tokens: int) -> int:
    """Multiply-adds of a stack whose every product with weights is of all tokens, but the patches' and the head's."""
    return sum(p.numel() for module in encoder.modules() for p in weights(module)) * tokens


def weights(module: nn.Module) -> list[nn.Parameter]:
    return [module.weight] if isinstance(module, nn.Linear) else []


def test_of_a_vit() -> None:
    """Each token attends to all: a product for the scores, and one for the values."""
    tokens, dim, depth = 9 + 1, 24, 2
    encoder = without_values(ViT, num_classes=5, patch=8, grid=3, dim=dim, depth=depth, heads=2)
    dense, mixing = multiply_adds(encoder, 24)
    assert mixing == depth * 2 * tokens**2 * dim
    assert dense == weights_of(encoder, tokens) - (tokens - 1) * 5 * dim + 9 * 3 * 8**2 * dim  # the head once
    assert 2 * (dense + mixing) == operations(encoder, 24)


@pytest.mark.parametrize("directions", [1, 2, 4])
def test_of_a_vim(directions: int) -> None:
    """In and out, and of each direction a convolution of four taps and projections to R + 2 N and back from R."""
    tokens, dim, depth, state = 16 + 1, 32, 3, 4
    settings = {"num_classes": 5, "patch": 8, "grid": 4, "dim": dim, "depth": depth, "d_state": state}
    inner, rank = 2 * dim, dim // 16
    found = multiply_adds(without_values(Vim, directions=directions, **settings), 32)
    of_direction = inner * 4 + inner * (rank + 2 * state) + rank * inner
    block = tokens * (dim * 2 * inner + directions * of_direction + inner * dim)
    padding = found.dense - (16 * 3 * 8**2 * dim + depth * block + 5 * dim)
    assert 0 <= padding <= depth * directions * 3 * inner * 4  # a causal convolution may run over, and be cut
    assert found.mixing == depth * directions * tokens * inner * (4 * state + 2)


def test_of_glimpses_does_not_depend_on_chunks() -> None:
    settings = {"num_classes": 5, "dim": 32, "depth": 2, "d_state": 8, "headdim": 16, "move_embedding_dim": 16}
    encoder = without_values(MambaEye, **settings)
    one, many = (multiply_adds(encoder, count) for count in (1, 200))
    assert many.mixing == 200 * one.mixing == 200 * 2 * 64 * (3 * 8 + 2)
    assert many.dense == pytest.approx(200 * one.dense, rel=0.05)


def test_of_hidden_states() -> None:
    """EfficientViM mixes by two products, of every token with every state, in each block."""
    settings = {"dims": (16, 24, 32), "depths": (1, 2, 1), "states": (9, 4, 2), "expand": 2, "mlp_ratio": 2}
    found = multiply_adds(without_values(EfficientViM, num_classes=5, **settings), 64)
    by_stage = zip((16, 4, 1), (16, 24, 32), (9, 4, 2), (1, 2, 1), strict=True)  # a sixteenth of the side, squared
    assert found.mixing == sum(depth * 2 * tokens * dim * state for tokens, dim, state, depth in by_stage)


def test_nothing_is_watched_afterwards() -> None:
    encoder = without_values(Vim, num_classes=5, patch=8, grid=2, dim=16, depth=1, d_state=2)
    assert multiply_adds(encoder, 16) == multiply_adds(encoder, 16)
    assert s6_directions.selective_scan is selective_scan


def test_published_numbers_are_of_overlays_that_there_are() -> None:
    published = yaml.safe_load(field.PUBLISHED.read_text())
    for overlay, (side, top1, source) in published.items():
        assert (ROOT / f"configs/encoders/{overlay}.yaml").exists()
        assert side in (224, 256)
        assert top1 is None or 60 < top1 < 90
        assert source
    sizes = {path.stem for path in (ROOT / "configs/encoders").glob("*.yaml") if "quickstart" not in path.stem}
    left_out = ("videomamba", "naflexvit")  # for clips; a control of timm's
    assert published.keys() == {size for size in sizes if not size.startswith(left_out)}


@pytest.mark.parametrize(
    ("overlay", "reported"),
    [
        ("efficientvim_m1", 0.239),
        pytest.param("vim_tiny", 1.5, marks=pytest.mark.long),
        pytest.param("vmamba_tiny", 4.9, marks=pytest.mark.long),
    ],
)
def test_what_authors_report_is_about_what_is_counted(overlay: str, reported: float) -> None:
    with torch.device("meta"):
        found: MultiplyAdds = multiply_adds(build(overlay).eval(), 224)
    assert sum(found) / 1e9 == pytest.approx(reported, rel=0.06)


@pytest.mark.long
def test_the_table_in_the_docs_is_what_is_counted() -> None:
    assert field.table() in (ROOT / "docs/comparison.md").read_text()
