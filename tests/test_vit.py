"""ViT and DeiT against their authors' logits, DeiT's published sizes, and a block written out by hand."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml

from mambaeye.encoders.vit import ViT
from mambaeye.errors import InputError
from mambaeye.ops.dense import normalise
from mambaeye.ops.transformer import TransformerBlock

ROOT = Path(__file__).parents[1]
GOLDEN = torch.load(ROOT / "tests/golden/deit.pt", weights_only=True)
SMALL = {"num_classes": 5, "dim": 16, "depth": 2, "heads": 2, "grid": 3}


def published(tensors: dict[str, torch.Tensor], **settings: object) -> ViT:
    found = ViT.from_published(tensors, "the file")
    assert found is not None
    model = ViT(**found.settings | settings).eval()
    model.load_state_dict(found.tensors)
    return model


@torch.no_grad()
def test_the_authors_logits() -> None:
    model = published(GOLDEN["state_dict"], heads=3)
    torch.testing.assert_close(model.network(GOLDEN["images"]), GOLDEN["logits"], atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("size", "parameters"), [("tiny", 5_717_416), ("small", 22_050_664), ("base", 86_567_656)], ids=str
)
def test_the_published_sizes(size: str, parameters: int) -> None:
    overlay = yaml.safe_load((ROOT / f"configs/encoders/vit_{size}.yaml").read_text())["model"]["encoder"]
    assert overlay["class_path"] == "ViT"
    with torch.device("meta"):
        model = ViT(**overlay["init_args"])
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert model.blocks[0].attn.heads == model.feature_dim // 64


@torch.no_grad()
def test_a_block_is_attention_and_an_mlp() -> None:
    torch.manual_seed(0)
    block, x = TransformerBlock(12, 3, 20).double(), torch.randn(2, 5, 12, dtype=torch.float64)

    def norm(x: torch.Tensor, layer: torch.nn.LayerNorm) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt() * layer.weight + layer.bias

    q, k, v = block.attn.qkv(norm(x, block.norm1)).chunk(3, dim=-1)
    heads = []
    for head in range(3):
        some = slice(4 * head, 4 * head + 4)
        scores = q[..., some] @ k[..., some].transpose(1, 2) / math.sqrt(4)
        heads.append(scores.softmax(-1) @ v[..., some])
    middle = x + block.attn.proj(torch.cat(heads, dim=-1))
    hidden = block.mlp.fc1(norm(middle, block.norm2))
    expected = middle + block.mlp.fc2(0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2))))
    torch.testing.assert_close(block(x), expected)


@torch.no_grad()
def test_a_distilled_model_answers_with_the_mean_of_its_two_heads() -> None:
    torch.manual_seed(0)
    model = ViT(**SMALL, distilled=True).eval()
    heads = {f"{name}.{part}": torch.randn(shape) for name in ("head", "head_dist")
             for part, shape in (("weight", (5, 16)), ("bias", (5,)))}  # fmt: skip
    own = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("head.")}
    theirs = published(own | heads, heads=2)
    images = torch.randn(2, 3, 32, 64)
    of_class, of_distillation = theirs.image_features(images).chunk(2, dim=1)
    answers = [
        F.linear(features, heads[f"{name}.weight"], heads[f"{name}.bias"])
        for name, features in (("head", of_class), ("head_dist", of_distillation))
    ]
    torch.testing.assert_close(theirs.network(images), (answers[0] + answers[1]) / 2)
    again = published(theirs.state_dict(), heads=2)  # as our own files have it
    assert again.settings == theirs.settings
    torch.testing.assert_close(again.network(images), theirs.network(images))


@torch.no_grad()
def test_any_canvas_is_padded_to_patches_and_its_position_table_resized() -> None:
    torch.manual_seed(0)
    model = ViT(**SMALL).eval()
    canvases = torch.randint(256, (2, 40, 75, 3), dtype=torch.uint8)
    padded = torch.zeros(2, 48, 80, 3, dtype=torch.uint8)
    padded[:, :40, :75] = canvases
    torch.testing.assert_close(model(canvases), model.network(normalise(padded, torch.float32)))
    for side in (1, 16, 17, 64, 100):
        assert model(torch.zeros(1, side, side, 3, dtype=torch.uint8)).shape == (1, 5)


def test_it_starts_as_deit_does() -> None:
    torch.manual_seed(0)
    model = ViT(num_classes=100, dim=192, depth=2)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert parameter.eq(1).all(), name
        elif "patch_embed" not in name:
            assert float(parameter.detach().std()) == pytest.approx(0.02, rel=0.15), name
            assert parameter.abs().max() < 0.13, name
    assert {"cls_token", "pos_embed", "norm.weight", "blocks.0.attn.qkv.bias"} <= model.no_weight_decay()
    assert "blocks.0.attn.qkv.weight" not in model.no_weight_decay()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 100}, "encoder.dim is 100, no multiple of 64: give encoder.heads"),
        ({"heads": 5}, "encoder.heads is 5, which does not divide dim 192"),
        ({"grid": 0}, "encoder.grid is 0: give at least 1"),
        ({"depth": 0}, "encoder.depth is 0: give at least 1"),
        ({"patch": 0}, "encoder.patch is 0: give at least 1"),
        ({"dim": 2**21}, "encoder.dim is 2097152: give at most 1048576"),
    ],
)
def test_sizes_that_cannot_be(settings: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message), torch.device("meta"):
        ViT(**settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head.weight": None}, "the file is laid out as deit, and 'head.weight' is missing"),
        ({"pos_embed": torch.zeros(1, 18, 48)}, "belong together .a position table of 17 places is of no square"),
        ({"head.weight": torch.zeros(3)}, "the file is laid out as deit, and its shapes do not belong together"),
    ],
)
def test_damaged_published_weights_are_refused(changes: dict[str, torch.Tensor | None], message: str) -> None:
    state = {name: tensor for name, tensor in (GOLDEN["state_dict"] | changes).items() if tensor is not None}
    with pytest.raises(InputError, match=message):
        ViT.from_published(state, "the file")
