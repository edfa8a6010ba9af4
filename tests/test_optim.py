import math

import pytest
import torch

from mambaeye.encoders.mambaeye import EncoderConfig, MambaEye
from mambaeye.errors import InputError
from mambaeye.optim import OptimizerConfig, build_optimizer, build_schedule, warmup_cosine


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
