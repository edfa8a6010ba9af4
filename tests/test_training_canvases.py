"""Whole canvases in training: of one side an optimizer step, whoever loads them and however often a run is resumed."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.fabric.utilities import move_data_to_device
from resuming import InterruptAfter, record
from test_datamodule import data_module, keys
from test_order import LAYOUTS

from datamodules.loading.stream import collate
from datamodules.shards.index import ShardIndex
from datamodules.shards.order import LoaderLayout, ResumedSegment, optimizer_step_of
from datamodules.shards.reading import read_images
from datamodules.transforms.draws import Augmentation
from datamodules.transforms.mixing import Mixing
from datamodules.views.keys import side_of_step
from datamodules.views.train import RawSample, TrainingCanvases, TrainingGlimpses, TrainView
from mambaeye.batch import CANVAS, POLICY, CanvasBatch
from mambaeye.errors import InputError
from mambaeye.geometry.box import Box
from mambaeye.geometry.coverage import information_ratio
from mambaeye.geometry.patches import cut_from_canvases
from mambaeye.geometry.scans import SCANS

FOR_POLICY = {"has_policy": True, "train_scan": POLICY}
FOR_CANVAS = {"takes": "canvas"}


@given(st.lists(st.tuples(LAYOUTS, st.integers(0, 12)), min_size=1, max_size=4))
def test_the_index_of_a_step_is_what_counting_batches_gives(stretches: list[tuple[LoaderLayout, int]]) -> None:
    """Lightning steps whenever the epoch's batches so far are a multiple of the accumulation of now."""
    steps, batches = 0, 0
    before: list[ResumedSegment] = []
    for layout, handed_out in stretches:
        for batch in range(handed_out):
            for done in {0, batch}:  # wherever the current segment's loader began
                assert optimizer_step_of([*before, ResumedSegment(layout, done)], batch) == steps
            batches += 1
            steps += batches % layout.accumulation == 0
        before.append(ResumedSegment(layout, handed_out))


def test_sides_cover_their_range_and_differ_by_seed_epoch_and_step() -> None:
    sides = [[side_of_step((30, 33), (0, *key), step) for step in range(300)] for key in ((0, 0), (0, 1), (1, 0))]
    for some in sides:
        assert np.bincount(some, minlength=34)[30:].min() > 40
        assert set(some) == {30, 31, 32, 33}
    assert len({tuple(some) for some in sides}) == 3


@pytest.mark.long
@pytest.mark.parametrize("arguments", [FOR_POLICY, FOR_CANVAS], ids=["policy", "canvas"])
def test_all_canvases_of_an_optimizer_step_have_one_side_on_every_rank_and_worker(
    arguments: dict, data_dir: Path
) -> None:
    """In every micro-batch, and the same sides and samples however the step is divided."""
    seen = []
    for ranks, micro_batch_size, workers in ((1, None, 0), (2, 16, 2), (1, 16, 3), (2, None, 0)):
        steps: dict[int, list] = {}
        for rank in range(ranks):
            sizes = {"loader__batch_size": 64, "loader__micro_batch_size": micro_batch_size}
            data = data_module(data_dir, rank, ranks, val=True, **sizes, loader__num_workers=workers, **arguments)
            for number, batch in enumerate(data.train_dataloader()):
                step = steps.setdefault(number // data.optimizer_step.accumulation, [])
                step += [(key, *batch.scene.canvases.shape[1:]) for key in batch.keys]
        assert len(steps) == 397 // 64
        seen.append([sorted(step) for step in steps.values()])
    assert all(other == seen[0] for other in seen)
    sides = [{(height, width, channels) for _, height, width, channels in step} for step in seen[0]]
    assert all(len(some) == 1 for some in sides)
    assert len(set.union(*sides)) > 3
    assert all(height == width for some in sides for height, width, _ in some)


@pytest.mark.parametrize("workers", [0, 2, 3])
def test_canvases_that_stream_have_the_sides_of_their_steps(workers: int, data_dir: Path) -> None:
    """Every worker has a run of its own, and still makes its part of every optimizer step."""
    val = data_dir / "digits" / "val"
    shards, index = f"pipe:cat {val}/val-{{000000..000001}}.tar", f"{val}/index.json"
    given = {"train_shards": shards, "val_shards": shards, "train_index": index, "val_index": index, **FOR_CANVAS}
    for rank in (0, 1):
        sizes = {"loader__batch_size": 60, "loader__micro_batch_size": 10, "loader__num_workers": workers}
        data = data_module(data_dir, rank, 2, **given, **sizes)
        batches = list(data.train_dataloader())
        assert len(batches) == 6 * 3
        for number, batch in enumerate(batches):
            assert batch.scene.canvases.shape[1] == side_of_step((32, 64), (0, 0, 0), number // 3)


SMALL_STEPS = {"batch_size": 40, "micro_batch_size": 10}


@pytest.mark.parametrize(
    ("before", "after", "now"),
    [
        pytest.param(SMALL_STEPS, 8, SMALL_STEPS, marks=pytest.mark.long),
        (SMALL_STEPS, 6, SMALL_STEPS),  # within an optimizer step
        pytest.param(
            SMALL_STEPS, 8, {"batch_size": 40, "micro_batch_size": 20, "num_workers": 2}, marks=pytest.mark.long
        ),
        ({"batch_size": 40}, 3, SMALL_STEPS),  # the batches before are no multiple of the accumulation of now
        ({"batch_size": 30, "num_workers": 2}, 3, {"batch_size": 60, "micro_batch_size": 30}),
    ],
    ids=str,
)
def test_a_resumed_epoch_has_the_sides_of_its_optimizer_steps(
    before: dict[str, int], after: int, now: dict[str, int], data_dir: Path, tmp_path: Path
) -> None:
    """Through Lightning, under the same layout or another: by the optimizer's own count of steps."""
    at = tmp_path / "at.ckpt"
    settings = {"validate": False, "train_scan": POLICY, "epochs": 1}
    first = record(data_dir, InterruptAfter(after, at), **settings, **before)
    rest = record(data_dir, ckpt_path=at, **settings, **now)
    steps = [step for step, _ in (*first.sides, *rest.sides)]
    assert all(later - earlier in (0, 1) for earlier, later in pairwise(steps))
    assert max(steps) > 5
    for step, side in (*first.sides, *rest.sides):
        assert side == side_of_step((32, 64), (0, 0, 0), step)
    if before == now:
        assert first.seen + rest.seen == record(data_dir, **settings, **now).seen


def raws(data_dir: Path) -> list[RawSample]:
    index, some = ShardIndex.read(data_dir / "digits" / "val"), np.arange(12)
    images = read_images(index, some, attempts=0)
    return [RawSample(index.key(n), image, int(index.labels[n])) for n, image in zip(some, images, strict=True)]


@pytest.mark.parametrize("inside_prob", [0.0, 1.0])
def test_a_canvas_is_what_its_glimpses_would_have_been_cut_from(inside_prob: float, data_dir: Path) -> None:
    """Augmented, mixed and with the same trajectory: everything but the side is drawn as for glimpses."""
    view = TrainView((40, 40), 30, inside_prob, Augmentation(), Mixing(mixup=0.4, cutmix=0.4))
    some = raws(data_dir)
    for number, raw in enumerate(some):
        made = [
            maker.sample(raw, np.random.default_rng(number), lambda rng: some[int(rng.integers(12))], 40)
            for maker in (TrainingGlimpses(view, 16, "sobol"), TrainingCanvases(view, 16, POLICY))
        ]
        glimpses, canvas = (collate([one]) for one in made)
        assert canvas.scene.positions.equal(glimpses.positions)
        assert cut_from_canvases(canvas.scene.canvases, canvas.scene.positions, 16).equal(glimpses.patches)
        for name in ("information_ratio", "labels", "partner_labels", "label_shares", "valid"):
            assert getattr(canvas, name).equal(getattr(glimpses, name)), name
        assert canvas.keys == glimpses.keys == [raw.key]
        box = Box(*canvas.scene.boxes[0].tolist())
        assert canvas.information_ratio.equal(information_ratio(canvas.scene.positions, box, 16).float())


def test_batches_of_canvases_are_what_their_documentation_says(data_dir: Path) -> None:
    def first(num_workers: int, **arguments: object) -> CanvasBatch:
        data = data_module(data_dir, val=True, loader__batch_size=7, loader__num_workers=num_workers, **arguments)
        batch = next(iter(data.train_dataloader()))
        assert isinstance(batch, CanvasBatch)
        return batch

    for arguments, num_glimpses in ((FOR_POLICY, 5), (FOR_CANVAS, 1)):
        batch = first(0, **arguments)
        scene, side = batch.scene, batch.scene.canvases.shape[1]
        assert (scene.canvases.shape, scene.canvases.dtype) == ((7, side, side, 3), torch.uint8)
        assert (scene.boxes.shape, scene.boxes.dtype) == ((7, 4), torch.int32)
        assert (scene.positions.shape, scene.positions.dtype) == ((7, num_glimpses, 2), torch.int32)
        assert (scene.seeds.shape, scene.seeds.dtype) == ((7,), torch.int64)
        assert scene.seeds.min() >= 0
        assert len(set(scene.seeds.tolist())) == 7
        assert (batch.information_ratio.shape, batch.information_ratio.dtype) == ((7, num_glimpses), torch.float32)
        assert (batch.labels.dtype, batch.partner_labels.dtype) == (torch.int64, torch.int64)
        assert (batch.label_shares.tolist(), batch.label_shares.dtype) == ([1.0] * 7, torch.float32)
        assert batch.valid.tolist() == [True] * 7
        assert (batch.condition, type(batch.condition), len(batch.keys)) == (0, int, 7)
        again = first(1, **arguments)
        assert all(one.equal(other) for one, other in zip(scene, again.scene, strict=True))
        moved = move_data_to_device(batch, torch.device("meta"))
        assert isinstance(moved, CanvasBatch)
        assert (moved.scene.canvases.device.type, moved.keys, moved.condition) == ("meta", batch.keys, 0)
    assert scene.positions[:, 0].equal(scene.boxes[:, :2])  # digits are larger than a glimpse
    assert batch.information_ratio.tolist() == [[1.0]] * 7


def test_an_unreadable_canvas_leaves_a_row_that_stacks(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(data: bytes, what: str) -> np.ndarray:
        if what.endswith("7"):
            raise InputError(f"the image of {what} does not decode")
        return np.full((8, 8, 3), 255, np.uint8)

    monkeypatch.setattr("datamodules.views.train.decode_image", broken)
    for arguments in (FOR_POLICY, FOR_CANVAS):
        data = data_module(data_dir, val=True, loader__batch_size=50, loader__max_unreadable=100, **arguments)
        batches = list(data.train_dataloader())
        assert sum(key.endswith("7") for batch in batches for key in batch.keys) > 0
        for batch in batches:
            assert batch.valid.tolist() == [not key.endswith("7") for key in batch.keys]
            assert not batch.scene.canvases[~batch.valid].any()
            assert batch.scene.canvases[batch.valid].any(dim=(1, 2, 3)).all()
            assert (batch.information_ratio[~batch.valid] == 0).all()
        assert not any(key.endswith("7") for key in keys(batches))


def test_conditions_follow_what_the_model_takes(data_dir: Path) -> None:
    scans = {"resolutions": (32, 40), "scans": ("random", "spiral")}
    data = data_module(data_dir, **scans, evaluate__report_at=(2,))
    assert [condition.name for condition in data.conditions] == ["32_random", "32_spiral", "40_random", "40_spiral"]
    assert (data.num_glimpses, data.report_at) == (6, (2,))
    data = data_module(data_dir, **scans, **FOR_CANVAS, evaluate__report_at=(2,))
    assert [condition[:2] for condition in data.conditions] == [(32, CANVAS), (40, CANVAS)]
    assert (data.num_glimpses, data.report_at) == (1, ())
    for batch in data.val_dataloader():
        assert batch.scene.positions[batch.valid, 0].equal(batch.scene.boxes[batch.valid, :2])
        assert batch.information_ratio.equal(batch.valid[:, None].float())


def test_a_policy_is_planned_sobol_to_fall_back_on(data_dir: Path) -> None:
    led, sobol = (
        list(data_module(data_dir, has_policy=True, scans=(scan,)).val_dataloader()) for scan in (POLICY, "sobol")
    )
    for one, other in zip(led, sobol, strict=True):
        assert one.scene.positions.equal(other.scene.positions)
        assert one.scene.seeds.equal(other.scene.seeds)
    with pytest.raises(InputError, match="^data.scans has learned, and the model has no policy: give --model.po"):
        data_module(data_dir, scans=("random", POLICY))
    with pytest.raises(InputError, match="^data.train_scan has learned, and the model has no policy: give --model.po"):
        data_module(data_dir, train_scan=POLICY)
    with pytest.raises(InputError, match="^data.train_scan has learned, and the model has no policy: give --model.po"):
        data_module(data_dir, train_scan={"random": 3.0, POLICY: 1.0})
    assert POLICY not in SCANS


def test_a_policy_leads_its_share_of_training_trajectories(data_dir: Path) -> None:
    """The others are planned by their own scans."""
    shares = {"row_raster": 3.0, POLICY: 1.0}
    arguments = {"has_policy": True, "train_scan": shares, "train__canvas": (40, 40), "loader__batch_size": 50}
    scenes = [batch.scene for batch in data_module(data_dir, **arguments).train_dataloader()]
    led = torch.cat([scene.led for scene in scenes])
    rastered = torch.cat([(scene.positions[:, 1] == torch.tensor([0, 16])).all(1) for scene in scenes])
    assert len(led) >= 1000
    assert abs(led.float().mean() - 0.25) < 0.05
    assert rastered[~led].all()
    assert not rastered[led].any()
