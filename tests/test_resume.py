"""An interrupted run goes on with exactly the samples that were left: through Lightning, in one process."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from resuming import BATCH, EPOCHS, InterruptAfter, Recorder, run

from datamodules.datamodule import ShardDataModule
from datamodules.loading.config import LoaderConfig
from datamodules.shards.index import ShardIndex

BATCHES = 397 // BATCH


@pytest.fixture(scope="module")
def uninterrupted(data_dir: Path) -> dict[int, list]:
    """Return what a run sees that nothing interrupts, by number of workers."""
    runs = {workers: run(data_dir, num_workers=workers) for workers in (0, 2)}
    assert all(len(seen) == EPOCHS * BATCHES for seen in runs.values())
    assert [epoch for epoch, *_ in runs[0]] == [epoch for epoch in range(EPOCHS) for _ in range(BATCHES)]
    return runs


@pytest.fixture(scope="module")
def draws(data_dir: Path) -> dict[tuple[int, tuple[str, ...]], int]:
    """Return what every sample alone looks like in every epoch: a digest by (epoch, keys)."""
    return {(epoch, keys): digest for epoch, keys, digest in run(data_dir, batch_size=1)}


@pytest.mark.parametrize("validate", [True, pytest.param(False, marks=pytest.mark.long)])
@pytest.mark.parametrize(
    "after",
    [
        1,
        BATCHES - 1,
        BATCHES,
        EPOCHS * BATCHES - 1,
        *(pytest.param(after, marks=pytest.mark.long) for after in (3, BATCHES + 1, 2 * BATCHES)),
    ],
)
def test_the_same_layout_goes_on_bit_for_bit(
    after: int, validate: bool, uninterrupted: dict[int, list], data_dir: Path, tmp_path: Path
) -> None:
    place = tmp_path / "place.ckpt"
    before = run(data_dir, InterruptAfter(after, place), validate=validate)
    assert len(before) == after
    assert before + run(data_dir, ckpt_path=place, validate=validate) == uninterrupted[0]


def test_workers_that_read_ahead_change_nothing(uninterrupted: dict[int, list], data_dir: Path, tmp_path: Path) -> None:
    """Interrupted twice, at odd batches: the worker whose turn it was has the next batch."""
    first, second = tmp_path / "first.ckpt", tmp_path / "second.ckpt"
    seen = run(data_dir, InterruptAfter(3, first), num_workers=2)
    seen += run(data_dir, InterruptAfter(2, second), ckpt_path=first, num_workers=2)
    seen += run(data_dir, ckpt_path=second, num_workers=2)
    assert seen == uninterrupted[2]


@pytest.mark.long
@pytest.mark.parametrize(("workers", "after"), [(0, 2), (3, BATCHES + 3)])
def test_streams_go_on_bit_for_bit(workers: int, after: int, data_dir: Path, tmp_path: Path) -> None:
    place, settings = tmp_path / "place.ckpt", {"stream": True, "num_workers": workers, "shuffle_span": 2}
    whole = run(data_dir, **settings)
    assert [epoch for epoch, *_ in whole] == [epoch for epoch in range(EPOCHS) for _ in range(BATCHES)]
    before = run(data_dir, InterruptAfter(after, place), **settings)
    assert before + run(data_dir, ckpt_path=place, **settings) == whole


@pytest.mark.parametrize("stream", [False, True])
def test_an_epoch_that_began_shard_by_shard_goes_on_so(
    stream: bool, uninterrupted: dict[int, list], data_dir: Path, tmp_path: Path
) -> None:
    """As a checkpoint says that is of version 0.1, or of a time before samples were shuffled over shards."""
    place = tmp_path / "place.ckpt"
    before = run(data_dir, InterruptAfter(3, place), stream=stream, shuffle_span=1)
    checkpoint = torch.load(place, weights_only=True)
    states = [checkpoint["ShardDataModule"], *checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"]]
    assert len(states) == 2
    for state in states:
        state["segments"] = [[*layout, batches] for *layout, _, batches in state["segments"]]
    assert states[0]["segments"] == [[1, 1, BATCH, 1, stream, 3]]
    torch.save(checkpoint, place)
    after = run(data_dir, ckpt_path=place, stream=stream)
    assert (before + after)[:BATCHES] == run(data_dir, stream=stream, shuffle_span=1, epochs=1)
    following = run(data_dir, stream=True) if stream else uninterrupted[0]
    assert (before + after)[BATCHES:] == following[BATCHES:]


@pytest.mark.parametrize("when", ["validation", "train epoch"])
def test_checkpoints_of_an_epoch_s_end(
    when: str, uninterrupted: dict[int, list], data_dir: Path, tmp_path: Path
) -> None:
    saver = ModelCheckpoint(
        dirpath=tmp_path, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=when == "train epoch"
    )
    assert run(data_dir, saver) == uninterrupted[0]
    for epoch in range(EPOCHS):
        rest = run(data_dir, ckpt_path=tmp_path / f"epoch={epoch}.ckpt")
        assert rest == uninterrupted[0][(epoch + 1) * BATCHES :]


@pytest.mark.parametrize(
    "layouts",
    [
        pytest.param([{"num_workers": 0}, {"num_workers": 3}], marks=pytest.mark.long),
        [{"num_workers": 2}, {"num_workers": 4}, {"num_workers": 1}],
        [{"batch_size": 50}, {"batch_size": 31}, {"batch_size": 64, "num_workers": 2}],
        pytest.param([{"batch_size": 10}, {"batch_size": 100}], marks=pytest.mark.long),
        pytest.param(
            [{"stream": True, "num_workers": 2}, {"stream": True, "num_workers": 3}, {"stream": True}],
            marks=pytest.mark.long,
        ),
        [{"stream": True, "shuffle_span": 1}, {"stream": True, "shuffle_span": 2}],
        [{"stream": False}, {"stream": True, "num_workers": 2}, {"stream": False, "batch_size": 30}],
    ],
)
def test_other_layouts_see_what_is_left_once(
    layouts: list[dict[str, int]], draws: dict[tuple[int, tuple[str, ...]], int], data_dir: Path, tmp_path: Path
) -> None:
    seen, place = [], None
    for number, layout in enumerate(layouts[:-1]):
        at = tmp_path / f"{number}.ckpt"
        seen += run(data_dir, InterruptAfter(2, at), ckpt_path=place, **layout)
        place = at
    seen += run(data_dir, ckpt_path=place, **layouts[-1])
    index = ShardIndex.read(data_dir / "digits" / "val")
    everything = {index.key(number) for number in range(len(index))}
    last = layouts[-1].get("batch_size", BATCH)
    for epoch in range(EPOCHS):
        keys = list(itertools.chain.from_iterable(keys for e, keys, _ in seen if e == epoch))
        assert set(keys) <= everything
        assert len(keys) == len(set(keys)) > 397 - last
    for epoch, keys, digest in seen:  # who draws a sample does not matter
        assert sum(draws[epoch, (key,)] for key in keys) == digest
    lengths = [sum(1 for e, *_ in seen if e == epoch) for epoch in range(EPOCHS)]
    assert lengths[1:] == [397 // last] * (EPOCHS - 1)


def test_validation_goes_on_after_an_epoch_of_several_layouts(data_dir: Path, tmp_path: Path) -> None:
    """Lightning validates at the last batch of an epoch, and knows it only if every epoch's length is right."""

    class CountValidations(Callback):
        count = 0

        def on_validation_end(self, *_: object) -> None:
            self.count += 1

    counter = CountValidations()
    run(data_dir, InterruptAfter(30, tmp_path / "place.ckpt"), batch_size=10)
    run(data_dir, counter, ckpt_path=tmp_path / "place.ckpt", batch_size=90)
    assert counter.count == EPOCHS


def test_other_samples_are_refused(data_dir: Path, tmp_path: Path) -> None:
    run(data_dir, InterruptAfter(2, tmp_path / "place.ckpt"))
    train = str(data_dir / "digits" / "train")
    data = ShardDataModule(train, train, loader=LoaderConfig(BATCH, num_workers=0))
    trainer = Trainer(accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, barebones=True)
    with pytest.raises(ValueError, match="in an epoch over 397 samples and .* has 1400: go on with the same shards"):
        trainer.fit(Recorder(), data, ckpt_path=tmp_path / "place.ckpt", weights_only=True)


@pytest.mark.long
@pytest.mark.parametrize(
    "layouts",
    [
        [(1, 0, 30), (2, 0, 15), (1, 0, 30)],
        [(2, 2, 20), (1, 1, 40)],
        [(2, 1, 20), (3, 2, 11), (1, 4, 50)],
    ],
    ids=str,
)
def test_other_ranks_see_what_is_left_once(layouts: list[tuple[int, int, int]], data_dir: Path, tmp_path: Path) -> None:
    """Real processes that talk to each other: (ranks, workers, batch of a rank), two batches, then on."""
    seen, place = [], None
    for segment, (ranks, workers, batch_size) in enumerate(layouts):
        last = segment == len(layouts) - 1
        asked = {
            "data_dir": str(data_dir),
            "seen": str(tmp_path / f"seen-{segment}"),
            "save": str(tmp_path / f"{segment}.ckpt"),
            "ckpt_path": place,
            "batches": -1 if last else 2,
            "ranks": ranks,
            "workers": workers,
            "batch_size": ranks * batch_size,
        }
        script = Path(__file__).with_name("resuming.py")
        environment = os.environ | {"PYTHONPATH": str(script.parents[1])}
        subprocess.run([sys.executable, str(script), json.dumps(asked)], env=environment, check=True, timeout=300)
        parts = [json.loads((tmp_path / f"seen-{segment}-{rank}.json").read_text()) for rank in range(ranks)]
        assert len({len(part) for part in parts}) == 1
        seen += itertools.chain.from_iterable(parts)
        place = asked["save"]
    ranks, _, batch_size = layouts[-1]
    for epoch in range(EPOCHS):
        keys = list(itertools.chain.from_iterable(keys for e, keys, _ in seen if e == epoch))
        assert len(keys) == len(set(keys)) > 397 - ranks * batch_size
