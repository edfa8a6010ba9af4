"""Blocks that are computed again in the backward pass, and what is counted of what a step keeps."""

import copy

import pytest
import torch
from test_conformance import VARIANTS, batch_for, build, named
from torch import Tensor, nn

from mambaeye.batch import CanvasBatch, GlimpseBatch, Scene
from mambaeye.blocks import blocks_of, checkpoint_blocks, kept_bytes
from mambaeye.encoders.base import Encoder
from mambaeye.encoders.mambaeye import MambaEye


@pytest.fixture(params=VARIANTS, ids=named)
def encoder(request: pytest.FixtureRequest) -> Encoder:
    system, changes = request.param
    return build(system, **changes)


def gradients(encoder: Encoder) -> dict[str, Tensor]:
    encoder.zero_grad()
    features = encoder.encode(batch_for(encoder))
    encoder.logits(features).sin().sum().backward()
    return {name: parameter.grad.clone() for name, parameter in encoder.named_parameters()}


@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_are_the_same_and_so_are_names(encoder: Encoder, autocast: bool) -> None:
    again = copy.deepcopy(encoder)
    checkpoint_blocks(again)
    assert again.state_dict().keys() == encoder.state_dict().keys()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected, got = gradients(encoder), gradients(again)
    for name, gradient in expected.items():
        torch.testing.assert_close(got[name], gradient, atol=0, rtol=0, msg=name)


def test_every_block_is_computed_twice_but_for_single_steps(encoder: Encoder) -> None:
    calls = dict.fromkeys(blocks_of(encoder), 0)

    def count(block: nn.Module, *_: object) -> None:
        calls[block] += 1

    for block in calls:
        first = next(block.children())  # of the block itself Lightning's hooks would see one call
        first.register_forward_hook(lambda *_, block=block: count(block))
    checkpoint_blocks(encoder)
    gradients(encoder)
    assert set(calls.values()) == {2}
    with torch.no_grad():
        encoder.encode(batch_for(encoder))
    assert set(calls.values()) == {3}
    if isinstance(encoder, MambaEye):
        batch = batch_for(encoder)
        features, _ = encoder.stream_features(batch.patches[:, :1], batch.positions[:, :1], encoder.initial_state(3))
        features.sum().backward()
        assert set(calls.values()) == {4}


def test_a_copy_recomputes_its_own_blocks() -> None:
    """Not those of the encoder that it is a copy of: FLOPs are counted on a copy on the meta device."""
    encoder = build(MambaEye)
    checkpoint_blocks(encoder)
    changed = copy.deepcopy(encoder)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.zero_()
    assert changed.encode(batch_for(changed)).eq(0).all()
    assert not encoder.encode(batch_for(encoder)).eq(0).all()


def saved(encoder: Encoder) -> int:
    """Bytes of what autograd saves in a forward pass, storages once each, parameters left out."""
    held: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        return held.setdefault(tensor.untyped_storage()._cdata, tensor)

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        encoder.encode(batch_for(encoder))
    own = {parameter.untyped_storage()._cdata for parameter in encoder.parameters()}
    return sum(tensor.untyped_storage().nbytes() for key, tensor in held.items() if key not in own)


def test_what_is_counted_is_what_autograd_saves(encoder: Encoder) -> None:
    counted = kept_bytes(encoder, batch_for(encoder))
    assert counted == pytest.approx(saved(encoder), rel=0.1)
    on_meta = kept_bytes(copy.deepcopy(encoder).to("meta"), on(batch_for(encoder), "meta"))
    assert on_meta == pytest.approx(counted, rel=0.1)
    checkpoint_blocks(encoder)
    assert kept_bytes(encoder, batch_for(encoder)) < 0.9 * counted


def on(batch: GlimpseBatch | CanvasBatch, device: str) -> GlimpseBatch | CanvasBatch:
    if isinstance(batch, CanvasBatch):
        return batch._replace(scene=Scene(*(part.to(device) for part in batch.scene)))
    return batch._replace(patches=batch.patches.to(device), positions=batch.positions.to(device))


@pytest.mark.cuda
def test_what_is_counted_is_what_a_gpu_holds() -> None:
    """With the kernels if they are there: what they make is made by torch."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA GPU")
    encoder = build(MambaEye, dim=64, d_state=16, headdim=16).cuda()
    patches = torch.zeros(16, 128, 3, 16, 16, dtype=torch.uint8, device="cuda")
    batch = on(batch_for(encoder), "cuda")._replace(patches=patches, positions=torch.zeros(16, 128, 2).long().cuda())
    counted = kept_bytes(encoder, batch)
    encoder.encode(batch)  # what libraries take once
    before = torch.cuda.memory_allocated()
    features = encoder.encode(batch)
    assert torch.cuda.memory_allocated() - before == pytest.approx(counted, rel=0.2)
    del features
