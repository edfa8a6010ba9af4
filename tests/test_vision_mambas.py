"""Vim, Mamba-R and LocalVim against their authors' logits, their published sizes, and what their structure implies."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from mambaeye.encoders.base import DenseEncoder
from mambaeye.encoders.local_vim import LocalVim
from mambaeye.encoders.mamba_r import MambaR
from mambaeye.encoders.vim import Vim
from mambaeye.errors import InputError
from mambaeye.geometry.directions import direction
from mambaeye.ops.dense import normalise
from mambaeye.ops.rope import rotate, rotations
from mambaeye.ops.s6_block import S6Mixer, Sequences

ROOT = Path(__file__).parents[1]
SYSTEMS: dict[str, type[DenseEncoder]] = {
    "vim": Vim, "mambar": MambaR, "mambar_reduce": MambaR, "localvim": LocalVim, "localvim_mid_cls": LocalVim,
}  # fmt: skip
TINY: dict[str, Any] = {"num_classes": 5, "dim": 16, "depth": 2, "d_state": 4, "patch": 4, "grid": 4}


def golden(name: str) -> dict[str, Any]:
    return torch.load(ROOT / f"tests/golden/{name}.pt", weights_only=True)


def published(name: str, tensors: dict[str, Tensor], config: dict[str, Any]) -> DenseEncoder:
    found = SYSTEMS[name].from_published(tensors, "the file")
    assert found is not None
    settings = dict(found.settings)
    if "directions" in config:  # which shapes do not tell
        settings["directions"] = [list(names) for names in config["directions"]]
    model = SYSTEMS[name](**settings).eval()
    model.load_state_dict(found.tensors)
    return model


@pytest.mark.parametrize("name", SYSTEMS)
@torch.no_grad()
def test_the_authors_logits(name: str) -> None:
    file = golden(name)
    model = published(name, file["state_dict"], file["config"])
    torch.testing.assert_close(model.network(file["images"]), file["logits"], atol=1e-4, rtol=0)
    told = type(model).settings_in(model.state_dict())
    assert told is not None
    assert told.items() <= model.settings.items()
    others = {system for system in SYSTEMS.values() if system.from_published(file["state_dict"], "") is not None}
    assert others == {SYSTEMS[name]}
    assert {system for system in SYSTEMS.values() if system.settings_in(model.state_dict())} == {SYSTEMS[name]}


@pytest.mark.parametrize(
    ("overlay", "parameters"),
    [
        ("vim_tiny", 7_148_008),
        ("vim_small", 25_796_584),
        ("vim_base", 97_598_440),
        ("mambar_tiny", 9_264_232),
        ("mambar_small", 27_801_064),
        ("mambar_base", 99_301_096),
        ("mambar_large", 341_222_376),
        ("localvim_tiny", 7_994_152),
        ("localvim_small", 27_783_784),
    ],
)
def test_the_published_sizes(overlay: str, parameters: int) -> None:
    encoder = yaml.safe_load((ROOT / f"configs/encoders/{overlay}.yaml").read_text())["model"]["encoder"]
    system = {system.__name__: system for system in SYSTEMS.values()}[encoder["class_path"]]
    with torch.device("meta"):
        model = system(**encoder["init_args"])
        assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    if overlay == "localvim_tiny":
        with torch.device("meta"):
            with_token = LocalVim(**encoder["init_args"] | {"middle_class_token": True})
        assert sum(parameter.numel() for parameter in with_token.parameters()) == 7_994_536


@pytest.mark.parametrize("system", [Vim, MambaR, LocalVim])
@torch.no_grad()
def test_any_canvas_goes_and_normalising_is_the_encoders_own(system: type[DenseEncoder]) -> None:
    torch.manual_seed(0)
    more = {"directions": [["h", "w2", "v_flip"], ["w3"]]} if system is LocalVim else {}
    model = system(**TINY, **more).eval()
    for height, width in ((16, 16), (8, 28), (5, 3), (17, 30)):
        canvases = torch.randint(256, (2, height, width, 3), dtype=torch.uint8)
        padded = F.pad(canvases, (0, 0, 0, -width % 4, 0, -height % 4))
        torch.testing.assert_close(model(canvases), model.network(normalise(padded, torch.float32)))
    with pytest.raises(InputError, match="do not cover 16 x 17: pad images"):
        model.network(torch.zeros(1, 3, 16, 17))


@torch.no_grad()
def test_patches_may_overlap() -> None:
    """As the published models that are fine-tuned at stride 8: the table is of (10 - 4) / 2 + 1 = 4 patches a side."""
    model = Vim(**TINY, stride=2).eval()
    places = []
    model.blocks[0].register_forward_hook(lambda module, inputs, output: places.append(inputs[0].shape[1]))
    assert model.network(torch.zeros(1, 3, 10, 12)).isfinite().all()
    assert places == [4 * 5 + 1]
    with pytest.raises(InputError, match="patches of 4 pixels, 2 apart, do not cover 10 x 11"):
        model.network(torch.zeros(1, 3, 10, 11))


def patches_moved(canvases: Tensor, order: Tensor) -> Tensor:
    """Canvases of 16 x 16 pixels whose patches of side 4 are put into another order."""
    tiles = canvases.unflatten(1, (4, 4)).unflatten(3, (4, 4)).transpose(2, 3).flatten(1, 2)  # (B, 16, 4, 4, 3)
    return tiles[:, order].unflatten(1, (4, 4)).transpose(2, 3).flatten(3, 4).flatten(1, 2)


@torch.no_grad()
def test_hilbert_order_reads_the_patches_along_the_curve() -> None:
    torch.manual_seed(0)
    raster, curve = (Vim(**TINY, order=order).eval() for order in ("raster", "hilbert"))
    curve.load_state_dict(raster.state_dict())
    for model in (raster, curve):
        model.positions.zero_()
    canvases = torch.randint(256, (2, 16, 16, 3), dtype=torch.uint8)
    along = torch.from_numpy(direction("hilbert", 4, 4))
    torch.testing.assert_close(curve(canvases), raster(patches_moved(canvases, along)))
    assert not curve(canvases).allclose(raster(canvases))


@torch.no_grad()
def test_columns_are_the_rows_of_the_transposed_canvas() -> None:
    """With four directions, whose parameters change places when the canvas is turned over its diagonal."""
    torch.manual_seed(0)
    one, other = Vim(**TINY, directions=4).eval(), Vim(**TINY, directions=4).eval()
    one.positions.zero_()
    state = one.state_dict()
    swapped = {
        name: tensor[[2, 3, 0, 1]] if ".mixer." in name and "_proj.weight" not in name else tensor
        for name, tensor in state.items()
    }
    other.load_state_dict(swapped)
    canvases = torch.randint(256, (2, 16, 16, 3), dtype=torch.uint8)
    transposed = patches_moved(canvases, torch.arange(16).view(4, 4).T.flatten())
    torch.testing.assert_close(other(transposed), one(canvases))


def test_one_direction_is_causal_and_two_are_not() -> None:
    torch.manual_seed(0)
    u = torch.randn(1, 6, 16)
    for directions, causal in ((1, True), (2, False)):
        mixer = S6Mixer(16, directions, 1)
        order = torch.arange(6)
        sequences = Sequences.of([order, order.flip(0)][:directions])
        changed = torch.cat((u[:, :-1], -u[:, -1:]), dim=1)
        same = mixer(u, sequences)[:, :-1].allclose(mixer(changed, sequences)[:, :-1], atol=1e-7)
        assert same is causal


def test_sequences_find_every_token_and_fill_up_the_shorter_ones() -> None:
    sequences = Sequences.of([torch.tensor([2, 0, 1]), torch.tensor([-1, 1, 2, -1, 0])])
    assert sequences.tokens.tolist() == [[2, 0, 1, 3, 3], [3, 1, 2, 3, 0]]
    assert sequences.steps.tolist() == [[1, 2, 0], [4, 1, 2]]


def test_registers_follow_runs_of_patches_of_one_length() -> None:
    model = MambaR(**TINY, registers=3)
    assert model.extra_places(16) == [4, 9, 14]
    assert model.extra_places(2) == [0, 1, 2]
    assert model.feature_dim == 48


def test_rotations_keep_lengths_and_depend_on_the_place() -> None:
    x = torch.randn(2, 15, 8)
    turned = rotate(x, rotations(3, 5, 8, x.device))
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1))
    assert turned[:, 0].equal(x[:, 0])
    angle = 2 / 3 * 14  # of row 2 of 3, of the first frequency
    pair = x[0, 10, :2]
    expected = pair[0] * math.cos(angle) - pair[1] * math.sin(angle)
    torch.testing.assert_close(turned[0, 10, 0], expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(turned[0, 2, :4], x[0, 2, :4])  # row 0: only the columns' half turns


@torch.no_grad()
def test_a_mixer_starts_as_mamba_does() -> None:
    torch.manual_seed(0)
    mixer = S6Mixer(64, 2, 4)
    dt = F.softplus(mixer.dt_bias)
    assert float(dt.min()) >= 1e-3 * 0.99
    assert float(dt.max()) <= 0.1 * 1.01
    torch.testing.assert_close(mixer.A_log[1, 3].exp(), torch.arange(1.0, 17))
    assert mixer.D.eq(1).all()
    assert float(mixer.out_proj.weight.abs().max()) <= 128**-0.5 / 2  # kaiming's bound 1 / sqrt(fan-in), over sqrt(4)
    assert float(mixer.dt_weight.abs().max()) <= 4**-0.5


@torch.no_grad()
def test_local_vim_starts_its_linear_maps_alike_and_keeps_the_step_sizes() -> None:
    torch.manual_seed(0)
    model = LocalVim(dim=64, depth=4, directions=[["h", "v"]])
    mixer = model.blocks[0].mixer
    for weight in (mixer.in_proj.weight, mixer.x_proj, mixer.gate.select.weight, model.head.weight):
        assert float(weight.std()) == pytest.approx(0.02, rel=0.1)
    assert float(F.softplus(mixer.dt_bias).max()) <= 0.11
    assert float(mixer.out_proj.weight.abs().max()) <= 128**-0.5 / 2


@pytest.mark.parametrize("system", [Vim, MambaR, LocalVim])
def test_weight_decay_leaves_the_recurrence_tables_and_biases_alone(system: type[DenseEncoder]) -> None:
    model = system(**TINY, **({"directions": [["h", "v"]]} if system is LocalVim else {}))
    decayed = {name for name, _ in model.named_parameters()} - model.no_weight_decay()
    parts = {name.rpartition("mixer.")[2] for name in decayed}
    gates = {"gate.reduce.weight", "gate.select.weight"} if system is LocalVim else set()
    linear = {"in_proj.weight", "conv_weight", "x_proj", "dt_weight", "out_proj.weight"}
    assert parts == {"patch_embed.proj.weight", "head.weight", *linear, *gates}


@torch.no_grad()
def test_autocast_leaves_the_scan_and_the_residual_stream_wide() -> None:
    torch.manual_seed(0)
    model = Vim(**TINY).eval()
    seen = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0].dtype, output.dtype)))
    canvases = torch.randint(256, (2, 16, 16, 3), dtype=torch.uint8)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = model(canvases)
    assert set(seen) == {(torch.float32, torch.float32)}
    torch.testing.assert_close(narrow, model(canvases), atol=0.05, rtol=0.05)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Vim(**TINY, directions=3), "encoder.directions is 3: give 1, 2 or 4"),
        (lambda: Vim(**TINY, order="spiral"), "encoder.order is 'spiral'"),
        (lambda: Vim(**TINY, stride=9), "encoder.stride is 9"),
        (lambda: Vim(**TINY | {"d_state": 0}), "encoder.d_state is 0: give at least 1"),
        (lambda: MambaR(**TINY, reduction=3), "encoder.reduction is 3, which does not divide dim 16"),
        (lambda: LocalVim(**TINY), "encoder.directions is null, and those published are of 20 blocks, not 2"),
        (lambda: LocalVim(**TINY, directions=[["h"], ["v"], ["w2"]]), "has 3 lists for 2 blocks"),
        (lambda: LocalVim(**TINY, directions=[["h"], []]), "has an empty list"),
        (lambda: LocalVim(**TINY, directions=[["h", "g7"]]), "no direction is called 'g7'"),
        (lambda: LocalVim(**TINY | {"dim": 18}, directions=[["h"]]), "need a multiple of 4"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(build: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        build()


@pytest.mark.parametrize("name", SYSTEMS)
def test_damaged_weights_are_refused_in_a_sentence(name: str) -> None:
    tensors = golden(name)["state_dict"]
    system, second = SYSTEMS[name], "_1" if name.startswith("localvim") else "_b"
    lacking = {key: tensor for key, tensor in tensors.items() if key != f"layers.1.mixer.x_proj{second}.weight"}
    with pytest.raises(InputError, match=f"the file is laid out as {system.published_as}, and .* is missing"):
        system.from_published(lacking, "the file")
    uneven = tensors | {f"layers.1.mixer.D{second}": torch.ones(3)}
    with pytest.raises(InputError, match="other shapes in other directions"):
        system.from_published(uneven, "the file")
    with pytest.raises(InputError, match="is of no square"):
        system.from_published(tensors | {"pos_embed": tensors["pos_embed"][:, :3]}, "the file")
