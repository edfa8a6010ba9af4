from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.shards.index import ShardIndex
from datamodules.shards.reading import read_images
from datamodules.transforms.clips import stacked
from datamodules.transforms.images import fit_on_canvas
from datamodules.transforms.mixing import Mixing, cutmix, mixup
from datamodules.views.train import RawSample, TrainingGlimpses, TrainView
from mambaeye.errors import InputError
from mambaeye.geometry.box import Box

SIDE, FRAMES = 24, 7


def white(height: int, width: int) -> tuple[np.ndarray, Box]:
    return fit_on_canvas(np.full((height, width, 3), 255, dtype=np.uint8), SIDE)


def inside(box: Box) -> tuple[slice, slice]:
    return slice(box.row, box.row + box.height), slice(box.col, box.col + box.width)


@given(sides=st.tuples(*[st.integers(1, 30)] * 4), seed=st.integers(0, 1000), alpha=st.sampled_from([0.2, 1.0, 8.0]))
def test_cutmix_keeps_the_share_it_says(sides: tuple[int, int, int, int], seed: int, alpha: float) -> None:
    first, box = white(*sides[:2])
    other, other_box = white(*sides[2:])
    mixed, mixed_box, share = cutmix(first, box, other // 2, other_box, alpha, np.random.default_rng(seed))
    assert mixed_box == box
    assert np.isclose((mixed[inside(box)][..., 0] == 255).mean(), share)
    assert set(np.unique(mixed[inside(box)])) <= {127, 255}  # what was put in is image, never padding
    outside = mixed.copy()
    outside[inside(box)] = 0
    assert not outside.any()
    assert set(np.unique(first)) <= {0, 255}  # the original is untouched


@given(sides=st.tuples(*[st.integers(1, 30)] * 4), seed=st.integers(0, 1000))
def test_mixup_blends_and_its_box_holds_both(sides: tuple[int, int, int, int], seed: int) -> None:
    first, box = white(*sides[:2])
    other, other_box = white(*sides[2:])
    blend, both, share = mixup(first, box, other // 5, other_box, 1.0, np.random.default_rng(seed))
    expected = share * first.astype(float) + (1 - share) * (other // 5)
    np.testing.assert_allclose(blend, expected, atol=0.51)
    covered = np.zeros((SIDE, SIDE), dtype=bool)
    covered[inside(box)] = covered[inside(other_box)] = True
    rows, cols = np.flatnonzero(covered.any(1)), np.flatnonzero(covered.any(0))
    assert both == (rows[0], cols[0], len(rows), len(cols))


def white_clip(frames: int, height: int, width: int) -> tuple[np.ndarray, Box]:
    picture, box = white(height, width)
    return stacked([(picture, box)] * frames, frames, FRAMES, "a")


@given(sides=st.tuples(*[st.integers(1, FRAMES), *[st.integers(1, 30)] * 2] * 2), seed=st.integers(0, 1000))
def test_clips_are_mixed_by_the_share_that_is_said(sides: tuple[int, ...], seed: int) -> None:
    """A rectangle, the same on all frames that both clips have, is the other's, and counted pixel by pixel."""
    first, box = white_clip(*sides[:3])
    other, other_box = white_clip(*sides[3:])
    mixed, mixed_box, share = cutmix(first, box, other // 2, other_box, 1.0, np.random.default_rng(seed))
    assert mixed_box == box
    own = mixed[box.slices][..., 0]
    assert np.isclose((own == 255).mean(), share)
    assert set(np.unique(own)) <= {127, 255}
    replaced = [frame == 127 for frame in mixed[..., 0]]
    in_both = [bool(a.any() and b.any()) for a, b in zip(first, other, strict=True)]
    assert all(
        np.array_equal(area, replaced[in_both.index(True)] & both) for area, both in zip(replaced, in_both, strict=True)
    )

    blend, both, share = mixup(first, box, other // 5, other_box, 1.0, np.random.default_rng(seed))
    np.testing.assert_allclose(blend, share * first.astype(float) + (1 - share) * (other // 5), atol=0.51)
    covered = np.zeros((FRAMES, SIDE, SIDE), dtype=bool)
    covered[box.slices] = covered[other_box.slices] = True
    places = np.argwhere(covered)
    assert both == (*places.min(0), *(np.ptp(places, 0) + 1))


def test_how_often_and_how_much() -> None:
    rng = np.random.default_rng(0)
    mixing = Mixing(mixup=0.3, cutmix=0.2)
    choices = [mixing.choose(rng) for _ in range(10_000)]
    assert [round(choices.count(kind) / 10_000, 1) for kind in ("mixup", "cutmix", None)] == [0.3, 0.2, 0.5]
    image, box = white(24, 24)
    shares = [cutmix(image, box, image, box, 1.0, rng)[2] for _ in range(2000)]
    assert np.mean(shares) == pytest.approx(0.5, abs=0.02)  # Beta(1, 1) is uniform
    assert np.quantile(shares, 0.25) == pytest.approx(0.25, abs=0.04)


def test_a_mixed_sample_names_its_partner(data_dir: Path) -> None:
    index = ShardIndex.read(data_dir / "digits" / "val")
    raw = [
        RawSample(index.key(n), image, int(index.labels[n]))
        for n, image in zip(range(2), read_images(index, np.arange(2), attempts=0), strict=True)
    ]
    glimpses = TrainingGlimpses(TrainView((32, 32), 20, 1.0, None, Mixing(mixup=0.5, cutmix=0.5)), 16)
    sample = glimpses.sample(raw[0], np.random.default_rng(1), lambda rng: raw[1])
    assert (sample.labels, sample.partner_labels) == (raw[0].label, raw[1].label)
    assert 0 <= sample.label_shares <= 1
    again = glimpses.sample(raw[0], np.random.default_rng(1), lambda rng: raw[1])
    assert sample.patches.equal(again.patches)
    assert sample.label_shares == again.label_shares


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mixup": 0.7, "cutmix": 0.7}, "0.7 and 0.7: give probabilities that sum to at most 1"),
        ({"mixup": -0.1}, "-0.1 and 0.0: give probabilities"),
        ({"mixup_alpha": 0.0}, "mixup_alpha is 0.0: give a positive number"),
        ({"cutmix_alpha": float("nan")}, "cutmix_alpha is nan"),
    ],
)
def test_what_cannot_be(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Mixing(**arguments)
