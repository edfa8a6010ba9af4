"""Kept glimpses of a router are counted as it is, against loops over pixels and glimpses."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import kept
from benchmarks.orders import load_images
from mambaeye.encoders.hnet import HNet
from mambaeye.encoders.mambaeye import MambaEye
from mambaeye.geometry.box import Box
from mambaeye.geometry.scans import scan_pattern
from mambaeye.ops import hierarchy

ROOT = Path(__file__).parents[1]
SIZES = {"num_classes": 10, "dim": 16, "d_state": 8, "headdim": 8, "move_embedding_dim": 8, "patch_size": 16}


def test_new_pixels_are_those_that_no_earlier_glimpse_has_shown() -> None:
    rng = np.random.default_rng(0)
    positions = torch.from_numpy(rng.integers(0, 9, (2, 7, 2)))
    views = kept.Views(torch.zeros(2, 12, 12, 3, dtype=torch.uint8), positions, torch.zeros(2))
    shares = kept.new_pixels(views, 4)
    for image, walk in enumerate(positions.tolist()):
        seen: set[tuple[int, int]] = set()
        for step, (row, col) in enumerate(walk):
            shown = {(row + i, col + j) for i in range(4) for j in range(4)}
            assert shares[image, step] == len(shown - seen) / 16
            seen |= shown
    assert set(shares[:, 0]) == {1.0}


def test_shares_by_what_is_new_leave_no_glimpse_out() -> None:
    new = np.array([[1.0, 0.0, 0.25, 0.26, 0.0], [1.0, 0.5, 0.75, 0.76, 0.1]])
    is_kept = torch.tensor([[True, True, False, True, False], [True, False, True, False, True]])
    assert kept.by_new(is_kept, new) == {
        "none": 0.5,
        "0 to 0.25": 0.5,
        "0.25 to 0.5": 0.5,
        "0.5 to 0.75": 1.0,
        "0.75 to 1": round(2 / 3, 3),
    }
    assert kept.by_new(is_kept[:, :1], new[:, :1])["none"] is None


@pytest.mark.parametrize(("total", "lines"), [(16, 4), (12, 4), (1, 1), (0, 0)])
def test_a_dense_scan_is_a_raster_from_edge_to_edge(total: int, lines: int) -> None:
    box = Box(3, 5, 19, 40)
    places = scan_pattern("benchmarks.dense_scans.dense")(box, 16, total, np.random.default_rng(0))
    spread = [
        [round(low + room * line / max(1, lines - 1)) for line in range(lines)] for low, room in ((3, 3), (5, 24))
    ]
    assert places.tolist() == [[row, col] for row in spread[0] for col in spread[1]][:total]


@pytest.mark.long
def test_models_are_measured_and_what_a_stride_keeps_is_its_share(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"TOTAL": 16, "FAR": 20, "FAR_IMAGES": 2, "STRETCHES": (0, 8, 20)}.items():
        monkeypatch.setattr(kept, name, value)
    images = load_images(data_dir / "digits/val")[:3]
    torch.manual_seed(0)
    routed, flat = HNet(blocks=(1, 1), router="stride", **SIZES).eval(), MambaEye(depth=3, **SIZES).eval()
    of_routed, of_flat = (kept.measure(model, images, 32) for model in (routed, flat))
    assert [way["kept"] for way in of_routed["ways"].values()] == [0.5] * len(kept.WAYS)
    assert of_routed["ways"]["twice"]["of_the_second"] == 0.0  # each second one
    assert "kept" not in of_flat["ways"]["random"]
    macs = 3 * (2 * 16 * (3 * 32 + 16 + 4) // 2)  # of three blocks' dense layers, at the least
    assert of_flat["ways"]["dense"]["operations"] > macs
    figure = kept.draw({"stride": routed}, images, 32)
    assert len(figure.axes) == 3 * len(images) + 1
    written = kept.tables({"stride": [of_routed], "flat": [of_flat]})
    assert "| stride | twice | 0.50 |" in written
    assert written.count("| flat |") == 2
    of_dense = kept.measure(routed, images, 32, ["dense"])
    assert of_dense["ways"] == {"dense": of_routed["ways"]["dense"]}
    assert "stretch" not in kept.tables({"stride": [of_dense]})


def test_one_image_at_a_time_costs_what_it_keeps_and_no_padding(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hierarchy, "RUN", 1)  # else what is kept is filled up to runs of 32
    views = kept.views_of(load_images(data_dir / "digits/val")[:3], 32, 16, "random", 24)
    torch.manual_seed(0)
    model = HNet(blocks=(1, 2), router="neighbours", **SIZES).eval()
    together = kept.see(model, views)
    assert together.kept is not None
    counts = together.kept.sum(1)
    assert len(set(counts.tolist())) > 1  # so that some are padded

    def alone(image: int) -> kept.Seen:
        return kept.see(model, kept.Views(*(part[image : image + 1] for part in views)), at_once=1)

    each = [alone(image).operations for image in range(3)]
    one_at_a_time = kept.see(model, views, at_once=1).operations
    assert one_at_a_time == pytest.approx(sum(each) / 3)
    assert one_at_a_time < together.operations
    assert np.argsort(each).tolist() == np.argsort(counts.numpy()).tolist()


def test_means_over_seeds_leave_out_what_some_have_not() -> None:
    assert kept.of_seeds([0.25, None, 0.75], 2) == f"0.50 ± {np.sqrt(0.125):.2f}"
    assert kept.of_seeds([None, 2000], 0, 1e-3) == "2"
    assert kept.of_seeds([None], 1) == ""


def test_without_models_there_are_the_tables_of_what_was_measured_or_a_message(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["kept", "--output", str(ROOT / "docs/results/kept")])
    kept.main()
    assert "| novelty | random |" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["kept", "--output", str(tmp_path / "none")])
    with pytest.raises(SystemExit):
        kept.main()
    assert "give models, as NAME=CHECKPOINT" in capsys.readouterr().err
    monkeypatch.setattr(
        "sys.argv", ["kept", "novelty=nowhere.ckpt", "--output", str(tmp_path / "none"), "--data_dir", str(data_dir)]
    )
    with pytest.raises(SystemExit):
        kept.main()
    assert "nowhere.ckpt" in capsys.readouterr().err
    assert not [*tmp_path.iterdir()]


def test_the_tables_in_the_docs_are_those_of_the_measurements() -> None:
    page = (ROOT / "docs/hierarchy.md").read_text()
    for path in (ROOT / "docs/results").glob("kept*.json"):
        for table in kept.tables(json.loads(path.read_text())["measured"]).split("\n\n"):
            assert table in page


def test_all_places_of_a_raster_are_in_any_order_and_twice_is_twice() -> None:
    for box in (kept.Box(0, 0, 64, 64), kept.Box(3, 5, 40, 50)):
        raster, shuffled, twice = (
            kept.places(way, box, 16, kept.TOTAL, np.random.default_rng(1)) for way in ("dense", "shuffled", "twice")
        )
        assert sorted(map(tuple, raster)) == sorted(map(tuple, shuffled)) != list(map(tuple, shuffled))
        for axis in (0, 1):
            first, side = box.start[axis], box.size[axis]
            assert (raster[:, axis].min(), raster[:, axis].max()) == (first, first + side - 16)
        assert (twice[::2] == twice[1::2]).all()
        assert len(twice) == kept.TOTAL
