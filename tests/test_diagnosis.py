"""The diagnosis against the recurrence written out in float64, and a model whose memory is known in closed form."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from lightning import Trainer
from mean_colour import MeanColour
from scenes import scene_of
from test_encoder import SMALL, small_model
from torch import Tensor

from callbacks.reports.diagnosis_statistics import move_edges, shares, training_moves
from callbacks.reports.film_strip import FilmStrip
from callbacks.reports.scan_diagnosis import ScanDiagnosis
from callbacks.reports.validation_report import ValidationReport
from datamodules.datamodule import ShardDataModule
from datamodules.loading.config import LoaderConfig
from datamodules.views.evaluate import EvaluateView
from mambaeye.batch import CanvasBatch, Scene
from mambaeye.encoders.base import Encoder
from mambaeye.encoders.mambaeye import EncoderConfig, MambaEye
from mambaeye.errors import InputError
from mambaeye.evaluation.diagnosis import Diagnosis, diagnose
from mambaeye.geometry.box import Box
from mambaeye.geometry.patches import cut_from_canvases
from mambaeye.geometry.scans import random
from mambaeye.module import ClassifierModule
from mambaeye.rollout import Rollout


def scene(images: int, num_glimpses: int) -> Scene:
    """Noise and a trajectory on it, the same for the same numbers."""
    torch.manual_seed(num_glimpses)
    return scene_of(images, num_glimpses, SMALL.patch_size)


def glimpses(scene: Scene) -> tuple[Tensor, Tensor]:
    """Return patches and positions of the trajectory."""
    return cut_from_canvases(scene.canvases, scene.positions, SMALL.patch_size), scene.positions


def diagnosed(model: MambaEye, scene: Scene) -> Diagnosis:
    return diagnose(Rollout(model, scene, at_once=1))


def written_out(model: MambaEye, patches: Tensor, positions: Tensor) -> list[list[list[Tensor]]]:
    """Of every image, layer and head: its states (T + 1, P, N) from zeros on, and its decays (T,)."""
    images = []
    for image in range(len(patches)):
        x = model.embed(patches[image : image + 1], positions[image : image + 1], None)[0]  # (T, D)
        layers = []
        for block in model.blocks:
            mixer, length = block.mixer, len(x)
            projected = F.rms_norm(x, x.shape[1:], block.norm.weight, 1e-5) @ mixer.in_proj.weight.T
            z, xbc, dt = projected.split([mixer.inner, mixer.channels, mixer.heads], dim=1)
            taps, padded = mixer.conv1d.weight[:, 0], torch.cat((xbc.new_zeros(mixer.d_conv - 1, mixer.channels), xbc))
            conv = torch.stack(
                [(padded[t : t + mixer.d_conv] * taps.T).sum(0) + mixer.conv1d.bias for t in range(length)]
            )
            inputs, B, C = F.silu(conv).split([mixer.inner, mixer.d_state, mixer.d_state], dim=1)
            heads, outputs = [], []
            for head in range(mixer.heads):
                own = inputs[:, head * mixer.headdim : (head + 1) * mixer.headdim]
                step = torch.log1p(torch.exp(dt[:, head] + mixer.dt_bias[head]))
                decays = torch.exp(-step * torch.exp(mixer.A_log[head]))
                states = [own.new_zeros(mixer.headdim, mixer.d_state)]
                for t in range(length):
                    states.append(decays[t] * states[-1] + step[t] * torch.outer(own[t], B[t]))
                heads.append([torch.stack(states), decays])
                y = torch.stack([state @ c for state, c in zip(states[1:], C, strict=True)])
                outputs.append(y + mixer.D[head] * own)
            gated = torch.cat(outputs, dim=1) * F.silu(z)
            x = x + F.rms_norm(gated, gated.shape[1:], mixer.norm.weight, 1e-5) @ mixer.out_proj.weight.T
            layers.append(heads)
        images.append(layers)
    return images


@torch.no_grad()
def test_every_number_is_that_of_the_recurrence_written_out() -> None:
    model, seen = small_model(), scene(2, 7)
    got = diagnosed(model, seen)
    shape = (2, 7, SMALL.depth)
    assert [part.shape for part in got] == [shape] * 3 + [(*shape, 4)] * 2 + [(2, 7, 2)]
    assert got.positions.equal(seen.positions)
    for image, layers in enumerate(written_out(model, *glimpses(seen))):
        for layer, heads in enumerate(layers):
            states = torch.stack([head[0] for head in heads], dim=1)  # (T + 1, H, P, N)
            decays = torch.stack([head[1] for head in heads], dim=1)  # (T, H)
            now, before = states[1:], states[:-1]
            sizes = now.flatten(1).norm(dim=1)
            left = torch.stack([decays[t + 1 :].prod(0) for t in range(7)])
            expected = Diagnosis(
                sizes,
                (now - before).flatten(1).norm(dim=1) / sizes,
                (now - decays[..., None, None] * before).flatten(1).norm(dim=1),
                decays,
                left,
                seen.positions[image],
            )
            of_layer = Diagnosis(*(part[image, :, layer] for part in got[:-1]), got.positions[image])
            torch.testing.assert_close(of_layer, expected, atol=1e-10, rtol=1e-10)
    assert 0.01 < got.left[:, 0].min() < got.left[:, 0].max() < 0.99, "nothing was to be seen"


@pytest.mark.parametrize("length", [1, 40])
def test_a_memory_known_in_closed_form(length: int) -> None:
    """Step sizes that depend on nothing: glimpse t has decayed T - 1 - t times at the end."""
    model = small_model(torch.float32)
    rates = torch.tensor([0.5, 1.0, 4.0, 16.0])
    with torch.no_grad():
        for mixer in (block.mixer for block in model.blocks):
            mixer.in_proj.weight[-mixer.heads :] = 0
            mixer.dt_bias.fill_(math.log(math.expm1(0.05)))  # softplus of this is 0.05
            mixer.A_log.copy_(rates.log())
    got = diagnosed(model, scene(3, length))
    age = length - 1 - torch.arange(length)[:, None, None]
    decay = torch.exp(-0.05 * rates)
    torch.testing.assert_close(got.decay, decay.expand_as(got.decay))
    torch.testing.assert_close(got.left, (decay**age).expand(3, length, 2, 4), atol=1e-7, rtol=1e-4)
    assert got.change[:, 0].equal(torch.ones(3, 2))


def test_the_model_is_as_before_and_images_do_not_mix() -> None:
    model, seen = small_model(torch.float32), scene(3, 9)
    before = model(*glimpses(seen))
    together = diagnosed(model, seen)
    one = diagnosed(model, seen.rows(slice(1, 2)))
    for all_three, alone in zip(together, one, strict=True):
        torch.testing.assert_close(all_three[1:2], alone, atol=1e-5, rtol=1e-5)
    assert model(*glimpses(seen)).equal(before)
    assert not any(block.mixer.in_proj._forward_hooks for block in model.blocks)
    assert not any(part.requires_grad for part in together)


def test_states_and_decays_stay_wide_under_autocast() -> None:
    model = MambaEye(EncoderConfig(**{**vars(SMALL), "d_state": 16}))
    seen = scene(2, 5)
    exact = diagnosed(model, seen)
    with torch.autocast("cpu", torch.bfloat16):
        got = diagnosed(model, seen)
    for wide, narrow in zip(exact[:-1], got[:-1], strict=True):
        assert narrow.dtype == torch.float32
        torch.testing.assert_close(narrow, wide, atol=0.02, rtol=0.05)


def validated(
    run_dir: Path, data_dir: Path, images: int, batch_size: int, encoder: Encoder | None = None, limit: int = 3
) -> Trainer:
    """A validation under two conditions with the diagnosis."""
    shards = str(data_dir / "digits" / "val")
    data = ShardDataModule(
        shards,
        shards,
        resolutions=(40,),
        scans=("random", "row_raster"),
        evaluate=EvaluateView(num_glimpses=11),
        loader=LoaderConfig(batch_size=batch_size, num_workers=0),
    )
    torch.manual_seed(0)
    module = ClassifierModule(encoder or MambaEye(num_classes=10, dim=16, depth=2, d_state=8, headdim=8))
    trainer = Trainer(
        accelerator="cpu",
        default_root_dir=run_dir,
        logger=False,
        enable_progress_bar=False,
        limit_val_batches=limit,
        callbacks=[ScanDiagnosis(images), FilmStrip(2), ValidationReport()],
    )
    trainer.validate(module, data, verbose=False)
    return trainer


def test_a_validation_writes_down_what_the_first_images_did(data_dir: Path, tmp_path: Path) -> None:
    """15 images of batches of 10: means over the first 15, against each condition's images taken at once."""
    trainer = validated(tmp_path, data_dir, images=15, batch_size=10)
    data, module = trainer.datamodule, trainer.lightning_module
    batches: list[CanvasBatch] = list(data.val_dataloader())
    with (tmp_path / "validation" / "diagnosis.csv").open() as file:
        rows = list(csv.DictReader(file))
    summary = json.loads((tmp_path / "validation" / "diagnosis.json").read_text())
    for place, (condition, told) in enumerate(zip(data.conditions, summary["conditions"], strict=True)):
        first, second = [batch.scene for batch in batches if batch.condition == place][:2]
        seen = Scene(*(torch.cat((part, other[:5])) for part, other in zip(first, second, strict=True)))
        expected = diagnosed(module.encoder, seen)
        of_condition = [row for row in rows if (int(row["resolution"]), row["scan"]) == condition[:2]]
        assert [(int(row["step"]), int(row["layer"])) for row in of_condition] == [
            (t, i) for t in range(1, 12) for i in (1, 2)
        ]
        for row in of_condition:
            at = int(row["step"]) - 1, int(row["layer"]) - 1
            for name in ("norm", "change", "written"):
                assert float(row[name]) == pytest.approx(float(getattr(expected, name)[:, *at].mean()), rel=1e-4)
            assert float(row["norm_sd"]) == pytest.approx(float(expected.norm[:, *at].std(correction=0)), rel=1e-3)
            decay, left = expected.decay[:, *at].mean(0), expected.left[:, *at].mean(0)  # (H,)
            assert float(row["decay"]) == pytest.approx(float(decay.mean()), rel=1e-4)
            assert float(row["left_least"]) == pytest.approx(float(left.min()), rel=1e-4)
            assert float(row["left_most"]) == pytest.approx(float(left.max()), rel=1e-4)
        assert (told["resolution"], told["scan"], told["images"]) == (*condition[:2], 15)
        assert told["top1"] == pytest.approx(module.result.conditions[place]["top1"][-1], abs=1e-5)
        memory = expected.left.sum(1).mean(0)  # (L, H)
        assert [layer["memory"] for layer in told["layers"]] == pytest.approx(memory.mean(1).tolist(), rel=1e-4)
        moved = seen.positions.diff(dim=1).flatten(0, 1).numpy()
        edges = np.array(summary["training_moves"]["edges"])
        for move in np.unique(moved, axis=0):
            bins = np.searchsorted(edges, move) - 1
            inside = ((moved > edges[bins]) & (moved < edges[bins + 1])).all(1).mean()
            assert told["moves"][bins[0]][bins[1]] == pytest.approx(inside, abs=1e-6)
        assert np.sum(told["moves"]) == pytest.approx(1)
    assert (tmp_path / "validation" / "diagnosis.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "validation" / "film_strip.png").exists()


def test_no_images_no_diagnosis(data_dir: Path, tmp_path: Path) -> None:
    """Then any encoder will do."""
    validated(tmp_path, data_dir, images=0, batch_size=10, encoder=MeanColour(10))
    assert (tmp_path / "validation" / "curves.csv").exists()
    assert not list((tmp_path / "validation").glob("diagnosis*"))


def test_an_encoder_without_recurrent_states_is_answered_before_anything_is_measured(
    data_dir: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="^MeanColour has no recurrent states to diagnose: set --diagnosis.images 0$"):
        validated(tmp_path, data_dir, images=1, batch_size=10, encoder=MeanColour(10))
    assert not list(tmp_path.iterdir())


@pytest.mark.long
def test_rows_that_fill_up_a_batch_are_no_images(data_dir: Path, tmp_path: Path) -> None:
    """More images asked for than there are: 397 of two batches of 200."""
    validated(tmp_path, data_dir, images=400, batch_size=200)
    summary = json.loads((tmp_path / "validation" / "diagnosis.json").read_text())
    assert [told["images"] for told in summary["conditions"]] == [397, 397]


@given(reach=st.integers(1, 3000))
def test_bins_of_moves_cover_them_evenly_around_zero(reach: int) -> None:
    edges = move_edges(reach)
    width = edges[1] - edges[0]
    assert (np.diff(edges) == width).all()
    assert width % 2 == 1
    assert (edges == -edges[::-1]).all()
    assert edges[-2] <= reach < edges[-1]
    assert len(edges) <= 53


def test_moves_of_training_are_those_that_are_drawn() -> None:
    rng, edges = np.random.default_rng(0), move_edges(20)
    found = np.zeros((len(edges) - 1,) * 2)
    for side in range(20, 33):
        for _ in range(40):
            found += shares(np.diff(random(Box(0, 0, side, side), 16, 1001, rng), axis=0), edges) / (13 * 40)
    expected = training_moves(edges, (20, 32), 16).shares
    assert expected.sum() == pytest.approx(1)
    assert np.abs(found - expected).sum() < 0.05
    assert np.abs(found - training_moves(edges, (20, 40), 16).shares).sum() > 0.2  # what such a test sees
