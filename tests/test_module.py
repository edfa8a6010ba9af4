import pytest
import torch
from largest import Largest

from mambaeye.batch import CanvasBatch, GlimpseBatch
from mambaeye.encoders.mambaeye import EncoderConfig
from mambaeye.evaluation.metrics import MetricsConfig, StepMetrics
from mambaeye.geometry.patches import cut_from_canvases
from mambaeye.loss import LOGITS_AT_ONCE, scheduled_cross_entropy
from mambaeye.module import MambaEyeModule


def batch_of(images: int, length: int, side: int, classes: int) -> GlimpseBatch:
    return GlimpseBatch(
        patches=torch.randint(256, (images, length, 3, side, side), dtype=torch.uint8),
        positions=torch.randint(40, (images, length, 2)),
        information_ratio=torch.rand(images, length),
        labels=torch.randint(classes, (images,)),
        partner_labels=torch.randint(classes, (images,)),
        label_shares=torch.rand(images),
        keys=[str(number) for number in range(images)],
        valid=torch.arange(images) > 0,
    )


def module_of(classes: int) -> MambaEyeModule:
    sizes = {"patch_size": 2, "dim": 8, "depth": 1, "d_state": 4, "headdim": 4, "move_embedding_dim": 4}
    return MambaEyeModule(EncoderConfig(num_classes=classes, **sizes))


def canvases_of(images: int, length: int, side: int, classes: int) -> CanvasBatch:
    return CanvasBatch(
        canvases=torch.randint(256, (images, 40, 50, 3), dtype=torch.uint8),
        positions=torch.randint(40 - side, (images, length, 2), dtype=torch.int32),
        information_ratio=torch.rand(images, length),
        labels=torch.randint(classes, (images,)),
        keys=[str(number) for number in range(images)],
        valid=torch.arange(images) > 0,
        cell=torch.zeros(images, dtype=torch.long),
    )


@torch.no_grad()
def test_validation_goes_through_pieces() -> None:
    """The metrics are those of all logits, which are never held at once; nor are the patches."""
    images, length, classes = 3, 700, 2000
    torch.manual_seed(0)
    module, batch = module_of(classes), canvases_of(images, length, 2, classes)
    module.cell_metrics.append(StepMetrics(length))
    with Largest() as largest:
        module.validation_step(batch, 0)
    assert largest.numbers <= LOGITS_AT_ONCE < images * length * classes
    patches = cut_from_canvases(batch.canvases, batch.positions, 2)
    whole = StepMetrics(length)
    whole.update(module.encoder(patches, batch.positions), batch.labels, batch.information_ratio, batch.valid)
    expected = whole.compute()
    for name, value in module.cell_metrics[0].compute().items():
        torch.testing.assert_close(value, expected[name], atol=1e-5, rtol=1e-5, equal_nan=True)


@pytest.mark.parametrize("length", [257, 8192])
@torch.no_grad()
def test_what_a_validation_holds_does_not_grow_with_the_glimpses(length: int) -> None:
    torch.manual_seed(0)
    module, batch = module_of(10), canvases_of(2, length, 2, 10)
    module.cell_metrics.append(StepMetrics(length, MetricsConfig(every_step=1)))
    with Largest() as largest:
        module.validation_step(batch, 0)
    assert largest.numbers < 300_000


@torch.no_grad()
def test_what_is_watched_is_what_the_whole_sequence_gives() -> None:
    torch.manual_seed(0)
    module, batch = module_of(7), canvases_of(4, 600, 2, 7)
    patches, probabilities = module.watch(batch, 3)
    assert patches.equal(cut_from_canvases(batch.canvases[:3], batch.positions[:3], 2))
    torch.testing.assert_close(probabilities, module.encoder(patches, batch.positions[:3]).softmax(-1))


def test_a_probe_is_the_loss_of_the_first_images_step_by_step() -> None:
    torch.manual_seed(0)
    module, batch = module_of(5), batch_of(4, 9, 2, 5)
    losses, confidence = module.probe(batch, 3)
    assert losses.shape == confidence.shape == (3, 9)
    assert not losses.requires_grad
    some = GlimpseBatch(*(part[:3] for part in batch))
    logits = module.encoder(some.patches, some.positions)
    mixed = {"partner_labels": some.partner_labels, "label_shares": some.label_shares}
    for step in range(9):
        expected = scheduled_cross_entropy(
            logits[:, step : step + 1], some.labels, some.information_ratio[:, step : step + 1], **mixed
        )
        torch.testing.assert_close(losses[:, step].mean(), expected)
