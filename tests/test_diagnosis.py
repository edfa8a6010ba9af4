"""The diagnosis against the recurrence written out in float64, and a model whose memory is known in closed form."""

import math

import pytest
import torch
import torch.nn.functional as F
from test_encoder import SMALL, glimpses, small_model
from torch import Tensor

from mambaeye.diagnosis import Diagnosis, diagnose
from mambaeye.encoder import EncoderConfig, MambaEye


def written_out(model: MambaEye, patches: Tensor, positions: Tensor) -> list[list[list[Tensor]]]:
    """Of every image, layer and head: its states (T + 1, P, N) from zeros on, and its decays (T,)."""
    images = []
    for image in range(len(patches)):
        x = model.embed(patches[image : image + 1], positions[image : image + 1], None)[0]  # (T, D)
        layers = []
        for block in model.blocks:
            mixer, length = block.mixer, len(x)
            projected = F.rms_norm(x, x.shape[1:], block.norm.weight, 1e-5) @ mixer.in_proj.weight.T
            z, xbc, dt = projected.split([mixer.inner, mixer.channels, mixer.heads], dim=1)
            taps, padded = mixer.conv1d.weight[:, 0], torch.cat((xbc.new_zeros(mixer.d_conv - 1, mixer.channels), xbc))
            conv = torch.stack(
                [(padded[t : t + mixer.d_conv] * taps.T).sum(0) + mixer.conv1d.bias for t in range(length)]
            )
            inputs, B, C = F.silu(conv).split([mixer.inner, mixer.d_state, mixer.d_state], dim=1)
            heads, outputs = [], []
            for head in range(mixer.heads):
                own = inputs[:, head * mixer.headdim : (head + 1) * mixer.headdim]
                step = torch.log1p(torch.exp(dt[:, head] + mixer.dt_bias[head]))
                decays = torch.exp(-step * torch.exp(mixer.A_log[head]))
                states = [own.new_zeros(mixer.headdim, mixer.d_state)]
                for t in range(length):
                    states.append(decays[t] * states[-1] + step[t] * torch.outer(own[t], B[t]))
                heads.append([torch.stack(states), decays])
                y = torch.stack([state @ c for state, c in zip(states[1:], C, strict=True)])
                outputs.append(y + mixer.D[head] * own)
            gated = torch.cat(outputs, dim=1) * F.silu(z)
            x = x + F.rms_norm(gated, gated.shape[1:], mixer.norm.weight, 1e-5) @ mixer.out_proj.weight.T
            layers.append(heads)
        images.append(layers)
    return images


@torch.no_grad()
def test_every_number_is_that_of_the_recurrence_written_out() -> None:
    model, (patches, positions) = small_model(), glimpses(2, 7)
    got = diagnose(model, patches, positions)
    shape = (2, 7, SMALL.depth)
    assert [part.shape for part in got] == [shape] * 3 + [(*shape, 4)] * 2
    for image, layers in enumerate(written_out(model, patches, positions)):
        for layer, heads in enumerate(layers):
            states = torch.stack([head[0] for head in heads], dim=1)  # (T + 1, H, P, N)
            decays = torch.stack([head[1] for head in heads], dim=1)  # (T, H)
            now, before = states[1:], states[:-1]
            sizes = now.flatten(1).norm(dim=1)
            left = torch.stack([decays[t + 1 :].prod(0) for t in range(7)])
            expected = Diagnosis(
                sizes,
                (now - before).flatten(1).norm(dim=1) / sizes,
                (now - decays[..., None, None] * before).flatten(1).norm(dim=1),
                decays,
                left,
            )
            of_layer = Diagnosis(*(part[image, :, layer] for part in got))
            torch.testing.assert_close(of_layer, expected, atol=1e-10, rtol=1e-10)
    assert 0.01 < got.left[:, 0].min() < got.left[:, 0].max() < 0.99, "nothing was to be seen"


@pytest.mark.parametrize("length", [1, 40])
def test_a_memory_known_in_closed_form(length: int) -> None:
    """Step sizes that depend on nothing: glimpse t has decayed T - 1 - t times at the end."""
    model, (patches, positions) = small_model(torch.float32), glimpses(3, length)
    rates = torch.tensor([0.5, 1.0, 4.0, 16.0])
    with torch.no_grad():
        for mixer in (block.mixer for block in model.blocks):
            mixer.in_proj.weight[-mixer.heads :] = 0
            mixer.dt_bias.fill_(math.log(math.expm1(0.05)))  # softplus of this is 0.05
            mixer.A_log.copy_(rates.log())
    got = diagnose(model, patches, positions)
    age = length - 1 - torch.arange(length)[:, None, None]
    decay = torch.exp(-0.05 * rates)
    torch.testing.assert_close(got.decay, decay.expand_as(got.decay))
    torch.testing.assert_close(got.left, (decay**age).expand(3, length, 2, 4), atol=1e-7, rtol=1e-4)
    assert got.change[:, 0].equal(torch.ones(3, 2))


def test_the_model_is_as_before_and_images_do_not_mix() -> None:
    model, (patches, positions) = small_model(torch.float32), glimpses(3, 9)
    before = model(patches, positions)
    together = diagnose(model, patches, positions)
    one = diagnose(model, patches[1:2], positions[1:2])
    for all_three, alone in zip(together, one, strict=True):
        torch.testing.assert_close(all_three[1:2], alone, atol=1e-5, rtol=1e-5)
    assert model(patches, positions).equal(before)
    assert not any(block.mixer.in_proj._forward_hooks for block in model.blocks)
    assert not any(part.requires_grad for part in together)


def test_states_and_decays_stay_wide_under_autocast() -> None:
    model = MambaEye(EncoderConfig(**{**vars(SMALL), "d_state": 16}))
    patches, positions = glimpses(2, 5)
    exact = diagnose(model, patches, positions)
    with torch.autocast("cpu", torch.bfloat16):
        got = diagnose(model, patches, positions)
    for wide, narrow in zip(exact, got, strict=True):
        assert narrow.dtype == torch.float32
        torch.testing.assert_close(narrow, wide, atol=0.02, rtol=0.05)
