"""Canvases and batches with numbers in them, for tests of what goes over them."""

import torch

from mambaeye.batch import CanvasBatch, GlimpseBatch, Scene


def scene_of(images: int, num_glimpses: int, side: int, size: tuple[int, int] = (40, 50)) -> Scene:
    """Return noise; the images fill all but an edge of their canvases, and glimpses fall anywhere."""
    height, width = size
    return Scene(
        canvases=torch.randint(256, (images, height, width, 3), dtype=torch.uint8),
        boxes=torch.tensor([[2, 3, height - 4, width - 9]], dtype=torch.int32).repeat(images, 1),
        positions=torch.randint(min(size) - side, (images, num_glimpses, 2), dtype=torch.int32),
        seeds=torch.arange(images),
        led=torch.ones(images, dtype=torch.bool),
    )


def canvases_of(images: int, num_glimpses: int, side: int, classes: int) -> CanvasBatch:
    """Return a validation batch, whose first row does not count."""
    return CanvasBatch(
        scene=scene_of(images, num_glimpses, side),
        information_ratio=torch.rand(images, num_glimpses),
        labels=torch.randint(classes, (images,)),
        partner_labels=torch.randint(classes, (images,)),
        label_shares=torch.rand(images),
        keys=[str(number) for number in range(images)],
        valid=torch.arange(images) > 0,
        condition=0,
    )


def glimpses_of(images: int, num_glimpses: int, side: int, classes: int) -> GlimpseBatch:
    """Return a training batch, whose first row does not count."""
    return GlimpseBatch(
        patches=torch.randint(256, (images, num_glimpses, 3, side, side), dtype=torch.uint8),
        positions=torch.randint(40, (images, num_glimpses, 2)),
        information_ratio=torch.rand(images, num_glimpses),
        labels=torch.randint(classes, (images,)),
        partner_labels=torch.randint(classes, (images,)),
        label_shares=torch.rand(images),
        keys=[str(number) for number in range(images)],
        valid=torch.arange(images) > 0,
    )
