import math
import re
from pathlib import Path
from unittest import mock

import pytest
import torch

from mambaeye.encoders.mambaeye import EncoderConfig, MambaEye
from mambaeye.errors import InputError
from mambaeye.optim import (
    OptimizerConfig,
    build_optimizer,
    build_schedule,
    override_hparams,
    schedule_steps,
    set_fused,
    warmup_cosine,
)


def test_customary_decay_spares_norms_biases_and_the_recurrence() -> None:
    model = MambaEye(EncoderConfig(num_classes=3, dim=16, depth=1, headdim=8))
    optimizer = build_optimizer([model], OptimizerConfig(weight_decay=0.1))
    decays = {p: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    by_name = {name: decays[p] for name, p in model.named_parameters()}
    assert {name for name, decay in by_name.items() if decay == 0} == {
        "projection.bias", "head.bias", "norm.weight", "blocks.0.norm.weight", "blocks.0.mixer.norm.weight",
        "blocks.0.mixer.conv1d.bias", "blocks.0.mixer.dt_bias", "blocks.0.mixer.A_log", "blocks.0.mixer.D",
    }  # fmt: skip
    assert by_name["blocks.0.mixer.A_log"] == 0
    assert by_name["blocks.0.mixer.in_proj.weight"] == 0.1


def test_the_authors_decay_everything() -> None:
    model = MambaEye(EncoderConfig(num_classes=3, dim=16, depth=1, headdim=8))
    groups = build_optimizer([model], OptimizerConfig(decay="all")).param_groups
    assert [group["weight_decay"] for group in groups] == [0.05, 0.05]
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


class Table(torch.nn.Module):
    """A matrix that must not decay, a vector that may, and a parameter that is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.places = torch.nn.Parameter(torch.zeros(3, 4))
        self.scale = torch.nn.Parameter(torch.zeros(4))
        self.frozen = torch.nn.Parameter(torch.zeros(4, 4), requires_grad=False)

    def no_weight_decay(self) -> set[str]:
        return {"places"}


def test_each_part_says_what_must_not_decay() -> None:
    one, other = Table(), Table()
    decaying, exempt = build_optimizer([one, other], OptimizerConfig()).param_groups
    assert [id(p) for p in exempt["params"]] == [id(one.places), id(other.places)]
    assert [id(p) for p in decaying["params"]] == [id(one.scale), id(other.scale)]


def test_schedule_warms_up_peaks_and_ends_at_zero() -> None:
    shares = [warmup_cosine(step, 10, 110) for step in range(111)]
    assert shares[0] == 0.1
    assert shares[9] == shares[10] == 1
    assert shares[60] == pytest.approx(0.5)
    assert shares[110] == pytest.approx(0, abs=1e-12)
    assert shares[10:] == sorted(shares[10:], reverse=True)
    assert warmup_cosine(0, 0, 0) == 1.0  # no steps at all is no crash
    assert warmup_cosine(5, 2, math.inf) == 1.0  # without an end, the peak is held


@pytest.mark.parametrize("max_epochs", [None, -1, 0, 1, 7])
@pytest.mark.parametrize("max_steps", [-1, 0, 3, 20, 100])
def test_a_schedule_is_as_long_as_training(max_epochs: int | None, max_steps: int) -> None:
    """Counted step by step, up to a number that stands for no end; the warm-up of 1.5 epochs is no longer."""
    warmup, total = schedule_steps(1.5, 6, max_epochs, max_steps)
    steps = 0
    while steps < 1000 and steps != max_steps and (max_epochs in (None, -1) or steps < 6 * max_epochs):
        steps += 1
    assert total == (math.inf if steps == 1000 else steps)
    assert warmup == min(9, steps)


EPOCH, EPOCHS, WARMUP = 1251, 300, 20  # optimizer steps of an epoch of ImageNet at 1024 images, and the paper's epochs
RUNNING = Path(__file__).parents[1] / "docs/running.md"


def left_by_decay(warmup: int, total: int, lr: float = 1e-3, weight_decay: float = 0.05) -> float:
    """The share of a parameter without gradients that AdamW's decay leaves: the product of 1 - lr_t * decay."""
    return math.prod(1 - lr * warmup_cosine(step, warmup, total) * weight_decay for step in range(total))


def test_adamw_decays_by_that_product_alone_where_there_is_no_gradient() -> None:
    part = Table()
    part.scale.data.fill_(3.0)
    optimizer = build_optimizer([part], OptimizerConfig(lr=0.1, weight_decay=0.5, decay="all"))
    schedule = build_schedule(optimizer, 3, 20)
    for _ in range(20):
        part.scale.grad = torch.zeros_like(part.scale)
        optimizer.step()
        schedule.step()
    assert part.scale.tolist() == pytest.approx([3 * left_by_decay(3, 20, 0.1, 0.5)] * 4, rel=1e-5)


def test_what_the_papers_decay_does_to_memory_is_what_the_docs_say() -> None:
    """Against the integral of the schedule: half of the peak on average, in the warm-up and along the cosine."""
    left = left_by_decay(WARMUP * EPOCH, EPOCHS * EPOCH)
    assert left == pytest.approx(math.exp(-1e-3 * 0.05 * EPOCHS * EPOCH / 2), rel=1e-3)
    after_fine_tuning = left_by_decay(2 * EPOCH, 30 * EPOCH)
    assert after_fine_tuning == pytest.approx(math.exp(-1e-3 * 0.05 * 30 * EPOCH / 2), rel=1e-3)

    def half_life(dt: float, a: float) -> float:
        return math.log(2) / (dt * a)  # glimpses until exp(-dt * a) has halved the state

    ends = [half_life(dt, a) for dt, a in ((0.1, 16), (0.001, 1))]
    drawn_to = half_life(math.log1p(math.exp(0)), math.exp(0))  # dt_bias and A_log at 0
    pull = 0.05 * abs(math.log(math.expm1(0.01)))  # of decay on dt_bias at a step of 0.01, against Adam's largest step
    assert drawn_to == pytest.approx(1)
    said = re.search(
        r"leaves a parameter (\S+) of its value .* fine-tuning leaves (\S+) of it\b.* between (\S+) and (\S+) glimpses"
        r".* halves with every glimpse.* with (\S+) of the largest step",
        re.sub(r"\s+", " ", RUNNING.read_text()),
    )
    assert said
    assert [float(number) for number in said.groups()] == pytest.approx(
        [left, after_fine_tuning, *ends, pull], rel=0.01
    )


def test_the_warm_up_is_one_step_ahead_of_the_authors() -> None:
    """Theirs is step / warmup, from zero; in all, one step at the peak rate is the difference."""
    warmup, total = WARMUP * EPOCH, EPOCHS * EPOCH
    theirs = [step / warmup for step in range(warmup)]
    ours = [warmup_cosine(step, warmup, total) for step in range(warmup)]
    assert theirs[0] == 0
    assert ours[:-1] == theirs[1:]
    assert sum(ours) - sum(theirs) == pytest.approx(1)
    assert warmup_cosine(warmup, warmup, total) == 1  # and from there on they are the same


def test_scheduler_steps_the_optimizer() -> None:
    optimizer = build_optimizer([Table()], OptimizerConfig(lr=0.5))
    scheduler = build_schedule(optimizer, 2, 4)
    rates = []
    for _ in range(4):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([0.25, 0.5, 0.5, 0.25])


def test_negative_warmup_is_refused() -> None:
    with pytest.raises(InputError, match="warmup_epochs is -1"):
        OptimizerConfig(warmup_epochs=-1)


def learnt(fused: list[bool], device: str = "cpu") -> tuple[torch.Tensor, bool | None]:
    """The weights after a step of each optimizer, each going on from the state of the one before."""
    torch.manual_seed(0)
    part = Table()
    torch.nn.init.normal_(part.places)
    part.to(device)
    saved = None
    for is_fused in fused:
        optimizer = build_optimizer([part], OptimizerConfig(lr=0.1, weight_decay=0.5, decay="all"))
        schedule = build_schedule(optimizer, 0, 10)
        set_fused(optimizer, is_fused)
        if saved:
            optimizer.load_state_dict(saved)
            with mock.patch("mambaeye.optim.can_fuse", return_value=is_fused):
                override_hparams(optimizer, schedule, OptimizerConfig(lr=0.1, weight_decay=0.5, decay="all"))
        (part.places**3).sum().backward()
        optimizer.step()
        saved = optimizer.state_dict()
        part.zero_grad()
    return part.places.detach().cpu(), saved["param_groups"][0]["fused"]


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_fused_and_other_optimizers_go_on_from_each_others_states(device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA GPU")
    expected, _ = learnt([False] * 4)
    for fused in ([True] * 4, [True, False, False, True], [False, True, True, False]):
        weights, last = learnt(fused, device)
        torch.testing.assert_close(weights, expected)
        assert bool(last) == fused[-1]


@pytest.mark.cuda
def test_the_optimizer_is_fused_on_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU")
    part = Table().cuda()
    optimizer = build_optimizer([part], OptimizerConfig())
    assert all(group["fused"] for group in optimizer.param_groups)
    part.scale.grad = torch.full_like(part.scale, torch.nan)
    optimizer.found_inf = part.scale.grad.isnan().any().float()
    optimizer.step()
    assert part.scale.eq(0).all()
