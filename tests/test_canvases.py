"""Validation's images: each decoded once, and seen under every condition as if there were no other."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from test_datamodule import data_module

from datamodules.loading.stream import collate
from datamodules.shards.index import ShardIndex
from datamodules.transforms.images import decode_image
from datamodules.views.evaluate import FILLER, DecodedSample, EvaluateView, EvaluationCanvases
from mambaeye.batch import CanvasBatch, EvaluationCondition
from mambaeye.encoders.mambaeye import MambaEye
from mambaeye.errors import InputError
from mambaeye.geometry.box import Box
from mambaeye.geometry.coverage import information_ratio
from mambaeye.geometry.patches import cut_from_canvases, cut_patches
from mambaeye.geometry.scans import SCANS, scan_pattern

KEY = (1, 0)


def white(height: int, width: int, number: int = 5) -> DecodedSample:
    return DecodedSample(number, f"white {number}", 1, np.full((height, width, 3), 255, np.uint8))


def seen(
    image: DecodedSample, num_glimpses: int, *conditions: EvaluationCondition, **looking: object
) -> list[CanvasBatch]:
    """One image's samples, one for each condition, as batches of one."""
    view = EvaluateView(num_glimpses, **looking)
    return [collate([sample]) for sample in EvaluationCanvases(conditions, 16, view)([image], KEY)]


def test_a_batch_is_what_its_documentation_says(data_dir: Path) -> None:
    data = data_module(data_dir, loader__batch_size=7, resolutions=(48, 20), scans=("random", "spiral"))
    batches = iter(data.val_dataloader())
    for place, side in enumerate((48, 48, 20, 20)):
        batch = next(batches)
        assert isinstance(batch, CanvasBatch)
        assert (batch.scene.canvases.shape, batch.scene.canvases.dtype) == ((7, side, side, 3), torch.uint8)
        assert (batch.scene.positions.shape, batch.scene.positions.dtype) == ((7, 6, 2), torch.int32)
        assert (batch.information_ratio.shape, batch.information_ratio.dtype) == ((7, 6), torch.float32)
        assert (batch.labels.shape, batch.labels.dtype) == ((7,), torch.int64)
        assert len(batch.keys) == 7
        assert batch.valid.tolist() == [True] * 7
        assert batch.condition == place
        assert data.conditions[place].resolution == side
    assert next(batches).condition == 0


def test_glimpses_know_their_image_box() -> None:
    """The box is 32 x 64, two rows of four glimpses, and nothing else is seen."""
    (batch,) = seen(white(30, 60), 12, EvaluationCondition(64, "row_raster"))
    assert (cut_from_canvases(batch.scene.canvases, batch.scene.positions, 16) == 255).all()
    assert batch.scene.positions[0, :8].tolist() == [[row, col] for row in (16, 32) for col in (0, 16, 32, 48)]
    expected = information_ratio(batch.scene.positions, (16, 0, 32, 64), 16)
    assert batch.information_ratio.equal(expected.float())
    assert batch.information_ratio[0].tolist() == [*(n / 8 for n in range(1, 9)), 1, 1, 1, 1]


@pytest.mark.parametrize("scan", SCANS)
@pytest.mark.parametrize("shape", [(3, 300), (37, 5)])
def test_every_scan_takes_images_narrower_than_a_glimpse(scan: str, shape: tuple[int, int]) -> None:
    for batch in seen(
        white(*shape), 300, EvaluationCondition(61, scan), EvaluationCondition(16, scan), EvaluationCondition(17, scan)
    ):
        assert batch.scene.positions.min() >= 0
        assert batch.scene.positions.max() + 16 <= batch.scene.canvases.shape[1]
        assert batch.information_ratio[0, -1] == 1 or scan == "varied"  # whose lattices may leave gaps


def test_patches_are_those_of_each_canvas() -> None:
    rng = np.random.default_rng(0)
    canvases = rng.integers(256, size=(3, 40, 50, 3), dtype=np.uint8)
    positions = np.stack([scan_pattern("random")(Box(0, 0, 40, 50), 16, 30, rng) for _ in canvases])
    patches = cut_from_canvases(torch.from_numpy(canvases), torch.from_numpy(positions), 16)
    for mine, canvas, places in zip(patches.numpy(), canvases, positions, strict=True):
        assert np.array_equal(mine, cut_patches(canvas, places, 16))


def test_every_image_is_decoded_once_for_all_conditions(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []

    def counted(data: bytes, what: str) -> np.ndarray:
        decoded.append(what)
        return decode_image(data, what)

    monkeypatch.setattr("datamodules.loading.stream.decode_image", counted)
    data = data_module(data_dir, resolutions=(32, 40, 50), scans=("random", "spiral"))
    assert len(list(data.val_dataloader())) == 6 * -(-397 // 64)
    assert len(decoded) == len(set(decoded)) == 397


def test_a_condition_is_the_same_alone(data_dir: Path) -> None:
    """With other conditions or without, in other batches, by other workers, as the beginning of a longer trajectory."""

    def conditions(**arguments: object) -> dict[tuple, tuple]:
        data = data_module(data_dir, limit=2, **arguments)
        rows = {}
        for batch in data.val_dataloader():
            for key, canvas, *rest, ratio in zip(batch.keys, *batch.scene, batch.information_ratio, strict=True):
                if key:
                    box, positions, seed, led = rest
                    assert not led
                    beginning = positions[:6].tolist(), ratio[:6].tolist()
                    drawn = canvas.numpy().tobytes(), box.tolist(), int(seed), beginning
                    rows[*data.conditions[batch.condition], key] = drawn
        return rows

    together = {"resolutions": (32, 45), "scans": ("random", "sobol", "hilbert")}
    sweep = conditions(**together, loader__num_workers=2, evaluate__num_glimpses=300, evaluate__report_at=(6,))
    assert len(sweep) == 6 * 128
    for resolution in together["resolutions"]:
        for scan in together["scans"]:
            alone = conditions(resolutions=(resolution,), scans=(scan,), loader__batch_size=50)
            assert len(alone) == 100
            assert all(sweep[row] == drawn for row, drawn in alone.items())


@pytest.mark.parametrize(("limit", "images"), [(2, 128), (0.5, 192), (1.0, 397), (100, 397)])
@pytest.mark.parametrize("workers", [0, 3])
def test_a_limit_counts_batches_of_images(data_dir: Path, limit: int | float, images: int, workers: int) -> None:
    arguments = {"loader__num_workers": workers, "resolutions": (32, 40)}
    data = data_module(data_dir, limit=limit, **arguments)
    assert data.trainer.limit_val_batches == 1.0
    loader = data.val_dataloader()
    batches = list(loader)
    assert len(batches) == len(loader)
    for condition in (0, 1):
        keys = [key for batch in batches if batch.condition == condition for key in batch.keys if key]
        assert len(keys) == len(set(keys)) == images


def test_testing_has_a_limit_of_its_own(data_dir: Path) -> None:
    data = data_module(data_dir, limit=2)
    data.trainer.limit_test_batches = 3
    data.setup("test")
    data.setup("validate")
    assert (len(data.val_dataloader()), len(data.test_dataloader())) == (2, 3)


def test_a_share_of_less_than_a_batch(data_dir: Path) -> None:
    with pytest.raises(InputError, match="^0.1 of 7 batches is less than one: give .* at least 0.1429, or a number"):
        data_module(data_dir, limit=0.1).val_dataloader()


def test_a_shift_moves_an_image_and_what_a_model_of_moves_sees_stays() -> None:
    rng = np.random.default_rng(0)
    photo = DecodedSample(3, "noise", 1, rng.integers(256, size=(50, 37, 3), dtype=np.uint8))
    (here,), (there,) = (
        seen(photo, 40, EvaluationCondition(48, "random"), shift=shift) for shift in ((0, 0), (70, 11))
    )
    assert there.scene.canvases.shape == (1, 118, 59, 3)
    assert (there.scene.canvases[:, 70:, 11:] == here.scene.canvases).all()
    assert (there.scene.positions - here.scene.positions == torch.tensor([70, 11])).all()
    assert there.information_ratio.equal(here.information_ratio)
    torch.manual_seed(0)
    model = MambaEye(num_classes=5, dim=16, depth=1, d_state=8, headdim=8)
    scenes = here.scene, there.scene
    logits = [model(cut_from_canvases(scene.canvases, scene.positions, 16), scene.positions) for scene in scenes]
    assert logits[0].equal(logits[1])


def test_a_filler_is_seen_nowhere_and_marked() -> None:
    for batch in seen(FILLER, 7, EvaluationCondition(20, "random"), EvaluationCondition(30, "sobol")):
        assert not batch.valid.any()
        assert not batch.scene.canvases.any()
        assert not batch.scene.positions.any()


def test_an_image_that_does_not_decode_is_missing_everywhere(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(data: bytes, what: str) -> np.ndarray:
        if "digit-1" in what:
            raise InputError(f"the image of {what} does not decode")
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)

    monkeypatch.setattr("datamodules.loading.stream.decode_image", broken)
    with pytest.raises(InputError, match="does not decode .in .*val-000000.tar"):
        list(data_module(data_dir, resolutions=(32, 40)).val_dataloader())
    bad = sum("digit-1" in ShardIndex.read(data_dir / "digits" / "val").key(number) for number in range(397))
    data = data_module(data_dir, resolutions=(32, 40), loader__max_unreadable=bad)
    batches = list(data.val_dataloader())
    for condition in (0, 1):
        rows = [row for b in batches if b.condition == condition for row in zip(b.keys, b.valid.tolist(), strict=True)]
        assert {valid for key, valid in rows if "digit-1" in key} == {False}
        assert sum(valid for _, valid in rows) == 397 - bad


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"evaluate__num_glimpses": 0}, "data.evaluate.num_glimpses is 0: give at least 1"),
        ({"evaluate__report_at": (4, 0)}, "data.evaluate.report_at has 0: give glimpse counts from 1 to .*, 6"),
        ({"evaluate__report_at": (7,)}, "data.evaluate.report_at has 7: give glimpse counts from 1 to .*, 6"),
        ({"evaluate__shift": (0, -1)}, "data.evaluate.shift is .0, -1.: give rows and columns of at least 0 pixels"),
        ({"scans": ()}, "data.scans is empty: give at least one"),
        ({"resolutions": ()}, "data.resolutions is empty: give at least one"),
        ({"scans": ("random", "zigzag")}, "no scan pattern is called 'zigzag': choose one of random, random_grid"),
    ],
)
def test_what_cannot_be_swept(data_dir: Path, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        data_module(data_dir, **arguments)
