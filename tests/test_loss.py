import pytest
import torch
import torch.nn.functional as F
from largest import Largest

from mambaeye.loss import LOGITS_AT_ONCE, scheduled_cross_entropy, scheduled_cross_entropy_of_features


def random_case(batch: int, length: int, classes: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    logits = (3 * torch.randn(batch, length, classes)).requires_grad_()
    ratio = torch.rand(batch, length).sort(1).values
    ratio[0, 0], ratio[-1, -1] = 0.0, 1.0
    return logits, torch.randint(classes, (batch,)), ratio


@pytest.mark.parametrize(("batch", "length", "classes"), [(4, 9, 7), (1, 1, 2), (2, 3, 1000)])
def test_equals_the_dense_target(batch: int, length: int, classes: int) -> None:
    logits, labels, ratio = random_case(batch, length, classes)
    loss = scheduled_cross_entropy(logits, labels, ratio)
    one_hot = F.one_hot(labels, classes)[:, None].expand(-1, length, -1)
    target = (1 - ratio)[..., None] / classes + ratio[..., None] * one_hot
    dense = F.cross_entropy(logits.flatten(0, 1), target.flatten(0, 1))
    torch.testing.assert_close(loss, dense, atol=1e-6, rtol=0)
    got, expected = (torch.autograd.grad(value, logits)[0] for value in (loss, dense))
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)


def test_equals_label_smoothing() -> None:
    logits, labels, _ = random_case(3, 5, 11)
    loss = scheduled_cross_entropy(logits, labels, torch.full((3, 5), 0.7))
    smoothed = F.cross_entropy(logits.flatten(0, 1), labels.repeat_interleave(5), label_smoothing=0.3)
    torch.testing.assert_close(loss, smoothed, atol=1e-6, rtol=0)


def test_without_schedule_it_is_plain_cross_entropy() -> None:
    logits, labels, ratio = random_case(3, 5, 11)
    loss = scheduled_cross_entropy(logits, labels, ratio, schedule="none")
    plain = F.cross_entropy(logits.flatten(0, 1), labels.repeat_interleave(5))
    torch.testing.assert_close(loss, plain, atol=1e-6, rtol=0)


def test_invalid_rows_are_left_out() -> None:
    logits, labels, ratio = random_case(4, 5, 11)
    valid = torch.tensor([True, False, True, False])
    loss = scheduled_cross_entropy(logits, labels, ratio, valid=valid)
    torch.testing.assert_close(loss, scheduled_cross_entropy(logits[valid], labels[valid], ratio[valid]))
    assert torch.autograd.grad(loss, logits)[0][~valid].eq(0).all()
    none = scheduled_cross_entropy(logits, labels, ratio, valid=torch.zeros(4, dtype=torch.bool))
    assert none == 0
    assert torch.autograd.grad(none, logits)[0].eq(0).all()


def test_mixed_images_have_mixed_targets() -> None:
    logits, labels, ratio = random_case(4, 5, 11)
    partners, shares = labels.flip(0), torch.tensor([1.0, 0.3, 0.0, 0.5])
    loss = scheduled_cross_entropy(logits, labels, ratio, partner_labels=partners, label_shares=shares)
    mixed = shares[:, None] * F.one_hot(labels, 11) + (1 - shares[:, None]) * F.one_hot(partners, 11)
    target = (1 - ratio)[..., None] / 11 + ratio[..., None] * mixed[:, None]
    dense = F.cross_entropy(logits.flatten(0, 1), target.flatten(0, 1))
    torch.testing.assert_close(loss, dense, atol=1e-6, rtol=0)


@pytest.mark.parametrize("at_once", [1, 200, 10_000])
@pytest.mark.parametrize("schedule", ["information_ratio", "none"])
def test_in_pieces_it_is_the_same(at_once: int, schedule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Value and gradients of features and head, whatever the pieces; 13 steps that few sizes divide."""
    monkeypatch.setattr("mambaeye.loss.LOGITS_AT_ONCE", at_once)
    _, labels, ratio = random_case(4, 13, 11)
    head, features = torch.nn.Linear(6, 11).double(), torch.randn(4, 13, 6, dtype=torch.float64, requires_grad=True)
    rest = {
        "schedule": schedule,
        "valid": torch.tensor([True, True, False, True]),
        "partner_labels": labels.flip(0),
        "label_shares": torch.rand(4),
    }
    whole = scheduled_cross_entropy(head(features), labels, ratio, **rest)
    pieces = scheduled_cross_entropy_of_features(features, head, labels, ratio, **rest)
    torch.testing.assert_close(pieces, whole, atol=1e-12, rtol=0)
    wanted = [features, *head.parameters()]
    got, expected = (torch.autograd.grad(value, wanted) for value in (pieces, whole))
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=0)


def test_in_pieces_no_logits_of_all_steps_are_kept() -> None:
    """No tensor that the loss makes, forward or backward, is larger than the features or one piece of logits."""
    features, head = torch.randn(2, 4096, 8, requires_grad=True), torch.nn.Linear(8, 1000)
    with Largest() as largest:
        scheduled_cross_entropy_of_features(features, head, torch.tensor([3, 4]), torch.rand(2, 4096)).backward()
    assert features.numel() <= largest.numbers <= LOGITS_AT_ONCE < 2 * 4096 * 1000


def test_in_pieces_under_autocast_it_is_what_it_is_without() -> None:
    _, labels, ratio = random_case(4, 13, 11)
    head, features = torch.nn.Linear(6, 11), torch.randn(4, 13, 6, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        pieces = scheduled_cross_entropy_of_features(features, head, labels, ratio)
    whole = scheduled_cross_entropy(head(features), labels, ratio)
    assert pieces.dtype == torch.float32
    torch.testing.assert_close(pieces, whole, atol=1e-6, rtol=0)
    wanted = [features, *head.parameters()]
    got, expected = (torch.autograd.grad(value, wanted) for value in (pieces, whole))
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=0)


def test_half_precision_logits_are_widened() -> None:
    logits, labels, ratio = random_case(3, 5, 1000)
    loss = scheduled_cross_entropy(logits.bfloat16(), labels, ratio)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, scheduled_cross_entropy(logits.bfloat16().float(), labels, ratio))
