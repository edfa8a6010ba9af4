"""Views of an evaluation, the authors' way among others, against Pillow, definitions and brute force."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datamodules.loading.stream import collate
from datamodules.transforms.headers import PixelLimit
from datamodules.transforms.images import Interpolation, Resize, resized
from datamodules.views.evaluate import DecodedSample, EvaluateView, EvaluationCanvases
from datamodules.views.plan import plan, without_edge
from datamodules.views.predict import FileCanvases, PredictView
from mambaeye.batch import EvaluationCondition
from mambaeye.geometry.box import Box, start_range
from mambaeye.geometry.scans import SCANS

SIDES = st.integers(1, 90)
MODES = st.sampled_from(["none", "fit", "full"])
KEY = (1, 0)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Random pixels that are smooth in part: (height, width, 3) uint8."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(256, size=(-(-height // 8), -(-width // 8), 3))
    smooth = np.kron(coarse, np.ones((8, 8, 1), int))[:height, :width]
    return np.where(rng.random((height, width, 1)) < 0.5, smooth, rng.integers(256, size=smooth.shape)).astype(np.uint8)


def lanczos(length: int, to: int) -> np.ndarray:
    """The matrix that resamples a line: sinc(x) sinc(x / 3), drawn out where it shrinks; (to, length)."""
    if length == to:
        return np.eye(length)
    pitch = length / to
    x = (np.arange(length) + 0.5 - (np.arange(to)[:, None] + 0.5) * pitch) / max(pitch, 1)
    weights = np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0)
    return weights / weights.sum(1, keepdims=True)


@settings(deadline=None)
@given(height=SIDES, width=SIDES, side=SIDES, seed=st.integers(0, 9))
def test_lanczos_is_its_definition_to_a_grey_level(height: int, width: int, side: int, seed: int) -> None:
    """In float64, each axis rounded to eight bits: columns before rows, or after where an image is tall and thin.

    A value between two levels may be rounded otherwise after the first axis, and count more than once in the second.
    """
    image = noise(height, width, seed)
    got = resized(image, side, "fit", "lanczos")
    along = {"yh,hwc->ywc": lanczos(height, len(got)), "xw,hwc->hxc": lanczos(width, got.shape[1])}
    is_near = []
    for order in (list(along), list(along)[::-1]):
        expected = image
        for axis in order:
            expected = np.einsum(axis, along[axis], expected).round().clip(0, 255)
        distance = np.abs(got - expected)
        is_near.append(distance.max() <= 2 and (distance > 1).sum() <= 0.01 * distance.size + 1)
    assert is_near[1] or (height >= 2 * width and is_near[0])


@settings(deadline=None)
@given(height=SIDES, width=SIDES, side=SIDES, resize=MODES, truncate=st.booleans())
def test_an_image_is_resized_as_pillow_does_it_step_by_step(
    height: int, width: int, side: int, resize: Resize, truncate: bool
) -> None:
    """Larger than the canvas, it is first fitted; then it is left, fitted or stretched."""
    image = noise(height, width)
    picture = Image.fromarray(image)

    def fitted() -> Image.Image:
        ratio = min(side / picture.width, side / picture.height)
        exact = ratio * picture.width, ratio * picture.height
        whole = (max(1, int(length) if truncate else round(length)) for length in exact)
        return picture.resize(tuple(whole), Image.Resampling.LANCZOS)

    if picture.width > side or picture.height > side:
        picture = fitted()
    if resize == "fit":
        picture = fitted()
    if resize == "full":
        picture = picture.resize((side, side), Image.Resampling.LANCZOS)
    np.testing.assert_array_equal(resized(image, side, resize, "lanczos", truncate), np.asarray(picture))


@settings(deadline=None)
@given(height=SIDES, width=SIDES, side=SIDES, resize=MODES, interpolation=st.sampled_from(["lanczos", "area"]))
def test_an_image_has_the_size_that_its_mode_says(
    height: int, width: int, side: int, resize: Resize, interpolation: Interpolation
) -> None:
    got = resized(np.full((height, width, 3), 7, np.uint8), side, resize, interpolation)
    assert (got == 7).all()
    sides = got.shape[:2]
    if resize == "full":
        assert sides == (side, side)
    elif resize == "none" and max(height, width) <= side:
        assert sides == (height, width)
    else:
        assert max(sides) == side
        assert abs(min(sides) - max(1, side * min(height, width) / max(height, width))) <= 0.5 + 1e-9
        assert (sides[0] < sides[1]) <= (height < width)


def test_truncated_sides_lose_fractions_of_a_pixel() -> None:
    """Of ImageNet's commonest sizes; and of one whose longer side loses a pixel, for float64 takes it for less."""
    for size, expected in {(375, 500): (168, 224), (333, 500): (149, 224), (332, 500): (148, 224)}.items():
        image = np.zeros((*size, 3), np.uint8)
        assert resized(image, 224, "fit", "area", truncate=True).shape[:2] == expected
        assert resized(image, 224, "none", "area", truncate=True).shape[:2] == expected
    assert 306 * (224 / 306) < 224
    assert resized(np.zeros((306, 100, 3), np.uint8), 224, "none", "area", truncate=True).shape[:2] == (223, 73)


def test_area_takes_means_where_a_side_shrinks_and_is_linear_where_it_grows() -> None:
    image = noise(40, 10)
    means = image.reshape(20, 2, 5, 2, 3).mean((1, 3))
    assert np.abs(resized(image, 20, "fit", "area") - means).max() <= 0.5
    stretched = Image.fromarray(means.round().astype(np.uint8)).resize((20, 20), Image.Resampling.BILINEAR)
    assert np.abs(resized(image, 20, "full", "area").astype(int) - np.asarray(stretched)).max() <= 2


@given(
    axes=st.lists(st.tuples(st.integers(16, 60), st.integers(1, 60)), min_size=1, max_size=2),
    patch_size=st.integers(1, 16),
)
def test_without_its_edge_an_image_has_the_starts_that_the_authors_draw(
    axes: list[tuple[int, int]], patch_size: int
) -> None:
    """By the definition: a glimpse ends within the image, and within as many pixels as the canvas has starts."""
    canvas = tuple(side for side, _ in axes)
    sides = [min(side, whole) for whole, side in axes]
    edges = [(whole - side) // 2 for whole, side in zip(canvas, sides, strict=True)]
    box = Box(*edges, *sides)
    part = without_edge(box, canvas, patch_size)
    first, last = start_range(part, patch_size)
    for axis, (whole, edge, side) in enumerate(zip(canvas, edges, sides, strict=True)):
        starts_of_canvas = [start for start in range(whole) if start + patch_size <= whole]
        ends = [edge + side, len(starts_of_canvas)]
        starts = [start for start in range(edge, whole) if all(start + patch_size <= end for end in ends)]
        if side < patch_size:  # where the authors' glimpses hang over, they stay centred
            assert (first[axis], last[axis]) == tuple(bound[axis] for bound in start_range(box, patch_size))
        else:
            assert (first[axis], last[axis]) == ((starts[0], starts[-1]) if starts else (edge, edge))


@pytest.mark.parametrize("scan", SCANS)
def test_the_last_fifteen_rows_and_columns_of_a_canvas_never_show(scan: str) -> None:
    for size in ((224, 224), (168, 224), (224, 150), (220, 224), (224, 9)):
        box = Box((224 - size[0]) // 2, (224 - size[1]) // 2, *size)
        positions = plan(scan, without_edge(box, (224, 224), 16), 16, 2000, np.random.default_rng(0))
        assert positions.max() + 16 <= 224 - 15
        everywhere = plan(scan, box, 16, 2000, np.random.default_rng(0))
        assert everywhere.max() + 16 > 224 - 15


def test_as_much_is_seen_at_224_as_the_authors_evaluation_shows() -> None:
    """After 4096 random glimpses of a photograph, 4 x 3, painted one by one: 0.929, and 0.996 where all may show."""
    image = DecodedSample(0, "photo", 0, np.zeros((375, 500, 3), np.uint8))
    shares = []
    for skip_edge in (True, False):
        canvases = EvaluationCanvases([EvaluationCondition(224, "random")], 16, EvaluateView(4096, skip_edge=skip_edge))
        ((scene, ratio, *_),) = canvases([image], KEY)
        row, col, height, width = scene.boxes.tolist()
        seen = np.zeros((224, 224), bool)
        for top, left in scene.positions.tolist():
            seen[top : top + 16, left : left + 16] = True
        shares.append(seen[row : row + height, col : col + width].mean())
        assert float(ratio[-1]) == pytest.approx(shares[-1], abs=1e-6)
    assert shares == pytest.approx([0.929, 0.996], abs=0.0015)


@pytest.mark.parametrize("resize", ["none", "fit", "full"])
@pytest.mark.parametrize("interpolation", ["lanczos", "area"])
def test_prediction_looks_at_an_image_as_validation_does(
    resize: Resize, interpolation: Interpolation, tmp_path: Path
) -> None:
    image = noise(30, 50)
    Image.fromarray(image).save(tmp_path / "a.png")
    view = EvaluateView(9, resize=resize, interpolation=interpolation, truncate=True, skip_edge=True)
    for side in (37, 80):
        condition = EvaluationCondition(side, "row_raster")
        batch = collate(list(EvaluationCanvases([condition], 16, view)([DecodedSample(0, "a", 0, image)], KEY)))
        _, scene = FileCanvases(PredictView(side), view, "row_raster", 16, 0, PixelLimit())(str(tmp_path / "a.png"))
        assert scene is not None
        for mine, other in zip(scene[:3], batch.scene[:3], strict=True):
            assert mine.equal(other[0])
        assert scene.canvases.shape == (side, side, 3)
        expected = torch.from_numpy(resized(image, side, resize, interpolation, truncate=True).copy())
        row, col, height, width = scene.boxes.tolist()
        assert scene.canvases[row : row + height, col : col + width].equal(expected)
