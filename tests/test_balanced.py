"""Classes that count alike: the weights, the loss they make, and what a fit does with them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning import Callback, LightningModule, Trainer
from sklearn.utils.class_weight import compute_class_weight
from test_callbacks import digits, small_encoder
from torch import nn

from mambaeye.batch import GlimpseBatch
from mambaeye.loss import (
    class_weights,
    scheduled_cross_entropy,
    scheduled_cross_entropy_of_features,
    step_losses,
    weights_of_images,
)
from mambaeye.module import ClassifierModule
from mambaeye.optim import OptimizerConfig


@given(st.lists(st.integers(0, 50), min_size=1, max_size=9).filter(any))
def test_weights_are_scikit_learns_balanced_ones(images: list[int]) -> None:
    labels = np.repeat(np.arange(len(images)), images)
    present = np.unique(labels)
    weights = class_weights(torch.tensor(images))
    expected = np.zeros(len(images))
    expected[present] = compute_class_weight("balanced", classes=present, y=labels)
    assert weights.tolist() == pytest.approx(expected.tolist(), rel=1e-6)
    assert float(weights[torch.from_numpy(labels)].mean()) == pytest.approx(1, rel=1e-5)


def test_the_loss_is_the_weighted_mean_of_the_images() -> None:
    torch.manual_seed(0)
    features, head = torch.randn(5, 7, 4, requires_grad=True), nn.Linear(4, 3)
    labels, partners, shares = torch.tensor([0, 1, 2, 0, 1]), torch.tensor([0, 2, 2, 1, 1]), torch.rand(5)
    ratio, valid = torch.rand(5, 7), torch.tensor([True, True, False, True, True])
    of_class = torch.tensor([0.5, 2.0, 4.0])
    weights = weights_of_images(of_class, labels, partners, shares)
    rows = zip(labels, partners, shares, strict=True)
    expected = [float(share * of_class[label] + (1 - share) * of_class[partner]) for label, partner, share in rows]
    assert weights.tolist() == pytest.approx(expected)

    logits = head(features)
    losses = step_losses(logits, labels, ratio, "information_ratio", partners, shares).mean(1)
    by_hand = sum(losses[row] * expected[row] for row in (0, 1, 3, 4)) / 4
    settings = {"valid": valid, "partner_labels": partners, "label_shares": shares, "image_weights": weights}
    plain = scheduled_cross_entropy(logits, labels, ratio, **settings)
    pieces = scheduled_cross_entropy_of_features(features, head, labels, ratio, **settings)
    torch.testing.assert_close(plain, by_hand)
    torch.testing.assert_close(pieces, by_hand)
    (expected_gradient,) = torch.autograd.grad(by_hand, features, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(pieces, features)[0], expected_gradient)


class KeepLosses(Callback):
    """Keeps what every batch was and what its loss was."""

    def __init__(self) -> None:
        self.batches: list[tuple[GlimpseBatch, float]] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: GlimpseBatch, batch_idx: int
    ) -> None:
        self.batches.append((batch, float(outputs["loss"])))


def trained(run_dir: Path, data_dir: Path, balanced: bool) -> tuple[ClassifierModule, list[tuple[GlimpseBatch, float]]]:
    keep = KeepLosses()
    module = ClassifierModule(small_encoder(), optimizer=OptimizerConfig(lr=0, warmup_epochs=0), balanced=balanced)
    trainer = Trainer(
        accelerator="cpu",
        default_root_dir=run_dir,
        max_epochs=1,
        limit_val_batches=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[keep],
    )
    trainer.fit(module, digits(data_dir))
    return module, keep.batches


def test_an_epoch_is_the_same_images_and_only_their_losses_differ(data_dir: Path, tmp_path: Path) -> None:
    """The 397 digits are not of ten equal classes."""
    plain, without = trained(tmp_path / "plain", data_dir, False)
    module, batches = trained(tmp_path / "balanced", data_dir, True)
    assert [batch.keys for batch, _ in batches] == [batch.keys for batch, _ in without]
    images = module.trainer.datamodule.class_counts
    assert images.sum() == 397
    assert len(set(images.tolist())) > 1
    for (batch, loss), (_, before) in zip(batches, without, strict=True):
        losses, _, _ = plain.per_step_loss(batch, len(batch.labels))
        weight = 397 / (10 * images[batch.labels])
        assert before == pytest.approx(float(losses.mean()), abs=1e-5)
        assert loss == pytest.approx(float((losses.mean(1) * weight).mean()), abs=1e-5)
        weighted, _, _ = module.per_step_loss(batch, len(batch.labels))
        assert float(weighted.mean()) == pytest.approx(loss, abs=1e-5)
    assert module.hparams["balanced"] is True
