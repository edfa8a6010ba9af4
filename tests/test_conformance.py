"""Promises of every encoder of the project, whoever wrote it: one test over all subclasses.

A new encoder adds its small settings to SMALL; what it computes is its own test's business.
"""

import inspect
from pathlib import Path

import pytest
import torch
from commands import NO_PICTURES, TINY, flags
from lightning.fabric.utilities import move_data_to_device
from torch import Tensor

import mambaeye
from mambaeye.batch import CanvasBatch, GlimpseBatch, Scene
from mambaeye.encoders.base import CanvasEncoder, CausalEncoder, Encoder, GlimpseEncoder, select_rows
from mambaeye.encoders.efficient_vim import EfficientViM
from mambaeye.encoders.hnet import HNet
from mambaeye.encoders.local_vim import LocalVim
from mambaeye.encoders.mamba_r import MambaR
from mambaeye.encoders.naflex_vit import NaFlexViT
from mambaeye.encoders.video_mamba import VideoMamba
from mambaeye.encoders.vmamba import VMamba
from mambaeye.errors import InputError
from mambaeye.flops import training_flops
from mambaeye.loss import scheduled_cross_entropy_of_features
from mambaeye.module import ClassifierModule
from mambaeye.ops.features import Features
from mambaeye.optim import OptimizerConfig, build_optimizer
from train import main

CLASSES, IMAGES, GLIMPSES = 10, 3, 7
SMALL: dict[str, dict[str, object]] = {
    "MambaEye": {"patch_size": 16, "dim": 16, "depth": 2, "d_state": 8, "headdim": 8, "move_embedding_dim": 8},
    "ViT": {"dim": 16, "depth": 2, "heads": 2, "grid": 2},
    "Adventurer": {"dim": 16, "depth": 3, "d_state": 8, "headdim": 8, "grid": 2, "flipped_layers": [1]},
    "Vim": {"dim": 16, "depth": 2, "d_state": 4, "grid": 2},
    "MambaR": {"dim": 16, "depth": 2, "d_state": 4, "grid": 2, "registers": 2, "reduction": 2},
    "LocalVim": {"dim": 16, "depth": 2, "d_state": 4, "grid": 2, "directions": [["h", "w2"], ["v_flip"]]},
    "VideoMamba": {"dim": 16, "depth": 2, "d_state": 4, "grid": 2, "frames": 2},
    "VMamba": {"dim": 16, "depths": [1, 1]},
    "LocalVMamba": {"dim": 16, "depths": [1, 1], "d_state": 4, "directions": [["h", "w2"], ["v_flip"]]},
    "EfficientViM": {"dims": [8, 12, 16], "depths": [1, 2, 1], "states": [6, 4, 3], "mlp_ratio": 2},
    "SpatialMamba": {"dim": 8, "depths": [1, 2], "mlp_ratio": 2},
    "HiMambaStyle": {"dim": 16, "depth": 2, "d_state": 4, "grid": 2, "directions": ["v", "h_flip"]},
    "HNet": {
        "patch_size": 16,
        "dim": 16,
        "blocks": [1, 1],
        "router": "random",
        "d_state": 8,
        "headdim": 8,
        "move_embedding_dim": 8,
    },
    "GlimpseViT": {"patch_size": 16, "dim": 16, "depth": 2, "heads": 2},
    "NaFlexViT": {"dim": 16, "depth": 2, "heads": 2, "grid": 2, "registers": 2},
}
WITHOUT_EFFECT = {  # parameters of published layouts that cancel out, by the ends of their names
    "EfficientViM": ".mixer.A",  # a softmax over tokens takes out what moves them all alike
}
SYSTEMS = [
    system
    for system in Encoder.defined_subclasses()
    if system.__module__.startswith("mambaeye.") and not inspect.isabstract(system)
]
QUICKLY = {"MambaEye", "HNet", "GlimpseViT", "ViT", "Vim"}  # of each kind one, where a command line is tried
VARIANTS: list[tuple[type[Encoder], dict[str, object]]] = [
    *((system, {}) for system in SYSTEMS),
    (mambaeye.MambaEye, {"registers_every": 3}),
    (VMamba, {"d_state": 4, "mlp_ratio": 0, "gated": True, "conv_bias": True, "overlapping": False}),
    (HNet, {"router": "neighbours", "blocks": [1, 1, 1]}),
    (MambaR, {"reduction": 1}),
    (LocalVim, {"middle_class_token": True}),
    (VideoMamba, {"tubelet": 2, "masked_backward": True, "residual_state": True}),
    (NaFlexViT, {"positions": "factorized", "keep_aspect": True, "registers": 0}),
]


def needs(system: type[Encoder]) -> None:
    """Skip the test where the library that a system is an adapter of is not installed."""
    if system is NaFlexViT:
        pytest.importorskip("timm", reason="NaFlexViT needs the extra timm")


def build(system: type[Encoder], **changes: object) -> Encoder:
    needs(system)
    torch.manual_seed(0)
    assert system.__name__ in SMALL, f"give {system.__name__} small settings in SMALL"
    encoder = system(num_classes=CLASSES, **SMALL[system.__name__] | changes)
    for parameter in encoder.parameters():
        if not parameter.any():  # what starts at zero hides what goes through it
            torch.nn.init.normal_(parameter, std=0.1)
    return encoder


def named(variant: tuple[type[Encoder], dict[str, object]]) -> str:
    return "-".join([variant[0].__name__, *variant[1]])


@pytest.fixture(params=VARIANTS, ids=named)
def encoder(request: pytest.FixtureRequest) -> Encoder:
    system, changes = request.param
    return build(system, **changes)


@pytest.fixture(params=[v for v in VARIANTS if issubclass(v[0], CausalEncoder)], ids=named)
def causal(request: pytest.FixtureRequest) -> CausalEncoder:
    system, changes = request.param
    encoder = build(system, **changes)
    assert isinstance(encoder, CausalEncoder)
    return encoder.eval()


def batch_for(encoder: Encoder, seed: int = 1) -> GlimpseBatch | CanvasBatch:
    """A training batch such as the encoder takes."""
    draw = torch.Generator().manual_seed(seed)
    positions = torch.randint(30, (IMAGES, GLIMPSES, 2), generator=draw, dtype=torch.int32)
    ratio = torch.rand(IMAGES, GLIMPSES, generator=draw).cumsum(1) / GLIMPSES
    labels = torch.arange(IMAGES)
    rest = (ratio, labels, labels, torch.ones(IMAGES), ["a", "b", "c"], torch.ones(IMAGES, dtype=torch.bool))
    if isinstance(encoder, CanvasEncoder):
        canvases = torch.randint(256, (IMAGES, 46, 46, 3), generator=draw, dtype=torch.uint8)
        boxes = torch.tensor([[0, 0, 46, 46]], dtype=torch.int32).expand(IMAGES, 4)
        return CanvasBatch(Scene(canvases, boxes, positions, labels, labels > 0), *rest, condition=0)
    assert isinstance(encoder, GlimpseEncoder)
    side = encoder.patch_size
    patches = torch.randint(256, (IMAGES, GLIMPSES, 3, side, side), generator=draw, dtype=torch.uint8)
    return GlimpseBatch(patches, positions, *rest)


def glimpses(encoder: Encoder, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    batch = batch_for(encoder)
    assert isinstance(batch, GlimpseBatch)
    return batch.patches.to(dtype) / 255, batch.positions


def test_there_are_encoders() -> None:
    ours = {"MambaEye", "ViT", "Adventurer", "GlimpseViT", "Vim", "MambaR", "LocalVim"}
    ours |= {"VMamba", "LocalVMamba", "VideoMamba"}
    ours |= {"EfficientViM", "SpatialMamba", "HiMambaStyle"}
    assert ours <= {system.__name__ for system in SYSTEMS} <= SMALL.keys()


def test_it_answers_where_it_says(encoder: Encoder) -> None:
    answers = encoder.answers_at(GLIMPSES)
    assert answers.tolist() == sorted(set(answers.tolist()))
    assert answers[-1] == GLIMPSES
    features = encoder.encode(batch_for(encoder))
    assert features.shape == (IMAGES, len(answers), encoder.feature_dim)
    logits = encoder.logits(features)
    assert logits.shape == (IMAGES, len(answers), CLASSES)
    torch.testing.assert_close(logits, encoder.head(features))
    with torch.autocast("cpu", torch.bfloat16):
        assert encoder.logits(features).equal(logits)
    assert encoder.num_classes == CLASSES
    assert isinstance(encoder.backend(torch.device("cpu")), str)


@torch.no_grad()
def test_its_features_are_what_the_head_sees(encoder: Encoder) -> None:
    """The same numbers, with and without a record, and what is shown of glimpses or fields makes up the answer."""
    encoder.eval()
    inputs = inputs_of(encoder)
    features = encoder.forward_features(*inputs, every_stage=True)
    assert features.pooled.equal(encoder.features(*inputs))
    stages, _ = encoder.feature_modules()
    assert len(features.stages) == len(stages) > 1
    assert features.stages[0].shape[2] > 1
    assert not any(stage._forward_hooks for stage in stages)
    for part in (features.last, *features.stages):
        if isinstance(encoder, GlimpseEncoder):
            assert part.shape[:2] == (IMAGES, GLIMPSES)
        else:
            assert part.ndim == 4
            assert part.shape[0] == IMAGES
            assert part.shape[2] == part.shape[3]  # as canvases are
    torch.testing.assert_close(encoder.head(seen_by_head(encoder, features)), encoder(*inputs), atol=1e-5, rtol=1e-4)
    alone = encoder.forward_features(*inputs)
    assert alone.last.equal(features.last)
    assert len(alone.stages) == 1
    assert alone.stages[0].equal(features.stages[-1])
    if isinstance(encoder, GlimpseEncoder):
        assert features.positions is inputs[1]


def inputs_of(encoder: Encoder) -> tuple[Tensor, ...]:
    """Return the arguments of its forward."""
    batch = batch_for(encoder)
    return (batch.scene.canvases,) if isinstance(batch, CanvasBatch) else (batch.patches, batch.positions)


def seen_by_head(encoder: Encoder, features: Features) -> Tensor:
    """Return the features that the head sees: of every glimpse, of class tokens and registers, or the mean of all."""
    if isinstance(encoder, EfficientViM):  # besides the states of all stages, which lie on no map
        stages, width = len(encoder.stages), features.last.shape[1]
        of_map = encoder.weights.softmax(0)[-1] * features.last.mean((2, 3))
        return torch.cat((features.pooled[:, : -stages - width], of_map, features.pooled[:, -stages:]), dim=1)
    if isinstance(encoder, CausalEncoder):
        return features.last
    if isinstance(encoder, GlimpseEncoder):
        return features.last.mean(1, keepdim=True)
    if isinstance(encoder, MambaR) and encoder.neck is not None:
        return encoder.norm_neck(encoder.neck(features.extra).flatten(1))
    if isinstance(encoder, NaFlexViT):
        return encoder.trunk.fc_norm(features.last.mean((2, 3)))
    return features.last.mean((2, 3)) if features.extra is None else features.extra.flatten(1)


def test_gradients_reach_every_parameter(encoder: Encoder) -> None:
    batch = batch_for(encoder)
    features = encoder.encode(batch)
    ratio = batch.information_ratio[:, encoder.answers_at(GLIMPSES) - 1]
    scheduled_cross_entropy_of_features(features, encoder.head, batch.labels, ratio).backward()
    missed = [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    cancelled = WITHOUT_EFFECT.get(type(encoder).__name__)
    assert [name for name in missed if not (cancelled and name.endswith(cancelled))] == []


def test_evaluation_is_deterministic_and_row_by_row(encoder: Encoder) -> None:
    encoder.eval()
    with torch.no_grad():
        whole = encoder.encode(batch_for(encoder))
        torch.testing.assert_close(encoder.encode(batch_for(encoder)), whole, atol=0, rtol=0)
        alone = encoder.encode(first_row(batch_for(encoder)))
    torch.testing.assert_close(alone, whole[:1], atol=1e-5, rtol=1e-4)


def first_row(batch: GlimpseBatch | CanvasBatch) -> GlimpseBatch | CanvasBatch:
    if isinstance(batch, CanvasBatch):
        return batch._replace(scene=Scene(*(part[:1] for part in batch.scene)))
    return batch._replace(patches=batch.patches[:1], positions=batch.positions[:1])


def test_a_folder_holds_all_of_it(encoder: Encoder, tmp_path: Path) -> None:
    mambaeye.save(encoder, tmp_path)
    again = mambaeye.load(tmp_path)
    assert type(again) is type(encoder)
    assert again.description() == encoder.description()
    for name, tensor in encoder.state_dict().items():
        assert again.state_dict()[name].equal(tensor)


def test_every_parameter_is_optimised_once_and_decays_as_it_says(encoder: Encoder) -> None:
    untouched = encoder.no_weight_decay()
    names = dict(encoder.named_parameters())
    assert untouched <= names.keys()
    decaying, exempt = build_optimizer([encoder], OptimizerConfig(weight_decay=0.3)).param_groups
    assert (decaying["weight_decay"], exempt["weight_decay"]) == (0.3, 0.0)
    assert {id(p) for p in exempt["params"]} == {id(names[name]) for name in untouched}
    assert len(decaying["params"]) + len(exempt["params"]) == len(names)


def test_flops_grow_with_what_is_seen(encoder: Encoder) -> None:
    batch = batch_for(encoder)
    one = training_flops(encoder, batch)
    assert one > 0
    assert all(parameter.device.type == "cpu" for parameter in encoder.parameters())
    if isinstance(batch, GlimpseBatch):
        twice = batch._replace(patches=batch.patches.repeat(1, 2, 1, 1, 1), positions=batch.positions.repeat(1, 2, 1))
        assert training_flops(encoder, twice) > 1.5 * one


def test_the_module_keeps_what_builds_it_again(encoder: Encoder) -> None:
    description = ClassifierModule(encoder).hparams["encoder"]
    again = type(encoder)(**description["init_args"])
    assert again.description() == encoder.description() == description


@torch.no_grad()
def test_what_comes_later_changes_no_answer(causal: CausalEncoder) -> None:
    patches, positions = glimpses(causal, torch.float32)
    before = causal(patches, positions)
    for first in range(1, GLIMPSES):
        changed, moved = patches.clone(), positions.clone()
        changed[:, first:] = 1 - changed[:, first:]
        moved[:, first:] += 9
        after = causal(changed, moved)
        assert after[:, :first].equal(before[:, :first])
        assert not after[:, first].equal(before[:, first])


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 1e-5)], ids=str)
@pytest.mark.parametrize("sizes", [[1] * GLIMPSES, [2, 5], [4, 1, 2]], ids=str)
@torch.no_grad()
def test_the_whole_is_its_chunks(causal: CausalEncoder, dtype: torch.dtype, tolerance: float, sizes: list[int]) -> None:
    causal.to(dtype)
    patches, positions = glimpses(causal, dtype)
    state, logits = causal.initial_state(IMAGES), []
    for chunk in torch.arange(GLIMPSES).split(sizes):
        some, state = causal.stream(patches[:, chunk], positions[:, chunk], state)
        logits.append(some)
    torch.testing.assert_close(torch.cat(logits, dim=1), causal(patches, positions), atol=tolerance, rtol=tolerance)


@torch.no_grad()
def test_rows_of_a_state_are_the_states_of_rows(causal: CausalEncoder) -> None:
    patches, positions = glimpses(causal, torch.float32)
    _, state = causal.stream(patches[:, :3], positions[:, :3], causal.initial_state(IMAGES))
    whole, _ = causal.stream(patches[:, 3:], positions[:, 3:], state)
    index = torch.tensor([2, 0])
    some, _ = causal.stream(patches[index, 3:], positions[index, 3:], select_rows(state, index))
    torch.testing.assert_close(some, whole[index], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "system",
    [pytest.param(system, marks=() if system.__name__ in QUICKLY else pytest.mark.long) for system in SYSTEMS],
    ids=lambda system: system.__name__,
)
def test_two_steps_on_the_command_line(
    system: type[Encoder], data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fit by class name, validate from the checkpoint alone, and the encoder out of the checkpoint."""
    monkeypatch.chdir(tmp_path)
    settings = small_run(system, data_dir) | {"run_dir": "run", "trainer.max_steps": 2, "trainer.limit_val_batches": 2}
    main(["fit", *flags(settings)])
    main(["validate", "--ckpt_path=run/checkpoints/last.ckpt", "--trainer.limit_val_batches=2", *flags(NO_PICTURES)])
    encoder = mambaeye.load("run/checkpoints/last.ckpt")
    assert type(encoder) is system
    assert encoder.num_classes == 10


def small_run(system: type[Encoder], data_dir: Path) -> dict[str, object]:
    """Arguments of a fit."""
    needs(system)
    settings = {name: value for name, value in TINY.items() if not name.startswith("model.encoder")}
    small = {f"model.encoder.{name}": value for name, value in SMALL[system.__name__].items() if name != "patch_size"}
    return settings | {"model.encoder": system.__name__, **small, "data.data_dir": data_dir}


@pytest.mark.long
@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.__name__)
def test_a_run_that_was_stopped_goes_on_to_the_same_weights(
    system: type[Encoder], data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = small_run(system, data_dir) | {"trainer.limit_train_batches": 5, "trainer.limit_val_batches": 1}
    stop = "[{class_path: resuming.StopAfter, init_args: {steps: 2}}]"
    main(["fit", "--run_dir=whole", *flags(settings)])
    main(["fit", "--run_dir=stopped", *flags(settings), f"--trainer.callbacks={stop}"])
    first = torch.load("stopped/checkpoints/last.ckpt", weights_only=True)
    assert first["global_step"] == 2
    main(["fit", "--run_dir=stopped", *flags(settings), "--ckpt_path=last"])
    whole, stopped = (torch.load(f"{run}/checkpoints/last.ckpt", weights_only=True) for run in ("whole", "stopped"))
    assert whole["global_step"] == stopped["global_step"] == 5
    for name, tensor in whole["state_dict"].items():
        assert stopped["state_dict"][name].equal(tensor), name
    assert not all(tensor.equal(whole["state_dict"][name]) for name, tensor in first["state_dict"].items())


def test_a_file_names_no_class_that_was_not_imported(tmp_path: Path) -> None:
    mambaeye.save(build(SYSTEMS[0]), tmp_path)
    config = tmp_path / "config.json"
    for name in ("os.system", "subprocess.Popen", "mambaeye.module.ClassifierModule", "torch.nn.Linear", ""):
        config.write_text(f'{{"class_path": "{name}", "init_args": {{}}}}')
        with pytest.raises(InputError, match="none of the project's own: name it with --model.encoder"):
            mambaeye.load(tmp_path)


@pytest.mark.cuda
def test_a_gpu_computes_the_logits_and_gradients_of_the_cpu(encoder: Encoder) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU")
    results = []
    for device in ("cpu", "cuda"):
        encoder = encoder.to(device)
        batch = move_data_to_device(batch_for(encoder), device)
        logits = encoder.logits(encoder.encode(batch))
        gradients = torch.autograd.grad(logits.sin().sum(), list(encoder.parameters()), allow_unused=True)
        results.append([t.cpu() for t in (logits, *gradients) if t is not None])
    for expected, got in zip(*results, strict=True):
        # the kernels' float32 products have factors in TF32
        assert (got - expected).abs().max() <= 2e-2 * expected.abs().max().clamp_min(1e-3)
