import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datamodules.shards.order import (
    LoaderLayout,
    ResumedSegment,
    batches_of,
    divide,
    epoch_order,
    remaining,
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
)


@given(counts=COUNTS, seed=st.integers(0, 2**32), epoch=st.integers(0, 1000))
def test_an_epoch_is_a_permutation_shard_by_shard(counts: np.ndarray, seed: int, epoch: int) -> None:
    order = epoch_order(counts, seed, epoch)
    assert sorted(order) == list(range(counts.sum()))
    shards = np.repeat(np.arange(len(counts)), counts)[order]
    assert (np.diff(shards) != 0).sum() == max(0, (counts > 0).sum() - 1)  # every shard is read in one go
    np.testing.assert_array_equal(order, epoch_order(counts, seed, epoch))


def test_epochs_and_seeds_differ() -> None:
    counts = np.full(10, 50)
    orders = {tuple(epoch_order(counts, seed, epoch)) for seed in (0, 1) for epoch in (0, 1, 2)}
    assert len(orders) == 6


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
    order = epoch_order(np.array([samples]), 3, 4)
    segments, seen, left = [], [], order
    for layout in layouts:
        batches = batches_of(len(left), layout)
        stop = batches if layout is layouts[-1] else data.draw(st.integers(0, batches))
        seen += [number for step in hand_out(left, layout, 0, stop) for batch in step for number in batch]
        segments.append(ResumedSegment(layout, stop))
        left = remaining(order, segments)
        assert sorted([*seen, *left]) == list(range(samples))
        assert (np.diff([list(order).index(number) for number in left]) > 0).all()
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


def test_used_up_shards_are_not_read_again() -> None:
    """After a segment, what is left lies in the shards that its workers had not finished."""
    counts = np.full(40, 25)
    order = epoch_order(counts, 0, 0)
    left = remaining(
        order, [ResumedSegment(LoaderLayout(2, 2, 10, runs=True), 20)]
    )  # 400 of 1000 samples, 100 a worker: four shards each
    shards = set(left // 25)
    assert len(left) == 600
    assert len(shards) <= 40 - 4 * 3
