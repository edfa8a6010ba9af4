"""Adventurer against its authors' logits and published sizes, and what its two tricks do."""

from pathlib import Path

import pytest
import torch
import yaml

from mambaeye.encoders.adventurer import Adventurer, Layer
from mambaeye.errors import InputError

ROOT = Path(__file__).parents[1]
GOLDEN = torch.load(ROOT / "tests/golden/adventurer.pt", weights_only=True)
SMALL = {"num_classes": 5, "dim": 16, "depth": 3, "d_state": 8, "headdim": 8, "grid": 3}


def published(**settings: object) -> Adventurer:
    found = Adventurer.from_published(GOLDEN["state_dict"], "the file")
    assert found is not None
    model = Adventurer(**found.settings | settings).eval()
    model.load_state_dict(found.tensors)
    return model


@torch.no_grad()
def test_the_authors_logits_with_layers_2_and_3_flipped_and_no_other() -> None:
    torch.testing.assert_close(published().network(GOLDEN["images"]), GOLDEN["logits"], atol=1e-4, rtol=0)
    for others in ((), (1, 3), (2,), (2, 3, 4)):
        logits = published(flipped_layers=others).network(GOLDEN["images"])
        assert (logits - GOLDEN["logits"]).abs().max() > 1e-2, others


@pytest.mark.parametrize(
    ("size", "parameters"), [("tiny", 11_608_840), ("small", 44_491_816), ("base", 98_657_608)], ids=str
)
def test_the_published_sizes(size: str, parameters: int) -> None:
    overlay = yaml.safe_load((ROOT / f"configs/encoders/adventurer_{size}.yaml").read_text())["model"]["encoder"]
    assert overlay["class_path"] == "Adventurer"
    assert count(**overlay["init_args"]) == parameters


def test_the_largest_published_size() -> None:
    assert count(dim=1024, depth=24) == 346_196_200


def count(**settings: int) -> int:
    with torch.device("meta"):
        model = Adventurer(**settings)
    assert model.unsupported_reason is None  # the CUDA kernels take it
    return sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def test_tokens_hear_of_later_ones_through_the_mean_alone() -> None:
    """A change that leaves the mean of the normed tokens as it is changes no token before it."""
    torch.manual_seed(0)
    layer = Layer(16, 40, False, d_state=8, d_conv=4, expand=2, headdim=8).double().eval()
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    before = layer(x, None)
    swapped = x.clone()
    swapped[:, [5, 7]] = x[:, [7, 5]]
    torch.testing.assert_close(layer(swapped, None)[:, :5], before[:, :5])
    assert not layer(swapped, None)[:, 5:].allclose(before[:, 5:])
    changed = x.clone()
    changed[:, 5] *= -1
    assert not layer(changed, None)[:, :5].allclose(before[:, :5])


@torch.no_grad()
def test_a_flipped_layer_is_one_that_reads_the_patches_from_the_end() -> None:
    torch.manual_seed(0)
    layer = Layer(16, 40, True, d_state=8, d_conv=4, expand=2, headdim=8).double().eval()
    x = torch.randn(2, 9, 16, dtype=torch.float64)
    order = [*range(7, -1, -1), 8]  # the class token stays last
    flipped = layer(x, None)
    layer.flip = False
    torch.testing.assert_close(flipped[:, order], layer(x[:, order], None))


@torch.no_grad()
def test_any_canvas_is_taken() -> None:
    torch.manual_seed(0)
    model = Adventurer(**SMALL).eval()
    for height, width in ((1, 1), (17, 48), (48, 48), (33, 100)):
        assert model(torch.zeros(2, height, width, 3, dtype=torch.uint8)).isfinite().all()


def test_it_starts_as_the_vision_mambas_do() -> None:
    torch.manual_seed(0)
    model = Adventurer(num_classes=100, depth=4)
    for parameter in (model.head.weight, model.pos_embed, model.cls_token):
        assert float(parameter.detach().std()) == pytest.approx(0.02, rel=0.15)
    assert not any(p.any() for name, p in model.named_parameters() if ".mlp." in name and name.endswith("bias"))
    weight = model.layers[0].mixer.out_proj.weight  # torch's uniform, over the root of the depth
    assert float(weight.detach().abs().max()) == pytest.approx(512**-0.5 / 2, rel=0.01)
    exempt = model.no_weight_decay()
    assert {"cls_token", "pos_embed", "layers.0.mixer.A_log", "layers.0.mixer.dt_bias"} <= exempt
    assert "layers.0.mixer.in_proj.weight" not in exempt


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"headdim": 7}, "encoder.headdim is 7, which does not divide expand . dim = 512: the nearest that does is 8"),
        ({"d_conv": 1}, "a causal convolution needs 2 taps"),
        ({"depth": 0}, "encoder.depth is 0: give at least 1"),
        ({"grid": 0}, "encoder.grid is 0: give at least 1"),
    ],
)
def test_sizes_that_cannot_be(settings: dict[str, int], message: str) -> None:
    with pytest.raises(InputError, match=message), torch.device("meta"):
        Adventurer(**settings)


def test_damaged_published_weights_are_refused() -> None:
    state = dict(GOLDEN["state_dict"])
    del state["layers.0.mixer.norm.weight"]
    with pytest.raises(InputError, match="the file is laid out as adventurer, and 'layers.0.mixer.norm.weight' is mis"):
        Adventurer.from_published(state, "the file")
