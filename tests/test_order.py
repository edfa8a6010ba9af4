import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from datamodules.order import epoch_order, lane

COUNTS = st.lists(st.integers(0, 9), min_size=1, max_size=8).map(lambda counts: np.array(counts, dtype=np.int64))


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


@given(batches=st.integers(0, 40), batch_size=st.integers(1, 5), ranks=st.integers(1, 4), workers=st.integers(1, 6))
def test_lanes_tile_the_order_in_whole_batches(batches: int, batch_size: int, ranks: int, workers: int) -> None:
    lanes = [lane(batches, batch_size, rank, worker, workers) for rank in range(ranks) for worker in range(workers)]
    numbers = [n for piece in lanes for n in range(piece.start, piece.stop)]
    assert numbers == list(range(ranks * batches * batch_size))
    assert all((piece.stop - piece.start) % batch_size == 0 for piece in lanes)
    for rank in range(ranks):  # dealt in turn: no worker runs out while a later one still has more
        sizes = [piece.stop - piece.start for piece in lanes[rank * workers : (rank + 1) * workers]]
        assert sizes == sorted(sizes, reverse=True)
        assert sizes[0] - sizes[-1] <= batch_size
