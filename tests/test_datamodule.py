"""The data module as the trainer drives it: which samples, how often, and the same on every call."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from datamodules.datamodule import ShardDataModule
from datamodules.loading.config import LoaderConfig
from datamodules.shards.index import ShardIndex
from datamodules.transforms.draws import Augmentation
from datamodules.transforms.images import fit_on_canvas
from datamodules.transforms.mixing import Mixing
from datamodules.views.evaluate import EvaluateView
from datamodules.views.predict import PredictView
from datamodules.views.train import RawSample, TrainingGlimpses, TrainView
from mambaeye.batch import CanvasBatch, EvaluationCondition, GlimpseBatch
from mambaeye.contracts import DataSpec, OptimizerStep, SplitSummary
from mambaeye.errors import InputError
from mambaeye.geometry.box import Box
from mambaeye.geometry.coverage import information_ratio
from mambaeye.geometry.scans import SCANS, random, scan_pattern

GROUPS = {"train": TrainView, "evaluate": EvaluateView, "loader": LoaderConfig}


def grouped(arguments: dict[str, Any]) -> dict[str, Any]:
    """Arguments of the data module, of which those of its groups are given as group__argument."""
    flat = {name: value for name, value in arguments.items() if "__" not in name}
    for group, kind in GROUPS.items():
        prefix = f"{group}__"
        flat[group] = kind(**{n.removeprefix(prefix): v for n, v in arguments.items() if n.startswith(prefix)})
    return flat


def data_module(
    data_dir: Path,
    rank: int = 0,
    world_size: int = 1,
    epoch: int = 0,
    limit: int | float = 1.0,
    takes: str = "glimpses",
    has_policy: bool = False,
    val: bool = False,
    **arguments: Any,
) -> ShardDataModule:
    """A data module set up as process `rank` of `world_size`; its groups' arguments are given as group__argument.

    With val it trains on the validation shards too, which are fewer.
    """
    if val:
        arguments |= dict.fromkeys(("train_shards", "val_shards"), str(data_dir / "digits" / "val"))
    given = {"train__num_glimpses": 5, "evaluate__num_glimpses": 6, "loader__num_workers": 0, **arguments}
    data = ShardDataModule(data_dir=str(data_dir), **grouped(given))
    data.prepare_data()
    set_up(data, rank, world_size, epoch, limit, takes, has_policy)
    return data


def set_up(
    data: ShardDataModule,
    rank: int = 0,
    world_size: int = 1,
    epoch: int = 0,
    limit: int | float = 1.0,
    takes: str = "glimpses",
    has_policy: bool = False,
) -> None:
    """Give a data module what it needs of a trainer, and set it up to fit."""
    data.trainer = SimpleNamespace(
        global_rank=rank,
        world_size=world_size,
        current_epoch=epoch,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        lightning_module=SimpleNamespace(takes=takes, has_policy=has_policy),
        accumulate_grad_batches=1,
        limit_val_batches=limit,
    )
    data.setup("fit")


def keys(batches: list[GlimpseBatch]) -> list[str]:
    return [key for batch in batches for key, valid in zip(batch.keys, batch.valid, strict=True) if valid]


def test_a_batch_is_what_its_documentation_says(data_dir: Path) -> None:
    batch = next(iter(data_module(data_dir, loader__batch_size=7).train_dataloader()))
    assert isinstance(batch, GlimpseBatch)
    assert (batch.patches.shape, batch.patches.dtype) == ((7, 5, 3, 16, 16), torch.uint8)
    assert (batch.positions.shape, batch.positions.dtype) == ((7, 5, 2), torch.int32)
    assert (batch.information_ratio.shape, batch.information_ratio.dtype) == ((7, 5), torch.float32)
    assert (batch.labels.shape, batch.labels.dtype) == ((7,), torch.int64)
    assert batch.partner_labels.equal(batch.labels)
    assert (batch.label_shares.tolist(), batch.label_shares.dtype) == ([1.0] * 7, torch.float32)
    assert len(batch.keys) == 7
    assert batch.valid.tolist() == [True] * 7


def test_batches_go_to_a_device_and_into_pinned_memory_whole(data_dir: Path) -> None:
    from lightning.fabric.utilities import move_data_to_device

    batch = next(iter(data_module(data_dir, loader__batch_size=3).train_dataloader()))
    moved = move_data_to_device(batch, torch.device("meta"))
    assert isinstance(moved, GlimpseBatch)
    assert moved.patches.device.type == "meta"
    assert moved.keys == batch.keys


@pytest.mark.parametrize(
    ("world_size", "workers"),
    [(1, 0), (3, 2), *(pytest.param(*layout, marks=pytest.mark.long) for layout in ((1, 3), (2, 0)))],
)
def test_a_training_epoch_sees_no_sample_twice_and_drops_less_than_a_global_batch(
    data_dir: Path, world_size: int, workers: int
) -> None:
    seen, lengths = [], set()
    for rank in range(world_size):
        data = data_module(data_dir, rank, world_size, loader__batch_size=60 * world_size, loader__num_workers=workers)
        loader = data.train_dataloader()
        batches = list(loader)
        lengths.add((len(loader), len(batches)))
        seen += keys(batches)
    assert lengths == {(1400 // (60 * world_size),) * 2}
    assert len(seen) == len(set(seen)) > 1400 - 60 * world_size


@pytest.mark.parametrize(("world_size", "workers"), [(1, 0), (1, 2), (2, 0), (3, 2), (5, 1)])
def test_validation_sees_every_sample_once_and_ranks_take_as_many_batches(
    data_dir: Path, world_size: int, workers: int
) -> None:
    seen, lengths = Counter(), set()
    for rank in range(world_size):
        arguments = {"loader__batch_size": 50 * world_size, "loader__num_workers": workers, "resolutions": (32, 40)}
        data = data_module(data_dir, rank, world_size, **arguments)
        loader = data.val_dataloader()
        batches = list(loader)
        lengths |= {len(batches), len(loader)}
        assert all(len(batch.labels) == 50 for batch in batches)
        for batch in batches:
            condition = batch.condition
            seen.update((condition, key) for key in keys([batch]))
    index = ShardIndex.read(data_dir / "digits" / "val")
    assert seen == Counter((condition, index.key(number)) for condition in (0, 1) for number in range(397))
    assert len(lengths) == 1


def test_every_number_of_workers_sees_the_same_samples(data_dir: Path) -> None:
    modules = [data_module(data_dir, val=True, loader__batch_size=60, loader__num_workers=n) for n in (0, 1, 2, 4)]
    sets = [set(keys(data.train_dataloader())) for data in modules]
    assert sets[0] == sets[1] == sets[2] == sets[3]


def test_more_workers_than_batches(data_dir: Path) -> None:
    data = data_module(data_dir, loader__batch_size=600, loader__num_workers=4)
    assert [len(batch.labels) for batch in data.train_dataloader()] == [600, 600]
    assert len(keys(data.val_dataloader())) == 397


def by_key(batches: Iterable[GlimpseBatch | CanvasBatch]) -> dict[str, tuple[bytes, bytes]]:
    """Pixels and positions."""
    rows = {}
    for batch in batches:
        views = batch.scene if isinstance(batch, CanvasBatch) else batch
        for key, pixels, positions in zip(batch.keys, views[0], views.positions, strict=True):
            rows[key] = pixels.numpy().tobytes(), positions.numpy().tobytes()
    return rows


def test_draws_depend_on_seed_epoch_and_sample_alone(data_dir: Path) -> None:
    """Other workers, batch sizes and a second pass draw the same; other epochs and seeds draw anew."""
    first = by_key(data_module(data_dir, val=True, loader__batch_size=50).train_dataloader())
    again = by_key(data_module(data_dir, val=True, loader__batch_size=35, loader__num_workers=2).train_dataloader())
    common = first.keys() & again.keys()
    assert len(common) > 330
    assert all(first[key] == again[key] for key in common)
    for change in ({"epoch": 1}, {"seed": 1}):
        other = by_key(data_module(data_dir, val=True, loader__batch_size=50, **change).train_dataloader())
        assert not any(first[key] == other[key] for key in first.keys() & other.keys())
    data = data_module(data_dir, val=True, loader__batch_size=50)
    assert keys(data.train_dataloader()) == keys(data.train_dataloader())
    fixed = [
        by_key(data_module(data_dir, val=True, epoch=e, loader__batch_size=b).val_dataloader())
        for e, b in ((0, 40), (7, 64))
    ]
    assert {k: v for k, v in fixed[0].items() if k} == {k: v for k, v in fixed[1].items() if k}


def test_the_epoch_is_asked_for_at_every_pass(data_dir: Path) -> None:
    data = data_module(data_dir, loader__batch_size=50)
    loader = data.train_dataloader()
    first = keys(loader)
    data.trainer.current_epoch = 1
    assert keys(loader) != first


def test_training_glimpses_draw_what_they_promise() -> None:
    """A white image on a black canvas shows where its box is: half of the trajectories keep inside."""
    white = cv2.imencode(".png", np.full((20, 10, 3), 255, dtype=np.uint8))[1].tobytes()
    glimpses, inside, sides = TrainingGlimpses(TrainView((40, 44), 50), 8), 0, Counter()
    for number in range(400):
        sample = glimpses.sample(RawSample("white", white, 3), np.random.default_rng(number), partner=None)
        patches, positions = sample.patches, sample.positions
        inside += bool((patches == 255).all())
        sides[int(positions.max()) + 8] += 1
        assert positions.min() >= 0
        # the ratio counts the image's own pixels: 20 x 10 on a canvas of side s becomes s x s/2
        assert 0 <= sample.information_ratio[0] <= 64 / (40 * 20) + 1e-6
    assert 160 < inside < 240
    assert max(sides) <= 44


def test_a_training_scan_is_that_pattern_on_the_image_or_the_canvas() -> None:
    """Random ones are the numbers that they were when there was no other; everything before is drawn as ever."""
    white = cv2.imencode(".png", np.full((20, 10, 3), 255, dtype=np.uint8))[1].tobytes()
    raw = RawSample("white", white, 3)
    areas = Counter()
    for number in range(40):
        rng = np.random.default_rng(number)
        side = int(rng.integers(40, 44, endpoint=True))
        _, box = fit_on_canvas(cv2.imdecode(np.frombuffer(white, np.uint8), cv2.IMREAD_COLOR_RGB), side)
        area = box if rng.random() < 0.5 else Box(0, 0, side, side)
        areas[area == box] += 1
        state = rng.bit_generator.state
        for scan in SCANS:
            glimpses = TrainingGlimpses(TrainView((40, 44), 50), 8, scan)
            sample = glimpses.sample(raw, np.random.default_rng(number), partner=None)
            rng.bit_generator.state = state
            positions = SCANS[scan](area, 8, 50, rng)
            assert (sample.positions.numpy() == positions).all()
            assert sample.information_ratio.equal(information_ratio(positions, box, 8).float())
        default = TrainingGlimpses(TrainView((40, 44), 50), 8).sample(raw, np.random.default_rng(number), None)
        rng.bit_generator.state = state
        assert (default.positions.numpy() == random(area, 8, 50, rng)).all()
    assert min(areas.values()) > 8


def test_training_batches_follow_their_scan(data_dir: Path) -> None:
    data = data_module(data_dir, train_scan="row_raster", train__canvas=(32, 32), loader__batch_size=7)
    raster = [[row, col] for row in (0, 16) for col in (0, 16)]
    for positions in next(iter(data.train_dataloader())).positions:
        assert positions.tolist() == [*raster, [0, 0]]
    drawn = by_key(data_module(data_dir, val=True, loader__batch_size=50).train_dataloader())
    named = by_key(data_module(data_dir, val=True, loader__batch_size=50, train_scan="random").train_dataloader())
    assert drawn == named


def test_trajectories_follow_several_scans_by_their_shares(data_dir: Path) -> None:
    shares = {"row_raster": 1.0, "column_raster": 3.0}
    data = data_module(data_dir, train_scan=shares, train__canvas=(32, 32), loader__batch_size=50)
    second = [move for batch in data.train_dataloader() for move in batch.positions[:, 1].tolist()]
    down = second.count([16, 0])
    assert down + second.count([0, 16]) == len(second) >= 1000
    assert abs(down / len(second) - 0.75) < 0.05


@pytest.mark.parametrize(
    ("scan", "sentence"),
    [
        ({}, "data.train_scan is empty: give a scan, or several with their shares"),
        ({"random": 1.0, "sobol": 0.0}, "data.train_scan has sobol with share 0.0: give shares of more than 0"),
        ({"random": float("nan")}, "data.train_scan has random with share nan: give shares of more than 0"),
        ({"random": 1.0, "zigzag": 1.0}, "no scan pattern is called 'zigzag': choose one of random"),
    ],
)
def test_shares_that_are_none_are_refused(scan: dict[str, float], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        ShardDataModule(train_scan=scan)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.integers(0, 40))
def test_a_glimpse_of_a_narrow_image_stays_on_the_canvas(height: int, width: int, patch: int, more: int) -> None:
    canvas, box = fit_on_canvas(np.zeros((height, width, 3), np.uint8), patch + more)
    positions = scan_pattern("random")(box, patch, 50, np.random.default_rng(0))
    assert positions.min() >= 0
    assert positions.max() + patch <= len(canvas)


@pytest.mark.parametrize(("world_size", "micro_batch_size"), [(1, 32), (1, 40), (2, 16), (4, None)])
def test_the_batches_of_an_optimizer_step_are_the_same_however_it_is_divided(
    data_dir: Path, world_size: int, micro_batch_size: int | None
) -> None:
    whole = data_module(data_dir, val=True, loader__batch_size=64).train_dataloader()
    steps = [set(batch.keys) for batch in whole]
    parts: list[list[str]] = [[] for _ in steps]
    for rank in range(world_size):
        data = data_module(
            data_dir,
            rank,
            world_size,
            val=True,
            loader__batch_size=64,
            loader__micro_batch_size=micro_batch_size,
            loader__num_workers=2,
        )
        accumulation = data.trainer.accumulate_grad_batches
        for number, batch in enumerate(data.train_dataloader()):
            assert len(batch.keys) <= (micro_batch_size or 64)
            parts[number // accumulation] += batch.keys
    assert [sorted(part) for part in parts] == [sorted(step) for step in steps]


def test_a_global_batch_stated_twice_or_that_does_not_divide(data_dir: Path) -> None:
    with pytest.raises(InputError, match="batch_size is 64, which 3 processes cannot share evenly: .* is 63"):
        data_module(data_dir, 0, 3, loader__batch_size=64)
    data = ShardDataModule(data_dir=str(data_dir), loader=LoaderConfig(batch_size=64, micro_batch_size=32))
    model = SimpleNamespace(takes="glimpses", has_policy=False)
    data.trainer = SimpleNamespace(world_size=1, accumulate_grad_batches=4, lightning_module=model)
    with pytest.raises(InputError, match="accumulate_grad_batches is 4, but accumulation follows"):
        data.setup("fit")


def digest(parts: Iterable[str | torch.Tensor]) -> str:
    sha = hashlib.sha256()
    for part in parts:
        sha.update(part.encode() if isinstance(part, str) else part.numpy().tobytes())
    return sha.hexdigest()[:16]


@pytest.mark.parametrize(
    ("arguments", "drawn", "cut", "brightness"),
    [
        ({"train_scan": "random"}, "7ef0fd7c50fc2f90", "dccdf149f59e35b2", 100.9620),
        ({"train_scan": "hilbert"}, "55a101e5b53a2726", "db97a831f7dd9327", 86.3918),
        ({"train_scan": "sobol"}, "87058e8c6b3d5a0f", "28a13c3f2c20551e", 106.5194),
        (
            {"train__augmentation": Augmentation(), "train__mixing": Mixing(mixup=0.3, cutmix=0.3)},
            "907e179cce1a3c38",
            None,  # OpenCV and torch differ a little on other processors; version 0.1 resized linearly: 86.1783
            88.2529,
        ),
    ],
    ids=["random", "hilbert", "sobol", "augmented and mixed"],
)
def test_training_draws_what_version_0_1_drew(
    arguments: dict[str, Any], drawn: str, cut: str | None, brightness: float, data_dir: Path
) -> None:
    """Digests of its first two batches of epoch 2, computed once with it."""
    given = {"train__num_glimpses": 9, "loader__batch_size": 32, "loader__shuffle_span": 1, "seed": 5, "epoch": 2}
    batches = list(islice(data_module(data_dir, **given, **arguments).train_dataloader(), 2))
    rows = [(*b.keys, b.positions, b.information_ratio, b.labels, b.partner_labels, b.label_shares) for b in batches]
    assert digest(part for row in rows for part in row) == drawn
    patches = [batch.patches for batch in batches]
    assert digest(patches) == cut or cut is None
    assert float(torch.cat(patches).float().mean()) == pytest.approx(brightness, abs=0.01)


def test_validation_draws_what_version_0_1_drew(data_dir: Path) -> None:
    given = {"evaluate__num_glimpses": 9, "evaluate__report_at": (4,), "evaluate__shift": (3, 0), "limit": 2}
    given |= {"resolutions": (32, 45), "scans": ("random", "sobol", "random_grid", "spiral")}
    given |= {"evaluate__interpolation": "area"}
    batches = list(data_module(data_dir, **given, loader__batch_size=32, seed=5).val_dataloader())
    rows = [(*b.keys, b.scene.positions, b.information_ratio, b.labels, b.valid) for b in batches]
    assert digest(part for row in rows for part in row) == "5acb190909617042"
    assert digest(batch.scene.canvases for batch in batches) == "d82b2ce1818feb15"


def test_the_data_module_is_what_model_and_callbacks_know_it_as(data_dir: Path) -> None:
    """Every member of DataSpec is there after setup, and of the type that it says."""
    data: DataSpec = data_module(data_dir, loader__batch_size=50, loader__micro_batch_size=25, seed=3)
    properties = {name for name, member in vars(DataSpec).items() if isinstance(member, property)}
    members = {name: getattr(data, name) for name in properties | DataSpec.__annotations__.keys()}
    assert len(members) > 15
    labels = data.train_dataloader().access.index.labels
    assert members.pop("class_counts").tolist() == [int((labels == label).sum()) for label in range(10)]
    largest = members.pop("largest_sample")
    assert isinstance(largest, GlimpseBatch)
    assert largest.patches.shape == (1, 5, 3, 16, 16)
    assert members == {
        "num_classes": 10,
        "patch_size": 16,
        "tube": 1,
        "channels": 3,
        "axes": 2,
        "waiting": False,
        "held_out": 0.0,
        "classes": list("0123456789"),
        "conditions": (EvaluationCondition(48, "random"),),
        "num_glimpses": 6,
        "report_at": (),
        "protocol": {
            "num_glimpses": 6,
            "report_at": (),
            "shift": (0, 0),
            "resize": "fit",
            "interpolation": "lanczos",
            "truncate": False,
            "skip_edge": False,
        },
        "canvas_range": (32, 64),
        "num_workers": 0,
        "optimizer_step": OptimizerStep(images=50, micro_batch=25, accumulation=2),
        "train_batches": 56,
        "batches_left": 0,
        "train_split": SplitSummary(samples=1400, shards=7, streaming=False),
        "val_split": SplitSummary(samples=397, shards=2, streaming=False),
        "class_sorted_shards": [],
        "train_wait": 0.0,
        "evaluation_wait": 0.0,
        "skipped_files": 0,
        "streams": False,
    }
    assert data.trainer.accumulate_grad_batches == 2
    next(iter(data.train_dataloader())), list(data.val_dataloader())
    assert 0 < data.train_wait < data.evaluation_wait


def test_hyperparameters_are_plain_and_grouped_as_the_flags_are(data_dir: Path, tmp_path: Path) -> None:
    view = TrainView(augmentation=Augmentation(flip=0.1), mixing=Mixing(cutmix=0.5))
    data = ShardDataModule(data_dir=str(data_dir), images="x.png", seed=4, train=view, loader=LoaderConfig(32))
    torch.save(dict(data.hparams), tmp_path / "hparams.pt")
    saved = torch.load(tmp_path / "hparams.pt", weights_only=True)
    assert saved == dict(data.hparams)
    assert not {"images", "predict"} & saved.keys()
    assert saved["train"]["augmentation"]["flip"] == 0.1
    assert saved["train"]["mixing"] == {"mixup": 0.0, "mixup_alpha": 0.2, "cutmix": 0.5, "cutmix_alpha": 1.0}
    assert (saved["loader"]["batch_size"], saved["evaluate"]["num_glimpses"], saved["seed"]) == (32, 64, 4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainView(canvas=(40, 30)), "data.train.canvas is 40..30 pixels: give two sides of at least 1, the"),
        (lambda: TrainView(num_glimpses=0), "data.train.num_glimpses is 0: give at least 1"),
        (lambda: TrainView(inside_prob=1.5), "data.train.inside_prob is 1.5: give a probability, 0 to 1"),
        (lambda: ShardDataModule(patch_size=40), "data.train.canvas is 32..64 pixels and a glimpse 40: give two sides"),
        (lambda: ShardDataModule(resolutions=(8,)), "data.resolutions has 8, less than a glimpse of 16 pixels"),
        (lambda: ShardDataModule(train_scan="zigzag"), "no scan pattern is called 'zigzag': choose one of random"),
        (lambda: ShardDataModule(scans=("no.such.scan",)), "no.such"),
        (lambda: ShardDataModule(predict=PredictView(8)), "data.predict.resize is 8, less than a glimpse of 16"),
        (lambda: LoaderConfig(batch_size=0), "data.loader.batch_size is 0: give at least 1"),
        (lambda: LoaderConfig(micro_batch_size=0), "data.loader.micro_batch_size is 0: give at least 1"),
        (lambda: LoaderConfig(num_workers=-1), "data.loader.num_workers is -1: give at least 0"),
        (lambda: LoaderConfig(shuffle_span=0), "data.loader.shuffle_span is 0: give at least 1"),
        (lambda: LoaderConfig(timeout=-1.0), "data.loader.timeout is -1.0: give at least 0"),
    ],
)
def test_arguments_that_cannot_be(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def scan_of_my_own(box: Box, patch_size: int, num_glimpses: int, rng: np.random.Generator) -> np.ndarray:
    return np.full((num_glimpses, 2), 3, np.int32)


def test_scans_may_be_named_by_their_import_path(data_dir: Path) -> None:
    scan = f"{__name__}.scan_of_my_own"
    data = data_module(data_dir, train_scan=scan, scans=(scan,))
    assert (next(iter(data.train_dataloader())).positions == 3).all()
    assert (next(iter(data.val_dataloader())).scene.positions == 3).all()
