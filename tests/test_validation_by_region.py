"""Validation of very large images: what is measured by region is what is measured of images that are read whole."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import torch
from commands import NO_PICTURES, flags
from hypothesis import given
from hypothesis import strategies as st

from datamodules.check import check
from datamodules.pack import main as pack
from datamodules.shards.index import ShardIndex
from datamodules.transforms.headers import PixelLimit
from datamodules.transforms.images import centred
from datamodules.transforms.pixels import RGB, Pixels
from datamodules.transforms.planned import UnmadeCanvas
from datamodules.transforms.regions import TiledCanvas
from mambaeye import weights
from mambaeye.batch import Regions
from mambaeye.encoders.mambaeye import MambaEye
from mambaeye.geometry.patches import cut_from_canvases
from train import main

P, SIDE, LIMIT = 16, 211, 10_000
TILE = 32 * 48 * 3  # bytes of one, which noise has encoded, too
SIZES = {"a/1": (150, 203), "a/2": (30, 7), "b/3": (211, 60), "b/4": (64, 64), "b/5": (9, 209), "b/6": (120, 211)}


def write(path: Path, size: tuple[int, int], **how: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    seed = [ord(letter) for letter in path.stem]
    image = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
    if path.suffix == ".png":
        assert cv2.imwrite(str(path), image)
    else:
        tifffile.imwrite(path, image, **({"tile": (32, 48), "photometric": "rgb", "compression": "zlib"} | how))


@pytest.fixture
def slides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])
    torch.manual_seed(0)
    weights.save(MambaEye(num_classes=2, dim=16, depth=1, d_state=8, headdim=8), "encoder")
    for name, size in SIZES.items():
        large = size[0] * size[1] > LIMIT
        write(Path(f"slides/val/{name}.{'tif' if large else 'png'}"), size)
        write(Path(f"slides/train/{name}.png"), (16, 16))
    return Path("slides")


def measured(run: str, limit: int, **more: object) -> tuple[Path, dict[str, object]]:
    settings = {
        **NO_PICTURES,
        "mistakes.images": 4,
        "film_strip.images": 2,
        "model.init_from": "encoder/model.safetensors",
        "data.folder": "slides",
        "data.resolutions": f"[{SIDE}]",
        "data.scans": "[random,row_raster]",
        "data.evaluate.resize": "none",
        "data.evaluate.num_glimpses": 300,
        "data.loader.batch_size": 4,
        "data.loader.num_workers": 0,
        "data.loader.max_pixels": limit,
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
    }
    more = {name.replace("__", "."): value for name, value in more.items()}
    main(["validate", f"--run_dir={run}", *flags(settings | more)])
    (path,) = Path(run).rglob("validation.json")
    return path.parent, json.loads(path.read_text())


@pytest.mark.long
def test_what_is_measured_is_what_is_measured_of_images_read_whole(
    slides: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TiledCanvas, "cut", counted := Counted(TiledCanvas.cut))
    folder, by_region = measured("region", LIMIT)
    large = sum(height * width > LIMIT for height, width in SIZES.values())
    assert counted.calls == 2 * large
    assert (folder / "film_strip.png").exists() is False
    assert [*folder.rglob("mistakes.csv")]
    _, by_worker = measured("worker", LIMIT, data__loader__num_workers=1)
    _, of_test = measured("skewed", LIMIT, data__evaluate__shift="[3,5]")
    calls = counted.calls
    _, whole = measured("whole", 10**6)
    _, whole_of_test = measured("whole_skewed", 10**6, data__evaluate__shift="[3,5]")
    assert counted.calls == calls
    assert by_region == by_worker == whole
    assert of_test == whole_of_test


class Counted:
    """Counts the calls of a method."""

    def __init__(self, method: object) -> None:
        self.method, self.calls = method, 0

    def __get__(self, instance: object, owner: type) -> object:
        def call(*args: object) -> object:
            self.calls += 1
            return self.method(instance, *args)

        return call


def damage(shards: Path, key: str, share: float) -> None:
    """Overwrite as much as a tile of an image, from a share of its bytes on; trajectories here fall on the half."""
    index = ShardIndex.read(shards)
    number = [index.key(sample_id) for sample_id in range(len(index))].index(key)
    path, offset = index.shard_path(number), int(index.offsets[number])
    data = bytearray(path.read_bytes())
    start = offset + int(share * index.sizes[number])
    data[start : start + TILE] = b"\xff" * TILE
    path.write_bytes(data)


def test_a_damaged_tile_makes_an_image_unreadable_or_ends_the_run(slides: Path) -> None:
    pack([str(slides / "val"), "shards", "--max_pixels", str(LIMIT)])
    assert check(Path("shards"), 1, PixelLimit(LIMIT)) == []
    damage(Path("shards"), "a/1", 0.5)
    (found,) = [line for line in check(Path("shards"), 1, PixelLimit(LIMIT)) if "does not decode" in line]
    assert "sample a/1 in shards/shard-000000.tar" in found
    own = {"data__folder": "null", "data__val_shards": "shards", "data__num_classes": 2}
    with pytest.raises(SystemExit, match="sample a/1 does not decode"):
        measured("ends", LIMIT, **own)
    _, left_out = measured("goes_on", LIMIT, data__loader__max_unreadable=1, **own)
    damage(Path("shards"), "a/1", 0.0)  # which OpenCV refuses; of the tile it says nothing
    _, whole = measured("whole", 10**6, data__loader__max_unreadable=1, **own)
    assert left_out == whole


def test_what_cannot_be_read_by_region_is_refused_when_it_is_packed(
    slides: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(slides / "val/a/strips.tif", (150, 203), tile=None)
    write(slides / "val/a/tiles.tif", (150, 203))
    data = bytearray((slides / "val/a/tiles.tif").read_bytes())
    data[len(data) // 2] ^= 255
    (slides / "val/a/tiles.tif").write_bytes(data)
    with pytest.raises(SystemExit, match="2 of 8 images are unreadable"):
        pack([str(slides / "val"), "shards", "--max_pixels", str(LIMIT)])
    said = capsys.readouterr().err
    assert "a/strips.tif has 203 x 150 pixels, more than the 10000 of --max_pixels, and lies in strips: tile it" in said
    assert "a/tiles.tif does not decode" in said


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"data__resolutions": "[202]"},
            "more than the 10000 of --data.loader.max_pixels, and is not scaled to the 202",
        ),
        ({"data__evaluate__resize": "fit"}, "more than the 10000 of --data.loader.max_pixels: scale it down"),
    ],
)
def test_large_images_that_do_not_fit_are_refused(more: dict[str, object], message: str, slides: Path) -> None:
    with pytest.raises(SystemExit, match=message):
        measured("refused", LIMIT, **more)


def test_large_images_in_shards_that_stream_are_refused(slides: Path) -> None:
    pack([str(slides / "val"), "shards", "--max_pixels", str(LIMIT)])
    own = {"data__val_shards": "pipe:cat shards/shard-000000.tar", "data__val_index": "shards/index.json"}
    with pytest.raises(SystemExit, match=r"more than the 10000 of --data.loader.max_pixels: scale it down"):
        measured("streamed", LIMIT, data__folder="null", data__num_classes=2, **own)


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    side=st.integers(P, 60),
    shift=st.tuples(st.integers(0, 9), st.integers(0, 9)),
    seed=st.integers(0, 99),
    pixels=st.sampled_from([RGB, Pixels(5, 16)]),
)
def test_planned_glimpses_are_those_of_the_canvas(
    height: int, width: int, side: int, shift: tuple[int, int], seed: int, pixels: Pixels
) -> None:
    rng = np.random.default_rng(seed)
    size = min(height, side), min(width, side), pixels.channels
    image = rng.integers(0, 1 << pixels.bits, size).astype(pixels.dtype)
    canvas, box = centred(image, side, shift)
    highest = np.subtract(canvas.shape[:2], P - 1)
    positions = rng.integers(0, highest, (50, 2)).astype(np.int32)
    sides = (canvas.shape[0], canvas.shape[1])
    planned: Regions = UnmadeCanvas(image, box, sides, pixels).cut(positions, (P, P))[None]
    assert tuple(planned.shape) == (1, *canvas.shape)
    wanted = torch.from_numpy(positions[rng.permutation(50)[:20]])[None]
    whole = cut_from_canvases(torch.from_numpy(canvas)[None], wanted, P)
    assert torch.equal(cut_from_canvases(planned, wanted, P), whole)


def test_a_glimpse_that_was_not_planned_is_not_made_up() -> None:
    canvas = UnmadeCanvas(np.ones((20, 20, 3), np.uint8), centred(np.ones((20, 20, 3), np.uint8), 40)[1], (40, 40), RGB)
    planned = canvas.cut(np.array([[0, 0], [3, 4]]), (P, P))[None]
    with pytest.raises(AssertionError, match="was not planned"):
        planned.cut(torch.tensor([[[3, 5]]]), (P, P))
