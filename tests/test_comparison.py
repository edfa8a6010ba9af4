"""The programs behind docs/comparison.md: what they measure, against what can be worked out otherwise."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import mambaeye
from benchmarks import artefacts, sizes
from benchmarks.artefacts import Looker, Views, patches_alone, see, token_norms, views_of, without_each
from benchmarks.curves import Curves
from benchmarks.equal_cost import affordable, between, built, cost_tables, operations
from benchmarks.orders import load_images
from benchmarks.suites import SUITES
from benchmarks.system_tables import system_tables
from datamodules.digits import ensure_digits
from mambaeye.encoders.mamba_r import MambaR
from mambaeye.encoders.mambaeye import MambaEye
from mambaeye.encoders.vim import Vim
from mambaeye.flops import training_flops
from mambaeye.ops.features import recorded

ROOT = Path(__file__).parents[1]
SMALL_VIM = {"num_classes": 10, "dim": 16, "depth": 2, "d_state": 4, "patch": 8, "grid": 2}
LOOKERS = {
    "vim": lambda: Vim(**SMALL_VIM),
    "mamba_r": lambda: MambaR(**SMALL_VIM, registers=2),
    "mambaeye": lambda: MambaEye(num_classes=10, dim=16, depth=2, d_state=4, headdim=8, move_embedding_dim=8),
    "registers": lambda: MambaEye(
        num_classes=10, dim=16, depth=2, d_state=4, headdim=8, move_embedding_dim=8, registers_every=3
    ),
}


@pytest.fixture(params=LOOKERS)
def looker(request: pytest.FixtureRequest) -> Looker:
    torch.manual_seed(0)
    return LOOKERS[request.param]().eval()


def views(encoder: Looker, data_dir: Path) -> Views:
    ensure_digits(data_dir / "digits")
    return views_of(encoder, load_images(data_dir / "digits/val")[:6], 32, 10)


def test_keeping_all_tokens_is_the_model_as_it_is(looker: Looker, data_dir: Path) -> None:
    some = views(looker, data_dir)
    tokens = torch.arange(some.positions.shape[1]).expand(len(some.labels), -1)
    plain, kept = see(looker, some), see(looker, some, tokens)
    torch.testing.assert_close(kept.norms, plain.norms)
    assert kept.right.equal(plain.right)
    assert plain.norms.shape == (6, 2, some.positions.shape[1])


def test_norms_are_of_patches_and_glimpses_alone(looker: Looker, data_dir: Path) -> None:
    """The last block's, through the final norm and its weight, which the encoder's own features are."""
    some = views(looker, data_dir)
    with torch.no_grad(), recorded(looker.feature_modules()[0]) as streams:
        if isinstance(looker, MambaEye):
            looker.norm.register_forward_hook(lambda module, inputs, output: inputs[0])
            features = looker.features(some.patches, some.positions)
        else:
            looker(some.canvases)
    images, tokens = some.positions.shape[:2]
    norms = token_norms(looker, streams, tokens)
    assert norms.shape == (images, 2, tokens)
    if isinstance(looker, MambaEye):
        torch.testing.assert_close(norms[:, -1], features.norm(dim=-1))


def test_what_was_left_out_cannot_be_seen(looker: Looker, data_dir: Path) -> None:
    some = views(looker, data_dir)
    kept = without_each(torch.rand(some.positions.shape[:2]))
    assert kept.shape[1] == some.positions.shape[1] - max(1, round(0.1 * some.positions.shape[1]))
    before = see(looker, some, kept).norms
    changed = some.patches.clone()
    gone = torch.ones(some.positions.shape[:2], dtype=torch.bool).scatter(1, kept, False)
    changed[gone] = 255 - changed[gone]
    canvases = some.canvases.clone()
    if not isinstance(looker, MambaEye):
        for image, token in gone.nonzero().tolist():
            row, col = some.positions[image, token].tolist()
            canvases[image, row : row + 8, col : col + 8] = 255 - canvases[image, row : row + 8, col : col + 8]
    after = see(looker, some._replace(patches=changed, canvases=canvases), kept).norms
    torch.testing.assert_close(after, before)
    assert not see(looker, some._replace(patches=changed, canvases=canvases)).norms.allclose(see(looker, some).norms)


def test_patches_come_back(data_dir: Path) -> None:
    torch.manual_seed(0)
    encoder = Vim(**SMALL_VIM)
    table = encoder.positions
    with patches_alone(encoder, torch.zeros(1, 1, dtype=torch.long)):
        assert encoder.positions is not table
    assert encoder.positions is table
    assert not encoder.patch_embed._forward_hooks


def test_highest_scores_are_left_out() -> None:
    assert without_each(torch.tensor([[0.5, 3.0, 1.0, 2.0, *[0.0] * 6]])).tolist() == [[0, 2, 3, 4, 5, 6, 7, 8, 9]]


def test_artefacts_are_measured_drawn_and_tabulated(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    for name in ("vim", "registers"):
        mambaeye.save(LOOKERS[name](), tmp_path / name)
    given = [f"{name}={tmp_path / name}" for name in ("vim", "registers")]
    out = tmp_path / "artefacts"
    asked = ["--output", str(out), "--sides", "32", "--num_glimpses", "10", "--images", "8"]
    monkeypatch.setattr("sys.argv", ["artefacts", *given, *asked, "--data_dir", str(data_dir)])
    artefacts.main()
    by_default = json.loads(out.with_suffix(".json").read_text())["measured"]
    monkeypatch.setattr("sys.argv", ["artefacts", *given, *asked, "--shards", str(data_dir / "digits/val")])
    artefacts.main()
    assert out.with_suffix(".png").exists()
    measured = json.loads(out.with_suffix(".json").read_text())["measured"]
    assert [(m["side"], m["model"], len(m["outlying"])) for m in measured] == [(32, "vim", 2), (32, "registers", 2)]
    assert artefacts.tables(measured) in capsys.readouterr().out
    assert [m["top1"] for m in measured] == [m["top1"] for m in by_default]


@pytest.mark.parametrize("model", ["vit_tiny", "vim_tiny", "tiny"])
def test_operations_counted_of_two_blocks_are_those_of_all(model: str) -> None:
    small = f"{model},depth=3"
    encoder = sizes.build(small)
    size = 32 if model != "tiny" else 5
    assert sizes.operations(small, size) == training_flops(encoder, sizes.batch_of(encoder, size, 1, "cpu"))


def test_a_cell_says_what_it_was() -> None:
    cell = sizes.measure("vim_tiny,depth=1,directions=1", "training", 32, 2, "cpu", rounds=1)
    assert (cell["model"], cell["mode"], cell["side"], cell["images"]) == (
        "vim_tiny,depth=1,directions=1",
        "training",
        32,
        2,
    )
    assert cell["parameters"] == sum(p.numel() for p in Vim(depth=1, directions=1).parameters())
    assert cell["seconds"] > 0
    assert cell["peak_mib"] >= 0  # none where memory of this process was free


@pytest.mark.parametrize(
    ("before", "size", "beyond"),
    [
        ({"side": 224, "seconds": 10.0, "peak_mib": 100.0}, 448, False),  # 40 s and 400 MiB
        ({"side": 224, "seconds": 16.0, "peak_mib": 100.0}, 448, True),
        ({"side": 224, "seconds": 1.0, "peak_mib": 300.0}, 448, True),
        ({"glimpses": 256, "seconds": 14.0, "peak_mib": 100.0}, 1024, False),  # 56 s
        ({"glimpses": 256, "seconds": 16.0, "peak_mib": 100.0}, 1024, True),
    ],
)
def test_cells_beyond_the_limits_are_left_out(before: dict[str, float], size: int, beyond: bool) -> None:
    assert sizes.beyond(before, size, longest=60, most_mib=1000) is beyond


def test_what_takes_glimpses_costs_the_same_at_any_side(tmp_path: Path) -> None:
    seconds = {"images": 2, "seconds": 0.5, "peak_mib": 40.4}
    lines = [
        {"model": "vit_tiny", "mode": mode, "side": side, **seconds} for mode in sizes.MODES for side in (224, 512)
    ]
    lines += [{"model": "tiny", "mode": mode, "glimpses": 256, **seconds} for mode in sizes.MODES]
    made = sizes.tables(lines)
    assert "| ViT-tiny | 4 / 40 |  | 4 / 40 |  |  |  |" in made
    assert "| MambaEye-tiny, 256 glimpses |" + " 4 / 40 |" * 6 in made
    assert len(sizes.draw(lines).axes) == 4


def condition(side: int, scan: str, steps: list[int], top1: list[float]) -> dict[str, object]:
    return {"resolution": side, "scan": scan, "steps": steps, "top1": top1}


def test_encoders_that_answer_once_and_at_every_glimpse_share_a_table() -> None:
    suite = SUITES["comparison"]
    conditions = {
        ("vit", 0): [condition(32, "canvas", [64], [0.5]), condition(48, "canvas", [64], [0.6])],
        ("vit", 1): [condition(32, "canvas", [64], [0.7]), condition(48, "canvas", [64], [0.6])],
        ("base", 0): [
            condition(side, scan, [1, 4, 16, 64], [0.1, 0.2, 0.3, gained])
            for side in (32, 48)
            for scan, gained in (("random", 0.8), ("sobol", 0.9))
        ],
    }
    entries = [
        {"variant": variant, "seed": seed, "evaluations": {"resolutions": {"conditions": some}}}
        for (variant, seed), some in conditions.items()
    ]
    ((_, table),) = system_tables(suite, suite.claims["systems"], Curves(entries))
    assert table.splitlines()[4:] == [
        "| MambaEye, random | 4 random | 20.0 | 20.0 |",
        "| MambaEye, random | 16 random | 30.0 | 30.0 |",
        "| MambaEye, random | 64 random | 80.0 | 80.0 |",
        "| MambaEye, random | 4 sobol | 20.0 | 20.0 |",
        "| MambaEye, random | 16 sobol | 30.0 | 30.0 |",
        "| MambaEye, random | 64 sobol | 90.0 | 90.0 |",
        "| ViT | canvas | 60.0 ± 14.1 | 60.0 ± 0.0 |",
    ]


@pytest.mark.parametrize("suite_name", ["comparison", "comparison_fashion", "comparison_cifar10"])
def test_all_that_are_compared_have_as_many_parameters(suite_name: str) -> None:
    suite = SUITES[suite_name]
    there = [variant for variant in suite.variants if variant != "naflexvit" or find_spec("timm")]
    counts = {variant: sum(p.numel() for p in built(suite, variant).parameters()) for variant in there}
    assert all(0.9 < count / counts["base"] < 1.1 for count in counts.values()), counts
    assert "trainer.max_epochs" in suite.fit  # whatever the overlays say


def test_operations_of_inference_are_those_worked_out_by_hand() -> None:
    """Two a multiply-add, of a ViT of dim 48 and 4 blocks over 36 patches of 8 pixels and a class token."""
    tokens, dim = 36 + 1, 48
    block = tokens * (dim * 3 * dim + dim * dim + 2 * dim * 4 * dim) + 2 * tokens**2 * dim
    by_hand = 36 * 3 * 8**2 * dim + 4 * block + dim * 10
    assert operations(built(SUITES["comparison"], "vit"), 48) == 2 * by_hand


def test_as_many_glimpses_as_an_inference_costs() -> None:
    encoder = built(SUITES["comparison"], "base")
    costs = {count: operations(encoder, count) for count in range(1, 13)}
    for most in (0, costs[1], costs[5] - 1, costs[5], costs[12], 10 * costs[12]):
        assert affordable(encoder, most, 12) == max([1, *(count for count, cost in costs.items() if cost <= most)])


def test_at_equal_cost_an_answer_between_two_that_were_measured_is_interpolated() -> None:
    suite = SUITES["comparison"]
    conditions = {
        "base": [condition(48, "sobol", [1, 4, 16, 64], [0.1, 0.2, 0.4, 0.8])],
        "vit": [condition(48, "canvas", [1], [0.6])],
        "glimpse_vit": [condition(48, "random", [64], [0.5])],
    }
    curves = Curves(
        [
            {"variant": variant, "seed": 0, "evaluations": {"resolutions": {"conditions": some}}}
            for variant, some in conditions.items()
        ]
    )
    assert between(curves, "base", 48, "sobol", 8).tolist() == pytest.approx([0.3])  # half way from 4 to 16
    assert between(curves, "base", 48, "sobol", 64).tolist() == [0.8]
    ((_, table),) = cost_tables(suite, suite.claims["systems"], curves)
    assert "its own / by sobol glimpses of MambaEye, random, by" in table
    (of_vit,) = table.splitlines()[4:]
    top1 = 100 * between(curves, "base", 48, "sobol", 34)[0]
    assert of_vit == f"| ViT | 9.9 | 34 | 60.0 / {top1:.1f} |"


def test_the_tables_in_the_docs_are_those_of_the_measurements() -> None:
    page = (ROOT / "docs/comparison.md").read_text()
    for name in ("sizes", "sizes_field"):
        assert sizes.tables(sizes.read(ROOT / f"docs/results/{name}.jsonl")) in page
    for path in (ROOT / "docs/results").glob("artefacts*.json"):
        assert artefacts.tables(json.loads(path.read_text())["measured"]) in page
