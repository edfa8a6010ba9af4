"""NaFlexViT against timm's own models, built by timm, and against timm's own batches of several sizes.

What needs timm is skipped where it is not installed; sentences about that are tested everywhere.
"""

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn

import mambaeye
from mambaeye.encoders.naflex_vit import NaFlexViT
from mambaeye.errors import InputError, NotInstalledError
from mambaeye.weights.inspection import inspect

ROOT = Path(__file__).parents[1]
SMALL = {"num_classes": 5, "patch": 8, "dim": 24, "depth": 2, "heads": 3, "grid": 3}
THEIRS = {"num_classes": 5, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "pos_embed_grid_size": (3, 3)}
PUBLISHED = [
    ("naflexvit_base_patch16_gap", {}),
    ("naflexvit_base_patch16_par_gap", {"keep_aspect": True}),
    ("naflexvit_base_patch16_parfac_gap", {"keep_aspect": True, "positions": "factorized"}),
]
SIDES = [(24, 24), (40, 75), (75, 33), (1, 9), (8, 100), (16, 16)]  # the table's own, odd ones, less than a patch

of_timm = pytest.mark.skipif(find_spec("timm") is None, reason="NaFlexViT needs the extra timm")
either = pytest.mark.parametrize(("name", "settings"), PUBLISHED, ids=lambda value: value if type(value) is str else "")


def models(name: str, settings: dict[str, Any], **theirs: Any) -> tuple[NaFlexViT, nn.Module]:
    """Ours, and the model that timm builds by its name, each drawn from the same seed."""
    import timm

    torch.manual_seed(0)
    ours = NaFlexViT(**SMALL | settings).eval()
    torch.manual_seed(0)
    return ours, timm.create_model(name, pretrained=False, **THEIRS | theirs).eval()


def normalised(canvases: Tensor) -> Tensor:
    """By the definition, in float64, with black up to whole patches: (B, 3, H, W)."""
    height, width = (-(-side // 8) * 8 for side in canvases.shape[1:3])
    padded = torch.zeros(len(canvases), height, width, 3, dtype=torch.float64)
    padded[:, : canvases.shape[1], : canvases.shape[2]] = canvases.double() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]).double(), torch.tensor([0.229, 0.224, 0.225]).double()
    return ((padded - mean) / std).permute(0, 3, 1, 2).float()


def drawn(height: int, width: int, images: int = 2) -> Tensor:
    draw = torch.Generator().manual_seed(height * 1000 + width)
    return torch.randint(256, (images, height, width, 3), generator=draw, dtype=torch.uint8)


@of_timm
@either
def test_it_starts_as_timms_model_does(name: str, settings: dict[str, Any]) -> None:
    ours, theirs = models(name, settings)
    own = {key.removeprefix("trunk."): tensor for key, tensor in ours.state_dict().items()}
    assert own.keys() == theirs.state_dict().keys()
    for key, tensor in theirs.state_dict().items():
        assert own[key].equal(tensor), key


@of_timm
@either
@torch.no_grad()
def test_logits_are_timms_to_the_bit(name: str, settings: dict[str, Any]) -> None:
    """Of the same normalised images, square or not; and of canvases, whose pixels it normalises and pads itself."""
    ours, theirs = models(name, settings | {"layer_scale": 0.5}, init_values=0.5)
    for height, width in SIDES:
        canvases = drawn(height, width)
        images = normalised(canvases)
        expected = theirs(images)
        assert ours.network(images).equal(expected)
        torch.testing.assert_close(ours(canvases), expected, atol=1e-5, rtol=1e-5)
    assert not ours(drawn(24, 24)).allclose(ours(drawn(24, 24).flip(1)), atol=1e-3)  # places count


@of_timm
@either
def test_gradients_are_timms_to_the_bit(name: str, settings: dict[str, Any]) -> None:
    ours, theirs = models(name, settings | {"layer_scale": 0.5}, init_values=0.5)
    images = normalised(drawn(40, 75))
    for model in (ours.train().network, theirs.train()):
        model(images).sin().sum().backward()
    expected = {key: parameter.grad for key, parameter in theirs.named_parameters()}
    for key, parameter in ours.named_parameters():
        assert parameter.grad.equal(expected[key.removeprefix("trunk.")]), key
        assert parameter.grad.any(), key


@of_timm
@either
@torch.no_grad()
def test_it_says_what_timm_says_of_a_batch_of_several_sizes(name: str, settings: dict[str, Any]) -> None:
    """timm's batches are patches with their places, filled up to the longest; here a batch has one size."""
    ours, theirs = models(name, settings | {"layer_scale": 0.5}, init_values=0.5)
    sides = [(24, 24), (40, 16), (8, 64)]
    longest = max(height * width for height, width in sides) // 64
    batch = {
        "patches": torch.zeros(len(sides), longest, 8 * 8 * 3),
        "patch_coord": torch.zeros(len(sides), longest, 2, dtype=torch.long),
        "patch_valid": torch.zeros(len(sides), longest, dtype=torch.bool),
    }
    for row, (height, width) in enumerate(sides):
        image = normalised(drawn(height, width, images=1))[0]
        places = [(top, left) for top in range(height // 8) for left in range(width // 8)]
        for index, (top, left) in enumerate(places):
            pixels = image[:, 8 * top : 8 * top + 8, 8 * left : 8 * left + 8]
            batch["patches"][row, index] = pixels.permute(1, 2, 0).flatten()
            batch["patch_coord"][row, index] = torch.tensor((top, left))
            batch["patch_valid"][row, index] = True
    expected = theirs(batch)
    for row, (height, width) in enumerate(sides):
        torch.testing.assert_close(ours(drawn(height, width, images=1))[0], expected[row], atol=1e-5, rtol=1e-5)


@of_timm
@torch.no_grad()
def test_fields_of_a_map_lie_where_their_patches_do() -> None:
    """Without blocks a map is the patches' linear map and a table, and a pixel changes the field that shows it."""
    torch.manual_seed(0)
    model = NaFlexViT(**SMALL | {"registers": 2}).eval()
    for block in model.trunk.blocks:
        block.forward = lambda x, attn_mask=None: x
    canvases = drawn(21, 37, images=1)
    before = model.forward_features(canvases)
    assert before.last.shape == (1, 24, 3, 5)
    assert before.extra.shape == (1, 2, 24)
    for row, col in ((0, 0), (20, 36), (9, 30)):
        changed = canvases.clone()
        changed[0, row, col] = 255 - changed[0, row, col]
        moved = (model.forward_features(changed).last - before.last).abs().sum(1)[0]
        assert moved.nonzero().tolist() == [[row // 8, col // 8]]


@of_timm
def test_the_published_size() -> None:
    import timm

    overlay = yaml.safe_load((ROOT / "configs/encoders/naflexvit_base.yaml").read_text())["model"]["encoder"]
    assert overlay["class_path"] == "NaFlexViT"
    with torch.device("meta"):
        ours, theirs = NaFlexViT(**overlay["init_args"]), timm.create_model("naflexvit_base_patch16_gap")
    assert [p.shape for p in ours.trunk.parameters()] == [p.shape for p in theirs.parameters()][:-2]
    assert sum(parameter.numel() for parameter in ours.parameters()) == 86_633_704
    assert ours.trunk.blocks[0].attn.num_heads == theirs.blocks[0].attn.num_heads
    assert NaFlexViT.__init__.__defaults__ == (1000, 16, 768, 12, None, 4.0, 16, "learned", False, 4, 1e-5)


@of_timm
def test_what_decays() -> None:
    learned, factorized = (NaFlexViT(**SMALL, positions=kind) for kind in ("learned", "factorized"))
    for model, tables in ((learned, {"pos_embed"}), (factorized, {"pos_embed_y", "pos_embed_x"})):
        names = {f"trunk.embeds.{name}" for name in tables | {"reg_token", "proj.bias"}}
        assert {name for name in model.no_weight_decay() if "embeds" in name} == names
        assert not any(name.endswith(("qkv.weight", "fc1.weight")) for name in model.no_weight_decay())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dim": 100, "heads": None}, "encoder.dim is 100, no multiple of 64: give encoder.heads"),
        ({"heads": 5}, "encoder.heads is 5, which does not divide dim 24"),
        ({"patch": 0}, "encoder.patch is 0: give at least 1"),
        ({"registers": -1}, "encoder.registers is -1: give at least 1"),
        ({"grid": 2**21}, "encoder.grid is 2097152: give at most 1048576"),
        ({"positions": "rope"}, "encoder.positions is 'rope': give learned or factorized"),
        ({"layer_scale": 0.0}, "encoder.layer_scale is 0.0: give a number above 0, or null"),
        ({"layer_scale": float("nan")}, "encoder.layer_scale is nan: give a number above 0, or null"),
    ],
)
def test_sizes_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message), torch.device("meta"):
        NaFlexViT(**SMALL | settings)


@of_timm
def test_images_that_patches_do_not_cover_are_refused() -> None:
    with pytest.raises(InputError, match="patches of 8 pixels, 8 apart, do not cover 16 x 20: pad images"):
        NaFlexViT(**SMALL).network(torch.zeros(1, 3, 16, 20))


def without_timm(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "timm"]:
        monkeypatch.delitem(sys.modules, name)


def test_without_timm_a_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without_timm(monkeypatch)
    monkeypatch.setitem(sys.modules, "timm", None)
    description = {"class_path": NaFlexViT.class_path(), "init_args": SMALL}
    (tmp_path / "config.json").write_text(json.dumps(description))
    save_file({"head.bias": torch.zeros(5)}, tmp_path / "model.safetensors")
    for build in (lambda: NaFlexViT(**SMALL), lambda: mambaeye.load(tmp_path)):
        with pytest.raises(
            NotInstalledError, match=r"^NaFlexViT is timm's, .* not installed: pip install 'mambaeye\[timm\]'$"
        ):
            build()
    inspection = inspect(tmp_path)
    assert inspection.problem is not None
    assert inspection.problem.startswith("NaFlexViT is timm's")


def test_a_torchvision_of_another_torch_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torchvision ends beside a torch that its operators were not built for."""
    without_timm(monkeypatch)
    (tmp_path / "timm.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        NotInstalledError, match=r"torchvision does not fit torch .*nms does not exist\): install torchvision"
    ):
        NaFlexViT(**SMALL)
