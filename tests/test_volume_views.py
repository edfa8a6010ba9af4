"""Volumes on canvases: all slices, scaled alike along all three axes, in training and in validation."""

import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
from clips import clip, noise
from hypothesis import given, settings
from hypothesis import strategies as st
from test_clip_views import union
from test_datamodule import data_module

from datamodules.loading.stream import collate
from datamodules.transforms.depth import axis_weights, fit_depth, scale_depth
from datamodules.transforms.draws import Augmentation
from datamodules.views.evaluate import DecodedSample, EvaluateView, EvaluationCanvases
from datamodules.views.train import RawSample, TrainingCanvases, TrainingGlimpses, TrainView
from mambaeye.batch import CANVAS, CanvasBatch, EvaluationCondition, GlimpseBatch
from mambaeye.encoders.mambaeye import MambaEye
from mambaeye.errors import InputError
from mambaeye.geometry.box import Box
from mambaeye.saved_limits import excesses

KEY = (1, 0)
AREA = EvaluateView(5, interpolation="area")


def placed(frames: np.ndarray, view: EvaluateView, side: int) -> tuple[np.ndarray, list[int]]:
    """A volume's canvas and box in validation."""
    canvases = EvaluationCanvases([EvaluationCondition(side, "random")], (4, 4, 4), view, "side")
    (batch,) = canvases([DecodedSample(0, "a", 0, clip(frames))], KEY)
    return batch.scene.canvases.numpy(), batch.scene.boxes.tolist()


def ramp(slices: int, rows: int, cols: int, axis: int) -> np.ndarray:
    """Frames (slices, rows, cols, 3) uint8 that brighten evenly along one axis."""
    along = 10 + 12 * np.arange((slices, rows, cols)[axis])
    shape = [1, 1, 1, 1]
    shape[axis] = -1
    return np.broadcast_to(along.reshape(shape), (slices, rows, cols, 3)).astype(np.uint8)


@given(count=st.integers(1, 23), depth=st.integers(1, 23), seed=st.integers(0, 99))
@settings(max_examples=80, deadline=None)
def test_slices_are_scaled_as_opencv_scales_rows(count: int, depth: int, seed: int) -> None:
    frames, box = noise(count, 3, 4, seed), Box(0, 0, 3, 4)
    scaled = list(scale_depth(((frame, box) for frame in frames), count, depth, "x"))
    assert len(scaled) == depth
    kind = cv2.INTER_AREA if depth < count else cv2.INTER_LINEAR
    rows = frames.reshape(count, -1).astype(np.float32)
    expected = cv2.resize(rows, (rows.shape[1], depth), interpolation=kind)
    found = np.stack([picture.reshape(-1) for picture, _ in scaled])
    np.testing.assert_allclose(found, expected, atol=0.51)
    np.testing.assert_allclose(axis_weights(count, depth).sum(1), 1, rtol=1e-5)


@pytest.mark.parametrize("side", [12, 20, 33, 64])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_ramp_stays_one_along_any_axis(axis: int, side: int) -> None:
    canvas, box = placed(ramp(20, 20, 20, axis), AREA, side)
    assert box == [0, 0, 0, side, side, side]
    values = np.moveaxis(canvas[..., 0], axis, 0).reshape(side, -1)
    assert np.ptp(values, axis=1).max() <= 1  # OpenCV's own rounding
    line = values.mean(1)
    inner = slice(side // 20 + 1, -(side // 20 + 1))  # at its ends, what grows repeats the outermost slices
    steps = np.polyfit(np.arange(side)[inner], line[inner], 1)
    np.testing.assert_allclose(np.polyval(steps, np.arange(side))[inner], line[inner], atol=0.6 if side >= 20 else 2)
    np.testing.assert_allclose(steps[0], 12 * 20 / side, rtol=0.02)


@pytest.mark.parametrize("side", [9, 16, 27])
@pytest.mark.parametrize("shape", [(16, 16, 16), (16, 10, 7), (5, 16, 12), (30, 8, 8)])
def test_depth_is_treated_as_rows_are(shape: tuple[int, int, int], side: int) -> None:
    """A volume whose slices and rows change places has a canvas on which these do."""
    frames = cv2.GaussianBlur(noise(*shape).reshape(shape[0], -1), (1, 3), 1).reshape(*shape, 3)
    canvas, box = placed(frames, AREA, side)
    other, other_box = placed(np.ascontiguousarray(frames.swapaxes(0, 1)), AREA, side)
    assert box == [other_box[at] for at in (1, 0, 2, 4, 3, 5)]
    # rows and depth are rounded one after the other
    np.testing.assert_allclose(canvas.astype(int), other.swapaxes(0, 1).astype(int), atol=2)
    start, size = np.array(box).reshape(2, 3)
    scale = side / max(shape)
    np.testing.assert_allclose(size, np.maximum(1, scale * np.array(shape)), atol=1)
    assert max(size) == side
    assert (start == (side - size) // 2).all()
    own = tuple(slice(first, first + length) for first, length in zip(start, size, strict=True))
    outside = canvas.copy()
    outside[own] = 0
    assert not outside.any()


def test_other_ways_of_resizing_have_all_axes_alike() -> None:
    frames = noise(6, 10, 8)
    canvas, box = placed(frames, EvaluateView(5, resize="none"), 16)
    assert box == [5, 3, 4, 6, 10, 8]
    assert np.array_equal(canvas[5:11, 3:13, 4:12], frames)
    assert placed(frames, EvaluateView(5, resize="none"), 5)[1] == [1, 0, 0, 3, 5, 4]
    assert placed(frames, EvaluateView(5, resize="full"), 16)[1] == [0, 0, 0, 16, 16, 16]
    canvas, box = placed(frames, EvaluateView(5, resize="none", shift=(2, 3)), 16)
    assert canvas.shape == (16, 18, 19, 3)
    assert box == [5, 5, 7, 6, 10, 8]
    assert fit_depth(1, 500, 20) == (1, 20)  # a slice is never lost
    assert fit_depth(500, 1, 20) == (20, 1)


@given(number=st.integers(0, 999))
@settings(max_examples=20, deadline=None)
def test_training_shows_a_volume_as_validation_does(number: int) -> None:
    frames = noise(12, 9, 7)
    view = TrainView(canvas=(8, 24), num_glimpses=7, frames="side")
    sample = TrainingGlimpses(view, (4, 4, 4), axes=3).sample(
        RawSample("a", clip(frames), 2), np.random.default_rng(number), None
    )
    side = int(np.random.default_rng(number).integers(8, 24, endpoint=True))
    canvas, box = placed(frames, AREA, side)
    assert sample.patches.shape == (7, 3, 4, 4, 4)
    for cube, (at, row, col) in zip(sample.patches.numpy(), sample.positions.tolist(), strict=True):
        shown = canvas[at : at + 4, row : row + 4, col : col + 4]
        assert np.array_equal(np.moveaxis(shown, -1, 0), cube)
    expected = union(sample.positions.numpy(), np.array(box), (4, 4, 4))
    np.testing.assert_allclose(sample.information_ratio, expected, rtol=1e-6)
    whole = TrainingCanvases(view, (4, 4, 4), CANVAS, axes=3)
    filled = whole.sample(RawSample("a", clip(frames), 2), np.random.default_rng(number), None, side, side)
    assert np.array_equal(filled.scene.canvases.numpy(), canvas)
    assert whole.filler("a", side, side).scene.canvases.shape == canvas.shape


@pytest.mark.parametrize("shape", [(6, 40, 40), (40, 30, 20), (50, 1, 2)])
def test_augmentations_are_the_same_for_every_slice(shape: tuple[int, int, int]) -> None:
    frames = np.repeat(noise(1, *shape[1:]), shape[0], axis=0)
    view = TrainView(canvas=(32, 32), num_glimpses=1, frames="side", augmentation=Augmentation())
    samples = TrainingCanvases(view, (1, 16, 16), CANVAS, axes=3)
    depth = round(32 * shape[0] / max(shape))
    for number in range(8):
        sample = samples.sample(RawSample("a", clip(frames), 0), np.random.default_rng(number), None, 32, 32)
        canvas, first = sample.scene.canvases, (32 - depth) // 2
        assert canvas.shape == (32, 32, 32, 3)
        shown = canvas[first : first + depth]
        assert (shown == shown[:1]).all()
        assert not canvas[:first].any()
        start, *_, length = sample.scene.boxes.tolist()[0::3][0], sample.scene.boxes.tolist()[3]
        assert (start, length) == (first, depth)


def test_slices_of_several_shapes_are_refused() -> None:
    boxes = [Box(0, 0, 4, 4)] * 3 + [Box(0, 1, 4, 2)] + [Box(0, 0, 4, 4)] * 4
    pairs = [(np.zeros((4, 4, 3), np.uint8), box) for box in boxes]
    with pytest.raises(InputError, match="the frames of x have several shapes"):
        list(scale_depth(pairs, 8, 2, "x"))


def test_memory_is_that_of_a_canvas_and_a_few_slices() -> None:
    frames = noise(60, 120, 120)
    opened = clip(frames)
    canvases = EvaluationCanvases([EvaluationCondition(48, "random")], (8, 8, 8), AREA, "side")
    tracemalloc.start()
    list(canvases([DecodedSample(0, "a", 0, opened)], KEY))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2 * 3 * 48**3 + 4 * 3 * 120**2 + 8 * 4 * 3 * 48**2  # all slices at once would be 2.6 MB more


def test_batches_of_volumes_collate_with_fillers_and_train_an_encoder() -> None:
    canvases = EvaluationCanvases([EvaluationCondition(12, "sobol")], (4, 4, 4), AREA, "side")
    volumes = [DecodedSample(number, str(number), 0, clip(noise(4 + 9 * number, 6, 6))) for number in range(2)]
    batch = collate(list(canvases([*volumes, DecodedSample(-1, "", 0, None)], KEY)))
    assert isinstance(batch, CanvasBatch)
    assert batch.scene.canvases.shape == (3, 12, 12, 12, 3)
    assert batch.valid.tolist() == [True, True, False]
    samples = TrainingGlimpses(TrainView(canvas=(8, 12), num_glimpses=3, frames="side"), (4, 4, 4), axes=3)
    rows = [samples.sample(RawSample("a", clip(noise(5)), 0), np.random.default_rng(n), None) for n in range(2)]
    glimpses = collate([*rows, samples.filler("b")])
    assert isinstance(glimpses, GlimpseBatch)
    encoder = MambaEye(num_classes=2, patch_size=4, tube=4, axes=3, dim=16, depth=1, headdim=8, move_embedding_dim=8)
    assert encoder(glimpses.patches, glimpses.positions).shape == (3, 3, 2)


def test_the_largest_canvas_is_a_cube_and_no_file_may_ask_for_a_huge_one() -> None:
    assert TrainView(canvas=(8, 24), frames="side").largest == (24, 24)
    assert TrainView(canvas=(8, 24), frames=(2, 5)).largest == (24, 5)
    encoder = {"class_path": "MambaEye", "init_args": {"axes": 3}}
    for side, refused in ((1024, False), (2048, True)):  # 2^30 and 2^33 pixels
        told = {"model.encoder": encoder, "data.loader.batch_size": 1, "data.frames": "side"}
        told |= {"data.resolutions": [16, side]}
        assert [name for name, _ in excesses(told)] == ["data.resolutions"] * refused
        told = {"model.encoder": encoder, "data.loader.batch_size": 1}
        told |= {"data.train.frames": "side", "data.train.canvas": [16, side]}
        assert [name for name, _ in excesses(told)] == ["data.train.canvas"] * refused


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"frames": "side", "tube": 17, "train__frames": (17, 17), "resolutions": (16,)}, "data.tube is 17"),
        (
            {"train__frames": "side", "tube": 17, "frames": 17, "train__canvas": (16, 20)},
            "its depth too, and a glimpse",
        ),
    ],
)
def test_cubes_that_do_not_fit_are_refused(arguments: dict[str, object], message: str, data_dir: Path) -> None:
    with pytest.raises(InputError, match=message):
        data_module(data_dir, **arguments)
