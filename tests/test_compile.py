"""Blocks that are compiled: the same answers and gradients, one graph a block, whatever the length."""

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from commands import TINY, flags
from test_conformance import VARIANTS, batch_for, build, named
from torch import Tensor
from torch._dynamo.utils import counters

from mambaeye.batch import CanvasBatch, GlimpseBatch
from mambaeye.blocks import Compiled, blocks_of, checkpoint_blocks, compile_blocks
from mambaeye.encoders.base import Encoder
from mambaeye.encoders.mambaeye import MambaEye
from mambaeye.errors import InputError
from mambaeye.flops import training_flops
from mambaeye.ops.s6 import scan, selective_scan
from mambaeye.ops.ssd import recurrence, ssd
from train import main

CLOSE = {"atol": 1e-5, "rtol": 1e-4}  # other orders of sums


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()


def answered(encoder: Encoder, batch: GlimpseBatch | CanvasBatch) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits, and gradients of every parameter."""
    encoder.zero_grad()
    logits = encoder.logits(encoder.encode(batch))
    logits.sin().sum().backward()
    return logits.detach(), {name: parameter.grad.clone() for name, parameter in encoder.named_parameters()}


def of_length(length: int) -> GlimpseBatch:
    batch = batch_for(build(MambaEye), seed=length)
    rows = torch.arange(length) % batch.patches.shape[1]
    return batch._replace(patches=batch.patches[:, rows], positions=batch.positions[:, rows] * (1 + rows[:, None]))


@pytest.mark.long
def test_all_lengths_share_a_graph_and_nothing_breaks_it() -> None:
    """Two graphs, for the first block has no residual stream yet; lengths of one chunk and more, padded or not."""
    encoder = build(MambaEye)
    compiled = copy.deepcopy(encoder)
    compile_blocks(compiled, "aot_eager")
    assert compiled.state_dict().keys() == encoder.state_dict().keys()
    for length in (7, 64, 65, 130):
        (logits, gradients), (expected, others) = (answered(one, of_length(length)) for one in (compiled, encoder))
        torch.testing.assert_close(logits, expected, **CLOSE)
        for name, gradient in gradients.items():
            torch.testing.assert_close(gradient, others[name], **CLOSE, msg=name)
    assert counters["stats"]["unique_graphs"] == 2
    assert not counters["graph_break"]
    assert training_flops(compiled, of_length(7)) == training_flops(encoder, of_length(7))
    assert not any(isinstance(vars(block).get("forward"), Compiled) for block in blocks_of(copy.deepcopy(compiled)))


@torch.no_grad()
def test_single_glimpses_are_not_compiled() -> None:
    encoder = build(MambaEye)
    compile_blocks(encoder, "aot_eager")
    batch, state = of_length(3), encoder.initial_state(3)
    expected = build(MambaEye)(batch.patches, batch.positions)
    for step in range(3):
        logits, state = encoder.stream(batch.patches[:, step : step + 1], batch.positions[:, step : step + 1], state)
        torch.testing.assert_close(logits[:, 0], expected[:, step], **CLOSE)
    assert not counters["stats"]


def drawn(*shapes: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True) for shape in shapes]


@pytest.mark.long
@pytest.mark.parametrize("steps", [2, 7, 9])
def test_the_operations_that_are_compiled_around_are_what_they_say(steps: int) -> None:
    """By torch's own checks: shapes and strides of the fake ones, aliases, and gradients against finite differences."""
    *sequences, state = drawn((2, steps, 2, 3), (2, steps, 2), (2, steps, 4), (2, steps, 4), (2, 4, 6))
    torch.library.opcheck(recurrence, (*sequences, state, 4))
    x, dt, A, B, C = drawn((2, steps, 2, 3), (2, steps, 2, 3), (2, 3, 4), (2, steps, 2, 4), (2, steps, 2, 4))
    torch.library.opcheck(scan, (x, dt, A, B, C, 4))


@pytest.mark.parametrize("steps", [2, 9])
def test_the_operations_compute_what_those_of_autograd_do(steps: int) -> None:
    """Those of ssd and selective_scan, with the skip left out."""
    w, log_decay, B, C, state = drawn((2, steps, 2, 3), (2, steps, 2), (2, steps, 4), (2, steps, 4), (2, 4, 6))
    none, one = torch.zeros(2, dtype=torch.float64), torch.ones(2, steps, 2, dtype=torch.float64)
    decays = log_decay.detach().exp()[0, 0]  # a rate for each head: then decay is constant over time
    as_state = state.transpose(1, 2).unflatten(1, (2, 3))
    expected, _ = ssd(w, one, -decays, B, C, none, as_state, 4)
    y, last, *_ = recurrence(w, -decays.expand(2, steps, 2), B, C, state, 4)
    assert last.shape == state.shape
    pairs = [(y, expected, [w, B, C, state])]
    x, dt, A, B, C = drawn((2, steps, 2, 3), (2, steps, 2, 3), (2, 3, 4), (2, steps, 2, 4), (2, steps, 2, 4))
    y, _ = scan(x, dt.exp(), -A.exp(), B, C, 4)
    none = torch.zeros(2, 3, dtype=torch.float64)
    pairs.append((y, selective_scan(x, dt.exp(), -A.exp(), B, C, none), [x, dt, A, B, C]))
    for got, wanted, leaves in pairs:
        torch.testing.assert_close(got, wanted)
        gradients = (torch.autograd.grad(result.sin().sum(), leaves) for result in (got, wanted))
        for mine, other in zip(*gradients, strict=True):
            torch.testing.assert_close(mine, other)


def test_kernels_that_are_insisted_on_are_not_compiled() -> None:
    encoder = build(MambaEye)
    encoder.kernels = "cuda"
    with pytest.raises(InputError, match="model.compile is true and model.encoder.kernels cuda"):
        compile_blocks(encoder)


@pytest.mark.long
@pytest.mark.parametrize(
    ("variant", "again"),
    [*((variant, False) for variant in VARIANTS), (VARIANTS[0], True)],
    ids=[*map(named, VARIANTS), f"{named(VARIANTS[0])}-again"],
)
def test_every_encoder_compiles_to_the_same(variant: tuple[type[Encoder], dict[str, object]], again: bool) -> None:
    """With blocks that are computed again in the backward pass, too."""
    encoder = build(variant[0], **variant[1])
    compiled = copy.deepcopy(encoder)
    compile_blocks(compiled, "aot_eager")
    if again:
        checkpoint_blocks(compiled)
    (logits, gradients), (expected, others) = (answered(one, batch_for(encoder)) for one in (compiled, encoder))
    torch.testing.assert_close(logits, expected, **CLOSE)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, others[name], **CLOSE, msg=name)
    assert not counters["graph_break"]


@pytest.mark.long
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_inductors_code_computes_the_same(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA GPU")
    compare_compiled(device)


def compare_compiled(device: str) -> None:
    encoder = build(MambaEye, kernels="torch").to(device)
    compiled = copy.deepcopy(encoder)
    compile_blocks(compiled)
    for length in (7, 130):
        batch = of_length(length)
        batch = batch._replace(patches=batch.patches.to(device), positions=batch.positions.to(device))
        (logits, gradients), (expected, others) = (answered(one, batch) for one in (compiled, encoder))
        share = 1e-4 if device == "cpu" else 2e-2  # the other's convolution may be in TF32 on a GPU
        for one, other in ((logits, expected), *((gradients[name], others[name]) for name in others)):
            assert (one - other).abs().max() <= share * other.abs().max()


@pytest.mark.long
def test_a_compiled_run_goes_on_uncompiled_and_the_other_way(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])
    short = {**TINY, "data.data_dir": data_dir, "trainer.limit_val_batches": 0, "trainer.limit_train_batches": 2}
    for compiled in ("true", "false"):
        begun, ended = f"run-{compiled}", "false" if compiled == "true" else "true"
        main(["fit", *flags({**short, "run_dir": begun, "model.compile": compiled})])
        more = {"run_dir": begun, "ckpt_path": "last", "trainer.max_epochs": 2, "model.compile": ended}
        main(["fit", *flags({"data.data_dir": data_dir, **more})])
    weights = [torch.load(f"run-{one}/checkpoints/last.ckpt", weights_only=True) for one in ("true", "false")]
    assert weights[0]["global_step"] == weights[1]["global_step"] == 4
    for name, tensor in weights[0]["state_dict"].items():
        torch.testing.assert_close(tensor, weights[1]["state_dict"][name], atol=1e-4, rtol=1e-3, msg=name)
