from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.shards.order import (
    EpochOrder,
    LoaderLayout,
    ResumedSegment,
    batches_of,
    divide,
    runs,
    share,
)
from mambaeye.errors import InputError

COUNTS = st.lists(st.integers(0, 9), min_size=1, max_size=8).map(lambda counts: np.array(counts, dtype=np.int64))
LAYOUTS = st.builds(
    LoaderLayout,
    ranks=st.integers(1, 4),
    workers=st.integers(1, 5),
    batch_size=st.integers(1, 6),
    accumulation=st.integers(1, 3),
    runs=st.booleans(),
    span=st.none() | st.integers(1, 4),
)


BY_PLACE, STREAMING = LoaderLayout(1, 1, 1), LoaderLayout(1, 1, 1, runs=True)


def order_of(counts: np.ndarray, seed: int, epoch: int, layout: LoaderLayout) -> np.ndarray:
    """A whole epoch's order under one layout."""
    return EpochOrder(counts, seed, epoch).left([ResumedSegment(layout, 0)])


@given(counts=COUNTS, layout=LAYOUTS, seed=st.integers(0, 2**32), epoch=st.integers(0, 1000))
def test_an_epoch_is_a_permutation_under_any_layout(
    counts: np.ndarray, layout: LoaderLayout, seed: int, epoch: int
) -> None:
    order = order_of(counts, seed, epoch, layout)
    assert sorted(order) == list(range(counts.sum()))
    np.testing.assert_array_equal(order, order_of(counts, seed, epoch, layout))


@given(counts=COUNTS, layout=LAYOUTS, seed=st.integers(0, 2**32), epoch=st.integers(0, 1000))
def test_over_one_shard_the_order_is_version_0_1_s_shard_by_shard(
    counts: np.ndarray, layout: LoaderLayout, seed: int, epoch: int
) -> None:
    order = order_of(counts, seed, epoch, layout._replace(span=1))
    shards = np.repeat(np.arange(len(counts)), counts)[order]
    assert (np.diff(shards) != 0).sum() == max(0, (counts > 0).sum() - 1)  # every shard is read in one go
    rng, expected = np.random.default_rng((seed, epoch)), []
    for shard in rng.permutation(len(counts)):
        expected += list(counts[:shard].sum() + rng.permutation(counts[shard]))
    assert order.tolist() == expected


def test_epochs_and_seeds_differ() -> None:
    counts = np.full(10, 50)
    for span in (1, 3, None):
        layout = BY_PLACE._replace(span=span)
        orders = {tuple(order_of(counts, seed, epoch, layout)) for seed in (0, 1) for epoch in (0, 1, 2)}
        assert len(orders) == 6


@pytest.mark.parametrize(
    "layout", [BY_PLACE._replace(span=None), STREAMING._replace(span=None)], ids=["place", "stream"]
)
def test_over_all_shards_no_order_is_likelier_than_another(layout: LoaderLayout) -> None:
    """All 24 of four samples in three shards, against the chi-square distribution's 99.9% point for 23 degrees."""
    counts = np.array([1, 2, 1])
    orders = Counter(tuple(order_of(counts, 0, epoch, layout)) for epoch in range(4800))
    assert len(orders) == 24
    assert sum((seen - 200) ** 2 / 200 for seen in orders.values()) < 49.7


def test_over_some_shards_samples_lie_among_those_of_the_shards_around() -> None:
    """Up to span - 1 shards away, and at the ends as many of them as elsewhere."""
    samples, counts = 6000, np.full(60, 100)
    for span in (2, 3, 8):
        order = EpochOrder(counts, 0, 0)
        rank = np.empty(samples, dtype=np.int64)
        rank[order.unshuffled] = np.arange(samples)
        moved = rank[order.left([ResumedSegment(BY_PLACE._replace(span=span), 0)])] - np.arange(samples)
        assert np.abs(moved).max() < (span - 1) * 100 + 60  # and what chance piles up
        assert (np.abs(moved) > (span - 1) * 50).mean() > 0.35
        shards = order_of(counts, 0, 0, BY_PLACE._replace(span=span)) // 100
        for start in (0, 2950, 5900):
            assert len(set(shards[start : start + 100])) >= span


@pytest.mark.parametrize("span", [1, 2, 4, 8])
def test_a_worker_that_streams_holds_about_as_many_shards_as_the_span(span: int) -> None:
    """A shard is held from when its first sample is asked for until its last one is."""
    counts = np.full(100, 200)
    layout = LoaderLayout(2, 2, 50, runs=True, span=span)
    order = order_of(counts, 0, 0, layout)
    for start, stop in runs(len(order), layout).reshape(-1, 2):
        shards = order[start:stop] // 200
        wanted, opened, held, most = Counter(shards.tolist()), set(), 0, 0
        for shard in shards.tolist():
            held += wanted[shard] * (shard not in opened) - 1
            opened.add(shard)
            most = max(most, held)
        assert held == 0
        assert most <= (span + 0.1) * 200


def meeting_again(batches: list[np.ndarray], samples: int) -> float:
    """Share of a sample's batch mates that are so again in the next epoch, of two epochs' batches (n, B)."""
    batch_of = np.full((2, samples), -1)
    for row, of_epoch in zip(batch_of, batches, strict=True):
        row[of_epoch] = np.arange(len(of_epoch))[:, None]
    first, second = batch_of[:, (batch_of >= 0).all(0)]
    _, together = np.unique(first * (second.max() + 1) + second, return_counts=True)
    return float((together * (together - 1)).sum() / (batches[0].size * (batches[0].shape[1] - 1)))


@pytest.mark.parametrize(
    ("layout", "expected", "within"),
    [
        (LoaderLayout(1, 8, 1024, span=1), 0.44, 0.01),  # version 0.1
        (LoaderLayout(1, 8, 1024, span=None), 0.0008, 0.00002),  # the authors'
        (LoaderLayout(1, 8, 1024, runs=True, span=1), 0.44, 0.01),
        (LoaderLayout(1, 8, 1024, runs=True, span=4), 0.0256, 0.001),
        (LoaderLayout(8, 8, 128, runs=True, span=4), 0.00125, 0.0002),
    ],
    ids=str,
)
def test_batch_mates_rarely_meet_again_in_the_next_epoch(layout: LoaderLayout, expected: float, within: float) -> None:
    """ImageNet's 1,281,167 samples in 1282 shards, two epochs, optimizer steps of 1024."""
    counts = np.array([len(part) for part in np.array_split(np.empty(1_281_167, bool), 1282)])
    batches = [steps_of(order_of(counts, 0, epoch, layout), layout) for epoch in (0, 1)]
    assert meeting_again(batches, counts.sum()) == pytest.approx(expected, abs=within)


def steps_of(order: np.ndarray, layout: LoaderLayout) -> np.ndarray:
    """The samples of every optimizer step, (steps, B), for layouts that do not accumulate."""
    steps = np.empty((batches_of(len(order), layout), layout.ranks, layout.batch_size), dtype=np.int64)
    for rank in range(layout.ranks):
        for worker in range(layout.workers):
            mine = share(order, layout, 0, rank, worker)
            steps[worker :: layout.workers, rank] = mine.reshape(-1, layout.batch_size)
    return steps.reshape(len(steps), -1)


def hand_out(order: np.ndarray, layout: LoaderLayout, first: int, last: int) -> list[list[np.ndarray]]:
    """Simulate DataLoaders: batches first..last of every rank, asked of the workers in turn, one list a step."""
    shares = [[iter(share(order, layout, first, r, w)) for w in range(layout.workers)] for r in range(layout.ranks)]
    return [
        [
            np.array([next(shares[rank][step % layout.workers]) for _ in range(layout.batch_size)])
            for rank in range(layout.ranks)
        ]
        for step in range(first, last)
    ]


@given(samples=st.integers(0, 200), layout=LAYOUTS)
def test_a_layout_hands_out_all_but_less_than_a_global_batch(samples: int, layout: LoaderLayout) -> None:
    order = np.random.default_rng(0).permutation(samples)
    seen = np.array(hand_out(order, layout, 0, batches_of(samples, layout)), dtype=np.int64).ravel()
    assert len(set(seen)) == len(seen) > samples - layout.batch_of_all * layout.accumulation
    bounds = runs(samples, layout).reshape(-1, 2)
    assert (bounds[1:, 0] == bounds[:-1, 1]).all()  # contiguous


@given(samples=st.integers(0, 200), layout=LAYOUTS, data=st.data())
def test_the_same_layout_goes_on_bit_for_bit(samples: int, layout: LoaderLayout, data: st.DataObject) -> None:
    order = np.random.default_rng(1).permutation(samples)
    batches = batches_of(samples, layout)
    stop = data.draw(st.integers(0, batches))
    whole = hand_out(order, layout, 0, batches)
    # the workers of the continued segment are asked from the step on that comes next: see share() and TrainingStream
    np.testing.assert_array_equal(whole[:stop] + hand_out(order, layout, stop, batches), whole)


@given(samples=st.integers(0, 300), layouts=st.lists(LAYOUTS, min_size=1, max_size=5), data=st.data())
def test_any_layouts_one_after_another_see_everything_once(
    samples: int, layouts: list[LoaderLayout], data: st.DataObject
) -> None:
    counts = np.array([len(part) for part in np.array_split(np.empty(samples), 4)])
    epoch, segments, seen = EpochOrder(counts, 3, 4), [], []
    for layout in layouts:
        left = epoch.left([*segments, ResumedSegment(layout, 0)])
        assert sorted([*seen, *left]) == list(range(samples))
        whole = order_of(counts, 3, 4, layout._replace(runs=False, span=1 if layout.runs else layout.span)).tolist()
        kept = [number for number in whole if number in set(left)]
        if layout.runs:  # shuffled within runs of what is left shard by shard
            for start, stop in runs(len(left), layout).reshape(-1, 2):
                assert sorted(left[start:stop]) == sorted(kept[start:stop])
        if not layout.runs or layout.span == 1:
            assert left.tolist() == kept
        batches = batches_of(len(left), layout)
        stop = batches if layout is layouts[-1] else data.draw(st.integers(0, batches))
        seen += [number for step in hand_out(left, layout, 0, stop) for batch in step for number in batch]
        segments.append(ResumedSegment(layout, stop))
    left = epoch.left([*segments, ResumedSegment(BY_PLACE, 0)])
    assert sorted([*seen, *left]) == list(range(samples))
    assert len(left) < layouts[-1].batch_of_all * layouts[-1].accumulation


@given(samples=st.integers(0, 300), layouts=st.lists(LAYOUTS, min_size=2, max_size=2), steps=st.integers(1, 5))
def test_an_optimizer_step_has_the_same_samples_whoever_shares_them(
    samples: int, layouts: list[LoaderLayout], steps: int
) -> None:
    """Read by place: the batches of a step, of all ranks, are the next samples of the order."""
    order = np.random.default_rng(2).permutation(samples)
    for layout in layouts:
        one, other = layout._replace(runs=False), layout._replace(runs=False, ranks=1, workers=1, accumulation=1)
        size = one.batch_of_all * one.accumulation
        other = other._replace(batch_size=size)
        steps_of_both = [
            np.array(hand_out(order, c, 0, batches_of(samples, c)), dtype=np.int64).reshape(-1, size)
            for c in (one, other)
        ]
        np.testing.assert_array_equal(*(np.sort(s, axis=1) for s in steps_of_both))


@given(global_batch=st.integers(1, 300), ranks=st.integers(1, 20), most=st.none() | st.integers(1, 70))
def test_a_global_batch_is_divided_or_the_nearest_that_can_be_is_named(
    global_batch: int, ranks: int, most: int | None
) -> None:
    def fits(size: int) -> bool:
        """As few batches as the limit allows, all of one size."""
        fewest = next(n for n in range(1, size + 1) if most is None or size <= n * ranks * most)
        return size % (ranks * fewest) == 0

    if fits(global_batch):
        batch, accumulation = divide(global_batch, ranks, most)
        assert batch * accumulation * ranks == global_batch
        assert batch <= (most or batch)
        return
    with pytest.raises(InputError) as error:
        divide(global_batch, ranks, most)
    nearest = int(str(error.value).split()[-1])
    assert fits(nearest)
    distance = abs(nearest - global_batch)
    assert not any(fits(size) for size in range(max(1, global_batch - distance + 1), global_batch + distance))


@pytest.mark.parametrize(("span", "used_up"), [(1, 3), (3, 1)])
def test_used_up_shards_are_not_read_again(span: int, used_up: int) -> None:
    """After a segment, what is left lies in the shards that its workers had not finished."""
    counts = np.full(40, 25)
    first = ResumedSegment(LoaderLayout(2, 2, 10, runs=True, span=span), 20)
    left = EpochOrder(counts, 0, 0).left([first, ResumedSegment(first.layout._replace(workers=3), 0)])
    # 400 of 1000 samples, 100 a worker: four shards each
    shards = set(left // 25)
    assert len(left) == 600
    assert len(shards) <= 40 - 4 * used_up
