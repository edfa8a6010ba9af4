"""Samples that are kept out of training: the same by key, whoever trains, however often it is interrupted."""

from pathlib import Path

import numpy as np
import pytest
from commands import TINY, flags, ledger
from hypothesis import given
from hypothesis import strategies as st

from datamodules.loading.config import LoaderConfig
from datamodules.shards.held_out import places, to_calibrate_on, without_held_out
from datamodules.shards.index import Shard, ShardIndex
from datamodules.shards.reading import read_images
from mambaeye.errors import InputError
from train import main

COUNTS = st.lists(st.integers(0, 9), min_size=1, max_size=8).filter(any)


def index_of(counts: list[int], names: list[str] | None = None) -> ShardIndex:
    """Shards with samples whose labels, offsets and sizes tell them apart."""
    total, shards, first = sum(counts), [], 0
    names = names or [f"sample-{number}" for number in range(total)]
    for number, count in enumerate(counts):
        ids = list(range(first, first := first + count))
        columns = [names[i] for i in ids], ids, [1000 + i for i in ids], [2000 + i for i in ids]
        shards.append(Shard(f"shard-{number}.tar", 10 * number, "", *columns))
    return ShardIndex(Path("folder"), [str(i) for i in range(total)], shards)


@given(counts=COUNTS, seed=st.integers(0, 99))
def test_a_part_of_an_index_has_its_samples_and_their_shards(counts: list[int], seed: int) -> None:
    index = index_of(counts)
    assert len(index.starts) == len(counts)
    chosen = np.random.default_rng(seed).random(len(index)) < 0.5
    part = index.part(chosen, "some")
    assert (part.name, len(part), part.counts.sum()) == ("some", chosen.sum(), chosen.sum())
    assert len(part.paths) == len(part.sources) == len(part.bytes) == len(part.counts)
    assert (part.counts > 0).all()
    for new, old in enumerate(np.flatnonzero(chosen)):
        assert part.key(new) == index.key(old)
        assert (part.labels[new], part.offsets[new], part.sizes[new]) == (old, 1000 + old, 2000 + old)
        assert part.source(new) == index.source(old)
        assert part.shard_path(new) == index.shard_path(old)


@given(counts=COUNTS, share=st.floats(0.01, 0.99), smaller=st.floats(0.01, 0.99))
def test_every_sample_is_trained_on_or_kept_out_and_a_smaller_share_is_part_of_a_larger(
    counts: list[int], share: float, smaller: float
) -> None:
    index = index_of(counts)
    out, fewer = ({index.key(i) for i in np.flatnonzero(places(index) < part)} for part in (share, smaller))
    assert out <= fewer or fewer <= out
    if not 0 < len(out) < len(index):
        with pytest.raises(InputError, match="data.held_out"):
            without_held_out(index, share)
        return
    left, kept = without_held_out(index, share), to_calibrate_on(index, share, len(index))
    assert {kept.key(i) for i in range(len(kept))} == out
    assert {left.key(i) for i in range(len(left))} == {index.key(i) for i in range(len(index))} - out


def test_a_share_is_about_that_of_the_samples_and_does_not_depend_on_their_order() -> None:
    index = index_of([700, 700])
    assert 1400 * 0.1 - 3 * 12 < (places(index) < 0.1).sum() < 1400 * 0.1 + 3 * 12  # a binomial's deviation is 11
    turned = index_of([3, 1397], [index.key(i) for i in range(1400)][::-1])
    assert places(turned)[::-1].tolist() == places(index).tolist()
    assert without_held_out(index, 0) is index


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_what_to_calibrate_on_is_bounded_by_the_same_draw(share: float) -> None:
    index = index_of([30, 30])
    few = to_calibrate_on(index, share, 7)
    first = np.argsort(places(index))[:7]
    assert {few.key(i) for i in range(7)} == {index.key(i) for i in first}
    assert len(few) == 7


def test_images_of_a_part_are_read_from_its_shards(data_dir: Path) -> None:
    index = ShardIndex.read(data_dir / "digits" / "train")
    part = to_calibrate_on(index, 0.1, 1400)
    order = np.random.default_rng(0).permutation(len(part))
    old = {index.key(i): i for i in range(len(index))}
    expected = list(read_images(index, np.array([old[part.key(i)] for i in order]), 1))
    assert list(read_images(part, order, 1)) == expected
    assert LoaderConfig().training_layout(part, 1).span is None


def fit(run_dir: str, data_dir: Path, *more: str) -> None:
    settings = {**TINY, "data.data_dir": data_dir, "data.held_out": 0.3, "trainer.max_epochs": 2}
    settings |= {"trainer.limit_val_batches": 0, "data.train.num_glimpses": 2, "data.loader.batch_size": 50}
    noted = "--trainer.callbacks+=callbacks.run.ledger.SampleLedger"
    main(["fit", f"--run_dir={run_dir}", *flags(settings), noted, *more])


@pytest.mark.long
def test_no_epoch_has_a_sample_that_is_kept_out_however_it_goes_on(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])
    index = ShardIndex.read(data_dir / "digits" / "train")
    left = without_held_out(index, 0.3)
    allowed = {left.key(i) for i in range(len(left))}
    fit("whole", data_dir)
    fit("cut", data_dir, "--trainer.max_steps=7")
    fit("cut", data_dir, "--ckpt_path=last", "--trainer.max_steps=-1")
    lines, cut = ledger(Path("whole")), ledger(Path("cut"))
    assert [line["keys"] for line in lines] == [line["keys"] for line in cut]
    assert {line["samples"] for line in lines} == {len(left)}
    for epoch in (0, 1):
        keys = [key for line in lines if line["epoch"] == epoch for key in line["keys"]]
        assert len(keys) == len(set(keys)) == len(left) // 50 * 50
        assert set(keys) <= allowed
    with pytest.raises(SystemExit, match=f"an epoch over {len(left)} samples and .* has 1400: go on with the same"):
        fit("whole", data_dir, "--ckpt_path=last", "--data.held_out=0", "--trainer.max_epochs=3")
