import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mambaeye.encoders.mambaeye import EncoderConfig, MambaEye
from mambaeye.flops import forward_flops, training_flops
from mambaeye.loss import scheduled_cross_entropy_of_features

QUICKSTART = EncoderConfig(num_classes=10, dim=96, depth=3, d_state=32, headdim=32)
WIDE = EncoderConfig(num_classes=1000, depth=2, d_conv=3, patch_size=8, move_embedding_dim=64)


@pytest.mark.parametrize("length", [2, 64, 65, 130])
@pytest.mark.parametrize("config", [QUICKSTART, WIDE], ids=["quickstart", "wide"])
def test_the_count_is_the_profilers(config: EncoderConfig, length: int) -> None:
    model, images, side = MambaEye(config), 2, config.patch_size
    patches = torch.randint(256, (images, length, 3, side, side), dtype=torch.uint8)
    positions = torch.randint(50, (images, length, 2))
    with FlopCounterMode(display=False) as forward:
        model(patches, positions)
    assert forward.get_total_flops() == images * forward_flops(config, length)

    with FlopCounterMode(display=False) as training:
        features = model.features(patches, positions)
        labels, ratio = torch.zeros(images, dtype=torch.long), torch.rand(images, length)
        scheduled_cross_entropy_of_features(features, model.head, labels, ratio).backward()
    counts = dict(training.get_flop_counts()["Global"])
    # the profiler takes a depthwise convolution's backward pass for that of a full one: twice the forward pass instead
    counts[torch.ops.aten.convolution_backward] = 2 * counts[torch.ops.aten.convolution]
    assert sum(counts.values()) == pytest.approx(images * training_flops(config, length), rel=0.02)
