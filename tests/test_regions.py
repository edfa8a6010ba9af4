"""Very large images: glimpses read out of tiled TIFFs are those of the image read whole, and no more is decoded."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from commands import flags
from hypothesis import given
from hypothesis import strategies as st

from callbacks.plots.prediction import UNSEEN, PredictedImage
from datamodules.loading.config import LoaderConfig
from datamodules.loading.files import FileLoader
from datamodules.transforms import regions
from datamodules.transforms.headers import PixelLimit
from datamodules.transforms.pixels import RGB, Pixels
from datamodules.transforms.regions import FileRange, LargeTiff, TiledCanvas, tiled_canvas
from datamodules.views.evaluate import EvaluateView
from datamodules.views.predict import FileCanvases, OpenedFile, PredictView
from mambaeye import weights
from mambaeye.batch import Scene
from mambaeye.encoders.mambaeye import MambaEye
from mambaeye.evaluation.prediction import predict
from mambaeye.geometry import coverage
from mambaeye.geometry.coverage import newly_seen, newly_seen_in_blocks
from mambaeye.temperature import Temperature
from train import main

P = 16


def noise(height: int, width: int, channels: int, bits: int = 8) -> np.ndarray:
    values = np.random.default_rng(0).integers(0, 1 << bits, (height, width, channels))
    return values.astype(f"uint{bits}")


def write(path: Path, image: np.ndarray, **how: object) -> str:
    kind = "rgb" if image.shape[2] == 3 else "minisblack"
    defaults = {"tile": (32, 48), "photometric": kind, "planarconfig": "contig", "compression": "zlib"}
    tifffile.imwrite(path, image, **(defaults | how))
    return str(path)


def large(path: str, size: tuple[int, int]) -> LargeTiff:
    return LargeTiff(FileRange(path, 0, Path(path).stat().st_size), path, size)


def opened(path: str, limit: int, pixels: Pixels = RGB, glimpses: int = 40, scan: str = "random") -> OpenedFile:
    view = EvaluateView(num_glimpses=glimpses)
    return FileCanvases(PredictView(), view, scan, P, 0, PixelLimit(limit), pixels)(path)


@pytest.mark.parametrize("size", [(64, 96), (65, 97), (63, 95), (1, 1), (1, 200), (200, 1), (15, 17), (100, 31)])
@pytest.mark.parametrize(("channels", "bits"), [(3, 8), (5, 16), (2, 8)])
def test_glimpses_are_those_of_the_whole_image(size: tuple[int, int], channels: int, bits: int, tmp_path: Path) -> None:
    image = noise(*size, channels, bits)
    path = write(tmp_path / "a.tif", image)
    canvas, box = tiled_canvas(large(path, size), Pixels(channels, bits), P)
    whole = np.zeros(canvas.shape[1:], image.dtype)
    whole[box.slices] = image
    high, wide = (side - P for side in whole.shape[:2])
    every = np.indices((high + 1, wide + 1)).reshape(2, -1).T
    places = every[:: max(1, len(every) // 300)]
    patches = canvas.cut(torch.from_numpy(places)[None], (P, P))[0].numpy()
    for patch, (row, col) in zip(patches, places, strict=True):
        np.testing.assert_array_equal(patch, whole[row : row + P, col : col + P].transpose(2, 0, 1))


def test_only_tiles_that_glimpses_touch_are_decoded_and_few_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.tif", noise(320, 480, 3))
    canvas, _ = tiled_canvas(large(path, (320, 480)), RGB, P)
    canvas.cut(torch.tensor([[[0, 0], [31, 47], [0, 1]]]), (P, P))
    assert set(canvas._tiles) == {(0, 0), (0, 1), (1, 0), (1, 1)}
    monkeypatch.setattr(regions, "CACHE", 3 * 32 * 48 * 3)
    canvas.cut(torch.tensor([[[row, 240] for row in range(0, 300, 20)]]), (P, P))
    assert sum(tile.nbytes for tile in canvas._tiles.values()) <= regions.CACHE
    again = pickle.loads(pickle.dumps(canvas))
    assert "_tiles" not in vars(again)
    np.testing.assert_array_equal(
        again.cut(torch.tensor([[[5, 5]]]), (P, P)), canvas.cut(torch.tensor([[[5, 5]]]), (P, P))
    )


@pytest.mark.parametrize("temperature", [None, Temperature((0.5, 0.1, 0.1, 0.1, 0.1), (32, 64))])
@pytest.mark.parametrize(("channels", "bits"), [(3, 8), (5, 16)])
def test_predictions_by_region_are_those_of_the_whole_image(
    temperature: Temperature | None, channels: int, bits: int, tmp_path: Path
) -> None:
    path, pixels = write(tmp_path / "a.tif", noise(150, 203, channels, bits)), Pixels(channels, bits)
    torch.manual_seed(0)
    encoder = MambaEye(num_classes=4, dim=16, depth=1, d_state=8, headdim=8, channels=channels).eval()
    loaders = [
        FileLoader([path], FileCanvases(PredictView(), EvaluateView(300), "random", P, 0, limit, pixels), 4, config)
        for limit in (PixelLimit(), PixelLimit(20_000))
        for config in (LoaderConfig(num_workers=0), LoaderConfig(num_workers=1))
    ]
    answers = []
    for loader in loaders:
        (batch,) = loader
        assert batch.scene is not None
        assert tuple(batch.files[0].size) == (150, 203)
        with torch.no_grad():
            answers += predict(encoder, batch.scene, None, [], temperature)
    for other in answers[1:]:
        for one, two in zip(answers[0], other, strict=True):
            assert (one == two).all() if isinstance(one, torch.Tensor) else one == two


def test_the_command_writes_the_same_lines_and_goes_on_after_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])
    weights.save(MambaEye(num_classes=4, dim=16, depth=1, d_state=8, headdim=8), "encoder")
    Path("images").mkdir()
    paths = [Path("images") / name for name in ("a.tif", "b.tif", "c.tif")]
    for path, size in zip(paths, ((150, 203), (150, 203), (12, 900)), strict=True):
        write(path, noise(*size, 3))
    with tifffile.TiffFile(paths[1]) as file:
        place = file.pages[0].dataoffsets[7] + 100
    settings = {"model.init_from": "encoder/model.safetensors", "data.images": "images", "trainer.accelerator": "cpu"}
    settings |= {"data.evaluate.num_glimpses": 300, "trainer.enable_progress_bar": "false"}
    told = []
    for limit in (10**6, 10**4):
        if limit == 10**4:
            data = bytearray(paths[1].read_bytes())
            data[place] ^= 255
            paths[1].write_bytes(data)
        main(["predict", f"--run_dir={limit}", "--pictures", *flags(settings | {"data.loader.max_pixels": limit})])
        told.append([json.loads(line) for line in Path(f"{limit}/predictions.jsonl").read_text().splitlines()])
    whole, by_region = told
    assert [(line["path"], line["size"]) for line in whole][2] == ("images/c.tif", [12, 900])
    assert whole[::2] == by_region[::2]
    assert by_region[1].keys() == {"path", "error"}
    assert "images/b.tif does not decode" in by_region[1]["error"]
    assert len([*Path("10000/predictions").iterdir()]) == 2


def test_what_lies_in_small_files_is_read_whole_and_in_large_ones_by_region(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", noise(100, 100, 3))
    for limit, kind in ((10_000, torch.Tensor), (9_999, TiledCanvas)):
        scene = opened(path, limit).scene
        assert scene is not None
        assert isinstance(scene.canvases, kind)


@pytest.mark.parametrize(
    ("how", "channels", "limit", "scan", "message"),
    [
        (
            {"tile": None},
            3,
            9_999,
            "random",
            "of --data.loader.max_pixels, and lies in strips: tile it, to",
        ),
        ({}, 3, 1_000, "random", "in tiles of 48 x 32: give smaller tiles, such as 256 x 256"),
        (
            {},
            5,
            9_999,
            "random",
            "and 5 channels of 8 bits: to be read where glimpses fall, it must have 3",
        ),
        ({"extratags": [(274, "H", 1, 6, True)]}, 3, 9_999, "random", "and is to be turned (orientation 6)"),
        (
            {},
            3,
            9_999,
            "canvas",
            "more than the 9999 of --data.loader.max_pixels: scale it down",
        ),
        (
            {},
            3,
            9_999,
            "learned",
            "more than the 9999 of --data.loader.max_pixels: scale it down",
        ),
    ],
)
def test_large_images_that_cannot_be_read_so(
    how: dict[str, object], channels: int, limit: int, scan: str, message: str, tmp_path: Path
) -> None:
    file, scene = opened(write(tmp_path / "a.tif", noise(100, 100, channels), **how), limit, scan=scan)
    assert scene is None
    assert file.error is not None
    assert "100 x 100 pixels" in file.error
    assert message in file.error


def test_a_tile_that_is_damaged_is_found_where_a_glimpse_falls(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    write(path, noise(100, 100, 3))
    with tifffile.TiffFile(path) as file:
        offset = file.pages[0].dataoffsets[4]
    data = bytearray(path.read_bytes())
    data[offset + 100] ^= 255
    path.write_bytes(data)
    canvas, _ = tiled_canvas(large(str(path), (100, 100)), RGB, P)
    canvas.cut(torch.tensor([[[0, 0]]]), (P, P))
    with pytest.raises(regions.InputError, match="a.tif does not decode"):
        canvas.cut(torch.tensor([[[40, 50]]]), (P, P))


def test_a_picture_shows_what_glimpses_showed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", np.full((1300, 700, 3), 9, np.uint8))
    file, scene = opened(path, 9_999)
    assert scene is not None
    scene = Scene(scene.canvases[None], *(part[None] for part in scene[1:]))
    encoder = MambaEye(num_classes=4, dim=16, depth=1, d_state=8, headdim=8).eval()
    with torch.no_grad():
        (prediction,) = predict(encoder, scene, None, [])
    image = PredictedImage.of(scene, 0, file, prediction, list("abcd"), P).image
    assert image.shape == (640, 345, 3)
    assert set(np.unique(image)) == {9, UNSEEN}
    assert abs((image == 9).mean() - prediction.information_ratio) < 0.02


@given(
    height=st.integers(1, 90),
    width=st.integers(1, 90),
    count=st.integers(0, 60),
    side=st.integers(1, 16),
    data=st.data(),
)
def test_new_pixels_are_counted_in_blocks_as_at_once(
    height: int, width: int, count: int, side: int, data: st.DataObject
) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    positions = rng.integers(-20, 100, (count, 2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coverage, "BLOCK", 256)
        found = newly_seen_in_blocks(positions, (height, width), side)
    np.testing.assert_array_equal(found, newly_seen(positions, (height, width), side))
