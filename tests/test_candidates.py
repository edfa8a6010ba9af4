"""Candidate places: by key alone, on every valid start alike."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from mambaeye.geometry.box import Box, PatchSize, start_range
from mambaeye.geometry.candidates import GOLDEN, keyed_uniform, start_ranges, uniform_starts

MASK = (1 << 64) - 1
BOXES = st.lists(
    st.tuples(st.integers(20, 50), st.integers(20, 50), st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=4
)


def split_mix(state: int) -> int:
    """SplitMix64's finalizer, in integers without a sign."""
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & MASK
    return state ^ (state >> 31)


@given(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=3), st.lists(st.integers(0, 10**6), max_size=3))
def test_draws_are_those_of_split_mix(seeds: list[int], key: list[int]) -> None:
    draws = keyed_uniform(torch.tensor(seeds), key, 5)
    for row, seed in zip(draws.tolist(), seeds, strict=True):
        state = seed
        for part in key:
            state = split_mix((state + (part + 1) * GOLDEN) & MASK)
        assert row == [(split_mix((state + (place + 1) * GOLDEN) & MASK) >> 11) / 2**53 for place in range(5)]


def test_split_mix_has_its_known_first_output() -> None:
    """Of seed 0: e220a8397b1dcdaf."""
    assert split_mix(GOLDEN) == 0xE220A8397B1DCDAF


def test_draws_are_uniform_and_independent_of_each_other() -> None:
    draws = keyed_uniform(torch.arange(2000), (0, 3), 4)
    assert np.histogram(draws.numpy(), 10, (0, 1))[0].min() > 700
    others = torch.stack((draws.flatten(), keyed_uniform(torch.arange(2000), (0, 4), 4).flatten()))
    assert others.corrcoef()[0, 1].abs() < 0.05
    assert draws.T.corrcoef().fill_diagonal_(0).abs().max() < 0.1


@given(BOXES, st.integers(1, 20) | st.tuples(st.integers(1, 20), st.integers(1, 20)))
def test_starts_are_valid_on_each_box(boxes: list[tuple[int, ...]], patch_size: PatchSize) -> None:
    """Boxes narrower than a glimpse too, which have one start there."""
    first, last = start_ranges(torch.tensor(boxes), patch_size)
    places = uniform_starts(torch.tensor(boxes), patch_size, torch.arange(len(boxes)), (0, 1), 50)
    for row, box in enumerate(boxes):
        low, high = start_range(Box(*box), patch_size)
        assert first[row].tolist() == low.tolist()
        assert last[row].tolist() == high.tolist()
        assert (places[row].numpy() >= low).all()
        assert (places[row].numpy() <= high).all()
        alone = uniform_starts(torch.tensor([box]), patch_size, torch.tensor([row]), (0, 1), 7)
        assert alone[0].equal(places[row, :7])


def test_every_start_is_as_likely() -> None:
    places = uniform_starts(torch.tensor([[3, 5, 6, 4]]), 4, torch.tensor([7]), (0, 1), 9000)[0]
    counts = torch.zeros(12, 12).index_put_(tuple(places.T), torch.ones(9000), accumulate=True)
    assert counts.count_nonzero() == 3
    assert counts[3:6, 5].min() > 2800
