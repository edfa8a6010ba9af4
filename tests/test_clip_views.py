"""Training and validation of clips: what a sample shows is what its frames do, and damage is answered as of images."""

import io
import logging
import tarfile
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from clips import LIMIT, clip, noise, png
from hypothesis import given, settings
from hypothesis import strategies as st
from test_datamodule import data_module

from datamodules.loading.stream import collate
from datamodules.shards.index import write_index
from datamodules.shards.scan import scan_shard
from datamodules.transforms.avi import write_avi
from datamodules.transforms.clips import Clip
from datamodules.transforms.draws import Augmentation
from datamodules.transforms.headers import START_OF_PNG
from datamodules.transforms.mixing import Mixing
from datamodules.views.evaluate import DecodedSample, EvaluateView, EvaluationCanvases, at_lengths
from datamodules.views.train import RawSample, TrainingCanvases, TrainingGlimpses, TrainView, training_samples
from mambaeye.batch import CANVAS, CanvasBatch, EvaluationCondition, GlimpseBatch
from mambaeye.encoders.base import GlimpseEncoder
from mambaeye.encoders.glimpse_vit import GlimpseViT
from mambaeye.encoders.hnet import HNet
from mambaeye.encoders.mambaeye import MambaEye
from mambaeye.errors import InputError

KEY = (1, 0)
CONDITIONS = [EvaluationCondition(side, scan) for side in (24, 32) for scan in ("random", "arriving")]
STILL = [condition._replace(scan="random") for condition in CONDITIONS]


def union(positions: np.ndarray, box: np.ndarray, sides: tuple[int, ...]) -> list[float]:
    """Information ratio by painting, one glimpse after another."""
    start, size = box.reshape(2, -1)
    seen = np.zeros(size + 200, bool)  # a margin of 100
    own = tuple(slice(100, 100 + side) for side in size)
    ratios = []
    for place in positions - start + 100:
        seen[tuple(slice(first, first + side) for first, side in zip(place, sides, strict=True))] = True
        ratios.append(seen[own].mean())
    return ratios


@pytest.mark.parametrize("count", [3, 8, 11])
def test_a_clips_canvas_is_those_of_its_frames(count: int) -> None:
    """As images of the same pixels are put on theirs; the middle frames of a longer one."""
    frames = noise(count)
    of_clips = EvaluationCanvases(CONDITIONS, (2, 8, 8), EvaluateView(9, shift=(1, 2)), frames=8)
    of_images = EvaluationCanvases(STILL, 8, EvaluateView(9, shift=(1, 2)))
    batches = list(of_clips([DecodedSample(0, "a", 3, clip(frames))], KEY))
    assert [batch.condition for batch in batches] == [0, 1, 2, 3]
    first = max(0, (count - 8) // 2)
    stills = [list(of_images([DecodedSample(0, "a", 3, frame)], KEY)) for frame in frames[first : first + 8]]
    for batch, *images in zip(batches, *stills, strict=True):
        shown = min(count, 8)
        before = (8 - shown) // 2
        canvas = batch.scene.canvases
        assert canvas.shape == (8, *images[0].scene.canvases.shape)
        assert canvas[before : before + shown].equal(torch.stack([image.scene.canvases for image in images]))
        assert not canvas[:before].any()
        assert not canvas[before + shown :].any()
        row, col, height, width = images[0].scene.boxes.tolist()
        assert batch.scene.boxes.tolist() == [before, row, col, shown, height, width]
        positions = batch.scene.positions.numpy()
        assert positions.shape == (9, 3)
        expected = union(positions, batch.scene.boxes.numpy(), (2, 8, 8))
        np.testing.assert_allclose(batch.information_ratio, expected, rtol=1e-6)


def test_several_lengths_are_what_each_is_alone() -> None:
    view, sample = EvaluateView(9), DecodedSample(0, "a", 3, clip(noise(11)))
    several = at_lengths(CONDITIONS, [4, 20, 11])
    assert [condition.name for condition in several[::4]] == ["4x24_random", "20x24_random", "11x24_random"]
    batches = list(EvaluationCanvases(several, (2, 8, 8), view, frames=4)([sample], KEY))
    alone = [
        batch
        for frames in (4, 20, 11)
        for batch in EvaluationCanvases(CONDITIONS, (2, 8, 8), view, frames=frames)([sample], KEY)
    ]
    assert [batch.condition for batch in batches] == [*range(12)]
    for batch, other in zip(batches, alone, strict=True):
        assert all(map(torch.equal, batch.scene, other.scene))
        assert batch.information_ratio.equal(other.information_ratio)
    assert at_lengths(CONDITIONS, [4]) == tuple(CONDITIONS)


@given(number=st.integers(0, 999), tube=st.integers(1, 3))
@settings(max_examples=30)
def test_training_glimpses_are_cut_from_a_window_of_successive_frames(number: int, tube: int) -> None:
    frames = noise(9, 16, 16)  # as large as the canvases: no pixel changes
    view = TrainView(canvas=(16, 16), num_glimpses=6, frames=(3, 5))
    samples = TrainingGlimpses(view, (tube, 8, 8), {"random": 1, "tube_raster": 1}, axes=3)
    raw = RawSample("a", clip(frames), 2)
    sample = samples.sample(raw, np.random.default_rng(number), partner=None)
    again = samples.sample(raw, np.random.default_rng(number), partner=None)
    assert sample.patches.equal(again.patches)
    assert sample.patches.shape == (6, 3, tube, 8, 8)
    assert (sample.labels, sample.valid) == (2, True)
    fits = []
    for first in range(7):
        cuts = []
        for frame, row, col in sample.positions.tolist():
            cut = frames[first + frame :][:tube, row : row + 8, col : col + 8]
            cuts.append(np.moveaxis(cut, -1, 0))
        fits.append(all(np.array_equal(*pair) for pair in zip(cuts, sample.patches.numpy(), strict=True)))
    assert sum(fits) == 1
    filler = samples.filler("a")
    assert filler.patches.shape == sample.patches.shape
    assert filler.positions.shape == sample.positions.shape


def test_windows_and_lengths_are_drawn_evenly() -> None:
    frames = np.zeros((10, 8, 8, 3), np.uint8) + np.arange(10, dtype=np.uint8)[:, None, None, None]
    view, starts, lengths = TrainView(canvas=(8, 8), num_glimpses=40, frames=(3, 4)), [], []
    samples = TrainingGlimpses(view, (1, 8, 8), "tube_raster", axes=3)
    for number in range(400):
        sample = samples.sample(RawSample("a", clip(frames), 0), np.random.default_rng(number), partner=None)
        shown = sample.patches[:, 0, 0, 0, 0].unique().tolist()
        assert shown == [*range(shown[0], shown[0] + len(shown))]
        starts.append(shown[0])
        lengths.append(len(shown))
    assert 160 < lengths.count(3) < 240
    counts = np.bincount(starts, minlength=8)
    assert counts[:7].min() > 30
    assert counts[7] > 10  # of windows of 3 alone


def test_augmentations_are_the_same_for_every_frame() -> None:
    frames = np.repeat(noise(1, 40, 40), 6, axis=0)
    view = TrainView(canvas=(32, 32), num_glimpses=1, frames=(6, 6), augmentation=Augmentation())
    samples = TrainingCanvases(view, (1, 16, 16), CANVAS, axes=3)
    looks = set()
    for number in range(12):
        sample = samples.sample(RawSample("a", clip(frames), 0), np.random.default_rng(number), None, 32, 6)
        canvas = sample.scene.canvases
        assert canvas.shape == (6, 32, 32, 3)
        assert (canvas == canvas[:1]).all()
        looks.add(canvas.numpy().tobytes())
    assert len(looks) == 12


def test_memory_does_not_grow_with_the_frames_of_a_clip_nor_their_size() -> None:
    """At once a frame of a clip is held as it is, and the canvas twice at most."""
    height, width = 480, 640
    still = cv2.GaussianBlur(noise(1, height, width)[0], (31, 31), 9)
    opened = Clip.open(write_avi([png(still)] * 40, height, width, 25), LIMIT, "sample a")
    train = TrainingGlimpses(TrainView(canvas=(96, 96), num_glimpses=4, frames=(30, 30)), (1, 16, 16), axes=3)
    evaluate = EvaluationCanvases([EvaluationCondition(96, "random")], (1, 16, 16), EvaluateView(4), frames=30)
    for look in (
        lambda: train.sample(RawSample("a", opened, 0), np.random.default_rng(0), partner=None),
        lambda: list(evaluate([DecodedSample(0, "a", 0, opened)], KEY)),
    ):
        tracemalloc.start()
        look()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        frame, canvas = 3 * height * width, 3 * 30 * 96 * 96
        assert canvas < peak < 4 * frame + 2 * canvas  # all frames as they are would be 30


@torch.no_grad()
@pytest.mark.parametrize("tube", [1, 8])
@pytest.mark.parametrize("kind", [MambaEye, HNet, GlimpseViT])
def test_encoders_of_glimpses_take_tubes_and_cubes(kind: type[GlimpseEncoder], tube: int) -> None:
    view = TrainView(canvas=(16, 20), num_glimpses=6, frames=(8, 12))
    samples = TrainingGlimpses(view, (tube, 8, 8), "arriving", axes=3)
    rows = [samples.sample(RawSample("a", clip(noise(9)), 0), np.random.default_rng(n), None) for n in range(2)]
    batch = collate(rows)
    assert isinstance(batch, GlimpseBatch)
    sizes = {"heads": 3} if kind is GlimpseViT else {"headdim": 8, "move_embedding_dim": 8}
    encoder = kind(num_classes=4, patch_size=8, dim=24, axes=3, tube=tube, **sizes)
    logits = encoder(batch.patches, batch.positions)
    assert logits.shape == (2, len(encoder.answers_at(6)), 4)
    if kind is not HNet:  # whose answers, while weights are new, are those to the few glimpses that it keeps
        later = batch.positions + torch.tensor([1, 0, 0]) * (torch.arange(6) > 2)[:, None]
        assert not encoder(batch.patches, later).allclose(logits)  # frames count


@pytest.mark.parametrize("mixing", [Mixing(mixup=1.0), Mixing(cutmix=1.0)], ids=["mixup", "cutmix"])
def test_clips_are_mixed_with_a_window_of_another(mixing: Mixing) -> None:
    """Black and white: what is seen of the whole canvas has the share of white that the label has."""
    black, white = (np.full((9, 16, 16, 3), value, np.uint8) for value in (0, 255))
    view = TrainView(canvas=(16, 16), num_glimpses=8, frames=(4, 4), inside_prob=1.0, mixing=mixing)
    samples = training_samples(view, (1, 8, 8), "row_raster", "canvas", False, axes=3)
    shares = []
    for number in range(20):
        raw, other = RawSample("a", clip(white), 2), RawSample("b", clip(black), 3)
        sample = samples.sample(raw, np.random.default_rng(number), lambda rng, other=other: other, 16, 4)
        assert isinstance(sample, CanvasBatch)
        assert (sample.labels, sample.partner_labels) == (2, 3)
        assert sample.scene.canvases.float().mean() / 255 == pytest.approx(sample.label_shares.item(), abs=0.003)
        shares.append(sample.label_shares.item())
    assert max(shares) - min(shares) > 0.5


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve clips of 6 to 8 frames, of two classes; the last frame of clip 3 and all of clip 5 are damaged."""
    folder = tmp_path_factory.mktemp("clips")
    with tarfile.open(folder / "a.tar", "w") as tar:
        for number in range(12):
            encoded = [png(frame) for frame in noise(6 + number % 3, 20, 20, number)]
            if number == 3:
                encoded[-1] = START_OF_PNG + b"damaged"
            data = bytearray(write_avi(encoded, 20, 20, 25))
            for name, content in ((f"clip-{number}.avi", data), (f"clip-{number}.cls", str(number % 2).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    write_index(folder, ["x", "y"], [scan_shard(folder / "a.tar")])
    data = bytearray((folder / "a.tar").read_bytes())
    at = data.index(b"clip-5.avi") + 512  # behind the header
    data[at : at + 4] = b"KAPU"
    (folder / "a.tar").write_bytes(data)
    return folder


def test_batches_of_clips_are_keyed_and_damaged_ones_left_out(shards: Path, caplog: pytest.LogCaptureFixture) -> None:
    given = dict.fromkeys(("train_shards", "val_shards"), str(shards))
    given |= {"num_classes": 2, "patch_size": 8, "tube": 2, "resolutions": (16, 24), "frames": 4}
    given |= {"scans": ("random", "arriving"), "train__frames": (4, 8), "train__canvas": (16, 20)}
    given |= {"loader__batch_size": 3, "loader__max_unreadable": 2}
    data = data_module(shards, **given)
    assert data.axes == 3
    assert data.protocol.items() >= {"frames": 4, "tube": 2}.items()
    with caplog.at_level(logging.WARNING):
        train, again = list(data.train_dataloader()), list(data_module(shards, **given).train_dataloader())
    for batch, other in zip(train, again, strict=True):
        assert isinstance(batch, GlimpseBatch)
        assert batch.patches.shape == (3, 5, 3, 2, 8, 8)
        assert batch.keys == other.keys
        assert batch.patches.equal(other.patches)
    left_out = {key for batch in train for key, valid in zip(batch.keys, batch.valid, strict=True) if not valid}
    assert "clip-5" in left_out
    assert left_out <= {"clip-3", "clip-5"}
    caplog.clear()
    val = list(data.val_dataloader())
    assert len(val) == 4 * 4
    for batch in val:
        assert isinstance(batch, CanvasBatch)
        side = data.conditions[batch.condition].resolution
        assert batch.scene.canvases.shape == (3, 4, side, side, 3)
        assert batch.scene.boxes.shape == (3, 6)
        # the middle frames of clip 3 are whole
        assert [key for key, valid in zip(batch.keys, batch.valid, strict=True) if not valid] in ([], ["clip-5"])
    with pytest.raises(InputError, match="the clip of sample clip-5 is no AVI.*in .*a.tar"):
        list(data_module(shards, **given | {"loader__max_unreadable": 0}).val_dataloader())


def test_canvases_of_a_step_have_one_size(shards: Path) -> None:
    given = dict.fromkeys(("train_shards", "val_shards"), str(shards))
    given |= {"num_classes": 2, "train__frames": (4, 8), "train__canvas": (16, 20), "takes": "canvas"}
    batches = list(data_module(shards, **given, loader__batch_size=3, loader__max_unreadable=2).train_dataloader())
    sizes = {tuple(batch.scene.canvases.shape[1:]) for batch in batches}
    assert len(sizes) > 1
    assert all(4 <= frames <= 8 and 16 <= side <= 20 and side == other for frames, side, other, _ in sizes)


def test_images_and_clips_are_not_for_one_run(shards: Path, data_dir: Path) -> None:
    with pytest.raises(InputError, match="holds images and .* clips: give shards of one kind"):
        data_module(data_dir, train_shards=str(data_dir / "digits/val"), val_shards=str(shards), num_classes=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tube": 0}, "data.tube is 0 and data.frames 16"),
        ({"tube": 9, "frames": 8, "train__frames": (9, 9)}, "data.tube is 9 and data.frames 8"),
        ({"tube": 5}, "data.train.frames is 4..16 and a glimpse has 5"),
        ({"train__frames": (5, 4)}, "data.train.frames is 5..4"),
        ({"train__frames": (0, 4)}, "data.train.frames is 0..4"),
    ],
)
def test_frames_that_cannot_be_are_refused(arguments: dict[str, object], message: str, data_dir: Path) -> None:
    with pytest.raises(InputError, match=message):
        data_module(data_dir, **arguments)


def test_a_batch_of_canvases_collates() -> None:
    samples = EvaluationCanvases(CONDITIONS[:1], (1, 8, 8), EvaluateView(3), frames=5)
    clips = [DecodedSample(number, str(number), 0, clip(noise(4 + number))) for number in range(2)]
    batch = collate(list(samples([*clips, DecodedSample(-1, "", 0, None)], KEY)))
    assert isinstance(batch, CanvasBatch)
    assert batch.scene.canvases.shape == (3, 5, 24, 24, 3)
    assert batch.valid.tolist() == [True, True, False]
