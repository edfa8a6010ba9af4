"""The augmentations: each stage against an independent reading of its definition, and all of them together."""

import colorsys
from collections import defaultdict
from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance, ImageOps
from scipy import ndimage
from sklearn.datasets import load_sample_image

import datamodules.transforms.augment as module
from benchmarks.sharpness import gradient_ratios
from datamodules.transforms.augment import adjust_color, augment, source_to_drawn
from datamodules.transforms.color import blur_kernel, color_matrix, turn_hue
from datamodules.transforms.draws import (
    Augmentation,
    Draw,
    crop_box,
    draw,
    erased_box,
    uniform_integer,
)
from datamodules.transforms.images import decode_image, fitted_size
from datamodules.transforms.jpeg import decode_reduced, jpeg_reduction, jpeg_size
from datamodules.transforms.warping import (
    cut_source,
    perspective_matrix,
    rectangle,
    resize,
    shift,
    stretch,
    warp,
)
from mambaeye.errors import InputError
from mambaeye.geometry.box import Box

AUTHORS = Augmentation()
PROBABILITIES = ("flip", "jitter", "grayscale", "blur", "perspective", "crop", "resize", "erase")
NOTHING = replace(AUTHORS, **dict.fromkeys(PROBABILITIES, 0.0))
EVERYTHING = replace(AUTHORS, **dict.fromkeys(PROBABILITIES, 1.0))


def picture(height: int, width: int, seed: int = 0, smooth: float = 3) -> np.ndarray:
    """(height, width, 3) uint8: smooth noise of a wide range, so that interpolation hardly differs by its details."""
    noise = np.random.default_rng(seed).normal(size=(height, width, 3))
    noise = ndimage.gaussian_filter(noise, (smooth, smooth, 0), mode="nearest")
    return np.clip(128 + 45 * noise / max(noise.std(), 1e-9), 0, 255).astype(np.uint8)


def png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image[..., ::-1])[1].tobytes()


def jpeg(image: np.ndarray, *options: int) -> bytes:
    return cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95, *options])[1].tobytes()


def apply(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (n, 2) mapped by a (3, 3) matrix."""
    moved = np.column_stack([points, np.ones(len(points))]) @ matrix.T
    return moved[:, :2] / moved[:, 2:]


def closeness(ours: np.ndarray, theirs: np.ndarray) -> tuple[int, float]:
    """The largest and the mean difference, in steps of 1/255."""
    assert ours.shape == theirs.shape
    difference = np.abs(ours.astype(int) - theirs)
    return difference.max(), difference.mean()


def keys(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Enlarge by definition: Keys's cubic kernel, a = -0.75, over pixel centres, edges repeated."""
    result = image.astype(float)
    for axis, after in enumerate(size):
        before = result.shape[axis]
        places = (np.arange(after) + 0.5) * before / after - 0.5
        first = np.floor(places).astype(int) - 1  # of four
        total = 0
        for index in range(4):
            x = np.abs(places - (first + index))
            near, far = (1.25 * x - 2.25) * x * x + 1, -0.75 * (((x - 5) * x + 8) * x - 4)
            weight = np.where(x <= 1, near, far).reshape(-1, *[1] * (2 - axis))
            total = total + weight * result.take(np.clip(first + index, 0, before - 1), axis)
        result = total
    return np.clip(np.rint(result), 0, 255)


# Everything off


@pytest.mark.parametrize("shape", [(375, 500), (500, 333), (64, 64), (1, 1), (1, 2000), (2000, 1), (7, 3)])
@pytest.mark.parametrize("side", [16, 97, 256])
def test_without_any_augmentation_the_image_is_fitted(shape: tuple[int, int], side: int) -> None:
    image = picture(*shape)
    canvas, box = augment(png(image), side, NOTHING, np.random.default_rng(0), "a picture")
    height, width = fitted_size(*shape, side)
    assert box == Box((side - height) // 2, (side - width) // 2, height, width)
    np.testing.assert_array_equal(canvas[box.slices], resize(image, (height, width)))


def test_a_fitted_jpeg_differs_only_by_being_decoded_smaller() -> None:
    data = jpeg(picture(640, 800))
    for side, most, mean in ((1000, 0, 0), (201, 0, 0), (100, 16, 1.5), (40, 16, 2.5)):
        canvas, box = augment(data, side, NOTHING, np.random.default_rng(0), "a picture")
        largest, average = closeness(canvas[box.slices], resize(decode_image(data, "a picture"), box.size))
        assert largest <= most
        assert average <= mean


# Resizing


@pytest.mark.parametrize(("height", "width"), [(60, 80), (59, 31), (12, 200), (200, 12), (1, 1)])
def test_shrinking_is_pillows_bicubic(height: int, width: int) -> None:
    image = picture(60, 80, smooth=1)
    theirs = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
    largest, mean = closeness(resize(image, (height, width)), theirs)
    assert largest <= 4
    assert mean < 0.3


@pytest.mark.parametrize(("height", "width"), [(60, 80), (61, 203), (500, 80), (60, 81)])
def test_enlarging_is_keyss_cubic(height: int, width: int) -> None:
    image = picture(60, 80, smooth=1)
    assert closeness(resize(image, (height, width)), keys(image, (height, width)))[0] <= 1


def test_shrinking_averages() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    part = resize(stripes, (64, 16))
    assert part.shape == (64, 16, 3)
    assert np.abs(part[:, 1:-1].astype(int) - 127.5).max() < 2  # at the ends the kernel has less to average


@pytest.mark.parametrize("photo", ["china.jpg", "flower.jpg"])
def test_images_come_out_as_sharp_as_from_the_list_of_steps(photo: str) -> None:
    """Whatever the fit, the perspective and the resize do to the scale; of ImageNet's see benchmarks.sharpness."""
    small = cv2.resize(load_sample_image(photo), (400, 267), interpolation=cv2.INTER_AREA)
    ratios = defaultdict(list)
    for seed in range(60):
        kind, ratio = gradient_ratios(png(small), (seed,), (200, 640))
        ratios[kind.split(",")[0], "perspective" in kind].append(ratio)
    assert len(ratios) == 4
    for kind, values in ratios.items():
        assert np.median(values) == pytest.approx(1, abs=0.06), kind


# Geometry


def test_flip_is_a_mirror() -> None:
    image = picture(90, 120)
    config = replace(NOTHING, flip=1)
    canvas, _ = augment(png(image), 120, config, np.random.default_rng(0), "a picture")
    np.testing.assert_array_equal(canvas[15:105], np.asarray(ImageOps.mirror(Image.fromarray(image))))


def test_perspective_agrees_with_pillow() -> None:
    """The corners are moved as drawn; Pillow draws the same from the inverse's eight coefficients."""
    side = 200
    image = picture(150, 200, smooth=5)
    for seed in range(5):
        canvas, box = augment(png(image), side, replace(NOTHING, perspective=1), np.random.default_rng(seed), "it")
        drawn = draw(150, 200, side, replace(NOTHING, perspective=1), np.random.default_rng(seed))
        moved = drawn.corners - drawn.corners.min(axis=0)
        extent = np.ceil(np.ptp(drawn.corners, axis=0))
        moved *= (box.width, box.height) / extent  # fitted back into the canvas
        equations, values = [], []
        for (x, y), (u, v) in zip(moved, [(0, 0), (200, 0), (200, 150), (0, 150)], strict=True):
            equations += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
            values += [u, v]
        coefficients = np.linalg.solve(np.array(equations), np.array(values, dtype=float))
        size = (box.width, box.height)
        theirs = Image.fromarray(image).transform(
            size, Image.Transform.PERSPECTIVE, coefficients, Image.Resampling.BILINEAR
        )
        rows, cols = np.indices((box.height, box.width)) + 0.5
        depth = coefficients[6] * cols + coefficients[7] * rows + 1
        u = (coefficients[0] * cols + coefficients[1] * rows + coefficients[2]) / depth
        v = (coefficients[3] * cols + coefficients[4] * rows + coefficients[5]) / depth
        inside = (u > 2) & (u < 198) & (v > 2) & (v < 148)
        outside = (u < -2) | (u > 202) | (v < -2) | (v > 152) | (depth <= 0)
        ours = canvas[box.row : box.row + box.height, box.col : box.col + box.width]
        assert inside.mean() > 0.3
        assert closeness(ours[inside], np.asarray(theirs)[inside])[1] < 1.5
        assert outside.any()
        assert not ours[outside].any()


@pytest.mark.parametrize("seed", range(20))
def test_the_composed_matrix_is_the_stages_one_after_another(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 700, 2).tolist()
    drawn = draw(height, width, 300, EVERYTHING, rng)
    points = rng.uniform(0, 1, (50, 2)) * (width, height)
    x, y = (points * (drawn.fitted[1] / width, drawn.fitted[0] / height)).T  # fit
    x = drawn.fitted[1] - x  # flip
    x, y = perspective_by_hand(np.column_stack([x, y]), *drawn.fitted, drawn.corners - drawn.corners.min(axis=0)).T
    x, y = x - drawn.crop.col, y - drawn.crop.row  # crop
    expected = np.column_stack([x * drawn.size[1] / drawn.crop.width, y * drawn.size[0] / drawn.crop.height])  # resize
    np.testing.assert_allclose(
        apply(source_to_drawn(height, width, drawn, drawn.size), points), expected, rtol=1e-3, atol=0.02
    )


def perspective_by_hand(points: np.ndarray, height: int, width: int, corners: np.ndarray) -> np.ndarray:
    """Heckbert's square-to-quadrilateral map, in closed form."""
    (x0, y0), (x1, y1), (x2, y2), (x3, y3) = corners
    u, v = (points / (width, height)).T
    across = np.array([[x1 - x2, x3 - x2], [y1 - y2, y3 - y2]])
    g, h = np.linalg.solve(across, [x0 - x1 + x2 - x3, y0 - y1 + y2 - y3])
    depth = g * u + h * v + 1
    x = ((x1 - x0 + g * x1) * u + (x3 - x0 + h * x3) * v + x0) / depth
    y = ((y1 - y0 + g * y1) * u + (y3 - y0 + h * y3) * v + y0) / depth
    return np.column_stack([x, y])


def test_perspective_moves_the_corners_to_the_corners_of_the_draw() -> None:
    corners = np.array([[-3.0, 5.0], [90.0, -10.0], [110.0, 70.0], [10.0, 50.0]])
    matrix = perspective_matrix(60, 100, corners)
    np.testing.assert_allclose(apply(matrix, rectangle(60, 100)), corners + np.array([3, 10]), atol=1e-4)


def test_simple_matrices() -> None:
    points = np.array([[0.0, 0.0], [3.0, 5.0]])
    np.testing.assert_array_equal(apply(stretch(2, 3), points), [[0, 0], [6, 15]])
    np.testing.assert_array_equal(apply(shift(2, 3), points), [[2, 3], [5, 8]])
    np.testing.assert_array_equal(apply(stretch(-1, 1, 10), points), [[10, 0], [7, 5]])


@pytest.mark.parametrize(("seed", "flip"), [(seed, flip) for seed in range(5) for flip in (0.0, 1.0)])
def test_crop_and_resize_agree_with_pillow(seed: int, flip: float) -> None:
    config = replace(NOTHING, crop=1, resize=1, flip=flip)
    image = picture(240, 320, smooth=4)
    drawn = draw(240, 320, 320, config, np.random.default_rng(seed))
    canvas, box = augment(png(image), 320, config, np.random.default_rng(seed), "a picture")
    source = ImageOps.mirror(Image.fromarray(image)) if flip else Image.fromarray(image)
    row, col, height, width = drawn.crop
    theirs = source.crop((col, row, col + width, row + height)).resize(drawn.size[::-1], Image.Resampling.LANCZOS)
    assert (box.height, box.width) == drawn.size
    ours = canvas[box.row : box.row + box.height, box.col : box.col + box.width]
    assert closeness(ours, np.asarray(theirs))[1] < 0.8


def test_a_warp_puts_pixels_where_a_resize_does() -> None:
    """The half-pixel conventions of the two are the same."""
    image = picture(40, 50)
    warped = warp(image, stretch(123 / 50, 77 / 40), (77, 123), cv2.BORDER_REPLICATE)
    theirs = Image.fromarray(image).resize((123, 77), Image.Resampling.BILINEAR)
    largest, mean = closeness(warped, np.asarray(theirs))
    assert largest <= 4  # warps interpolate at 32 places between two pixels
    assert mean < 0.3


def test_only_the_part_that_shows_is_cut_and_where_it_lies_is_kept() -> None:
    image = picture(300, 400)
    shown = stretch(2, 2) @ shift(-100.5, -50.3)  # 60 x 70 pixels from (100.5, 50.3)
    part, matrix = cut_source(image, shown, (140, 120))
    assert matrix is not None
    assert part.shape[0] <= 74
    assert part.shape[1] <= 64
    whole, cut = (warp(*drawn, (140, 120), cv2.BORDER_REPLICATE) for drawn in ((image, shown), (part, matrix)))
    assert closeness(cut, whole)[0] <= 1


def test_edges_move_to_whole_pixels_by_at_most_a_128th_of_the_crop() -> None:
    image = picture(300, 400)
    part, matrix = cut_source(image, shift(-100.4, -20), (100, 100))
    np.testing.assert_array_equal(part, image[20:120, 100:200])
    assert matrix is None
    part, matrix = cut_source(image, shift(-100.4, -20), (100, 30))
    assert matrix is not None
    assert matrix[0, 2] == pytest.approx(-1.4)  # where it was, and a pixel is left around it


@pytest.mark.parametrize("flip", [False, True])
def test_a_crop_between_pixels_is_where_pillow_puts_it(flip: bool) -> None:
    """30 x 20 pixels of a large image that is fitted to a quarter: no edge lies on a whole pixel."""
    image = picture(600, 800, smooth=8)
    config = replace(NOTHING, crop=1, resize=1, flip=float(flip), smallest=0.1)
    checked = 0
    for seed in range(80):
        drawn = draw(600, 800, 210, config, np.random.default_rng(seed))
        row, col, height, width = drawn.crop
        scale = 800 / 210
        left, right = (col * scale, (col + width) * scale)
        box = (800 - right, 800 - left) if flip else (left, right)
        if abs(left - round(left)) < 0.3 or width > 40:
            continue
        checked += 1
        canvas, place = augment(png(image), 210, config, np.random.default_rng(seed), "a picture")
        window = (box[0], row * 600 / drawn.fitted[0], box[1], (row + height) * 600 / drawn.fitted[0])
        theirs = Image.fromarray(image).resize(drawn.size[::-1], Image.Resampling.BICUBIC, window)
        theirs = ImageOps.mirror(theirs) if flip else theirs
        assert closeness(canvas[place.slices], np.asarray(theirs))[1] < 1.5
    assert checked > 3


@pytest.mark.parametrize("shape", [(8, 8), (5, 40), (300, 400)])
def test_no_edge_darkens_without_a_perspective(shape: tuple[int, int]) -> None:
    config = replace(NOTHING, flip=0.5, blur=0.5, crop=0.8, resize=1)
    data = png(np.full((*shape, 3), 200, np.uint8))
    for seed in range(40):
        canvas, (row, col, height, width) = augment(data, 120, config, np.random.default_rng(seed), "a picture")
        assert (canvas[row : row + height, col : col + width] == 200).all()


def test_a_view_beyond_the_horizon_keeps_the_whole_source() -> None:
    matrix = np.array([[1.0, 0, 0], [0, 1, 0], [-0.009, 0, 1]])  # x goes to x / (1 - 0.009 x): -1/0.009 is the horizon
    image = picture(100, 100)
    part, _ = cut_source(image, shift(2000, 0) @ matrix, (100, 4000))
    assert part.shape == image.shape


# What is decided


@given(st.integers(1, 400), st.integers(1, 400), st.integers(16, 300), st.integers(0, 2**32))
def test_bounds_of_every_draw(height: int, width: int, side: int, seed: int) -> None:
    drawn = draw(height, width, side, EVERYTHING, np.random.default_rng(seed))
    full = np.ceil(np.ptp(drawn.corners, axis=0)).astype(int)[::-1]
    smallest = max(16, int(0.3 * full.min()))
    reach = 0.25 * min(drawn.fitted)
    assert np.abs(drawn.corners - rectangle(*drawn.fitted)).max() <= reach
    for start, length, whole, result in zip(drawn.crop[:2], drawn.crop[2:], full, drawn.size, strict=True):
        assert 0 <= start <= start + length <= whole
        assert min(smallest, whole) <= length
        if whole >= 2 * smallest:
            assert length <= whole - smallest
        assert min(smallest, side) <= result <= side
    assert min(drawn.brightness, drawn.contrast, drawn.saturation) >= 0.6
    assert max(drawn.brightness, drawn.contrast, drawn.saturation) <= 1.4
    assert abs(drawn.hue) <= 0.1
    assert 0.1 <= drawn.sigma <= 5
    if drawn.erased:
        row, col, high, wide = drawn.erased
        assert 0 <= row <= row + high <= drawn.size[0]
        assert 0 <= col <= col + wide <= drawn.size[1]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 120), st.integers(0, 2**32), st.sampled_from([png, jpeg]))
def test_every_size_of_image_and_canvas_works(height: int, width: int, side: int, seed: int, encode) -> None:
    image = np.full((height, width, 3), 200, np.uint8)
    canvas, box = augment(encode(image), side, AUTHORS, np.random.default_rng(seed), "a picture")
    assert canvas.shape == (side, side, 3)
    assert canvas.dtype == np.uint8
    assert 1 <= box.height <= side
    assert 1 <= box.width <= side
    assert (box.row, box.col) == ((side - box.height) // 2, (side - box.width) // 2)
    canvas[box.row : box.row + box.height, box.col : box.col + box.width] = 0
    assert not canvas.any()


@pytest.mark.parametrize("shape", [(1, 2000), (2000, 1), (1, 1), (3, 5000)])
def test_odd_shapes_work(shape: tuple[int, int]) -> None:
    data = png(picture(*shape))
    for seed in range(30):
        canvas, box = augment(data, 256, EVERYTHING if seed % 2 else AUTHORS, np.random.default_rng(seed), "a picture")
        assert min(box.height, box.width) >= 16
        assert canvas.shape == (256, 256, 3)


def test_frequencies_are_the_configured_ones() -> None:
    rng = np.random.default_rng(0)
    draws = [draw(375, 500, 640, AUTHORS, rng) for _ in range(4000)]
    counts = {
        "flip": [drawn.flip for drawn in draws],
        "jitter": [drawn.brightness != 1 for drawn in draws],
        "grayscale": [drawn.grayscale for drawn in draws],
        "blur": [drawn.sigma > 0 for drawn in draws],
        "perspective": [drawn.corners is not None for drawn in draws],
        "crop": [drawn.crop[:2] != (0, 0) for drawn in draws],
        "erase": [drawn.erased is not None for drawn in draws],
    }
    for name, happened in counts.items():
        assert np.mean(happened) == pytest.approx(getattr(AUTHORS, name), abs=0.03), name
    plain = [drawn for drawn in draws if drawn.corners is None]  # fitted to 480 x 640: sides from 144
    assert {min(drawn.size) for drawn in plain} >= {144}
    assert max(max(drawn.size) for drawn in plain) == 640
    assert np.mean([drawn.size[0] for drawn in plain]) == pytest.approx((144 + 640) / 2, abs=10)
    cropped = [drawn.crop for drawn in plain if drawn.crop[:2] != (0, 0)]
    assert (min(crop.height for crop in cropped), max(crop.height for crop in cropped)) == (144, 336)
    assert (min(crop.width for crop in cropped), max(crop.width for crop in cropped)) == pytest.approx(
        (144, 496), abs=2
    )
    shares = [drawn.erased.height * drawn.erased.width / np.prod(drawn.size) for drawn in draws if drawn.erased]
    assert min(shares) == pytest.approx(0.02, abs=0.005)
    assert max(shares) == pytest.approx(0.33, abs=0.02)


def test_crop_keeps_what_an_image_has_when_it_has_less_than_twice_the_minimum() -> None:
    assert crop_box(10, 100, 16, [0.0, 0.0, 0.9, 0.999]) == Box(0, 84, 10, 16)
    assert crop_box(20, 100, 16, [0.999, 0.999, 0.999, 0.0]) == Box(4, 0, 16, 84)


def test_uniform_integers_include_both_ends() -> None:
    shares = np.arange(600) / 600
    values, counts = np.unique([uniform_integer(3, 8, share) for share in shares], return_counts=True)
    assert values.tolist() == [3, 4, 5, 6, 7, 8]
    assert set(counts.tolist()) == {100}
    assert uniform_integer(9, 5, 0.5) == 5


def test_an_erased_rectangle_has_the_drawn_area_and_aspect() -> None:
    box = erased_box(200, 300, AUTHORS, [0.999, 0.0], [[0.5, 0.5]])
    assert box.height * box.width == pytest.approx(200 * 300 * 0.175, rel=0.02)
    assert box.height / box.width == pytest.approx((0.3 * 3.3) ** 0.5, rel=0.02)
    assert (box.row, box.col) == (200 - box.height, 0)
    assert erased_box(10, 300, AUTHORS, [0, 0], [[0.9, 0.9]] * 3) is None  # taller than the image
    assert erased_box(10, 300, AUTHORS, [0, 0], [[0.9, 0.9], [0.0, 0.5]]) is not None


def test_erased_pixels_are_black_and_belong_to_the_box() -> None:
    config = replace(NOTHING, erase=1)
    image = np.full((80, 100, 3), 200, np.uint8)
    canvas, box = augment(png(image), 100, config, np.random.default_rng(1), "a picture")
    row, col, height, width = draw(80, 100, 100, config, np.random.default_rng(1)).erased
    expected = np.full((80, 100, 3), 200, np.uint8)
    expected[row : row + height, col : col + width] = 0
    assert box == Box(10, 0, 80, 100)
    np.testing.assert_array_equal(canvas[10:90], expected)


def test_the_same_generator_state_gives_the_same_and_another_gives_another() -> None:
    data = jpeg(picture(120, 160))
    first, second, other = (augment(data, 200, AUTHORS, np.random.default_rng(seed), "it") for seed in (5, 5, 6))
    np.testing.assert_array_equal(first[0], second[0])
    assert first[1] == second[1]
    assert first[0].tobytes() != other[0].tobytes()


def test_every_image_and_setting_draws_as_much_so_no_choice_shifts_another() -> None:
    states = set()
    for config, shape in ((NOTHING, (10, 10)), (EVERYTHING, (300, 10)), (AUTHORS, (64, 64))):
        rng = np.random.default_rng(3)
        augment(png(picture(*shape)), 64, config, rng, "a picture")
        states.add(rng.random())
    assert len(states) == 1
    alone = draw(300, 400, 256, replace(NOTHING, crop=1), np.random.default_rng(4))
    among = draw(300, 400, 256, replace(AUTHORS, perspective=0, crop=1), np.random.default_rng(4))
    assert alone.crop == among.crop


# Values


def neutral(**changes) -> Draw:
    """A draw that changes nothing but what is named."""
    drawn = Draw((1, 1), False, 1.0, 1.0, 1.0, 0.0, False, 0.0, None, Box(0, 0, 1, 1), (1, 1), None)
    return drawn._replace(**changes)


@pytest.mark.parametrize("factor", [0.6, 0.85, 1.4])
@pytest.mark.parametrize(
    ("name", "enhance"),
    [("brightness", ImageEnhance.Brightness), ("contrast", ImageEnhance.Contrast), ("saturation", ImageEnhance.Color)],
)
def test_each_color_change_agrees_with_pillow(name: str, enhance: type, factor: float) -> None:
    image = picture(60, 80)
    ours = adjust_color(image, neutral(**{name: factor}), cv2.mean(image)[:3])
    assert closeness(ours, np.asarray(enhance(Image.fromarray(image)).enhance(factor)))[0] <= 2  # Pillow truncates


def test_the_color_matrix_is_the_three_changes_one_after_another() -> None:
    rng = np.random.default_rng(0)
    gray = np.array([0.299, 0.587, 0.114])
    for _ in range(20):
        pixels = rng.uniform(0, 255, (100, 3))
        brightness, contrast, saturation = rng.uniform(0.6, 1.4, 3)
        changed = brightness * pixels
        changed = contrast * changed + (1 - contrast) * (changed @ gray).mean()
        changed = saturation * changed + (1 - saturation) * (changed @ gray)[:, None]
        matrix = color_matrix(brightness, contrast, saturation, tuple(pixels.mean(axis=0)))
        np.testing.assert_allclose(np.column_stack([pixels, np.ones(100)]) @ matrix.T, changed, atol=1e-9)


def test_contrast_is_about_the_whole_image_not_the_crop() -> None:
    image = np.zeros((100, 100, 3), np.uint8)
    image[:, 50:] = 200
    changed = adjust_color(image[:, 50:], neutral(contrast=0.6), (100.0, 100.0, 100.0))
    assert (changed == 160).all()
    for seed in range(40):  # and so it is in the whole pipeline
        config = replace(NOTHING, crop=1, jitter=1, brightness=0, saturation=0, hue=0)
        drawn = draw(100, 100, 100, config, np.random.default_rng(seed))
        if drawn.crop.col >= 50:
            canvas, _ = augment(png(image), 100, config, np.random.default_rng(seed), "a picture")
            expected = drawn.contrast * 200 + (1 - drawn.contrast) * 100
            assert canvas[50, 50, 0] == pytest.approx(expected, abs=1)
            return
    pytest.fail("no crop of the right half was drawn")


@pytest.mark.parametrize("turns", [-0.1, -0.03, 0.05, 0.1])
def test_hue_agrees_with_colorsys(turns: float) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1, 500, 3), dtype=np.uint8)
    expected = np.empty_like(pixels)
    for index, pixel in enumerate(pixels[0]):
        hue, saturation, value = colorsys.rgb_to_hsv(*(pixel / 255))
        expected[0, index] = np.rint(np.array(colorsys.hsv_to_rgb((hue + turns) % 1, saturation, value)) * 255)
    largest, mean = closeness(turn_hue(pixels, turns), expected)
    assert largest <= 12  # a 256th of a turn is 6 steps of the fullest colour, and hue is rounded to it twice
    assert mean < 1.5


def test_grayscale_agrees_with_pillow() -> None:
    image = picture(60, 80)
    expected = np.asarray(Image.fromarray(image).convert("L").convert("RGB"))
    assert closeness(adjust_color(image, neutral(grayscale=True), (0, 0, 0)), expected)[0] <= 1


@pytest.mark.parametrize(("taps", "sigma"), [(5, 0.1), (5, 1.3), (9, 5.0), (9, 2.0)])
def test_at_the_fitted_scale_the_blur_is_the_gaussian(taps: int, sigma: float) -> None:
    offsets = np.arange(taps) - taps // 2
    gaussian = np.exp(-(offsets**2) / (2 * sigma**2))
    np.testing.assert_allclose(blur_kernel(taps, sigma, 1.0), gaussian / gaussian.sum(), atol=1e-12)


@pytest.mark.parametrize("pitch", [0.3, 0.5, 0.8, 1.7, 4.0])
def test_the_blur_is_as_wide_at_any_scale(pitch: float) -> None:
    """Variance in fitted pixels: the Gaussian's, and that of the triangle it was interpolated with."""
    kernel = blur_kernel(9, 2.0, pitch)
    assert len(kernel) % 2 == 1
    assert kernel.sum() == pytest.approx(1)
    np.testing.assert_allclose(kernel, kernel[::-1])
    offsets = (np.arange(len(kernel)) - len(kernel) // 2) * pitch
    exact = blur_kernel(9, 2.0, 1.0) @ (np.arange(9) - 4) ** 2
    triangle = max(1, pitch) ** 2 / 6
    assert exact - 0.1 <= kernel @ offsets**2 <= exact + 2 * triangle


def test_blur_agrees_with_scipy() -> None:
    image = picture(90, 120, smooth=1)
    config = replace(NOTHING, blur=1)
    for seed in range(4):
        canvas, _ = augment(png(image), 120, config, np.random.default_rng(seed), "a picture")
        sigma = draw(90, 120, 120, config, np.random.default_rng(seed)).sigma
        expected = image.astype(float)
        for axis, taps in ((0, 9), (1, 5)):
            weights = np.exp(-((np.arange(taps) - taps // 2) ** 2) / (2 * sigma**2))
            expected = ndimage.correlate1d(expected, weights / weights.sum(), axis, mode="mirror")
        assert closeness(canvas[15:105], np.rint(expected))[0] <= 2


@pytest.mark.parametrize("side", [80, 240])
def test_blurring_before_the_fit_is_blurring_after_it(side: int) -> None:
    image = picture(90, 120, smooth=1.5)
    config = replace(NOTHING, blur=1, blur_sigma=(3.0, 3.0))
    ours, box = augment(png(image), side, config, np.random.default_rng(0), "a picture")
    inner = resize(image, box.size).astype(float)
    for axis, taps in ((0, 9), (1, 5)):
        weights = np.exp(-((np.arange(taps) - taps // 2) ** 2) / 18)
        inner = ndimage.correlate1d(inner, weights / weights.sum(), axis, mode="mirror")
    assert closeness(ours[box.row : box.row + box.height], np.rint(inner))[1] < 1.0


# JPEGs


@pytest.mark.parametrize("shape", [(1, 1), (1, 2000), (375, 500), (17, 9)])
def test_the_size_is_read_from_the_header(shape: tuple[int, int]) -> None:
    assert jpeg_size(jpeg(picture(*shape))) == shape
    assert jpeg_size(jpeg(picture(*shape), cv2.IMWRITE_JPEG_PROGRESSIVE, 1)) == shape
    assert jpeg_size(png(picture(*shape))) is None


@given(st.binary(max_size=60), st.integers(0, 700))
def test_no_header_confuses_the_reader(junk: bytes, cut: int) -> None:
    whole = jpeg(np.zeros((8, 8, 3), np.uint8))
    assert jpeg_size(junk) is None
    assert jpeg_size(whole[:cut]) in (None, (8, 8))
    jpeg_size(whole[:20] + junk + whole[20:])  # anything but an exception


def test_a_turned_photo_is_upright(tmp_path) -> None:
    image = picture(40, 90)
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.fromarray(image).save(tmp_path / "turned.jpg", exif=exif, quality=95)
    data = (tmp_path / "turned.jpg").read_bytes()
    assert jpeg_size(data) is None
    canvas, box = augment(data, 90, NOTHING, np.random.default_rng(0), "a picture")
    assert (box.height, box.width) == (90, 40)
    assert closeness(canvas[:, 25:65], np.rot90(image, -1))[1] < 4


@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_decoding_smaller_keeps_the_colors_and_the_place(reduction: int) -> None:
    image = picture(203, 321, smooth=12)
    small = decode_reduced(jpeg(image), reduction, "a picture")
    assert small.shape == (-(-203 // reduction), -(-321 // reduction), 3)
    height, width = (length // reduction * reduction for length in image.shape[:2])
    averaged = image[:height, :width].reshape(height // reduction, reduction, width // reduction, reduction, 3)
    expected = averaged.mean(axis=(1, 3))  # the pixel i stands for the pixels from reduction * i
    assert closeness(small[: height // reduction, : width // reduction], np.rint(expected))[1] < 1.5


def test_a_jpeg_is_decoded_no_smaller_than_twice_what_is_needed() -> None:
    scales = (2, 1, 0.26, 0.25, 0.126, 0.125, 0.0625, 0.001)
    assert [jpeg_reduction(scale) for scale in scales] == [1, 1, 1, 2, 2, 4, 8, 8]


def test_a_large_jpeg_is_decoded_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(module, "decode_reduced", lambda *args: asked.append(args[1]) or decode_reduced(*args))
    augment(jpeg(picture(500, 700)), 64, NOTHING, np.random.default_rng(0), "a picture")
    assert asked == [4]


@pytest.mark.parametrize("damage", [b"", b"no image", "half"])
def test_what_does_not_decode_is_named(damage: bytes | str) -> None:
    data = jpeg(picture(500, 700))
    for side in (32, 300):
        with pytest.raises(InputError, match="sample 7"):
            augment(
                data[: len(data) // 2] if damage == "half" else damage,
                side,
                NOTHING,
                np.random.default_rng(0),
                "sample 7",
            )


# Settings


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, value) for name in PROBABILITIES for value in (-0.1, 1.1, float("nan"))),
        ("brightness", -0.1),
        ("contrast", 1.5),
        ("saturation", float("nan")),
        ("hue", 0.6),
        ("distortion", 0.7),
        ("smallest", 0.6),
        ("smallest_side", 0),
        ("blur_kernel", (4, 9)),
        ("blur_kernel", (5, -1)),
        ("blur_sigma", (0.0, 5.0)),
        ("blur_sigma", (5.0, 0.1)),
        ("erase_area", (0.1, 1.2)),
        ("erase_aspect", (0.0, 3.0)),
    ],
)
def test_bad_settings_are_refused_by_name(name: str, value) -> None:
    with pytest.raises(InputError, match=rf"augmentation\.{name} is .*: give"):
        Augmentation(**{name: value})


def test_the_extremes_are_allowed() -> None:
    config = Augmentation(
        brightness=1, hue=0.5, distortion=0.5, smallest=0.5, erase_area=(1.0, 1.0), blur_kernel=(1, 1)
    )
    canvas, _ = augment(png(picture(40, 60)), 64, replace(config, blur=1, jitter=1), np.random.default_rng(0), "it")
    assert canvas.shape == (64, 64, 3)
    assert fitted_size(40, 60, 64) == (43, 64)
