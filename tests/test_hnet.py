"""H-Net over glimpses: one answer for any split; routers and smoothing against loops; re-summed moves; its loss."""

import math
from itertools import pairwise
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mambaeye.encoders.hnet import HNet
from mambaeye.errors import InputError
from mambaeye.ops import hierarchy
from mambaeye.ops.hierarchy import SMALLEST, Routing, smoothed
from mambaeye.ops.routers import ROUTERS, SHARPNESS, Neighbours, Novelty, Router, RouterName, Similarity

SMALL = {"num_classes": 5, "patch_size": 4, "dim": 16, "d_state": 8, "headdim": 8, "move_embedding_dim": 8}
NAMES = get_args(RouterName)


def opened(**changes: object) -> HNet:
    """A small model in float64 whose links that start at zero let something through, and whose routers split evenly."""
    torch.manual_seed(0)
    model = HNet(**{**SMALL, "blocks": (1, 1)} | changes).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.any():
                parameter.normal_(std=0.3)
            if name.endswith("key.weight"):  # so that some glimpses are unlike what was seen, and some are like it
                parameter.normal_(std=0.5)
    return model.eval()


def glimpses(batch: int, length: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    patches = torch.rand(batch, length, 3, 4, 4, generator=draw, dtype=torch.float64)
    return patches, torch.randint(60, (batch, length, 2), generator=draw)


def in_pieces(model: HNet, patches: Tensor, positions: Tensor, sizes: list[int]) -> Tensor:
    state, logits = model.initial_state(len(patches)), []
    for piece in torch.arange(patches.shape[1]).split(sizes):
        some, state = model.stream(patches[:, piece], positions[:, piece], state)
        logits.append(some)
    return torch.cat(logits, dim=1)


@pytest.mark.parametrize("router", NAMES)
@pytest.mark.parametrize("blocks", [(1, 1), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("with_gradient", [False, pytest.param(True, marks=pytest.mark.long)])
def test_whole_chunks_and_single_glimpses_give_the_same_answers(
    router: RouterName, blocks: tuple[int, ...], with_gradient: bool
) -> None:
    model, (patches, positions) = opened(router=router, blocks=blocks), glimpses(4, 70)
    with torch.set_grad_enabled(with_gradient):
        whole = model(patches, positions)
        for sizes in ([70], [1] * 70, [33, 1, 36], [5, 64, 1]):
            torch.testing.assert_close(in_pieces(model, patches, positions, sizes), whole, atol=1e-9, rtol=0)
    kept = model.route(patches, positions)[1][0].kept
    assert 0.1 < kept.double().mean() < 0.9


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.sampled_from(NAMES), st.integers(1, 3))
def test_any_split_is_the_whole(sizes: list[int], router: RouterName, batch: int) -> None:
    model, (patches, positions) = opened(router=router), glimpses(batch, sum(sizes), seed=len(sizes))
    with torch.no_grad():
        torch.testing.assert_close(
            in_pieces(model, patches, positions, sizes), model(patches, positions), atol=1e-9, rtol=0
        )


def test_in_float32_too_where_no_router_is_undecided() -> None:
    model, (patches, positions) = opened().float(), glimpses(4, 60)
    patches = patches.float()
    with torch.no_grad():
        whole, (routing,) = model.route(patches, positions)
        assert (routing.probability - 0.5).abs().min() > 1e-4
        whole = model.logits(whole)
        for sizes in ([1] * 60, [7, 53]):
            torch.testing.assert_close(in_pieces(model, patches, positions, sizes), whole, atol=1e-5, rtol=0)


@pytest.mark.parametrize("router", NAMES)
def test_no_gradient_comes_from_later_glimpses(router: RouterName) -> None:
    model, (patches, positions) = opened(router=router), glimpses(2, 12)
    patches.requires_grad_()
    for step in (0, 4, 10):
        (gradient,) = torch.autograd.grad(model(patches, positions)[:, step].sum(), patches)
        assert gradient[:, step + 1 :].eq(0).all()
        assert gradient[:, step].any()


def test_its_state_does_not_grow() -> None:
    model, (patches, positions) = opened(blocks=(1, 1, 1)), glimpses(1, 40)
    state, sizes = model.initial_state(1), set()
    with torch.no_grad():
        for t in range(40):
            _, state = model.stream(patches[:, t : t + 1], positions[:, t : t + 1], state)
            sizes.add(tuple(part.numel() for part in tensors(state)))
    assert len(sizes) == 1
    assert state.steps.item() == state.stage.router.seen.item() == 40
    assert state.stage.kept.item() == state.stage.inner.router.seen.item()


def tensors(state: object) -> list[Tensor]:
    return [state] if isinstance(state, Tensor) else [part for inner in state for part in tensors(inner)]


def expected(router: Router, x: Tensor, positions: Tensor) -> list[float]:
    """The probabilities of one image's glimpses, one by one."""
    found = [1.0]
    for t in range(1, len(x)):
        known = x[:t].mean(0) if isinstance(router, Novelty) else x[t - 1]
        if isinstance(router, Neighbours):
            known, new = router.query.weight @ known, router.key.weight @ x[t]
            found.append(((1 - known @ new / known.norm() / new.norm()) / 2).item())
        elif isinstance(router, Similarity):
            alike = known @ x[t] / known.norm() / x[t].norm()
            found.append((1 / (1 + torch.exp(-SHARPNESS * (router.threshold - alike)))).item())
        else:
            found.append(float(t % router.shrink == 0))
    return found


@pytest.mark.parametrize("router", [name for name in NAMES if name != "random"])
def test_routers_do_what_they_say(router: RouterName) -> None:
    torch.manual_seed(1)
    decider = ROUTERS[router](6, 3.0).double()
    for parameter in decider.parameters():
        torch.nn.init.normal_(parameter)
    x, positions = torch.randn(3, 11, 6, dtype=torch.float64), torch.zeros(3, 11, 2, dtype=torch.long)
    p, state = decider(x, positions, decider.initial_state(3, x), None)
    for row in range(3):
        torch.testing.assert_close(p[row], torch.tensor(expected(decider, x[row], positions), dtype=torch.float64))
    lengths = torch.tensor([0, 4, 11])  # padding leaves the state alone
    _, padded = decider(x, positions, decider.initial_state(3, x), lengths)
    for row, length in enumerate(lengths.tolist()):
        _, alone = decider(x[row : row + 1, :length], positions, decider.initial_state(1, x), None)
        assert padded.seen[row] == length == alone.seen.item()
        torch.testing.assert_close(padded.memory[row], alone.memory[0])
    assert state.seen.tolist() == [11] * 3


def test_the_first_glimpse_is_kept_whatever_it_shows() -> None:
    for name in NAMES:
        kept = opened(router=name).route(*glimpses(5, 1))[1][0].kept
        assert kept.all()


@pytest.mark.parametrize("shrink", [2.0, 4.0, 7.0])
def test_random_keeps_its_share_by_number_and_position(shrink: float) -> None:
    router = ROUTERS["random"](4, shrink)
    draw = torch.Generator().manual_seed(0)
    positions = torch.randint(500, (40, 500, 2), generator=draw)
    x = torch.zeros(40, 500, 4)
    kept, _ = router(x, positions, router.initial_state(40, x), None)
    trials = kept[:, 1:]
    error = 4 * math.sqrt((1 - 1 / shrink) / shrink / trials.numel())
    assert abs(trials.mean().item() - 1 / shrink) < error
    assert trials.mean(0).std() < 3 * math.sqrt((1 - 1 / shrink) / shrink / 40)  # no glimpse number is special
    still, _ = router(x, torch.zeros_like(positions), router.initial_state(40, x), None)
    assert abs(still[0, 1:].mean().item() - 1 / shrink) < 4 * math.sqrt(1 / shrink / 500)


@pytest.mark.parametrize("length", [1, 5, 130])
def test_smoothing_is_the_running_mean(length: int) -> None:
    torch.manual_seed(0)
    z, before = torch.randn(3, length, 6, dtype=torch.float64), torch.randn(3, 6, dtype=torch.float64)
    probability = torch.rand(3, length, dtype=torch.float64)
    probability[:, 0] = 1.0
    number = torch.tensor([0, length // 2, length])
    got = smoothed(z, probability, before, number)
    for row in range(3):
        running = before[row]
        for j in range(int(number[row])):
            P = min(max(float(probability[row, j]), SMALLEST), 1 - SMALLEST)
            running = P * z[row, j] + (1 - P) * running
            torch.testing.assert_close(got[row, j], running)
        if length > number[row]:
            torch.testing.assert_close(got[row, -1], running)  # padding leaves it as it is


def test_kept_glimpses_carry_the_sum_of_the_moves_since_the_last_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (patches, positions) = opened(router="stride", shrink=3.0), glimpses(2, 20)
    told: list[Tensor] = []

    def recorded(moves: Tensor, *more: object) -> Tensor:
        told.append(moves)
        return embed_moves(moves, *more)

    embed_moves = hierarchy.embed_moves
    monkeypatch.setattr(hierarchy, "embed_moves", recorded)
    with torch.no_grad():
        in_pieces(model, patches, positions, [4, 1, 10, 5])
    moves = positions.diff(dim=1, prepend=positions[:, :1])
    kept = [*range(0, 20, 3)]
    sums = [moves[:, :1].sum(1), *(moves[:, one + 1 : other + 1].sum(1) for one, other in pairwise(kept))]
    numbers = [[k for k in kept if first <= k < last] for first, last in ((0, 4), (4, 5), (5, 15), (15, 20))]
    got = [
        part for some, ks in zip(told, [n for n in numbers if n], strict=True) for part in some[:, : len(ks)].unbind(1)
    ]
    assert torch.stack(got).equal(torch.stack(sums))


@given(st.integers(1, 30), st.floats(1.5, 8), st.integers(0, 99))
def test_the_ratio_loss_is_its_formula_and_least_at_its_share(length: int, shrink: float, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    p = torch.rand(3, length, generator=draw, dtype=torch.float64)
    counts = torch.arange(length) < torch.tensor([[1], [length], [length]])
    routing = Routing(p, p > 0.5, counts)
    F = sum(float(k) for k, c in zip(routing.kept.flatten(), counts.flatten(), strict=True) if c) / counts.sum().item()
    G = sum(float(k) for k, c in zip(p.flatten(), counts.flatten(), strict=True) if c) / counts.sum().item()
    told = shrink / (shrink - 1) * ((shrink - 1) * F * G + (1 - F) * (1 - G))
    assert float(routing.ratio_loss(shrink)) == pytest.approx(told)
    share = torch.full((1, 1), 1 / shrink, dtype=torch.float64)
    one = torch.ones(1, 1, dtype=torch.bool)
    assert float(Routing(share, one, one).ratio_loss(shrink)) == pytest.approx(1.0)  # G at its share: 1 whatever F is


def test_training_gets_the_ratio_loss_only_from_routers_that_learn() -> None:
    from test_conformance import batch_for

    for router in NAMES:
        torch.manual_seed(0)
        model = HNet(**{**SMALL, "patch_size": 16}, blocks=(1, 1, 1), router=router)
        encoded = model.encode_for_training(batch_for(model))
        assert (encoded.penalty is None) == (router in ("stride", "random"))
        assert {"ratio_loss", "kept", "kept_of_stage_1", "kept_early", "kept_late"} <= encoded.curves.keys()
        if encoded.penalty is not None:
            encoded.penalty.backward()
            assert any(p.grad is not None and p.grad.any() for p in model.stage.router.parameters())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"blocks": (2,)}, r"encoder.blocks is \[2\]: give blocks around"),
        ({"blocks": (2, 0)}, "encoder.blocks.1 is 0: give at least 1"),
        ({"router": "best"}, "encoder.router is 'best': choose one of neighbours"),
        ({"shrink": 1.0}, "encoder.shrink is 1.0: give more than 1"),
        ({"shrink": 2.5, "router": "stride"}, "of router stride a whole number"),
        ({"ratio_weight": -1.0}, "encoder.ratio_weight is -1.0"),
        ({"move_embedding_dim": 7}, "encoder.move_embedding_dim is 7"),
    ],
)
def test_what_cannot_be_is_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        HNet(**SMALL | wrong)
