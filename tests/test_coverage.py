"""Coverage against its definition: the union of the glimpses' pixels, one by one."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from mambaeye.errors import InputError
from mambaeye.geometry import coverage
from mambaeye.geometry.box import Box, PatchSize
from mambaeye.geometry.coverage import Coverage, information_ratio, newly_seen, share_seen
from mambaeye.geometry.scans import SCANS

PATCHES = st.integers(1, 9)


def patches(axes: int) -> st.SearchStrategy[PatchSize]:
    """Glimpses of one side, or of a side for every axis."""
    return PATCHES | st.tuples(*[PATCHES] * axes)


AXES = st.integers(1, 3)


def union_of_pixels(positions: np.ndarray, box: Box, patch_size: PatchSize) -> list[float]:
    """The definition, pixel by pixel, with sets."""
    sides = (patch_size,) * box.axes if isinstance(patch_size, int) else patch_size
    image = set(itertools.product(*(range(part.start, part.stop) for part in box.slices)))
    seen, ratios = set(), []
    for position in positions.tolist():
        seen |= set(
            itertools.product(*(range(first, first + side) for first, side in zip(position, sides, strict=True)))
        )
        ratios.append(len(seen & image) / len(image))
    return ratios


@st.composite
def trajectories(draw: st.DrawFn, axes: int) -> tuple[np.ndarray, Box]:
    """Glimpses on a box, beside it and over its edges."""
    side, glimpses = {1: (40, 20), 2: (23, 12), 3: (7, 6)}[axes]
    place = st.tuples(*[st.integers(-15, side + 7)] * axes)
    positions = draw(st.lists(place, max_size=glimpses))
    start = draw(st.tuples(*[st.integers(-5, 9)] * axes))
    size = draw(st.tuples(*[st.integers(1, side)] * axes))
    return np.array(positions, dtype=np.int64).reshape(-1, axes), Box(*start, *size)


@pytest.mark.parametrize("axes", [1, 2, 3])
@given(data=st.data())
def test_information_ratio_is_the_union_of_pixels(axes: int, data: st.DataObject) -> None:
    (positions, box), patch_size = data.draw(trajectories(axes)), data.draw(patches(axes))
    ratio = information_ratio(positions, box, patch_size)
    assert ratio.tolist() == union_of_pixels(positions, box, patch_size)


def test_information_ratio_of_batches() -> None:
    rng = np.random.default_rng(0)
    positions = torch.from_numpy(rng.integers(0, 30, (2, 3, 7, 2)))
    boxes = torch.from_numpy(rng.integers(8, 20, (2, 3, 4)))
    ratio = information_ratio(positions, boxes, 8)
    assert ratio.shape == (2, 3, 7)
    for i, j in itertools.product(range(2), range(3)):
        expected = union_of_pixels(positions[i, j].numpy(), Box(*boxes[i, j].tolist()), 8)
        assert ratio[i, j].tolist() == expected
    one_box = information_ratio(positions, (8, 8, 20, 20), 8)
    assert one_box[1, 2].tolist() == union_of_pixels(positions[1, 2].numpy(), Box(8, 8, 20, 20), 8)


def test_information_ratio_of_batches_in_three_axes() -> None:
    rng = np.random.default_rng(0)
    positions, boxes = rng.integers(0, 12, (2, 5, 3), dtype=np.int32), rng.integers(3, 9, (2, 6))
    ratio = information_ratio(positions, boxes, 4)
    for image in range(2):
        assert ratio[image].tolist() == union_of_pixels(positions[image], Box(*boxes[image]), 4)


def test_information_ratio_of_a_full_scan_is_one() -> None:
    positions = SCANS["row_raster"](Box(3, 5, 1000, 777), 16, 63 * 49, np.random.default_rng(0))
    assert information_ratio(positions, (3, 5, 1000, 777), 16)[-1] == 1


def test_information_ratio_of_a_full_scan_of_a_clip_is_one_and_not_before() -> None:
    box = Box(2, 3, 5, 20, 33, 47)
    positions = SCANS["row_snake"](box, 8, 3 * 5 * 6, np.random.default_rng(0))
    ratio = information_ratio(positions, box, 8)
    assert ratio[-1] == 1
    assert (ratio.diff() > 0).all()


@pytest.mark.parametrize(("axes", "size"), [(2, (0, 5)), (3, (2, 0, 5))])
def test_information_ratio_refuses_an_empty_box(axes: int, size: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="0 x 5 pixels"):
        information_ratio(torch.zeros(3, axes, dtype=torch.long), (*[0] * axes, *size), 16)


@pytest.mark.parametrize("num_glimpses", [0, 1, 254, 255, 256, 65_534, 65_535, 65_536, 70_000])
def test_newly_seen_counts_first_sights_whatever_integers_hold_the_steps(num_glimpses: int) -> None:
    rng, size, patch_size = np.random.default_rng(num_glimpses), (150, 170), 3
    positions = rng.integers(-3, (151, 171), (num_glimpses, 2))
    first = np.full(size, num_glimpses)
    for down, right in itertools.product(range(patch_size), repeat=2):
        row, col = positions.T + [[down], [right]]
        on = (row >= 0) & (row < size[0]) & (col >= 0) & (col < size[1])
        np.minimum.at(first, (row[on], col[on]), np.flatnonzero(on))
    expected = np.bincount(first.ravel(), minlength=num_glimpses + 1)[:num_glimpses]
    assert np.array_equal(newly_seen(positions, size, patch_size), expected)


@pytest.mark.parametrize("num_glimpses", [1024, 70_000])
def test_this_numpy_writes_in_order_so_that_glimpses_are_painted_only_once(
    num_glimpses: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where this fails results are right all the same, and take several times as long."""
    monkeypatch.setattr(coverage, "_paint_one_by_one", None)  # an error if it is called
    positions = np.random.default_rng(0).integers(0, 400, (num_glimpses, 2))
    assert newly_seen(positions, (416, 416), 16).sum() > 300 * 300


@given(data=st.data(), axes=AXES, seed=st.integers(0, 99))
def test_newly_seen_is_exact_in_whatever_order_numpy_writes(data: st.DataObject, axes: int, seed: int) -> None:
    (positions, box), patch_size = data.draw(trajectories(axes)), data.draw(patches(axes))
    expected = newly_seen(positions, box.size, patch_size)

    def paint_in_another_order(windows: np.ndarray, places: tuple[np.ndarray, ...], steps: np.ndarray) -> None:
        for at in np.random.default_rng(seed).permutation(len(steps)):
            windows[tuple(place[at] for place in places)] = steps[at]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(coverage, "_paint_at_once", paint_in_another_order)
        assert np.array_equal(newly_seen(positions, box.size, patch_size), expected)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_share_seen_is_the_last_information_ratio(axes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coverage, "BLOCK", 7**axes)
    rng = np.random.default_rng(0)
    for _ in range({1: 200, 2: 200, 3: 40}[axes]):
        box = Box(*rng.integers(-5, 20, axes), *rng.integers(1, 40 if axes < 3 else 20, axes))
        patch_size, num_glimpses = tuple(rng.integers(1, 9, axes).tolist()), int(rng.integers(1, 40))
        positions = rng.integers(-15, 60, (num_glimpses, axes))
        assert share_seen(positions, box, patch_size) == information_ratio(positions, box, patch_size)[-1].item()


@settings(max_examples=40)
@pytest.mark.parametrize("axes", [1, 2, 3])
@given(data=st.data(), seed=st.integers(0, 99))
def test_coverage_grows_as_the_information_ratio(axes: int, data: st.DataObject, seed: int) -> None:
    rng = np.random.default_rng(seed)
    patch_size = data.draw(st.tuples(*[st.integers(1, 5)] * axes))
    size = data.draw(st.tuples(*(st.integers(side, side + 8) for side in patch_size)))
    images, num_glimpses = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 9)))
    start = rng.integers(0, size, (images, axes))
    boxes = np.concatenate((start, rng.integers(1, size - start + 1)), axis=1).astype(np.int32)
    positions = rng.integers(0, np.array(size) - patch_size + 1, (images, num_glimpses, axes), dtype=np.int32)
    grown = Coverage(size, torch.from_numpy(boxes), patch_size)
    assert grown.information_ratio.tolist() == [0] * images
    cuts = sorted(data.draw(st.lists(st.integers(0, num_glimpses), max_size=3)))  # chunks, some of them empty
    chunks = torch.from_numpy(positions).tensor_split(cuts, dim=1)
    ratio = torch.cat([grown.add(chunk) for chunk in chunks], dim=1)
    expected = information_ratio(positions, boxes, patch_size).float()
    assert ratio.equal(expected)
    assert grown.information_ratio.equal(expected[:, -1])
    for image, seen in enumerate(grown.seen.numpy()):
        painted = np.zeros(size, dtype=bool)
        for position in positions[image]:
            painted[Box(*position, *patch_size).slices] = True
        assert np.array_equal(seen, painted)
        assert grown.pixels[image] == painted[Box(*boxes[image]).slices].sum()


@pytest.mark.parametrize("index", [torch.tensor([3, 1]), torch.tensor([False, True, False, True])])
def test_coverage_of_some_images_goes_on_without_the_others(index: torch.Tensor) -> None:
    rng = np.random.default_rng(0)
    boxes = torch.from_numpy(rng.integers(1, 10, (4, 4)))
    before, after = torch.from_numpy(rng.integers(0, 16, (2, 4, 5, 2)))
    every = Coverage((20, 20), boxes, 4)
    every.add(before)
    seen, ratio = every.seen.clone(), every.information_ratio
    some = every.rows(index)
    assert some.information_ratio.equal(ratio[index])
    expected = information_ratio(torch.cat((before, after), dim=1), boxes, 4).float()[:, 5:]
    assert some.add(after[index]).equal(expected[index])
    assert every.seen.equal(seen)  # as they were
    assert every.information_ratio.equal(ratio)
    assert every.add(after).equal(expected)


@given(seed=st.integers(0, 999), axes=st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_what_a_glimpse_would_show_is_what_it_then_shows(seed: int, axes: int) -> None:
    """Alternatives change nothing; the one that is taken adds as many pixels as it said."""
    draw = np.random.default_rng(seed)
    size, patch_size = draw.integers(4, 9, axes).tolist(), 3
    boxes = torch.tensor([[*[1] * axes, *[side - 2 for side in size]], [*[0] * axes, *size]])
    coverage = Coverage(size, boxes, patch_size)
    for _ in range(4):
        offered = torch.from_numpy(draw.integers(0, np.subtract(size, patch_size) + 1, (2, 5, axes)))
        before = coverage.seen.clone()
        promised = coverage.new_pixels(offered)
        assert coverage.seen.equal(before)
        pixels = coverage.pixels
        coverage.add(offered[:, 2:3])
        assert (coverage.pixels - pixels).equal(promised[:, 2])


@given(st.data())
def test_new_pixels_and_blocks_are_those_of_masks(data: st.DataObject) -> None:
    """Counted pixel by pixel: boxes smaller than their canvas, narrower than a glimpse, not square, of 1 to 3 axes."""
    axes, blocks = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 4))
    patch_size = data.draw(st.tuples(*[st.integers(1, 5)] * axes))
    size = [data.draw(st.integers(side, 9)) for side in patch_size]
    sides = [data.draw(st.integers(1, side)) for side in size]
    edges = [data.draw(st.integers(0, whole - side)) for whole, side in zip(size, sides, strict=True)]
    ends = [st.integers(0, whole - side) for whole, side in zip(size, patch_size, strict=True)]
    positions = np.array(data.draw(st.lists(st.tuples(*ends), min_size=2, max_size=5)))
    coverage = Coverage(size, torch.tensor([[*edges, *sides]]), patch_size)
    coverage.new_pixels(torch.tensor(positions)[None])  # what it holds for this must not outlive what is shown next
    coverage.add(torch.tensor(positions[:1])[None])

    own, shown = np.zeros(size, bool), np.zeros(size, bool)
    own[tuple(slice(edge, edge + side) for edge, side in zip(edges, sides, strict=True))] = True
    shown[Box(*positions[0], *patch_size).slices] = True
    promised = coverage.new_pixels(torch.tensor(positions)[None])
    for place, found in zip(positions, promised[0].tolist(), strict=True):
        here = np.zeros(size, bool)
        here[Box(*place, *patch_size).slices] = True
        assert found == (here & own & ~shown).sum()
    in_box = torch.from_numpy(shown[own].reshape(sides))[None, None].double()
    pool = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[axes - 1]
    torch.testing.assert_close(coverage.in_blocks(blocks), pool(in_box, blocks)[:, 0].float())
