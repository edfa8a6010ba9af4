"""Parts that stay float32 whatever the precision, against float64; and how float32 matrices are multiplied."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from commands import NO_PICTURES, TINY, flags
from scenes import canvases_of, glimpses_of, scene_of
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from mambaeye.batch import EvaluationCondition
from mambaeye.encoders.base import Encoder
from mambaeye.encoders.mambaeye import EncoderConfig, MambaEye
from mambaeye.evaluation.early_exit import EarlyExitState, Rule
from mambaeye.evaluation.prediction import predict
from mambaeye.evaluation.sums import ConditionSums
from mambaeye.loss import scheduled_cross_entropy_of_features
from mambaeye.module import ClassifierModule
from mambaeye.ops.block import add_norm
from mambaeye.ops.mamba2 import Mamba2
from mambaeye.ops.s6 import selective_scan
from mambaeye.ops.s6_block import S6Mixer, Sequences
from mambaeye.ops.ssd import ssd
from mambaeye.rollout import Rollout
from mambaeye.weights import load_published
from train import main

SMALL = EncoderConfig(num_classes=5, patch_size=4, dim=16, depth=2, d_state=8, headdim=8, move_embedding_dim=8)
EXACT = 1e-5  # as far as float32 may be from float64; bf16 is off by 1e-2
SCALE = 2.0**16  # of the loss, as GradScaler starts with


@contextmanager
def bf16_by_default() -> Iterator[None]:
    """As Lightning does around every step with bf16-true."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


PRECISIONS: dict[str, tuple[torch.dtype, Callable[[], AbstractContextManager[object]]]] = {
    "32-true": (torch.float32, nullcontext),
    "bf16-mixed": (torch.float32, lambda: torch.autocast("cpu", torch.bfloat16)),
    "bf16-true": (torch.bfloat16, bf16_by_default),
}
narrow = pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
every = pytest.mark.parametrize("precision", PRECISIONS)


def encoder_in(precision: str) -> MambaEye:
    """An encoder whose answers are far apart, in the dtype that the precision gives its weights."""
    torch.manual_seed(0)
    encoder = MambaEye(SMALL)
    with torch.no_grad():
        encoder.head.weight.mul_(5)
    return encoder.to(PRECISIONS[precision][0])


def exact_logits(encoder: Encoder, features: Tensor) -> Tensor:
    """The head's answers to these very features, in float64."""
    return features.double() @ encoder.head.weight.double().T + encoder.head.bias.double()


@every
@torch.no_grad()
def test_logits_are_float32_and_exact(precision: str) -> None:
    encoder, batch = encoder_in(precision), glimpses_of(3, 20, 4, 5)
    with PRECISIONS[precision][1]():
        features = encoder.features(batch.patches, batch.positions)
        whole = encoder(batch.patches, batch.positions)
        streamed, _ = encoder.stream(batch.patches, batch.positions, encoder.initial_state(3))
    assert features.dtype == PRECISIONS[precision][0]
    assert whole.dtype == streamed.dtype == torch.float32
    torch.testing.assert_close(whole.double(), exact_logits(encoder, features), atol=EXACT, rtol=EXACT)


@every
def test_the_loss_and_its_gradients_are_exact(precision: str) -> None:
    encoder, batch = encoder_in(precision), glimpses_of(3, 20, 4, 5)
    features = torch.randn(3, 20, 16).to(PRECISIONS[precision][0]).requires_grad_()
    with PRECISIONS[precision][1]():
        loss = scheduled_cross_entropy_of_features(
            features, encoder.head, batch.labels, batch.information_ratio, valid=batch.valid
        )
    got = torch.autograd.grad(loss, [features, *encoder.head.parameters()])
    wide = [part.detach().double().requires_grad_() for part in (features, *encoder.head.parameters())]
    log_p = (wide[0] @ wide[1].T + wide[2]).log_softmax(-1)  # (B, T, C)
    ratio = batch.information_ratio.double()[..., None]
    target = ratio * F.one_hot(batch.labels, 5)[:, None] + (1 - ratio) / 5
    exact = -(target * log_p).sum(-1)[batch.valid].mean()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=EXACT)
    for gradient, expected in zip(got, torch.autograd.grad(exact, wide), strict=True):
        rounding = EXACT if gradient.dtype == torch.float32 else 2**-8  # once, to the dtype of what it is of
        assert (gradient - expected).abs().max() <= rounding * expected.abs().max()


def of_training_size() -> tuple[Tensor, nn.Linear, Tensor, Tensor]:
    """Features in fp16, a head, labels and ratios of 64 images of 1,024 glimpses and 1,000 classes."""
    torch.manual_seed(0)
    head = nn.Linear(32, 1000)
    features = torch.randn(64, 1024, 32).half().requires_grad_()
    return features, head, torch.randint(1000, (64,)), torch.rand(64, 1024).sort(1).values


def exact_gradients(features: Tensor, head: nn.Linear, labels: Tensor, ratio: Tensor) -> list[Tensor]:
    """In float64, by the formula: softmax minus target, over the number of steps."""
    weight, bias = head.weight.detach().double(), head.bias.detach().double()
    of_features, of_weight, of_bias = [], torch.zeros_like(weight), torch.zeros_like(bias)
    for x, label, r in zip(features.detach().double(), labels, ratio.double()[..., None], strict=True):
        g = (x @ weight.T + bias).softmax(-1) - (1 - r) / len(bias)  # (T, C)
        g[:, label] -= r[:, 0]
        g /= ratio.numel()
        of_features.append(g @ weight)
        of_weight += g.T @ x
        of_bias += g.sum(0)
    return [torch.stack(of_features), of_weight, of_bias]


@pytest.mark.parametrize("accumulated", [1, 3])
def test_with_a_scaled_loss_no_gradient_underflows_in_half_precision(accumulated: int) -> None:
    """Under autocast in fp16, as with 16-mixed: the loss is scaled after its gradient was computed."""
    features, head, labels, ratio = of_training_size()
    with torch.autocast("cpu", torch.float16):
        loss = scheduled_cross_entropy_of_features(features, head, labels, ratio)
    got = torch.autograd.grad(loss, [features, *head.parameters()], torch.tensor(SCALE / accumulated))
    for gradient, exact in zip(got, exact_gradients(features, head, labels, ratio), strict=True):
        off = gradient.double() / SCALE * accumulated - exact
        assert off.norm() <= 3e-4 * exact.norm()  # rounded once: fp16 has 11 bits
        assert (gradient == 0).sum() <= 1e-4 * gradient.numel()
    assert [gradient.dtype for gradient in got] == [torch.float16, torch.float32, torch.float32]


def test_a_scaled_loss_reaches_every_parameter_in_half_precision() -> None:
    """No gradient of the encoder underflows either: not one is zero that is not in float32."""
    encoder, batch = encoder_in("32-true"), glimpses_of(3, 100, 4, 5)

    def gradients(precision: AbstractContextManager[object]) -> tuple[Tensor, ...]:
        with precision:
            features = encoder.features(batch.patches, batch.positions)
            loss = scheduled_cross_entropy_of_features(features, encoder.head, batch.labels, batch.information_ratio)
        few = 300 / (64 * 1024)  # of rows, for each of which a gradient is larger by as much
        return torch.autograd.grad(loss, [*encoder.parameters()], torch.tensor(SCALE * few))

    for half, full in zip(gradients(torch.autocast("cpu", torch.float16)), gradients(nullcontext()), strict=True):
        assert (half - full).norm() <= 0.02 * full.norm()
        assert ((half == 0) & (full != 0)).sum() == 0


@narrow
@torch.no_grad()
def test_a_walk_and_all_that_is_made_of_it_is_float32(precision: str) -> None:
    """Logits of a rollout, early exit and prediction, against float64 of the features in between."""
    torch.manual_seed(1)
    encoder, scene = encoder_in(precision), scene_of(3, 40, 4)
    features: list[Tensor] = []
    answer = encoder.logits

    def witnessed(seen: Tensor) -> Tensor:
        features.append(seen)
        return answer(seen)

    encoder.logits = witnessed
    with PRECISIONS[precision][1]():
        steps = list(Rollout(encoder, scene, at_once=8))
        state = EarlyExitState([Rule("entropy", 1.0)], 3, steps[0].logits)
        for step in steps:
            state.update(step.logits, step.first)
        found = predict(encoder, scene, None, [])
    logits = torch.cat([step.logits for step in steps], dim=1)
    exact = exact_logits(encoder, torch.cat(features[: len(steps)], dim=1))
    assert logits.dtype == state.logits.dtype == torch.float32
    torch.testing.assert_close(logits.double(), exact, atol=EXACT, rtol=EXACT)
    exact = exact_logits(encoder, torch.cat(features[len(steps) :], dim=1)).softmax(-1)
    for image, prediction in enumerate(found):
        assert (
            prediction.confidence.dtype == prediction.probabilities.dtype == prediction.by_step.dtype == torch.float32
        )
        assert prediction.probabilities.sum().item() == pytest.approx(1, abs=EXACT)
        torch.testing.assert_close(prediction.confidence.double(), exact[image].amax(-1), atol=EXACT, rtol=0)


@narrow
@torch.no_grad()
def test_metrics_are_those_of_the_float32_logits(precision: str) -> None:
    """Validation and the curves of training, in a module that Lightning makes narrower after the metrics are there."""
    torch.manual_seed(1)
    module = ClassifierModule(encoder_in(precision))
    condition = EvaluationCondition(40, "random")
    module.__dict__["_trainer"] = SimpleNamespace(datamodule=SimpleNamespace(conditions=[condition]))
    module.sums.append(ConditionSums(condition, 5, 30))
    module.to(PRECISIONS[precision][0])
    batch = canvases_of(300, 30, 4, 5)
    with PRECISIONS[precision][1]():
        module.validation_step(batch, 0)
        logits = torch.cat([step.logits for step in module.rollout(batch)], dim=1)
        losses, confidence, _ = module.per_step_loss(glimpses_of(3, 9, 4, 5), 3)
    found = module.sums[0].by_step.compute()
    shares = logits[batch.valid].double().softmax(-1)
    labels = batch.labels[batch.valid]
    torch.testing.assert_close(found["confidence"], shares.amax(-1).mean(0), atol=EXACT, rtol=0)
    of_label = shares[torch.arange(len(labels)), :, labels]
    torch.testing.assert_close(found["nll"], -of_label.log().mean(0), atol=10 * EXACT, rtol=0)
    assert losses.dtype == confidence.dtype == torch.float32


@torch.no_grad()
def test_far_moves_are_embedded_in_bf16_too() -> None:
    """Their angles are hundreds of radians, of which eight bits leave nothing."""
    wide, batch = encoder_in("32-true"), glimpses_of(2, 9, 4, 5)
    far = batch.positions * 37
    narrow = encoder_in("bf16-true")
    expected = wide.embed(batch.patches, far, None)
    torch.testing.assert_close(narrow.embed(batch.patches, far, None).float(), expected, atol=0.02, rtol=0.05)


def test_the_residual_stream_is_float32_in_bf16_too() -> None:
    """Add 1 and then 2^-10 eight times, which sums in bfloat16 would lose."""
    norm, residual = nn.RMSNorm(4, eps=1e-5).bfloat16(), None
    for addend in [1.0] + 8 * [2**-10]:
        x, residual = add_norm(torch.full((1, 4), addend, dtype=torch.bfloat16), residual, norm)
    assert x.dtype == torch.bfloat16
    assert residual.equal(torch.full((1, 4), 1 + 2**-7))


def in_tf32(x: Tensor) -> Tensor:
    """Rounded to ten bits of mantissa."""
    return ((x.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


class Products(TorchDispatchMode):
    """Notes what float32 matrices may be multiplied in, and the shapes, at every product."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, torch.Size]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.mm.default, torch.ops.aten.bmm.default, torch.ops.aten.addmm.default):
            self.seen.append((torch.get_float32_matmul_precision(), args[-2].shape))
        return func(*args, **(kwargs or {}))


@pytest.mark.usefixtures("somewhere_else")
@pytest.mark.parametrize("length", [1, 5, 70])
@pytest.mark.parametrize("of", ["Mamba2", "S6"])
def test_a_recurrence_multiplies_in_float32_and_projections_as_they_may(of: str, length: int) -> None:
    """On the way forth and back. Those of a recurrence have a batch, those of a projection are flat."""
    torch.set_float32_matmul_precision("high")
    mixer = Mamba2(16, d_state=8, d_conv=4, expand=2, headdim=8) if of == "Mamba2" else S6Mixer(16, 1, 1, d_state=8)
    u = torch.randn(2, length, 16, requires_grad=True)
    with Products() as products:
        if isinstance(mixer, Mamba2):
            y, _ = mixer(u, None)
        else:
            y = mixer(u, Sequences.of([torch.arange(length)]))
        y.sum().backward()
    of_projections = {precision for precision, shape in products.seen if len(shape) == 2}
    of_recurrence = {precision for precision, shape in products.seen if len(shape) == 3 and shape[0] > 1}
    assert of_projections == {"high"}
    assert of_recurrence == {"highest"} or (of, length) == ("Mamba2", 1)  # whose gradient autograd takes
    assert torch.get_float32_matmul_precision() == "high"


@pytest.mark.cuda
@pytest.mark.usefixtures("somewhere_else")
@pytest.mark.parametrize("of", ["ssd", "s6"])
def test_on_a_gpu_a_recurrence_is_float32_where_projections_are_tf32(of: str) -> None:
    """Against float64, values and gradients; a product of the same factors shows that TF32 is on."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU")
    torch.set_float32_matmul_precision("high")
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    if of == "ssd":
        exact = [drawn(2, 200, 4, 32), drawn(2, 200, 4).exp() / 10, -drawn(4).exp(), drawn(2, 200, 64)]
        exact += [drawn(2, 200, 64), drawn(4), drawn(2, 4, 32, 64)]
    else:
        exact = [drawn(2, 200, 2, 32), drawn(2, 200, 2, 32).exp() / 10, -drawn(2, 32, 16).exp(), drawn(2, 200, 2, 16)]
        exact += [drawn(2, 200, 2, 16), drawn(2, 32)]
    results = []
    for device, dtype in (("cpu", torch.float64), ("cuda", torch.float32)):
        tensors = [tensor.to(device, dtype).requires_grad_() for tensor in exact]
        y = ssd(*tensors)[0] if of == "ssd" else selective_scan(*tensors)
        gradients = torch.autograd.grad(y.square().sum(), tensors[:5])
        results.append([part.double().cpu() for part in (y, *gradients)])
    for expected, got in zip(*results, strict=True):
        assert (got - expected).abs().max() <= 2e-5 * expected.abs().max()
    one, other = drawn(64, 512), drawn(512, 64)
    product = (one.float().cuda() @ other.float().cuda()).double().cpu()
    if torch.cuda.get_device_capability() >= (8, 0):
        assert (product - one @ other).abs().max() > 2e-5 * (one @ other).abs().max()


@torch.no_grad()
def test_how_far_each_precision_moves_the_authors_logits_is_what_the_docs_say(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Path(__file__)
    golden = torch.load(here.with_name("authors_model_small.pt"), weights_only=True)
    seen = golden["patches"], golden["positions"]
    encoder = load_published(golden["state_dict"]).double()
    exact = encoder(*seen)
    found = [encoder.float()(*seen)]
    with monkeypatch.context() as patch:
        linear = F.linear
        patch.setattr(F, "linear", lambda x, weight, bias=None: linear(in_tf32(x), in_tf32(weight), bias))
        found.append(encoder(*seen))
    with torch.autocast("cpu", torch.bfloat16):
        found.append(encoder(*seen))
    found.append(encoder.bfloat16()(*seen))
    said = re.search(
        r"off by at most (\S+) in float32, (\S+) in TF32, (\S+) in bf16-mixed and (\S+) in bf16-true\.",
        re.sub(r"\s+", " ", here.parents[1].joinpath("docs/running.md").read_text()),
    )
    assert said
    for logits, off in zip(found, said.groups(), strict=True):  # of the same size, whatever the processor
        assert float(off) / 2 < (logits - exact).abs().max() < 2 * float(off)


@pytest.fixture
def somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])
    yield
    torch.set_float32_matmul_precision("highest")


@pytest.mark.long
@pytest.mark.usefixtures("somewhere_else")
def test_a_run_is_validated_and_predicts_in_any_precision(data_dir: Path) -> None:
    """The same checkpoint in three: as near as bf16 is, and probabilities that add up to one as float32 do."""
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.limit_val_batches=2", *flags(NO_PICTURES)]
    main(["fit", *flags({**TINY, "run_dir": "run", "data.data_dir": data_dir}), "--trainer.limit_val_batches=0"])
    cv2.imwrite("image.png", np.random.default_rng(0).integers(0, 256, (48, 40, 3), dtype=np.uint8))
    rows, predicted = {}, {}
    for precision in PRECISIONS:
        given = ["--ckpt_path=run/checkpoints/last.ckpt", f"--run_dir={precision}", "--trainer.accelerator=cpu"]
        given += [f"--trainer.precision={precision}", f"--data.data_dir={data_dir}"]
        main(["validate", *given, *quiet])
        main(["predict", *given, *quiet[:1], "--data.images", "image.png"])
        rows[precision] = json.loads(Path(precision, "validation.json").read_text())["rows"]
        (predicted[precision],) = map(json.loads, Path(precision, "predictions.jsonl").read_text().splitlines())
    for precision in ("bf16-mixed", "bf16-true"):
        for row, expected in zip(rows[precision], rows["32-true"], strict=True):
            for name in ("confidence", "nll", "ece"):
                assert row[name] == pytest.approx(expected[name], abs=0.02), name
        curve = predicted[precision]["confidence_by_glimpse"]
        assert curve == pytest.approx(predicted["32-true"]["confidence_by_glimpse"], abs=0.02)
        assert any(np.float32(value) != torch.tensor(value).bfloat16().item() for value in curve)


@pytest.mark.usefixtures("somewhere_else")
def test_how_float32_matrices_are_multiplied_is_set_and_said(
    data_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = flags({**TINY, "data.data_dir": data_dir, "trainer.limit_val_batches": 0})
    short.append("--trainer.limit_train_batches=2")
    for given, expected, said in [
        (["--float32_matmul_precision=high"], "high", "float32 matrices are multiplied in TF32 where the device can"),
        (["--float32_matmul_precision=medium"], "medium", "multiplied in bf16 where"),
        ([], "highest", None),  # whatever an earlier run of this process has set
    ]:
        main(["fit", *short, f"--run_dir={expected}", *given])
        out = capsys.readouterr().out
        assert torch.get_float32_matmul_precision() == expected
        assert said in out if said else "matrices are multiplied" not in out
