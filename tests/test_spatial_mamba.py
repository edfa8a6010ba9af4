"""Spatial-Mamba against its authors' logits and published sizes, and its mixer against loops over tokens."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mambaeye.encoders.spatial_mamba import DILATIONS, SpatialMamba, SpatialMixer, StateFusion
from mambaeye.errors import InputError

ROOT = Path(__file__).parents[1]
GOLDEN = torch.load(ROOT / "tests/golden/spatialmamba.pt", weights_only=True)
SMALL: dict[str, Any] = {"num_classes": 5, "dim": 8, "depths": (1, 2), "mlp_ratio": 2}


def published(tensors: dict[str, Tensor]) -> SpatialMamba:
    found = SpatialMamba.from_published(tensors, "the file")
    assert found is not None
    model = SpatialMamba(**found.settings).eval()
    model.load_state_dict(found.tensors)
    return model


@torch.no_grad()
def test_the_authors_logits() -> None:
    model = published(GOLDEN["state_dict"])
    torch.testing.assert_close(model.network(GOLDEN["images"]), GOLDEN["logits"], atol=1e-4, rtol=0)
    assert model.settings == {"num_classes": 7, "dim": 16, "depths": (1, 1, 2, 1), "expand": 2, "mlp_ratio": 4.0}


@pytest.mark.long
@pytest.mark.parametrize(
    ("size", "parameters", "operations"),
    [
        ("tiny", 26_748_862, 4.5e9),
        ("small", 43_074_280, 7.1e9),
        ("base", 95_745_592, 15.8e9),
    ],
)
def test_the_published_sizes_and_costs(size: str, parameters: int, operations: float) -> None:
    """Multiply-adds at 224 pixels and, as the authors count, 7 for every token and channel of a scan."""
    overlay = yaml.safe_load((ROOT / f"configs/encoders/spatialmamba_{size}.yaml").read_text())["model"]["encoder"]
    assert overlay["class_path"] == "SpatialMamba"
    sizes = overlay["init_args"]
    with torch.device("meta"):
        model = SpatialMamba(**sizes).eval()
        assert sum(parameter.numel() for parameter in model.parameters()) == parameters
        with FlopCounterMode(display=False) as counter:
            model.network(torch.empty(1, 3, 224, 224))
    scans = sum(
        depth * 7 * (56 >> i) ** 2 * 2 * (sizes["dim"] << i) for i, depth in enumerate(sizes["depths"])
    )  # 56 x 56 tokens in the first stage
    assert counter.get_total_flops() / 2 + scans == pytest.approx(operations, rel=0.03)


@torch.no_grad()
def test_states_are_those_of_a_loop_and_see_nothing_that_comes_later() -> None:
    torch.manual_seed(0)
    mixer = SpatialMixer(20, 2, "torch").double()
    mixer.A_logs.normal_()
    x = torch.randn(2, 7, 40, dtype=torch.float64)
    h, C = mixer.states(x)
    low, B, reads = (x @ mixer.x_proj_weight.T).split((2, 1, 1), dim=-1)
    dt = F.softplus(low @ mixer.dt_projs_weight.T + mixer.dt_projs_bias)
    torch.testing.assert_close(C, reads)
    state = torch.zeros(2, 40, dtype=torch.float64)
    for t in range(7):
        state = torch.exp(-dt[:, t] * mixer.A_logs[:, 0].exp()) * state + dt[:, t] * B[:, t] * x[:, t]
        torch.testing.assert_close(h[:, t], state)


@torch.no_grad()
def test_fusion_is_a_loop_over_neighbours_and_beyond_the_edge_is_what_is_at_it() -> None:
    torch.manual_seed(0)
    fusion = StateFusion(2).double()
    for parameter in fusion.parameters():
        parameter.normal_()
    h = torch.randn(1, 2, 4, 6, dtype=torch.float64)
    fused = fusion(h)
    for channel in range(2):
        for row in range(4):
            for col in range(6):
                total = 0.0
                for weight, (name, dilation) in zip(fusion.alpha, DILATIONS.items(), strict=True):
                    for down in (-1, 0, 1):
                        for right in (-1, 0, 1):
                            at = min(max(row + down * dilation, 0), 3), min(max(col + right * dilation, 0), 5)
                            tap = getattr(fusion, name)[channel, 0, down + 1, right + 1]
                            total += float(weight * tap * h[0, channel][at])
                assert math.isclose(float(fused[0, channel, row, col]), total, abs_tol=1e-9)


@torch.no_grad()
def test_kernels_that_training_moves_count_at_the_next_evaluation() -> None:
    """The authors' code merges them at the first one, and keeps what it merged."""
    torch.manual_seed(0)
    model, states = SpatialMamba(**SMALL).eval(), torch.randn(1, 16, 7, 9)
    fusion = model.layers[0].blocks[0].self_attention.state_fusion  # what it adds to random logits is near 1e-6
    before = fusion(states)
    model.train()
    fusion.kernel_3_2.mul_(-1)
    model.eval()
    assert not fusion(states).allclose(before)
    fusion.kernel_3_2.mul_(-1)
    torch.testing.assert_close(fusion(states), before)


@torch.no_grad()
def test_any_canvas_is_taken() -> None:
    torch.manual_seed(0)
    model, last = SpatialMamba(**SMALL).eval(), []
    model.norm.register_forward_hook(lambda module, inputs, output: last.append(tuple(inputs[0].shape[1:3])))
    for height, width in ((1, 1), (17, 48), (64, 32), (33, 100)):
        assert model(torch.zeros(2, height, width, 3, dtype=torch.uint8)).isfinite().all()
    assert last == [(1, 1), (3, 6), (8, 4), (5, 13)]  # an eighth, rounded up


def test_it_starts_as_the_authors_does() -> None:
    torch.manual_seed(0)
    model = SpatialMamba(dim=64, depths=(1,))
    mixer = model.layers[0].blocks[0].self_attention
    for weight in (mixer.in_proj.weight, mixer.out_proj.weight, model.head.weight):
        assert float(weight.detach().std()) == pytest.approx(0.02, rel=0.1)
    for ones in (*mixer.state_fusion.parameters(), mixer.Ds):
        assert ones.eq(1).all()
    assert not mixer.A_logs.any()
    steps = F.softplus(mixer.dt_projs_bias.detach())
    assert steps.min() >= 1e-3 * 0.99
    assert steps.max() <= 0.1 * 1.01
    exempt = model.no_weight_decay()
    start = "layers.0.blocks.0.self_attention."
    assert {f"{start}{name}" for name in ("A_logs", "Ds", "dt_projs_bias", "state_fusion.alpha")} <= exempt
    assert not {f"{start}x_proj_weight", f"{start}state_fusion.kernel_3", "head.weight"} & exempt


@torch.no_grad()
def test_autocast_leaves_the_scan_and_the_residual_stream_wide() -> None:
    torch.manual_seed(0)
    model, seen = SpatialMamba(**SMALL).eval(), []
    for stage in model.layers:
        stage.blocks[-1].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    canvases = torch.randint(256, (2, 32, 32, 3), dtype=torch.uint8)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = model(canvases)
    assert set(seen) == {torch.float32}
    torch.testing.assert_close(narrow, model(canvases), atol=0.05, rtol=0.05)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depths": ()}, "encoder.depths is empty: give the blocks of each stage"),
        ({"dim": 7}, "encoder.dim is 7: give an even number"),
        ({"depths": (1, 0)}, "encoder.depths.1 is 0: give at least 1"),
    ],
)
def test_sizes_that_cannot_be(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message), torch.device("meta"):
        SpatialMamba(**SMALL | settings)


def test_damaged_published_weights_are_refused() -> None:
    state = dict(GOLDEN["state_dict"])
    with pytest.raises(InputError, match="laid out as spatialmamba, and its shapes do not belong together"):
        SpatialMamba.from_published(state | {"head.weight": torch.zeros(7)}, "the file")
    del state["layers.0.blocks.0.mlp.fc1.weight"]
    with pytest.raises(
        InputError, match=r"laid out as spatialmamba, and 'layers.0.blocks.0.mlp.fc1.weight' is missing"
    ):
        SpatialMamba.from_published(state, "the file")
