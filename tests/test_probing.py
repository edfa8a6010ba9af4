"""Linear probes: the regression by its own conditions, what is read out, and a small measurement from end to end."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from commands import ROOT

import mambaeye
from benchmarks import probing
from benchmarks.orders import load_images
from benchmarks.probing import Sets, fit, pixels_of, probe, read_out, seen, table, top1
from datamodules.digits import ensure_digits
from datamodules.packing.idx import unpack
from mambaeye.encoders.mambaeye import MambaEye

SIZES = {"num_classes": 10, "dim": 16, "depth": 2, "d_state": 8, "headdim": 8, "move_embedding_dim": 8}


def test_the_regression_is_where_its_gradient_vanishes() -> None:
    """Which is the minimum, for the loss is convex: worked out in numpy."""
    draw = np.random.default_rng(0)
    vectors, labels = draw.normal(size=(60, 4)), draw.integers(0, 3, 60)
    weights = fit(torch.from_numpy(vectors), torch.from_numpy(labels), 0.05).numpy()
    with_one = np.concatenate((vectors, np.ones((60, 1))), axis=1)
    logits = with_one @ weights
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    gradient = with_one.T @ (shares - np.eye(3)[labels]) / 60
    gradient[:-1] += 0.05 * weights[:-1]
    np.testing.assert_allclose(gradient, 0, atol=1e-5)


def test_what_can_be_told_apart_by_a_line_is() -> None:
    draw = torch.Generator().manual_seed(0)
    vectors = torch.randn(400, 5, generator=draw, dtype=torch.float64) * torch.tensor([1, 100, 0.01, 1, 0])
    labels = (vectors[:, 1] / 100 + vectors[:, 2] / 0.01 > 0).long()
    found = probe(Sets(vectors[:200], labels[:200], vectors[200:], labels[200:]))
    assert found["top1"] > 0.95
    assert found["penalty"] in probing.PENALTIES
    assert top1(torch.zeros(6, 2, dtype=torch.float64), vectors, torch.zeros(400)) == 1


def test_features_are_read_out_of_glimpses_that_are_keyed_by_picture(data_dir: Path) -> None:
    ensure_digits(data_dir / "digits")
    images = load_images(data_dir / "digits/val", 4)
    assert len(images) == 4
    torch.manual_seed(0)
    encoder = MambaEye(**SIZES).eval()
    patches, positions = seen(images, 0, encoder.patch_size, 32, 6)
    late, _ = seen(images[2:], 2, encoder.patch_size, 32, 6)
    assert late.equal(patches[2:])
    with torch.no_grad():
        features = encoder.features(patches, positions)
    vectors = read_out(encoder, patches, positions)
    assert vectors.keys() == {"last glimpse", "all glimpses", "block 1", "block 2"}
    torch.testing.assert_close(vectors["last glimpse"], features[:, -1])
    torch.testing.assert_close(vectors["all glimpses"], features.mean(1))
    grey = cv2.imdecode(np.frombuffer(images[0][0], np.uint8), cv2.IMREAD_GRAYSCALE)
    np.testing.assert_allclose(pixels_of(images)[0], grey.ravel() / 255)


@pytest.mark.long
def test_probes_are_measured_and_tabulated(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ensure_digits(data_dir / "digits")
    torch.manual_seed(0)
    mambaeye.save(MambaEye(**SIZES), tmp_path / "one")
    out = tmp_path / "rows.jsonl"
    few = ["--images=60", "--side=32", "--num_glimpses=4", f"--data={data_dir}/digits", f"--output={out}"]
    for kinds in (["pixels"], ["--drawn", f"random={tmp_path}/one,{tmp_path}/one"], [f"digits={tmp_path}/one"]):
        monkeypatch.setattr("sys.argv", ["probing", "measure", *kinds, *few])
        probing.main()
    rows = probing.read(out)
    owners = [(row["encoder"], row["seed"]) for row in rows]
    assert owners == [("pixels", 0)] + [("random", 0)] * 4 + [("random", 1)] * 4 + [("digits", 0)] * 4
    assert all(0 <= row["top1"] <= 1 and row["images"] == 60 for row in rows)
    assert rows[0]["top1"] > 0.5  # pixels of digits tell more than a draw
    by_seed = [[row["top1"] for row in rows if (row["encoder"], row["seed"]) == ("random", seed)] for seed in (0, 1)]
    assert by_seed[0] != by_seed[1]
    assert table(rows) in capsys.readouterr().out


def test_half_has_the_first_five_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, dest = tmp_path / "all", tmp_path / "half"
    source.mkdir()
    draw = np.random.default_rng(0)
    given = {}
    for part, count in (("train", 30), ("t10k", 12)):
        images, labels = draw.integers(0, 256, (count, 3, 4), np.uint8), np.arange(count, dtype=np.uint8) % 10
        given[part] = images[labels < 5], labels[labels < 5]
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            start = bytes((0, 0, 8, array.ndim)) + b"".join(length.to_bytes(4) for length in array.shape)
            (source / f"{part}-{name}-ubyte").write_bytes(start + array.tobytes())
    monkeypatch.setattr("sys.argv", ["probing", "half", str(source), str(dest)])
    probing.main()
    assert len([*dest.iterdir()]) == 4
    for part, (images, labels) in given.items():
        for name, axes, array in (("images-idx3", 3, images), ("labels-idx1", 1, labels)):
            assert unpack(dest / f"{part}-{name}-ubyte", axes, tmp_path / "values") == array.shape
            assert (tmp_path / "values").read_bytes() == array.tobytes()


def test_the_table_in_the_docs_is_that_of_the_measurements() -> None:
    assert table(probing.read(ROOT / "docs/results/probing.jsonl")) in (ROOT / "docs/features.md").read_text()
