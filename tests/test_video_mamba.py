"""VideoMamba against its authors' logits, its published sizes, and what its structure implies for clips and images."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn

from mambaeye.batch import CanvasBatch, Scene
from mambaeye.encoders.base import Encoder
from mambaeye.encoders.video_mamba import VideoMamba
from mambaeye.encoders.vim import Vim
from mambaeye.errors import InputError
from mambaeye.flops import training_flops
from mambaeye.ops.dense import normalise
from mambaeye.ops.s6_block import S6Mixer
from mambaeye.weights import init_from, load_published
from mambaeye.weights.inspection import inspect

ROOT = Path(__file__).parents[1]
GOLDEN = torch.load(ROOT / "tests/golden/videomamba.pt", weights_only=True)
TINY: dict[str, Any] = {"num_classes": 5, "dim": 16, "depth": 2, "d_state": 4, "patch": 4, "grid": 4, "frames": 4}


def tiny(**changes: Any) -> VideoMamba:
    """A small encoder with weights that are not as small as those that it starts from."""
    torch.manual_seed(0)
    model = VideoMamba(**TINY | changes).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model


def pixels(*shape: int) -> Tensor:
    return torch.randint(256, (*shape, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def of_images() -> dict[str, Tensor]:
    """A model for images in its authors' layout: the golden one's, without times and the frames of its patches."""
    state = {name: tensor for name, tensor in GOLDEN["state_dict"].items() if name != "temporal_pos_embedding"}
    return state | {"patch_embed.proj.weight": state["patch_embed.proj.weight"][:, :, 0]}


@torch.no_grad()
def test_the_authors_logits() -> None:
    model = load_published(GOLDEN["state_dict"], "videomamba")
    assert isinstance(model, VideoMamba)
    torch.testing.assert_close(model.network(GOLDEN["images"]), GOLDEN["logits"], atol=1e-4, rtol=0)
    state = model.state_dict()
    knowing = [system for system in Encoder.defined_subclasses() if system.settings_in(state) is not None]
    assert knowing == [VideoMamba]
    assert VideoMamba.settings_in(state) == model.settings
    assert VideoMamba.settings_in(Vim(num_classes=3, dim=16, depth=1).state_dict()) is None


@pytest.mark.parametrize("changes", [{}, {"masked_backward": True, "residual_state": True}], ids=["published", "pro"])
@pytest.mark.parametrize(
    ("size", "of_clips", "of_images"),
    [
        ("tiny", 7_033_744, 7_148_008),
        ("small", 25_568_656, 25_796_584),
        ("middle", 73_875_856, 74_217_448),
        ("base", 97_143_184, 97_598_440),
    ],
)
def test_the_published_sizes(size: str, of_clips: int, of_images: int, changes: dict[str, bool]) -> None:
    """Of 8 frames and 400 classes, and of images and 1000; the base model is for images alone, and has no overlay."""
    given: dict[str, Any] = {"dim": 768, "depth": 24}
    if size != "base":
        encoder = yaml.safe_load((ROOT / f"configs/encoders/videomamba_{size}.yaml").read_text())["model"]["encoder"]
        assert encoder["class_path"] == "VideoMamba"
        given = encoder["init_args"]
    with torch.device("meta"):
        clips = VideoMamba(**given | changes | {"num_classes": 400})
        images = VideoMamba(**given | changes | {"frames": None})
    assert sum(parameter.numel() for parameter in clips.parameters()) == of_clips
    assert sum(parameter.numel() for parameter in images.parameters()) == of_images


@pytest.mark.parametrize("tubelet", [1, 2])
@torch.no_grad()
def test_any_clip_goes_and_normalising_is_the_encoders_own(tubelet: int) -> None:
    """Sides are filled up with black, and time with the last frame."""
    model = tiny(tubelet=tubelet)
    for frames, height, width in ((4, 16, 16), (1, 8, 28), (7, 5, 3), (2, 17, 30)):
        clips = pixels(2, frames, height, width)
        whole = torch.cat((clips, clips[:, -1:]), dim=1) if frames % tubelet else clips
        padded = F.pad(whole, (0, 0, 0, -width % 4, 0, -height % 4))
        torch.testing.assert_close(model(clips), model.network(normalise(padded, torch.float32)))
    with pytest.raises(InputError, match=r"tubelets of 1 x 4 x 4 do not cover 2 x 16 x 17 \(frames, rows, columns\)"):
        tiny().network(torch.zeros(1, 3, 2, 16, 17))
    with pytest.raises(InputError, match="tubelets of 2 x 4 x 4 do not cover 3 x 8 x 8"):
        tiny(tubelet=2).network(torch.zeros(1, 3, 3, 8, 8))


@pytest.mark.parametrize("tubelet", [1, 2])
@torch.no_grad()
def test_an_image_is_a_clip_of_one_frame(tubelet: int) -> None:
    model = tiny(tubelet=tubelet)
    images = pixels(2, 13, 16)
    torch.testing.assert_close(model(images), model(images[:, None]))
    still = normalise(images[:, :12], torch.float32)
    torch.testing.assert_close(model.network(still), model.network(still[:, :, None].repeat(1, 1, tubelet, 1, 1)))


class Pass(nn.Module):
    """A block that does nothing."""

    def forward(self, x: Tensor, *rest: object) -> Tensor:
        return x


@pytest.mark.parametrize("tubelet", [1, 2])
@torch.no_grad()
def test_fields_of_a_map_lie_where_their_tubelets_do(tubelet: int) -> None:
    """Without its blocks an encoder's map is the tubelets' linear map, the table of places and that of times."""
    model = tiny(tubelet=tubelet, frames=3 * tubelet)
    model.blocks[0], model.blocks[1] = Pass(), Pass()
    clips = pixels(2, 3 * tubelet, 16, 16)
    found = model.forward_features(clips)
    (tokens,) = found.stages
    projected = F.conv3d(
        normalise(clips, torch.float32), model.patch_embed.proj.weight, stride=(tubelet, 4, 4)
    )  # fmt: skip
    assert tokens.shape == projected.shape == (2, 16, 3, 4, 4)
    for f in range(3):
        for r in range(4):
            for c in range(4):
                table = model.positions[r, c] + model.temporal_positions[f] + model.patch_embed.proj.bias
                torch.testing.assert_close(tokens[..., f, r, c], projected[..., f, r, c] + table, atol=1e-5, rtol=1e-4)
    assert found.extra is not None
    token = model.norm(model.class_token + model.class_position)
    torch.testing.assert_close(found.extra, token.expand(2, 1, -1))
    torch.testing.assert_close(found.pooled, found.extra[:, 0])


@torch.no_grad()
def test_maps_cover_clips_that_are_padded() -> None:
    model = tiny(tubelet=2)
    assert model.forward_features(pixels(1, 5, 9, 16)).last.shape == (1, 16, 3, 3, 4)
    assert model.forward_features(pixels(1, 9, 16)).last.shape == (1, 16, 3, 4)


@torch.no_grad()
def test_times_of_another_length_are_interpolated() -> None:
    """A straight line stays one between its ends, nearly; a single frame gets the mean of a line."""
    model = tiny(frames=8)
    model.blocks[0], model.blocks[1] = Pass(), Pass()
    model.patch_embed.proj.weight.zero_()
    model.patch_embed.proj.bias.zero_()
    model.positions.zero_()
    model.temporal_positions.copy_(torch.arange(8.0)[:, None].expand(8, 16))

    def times(frames: int) -> Tensor:
        return model.forward_features(pixels(1, frames, 4, 8)).stages[0][0, 0, :, 0, 1]

    torch.testing.assert_close(times(8), torch.arange(8.0))
    torch.testing.assert_close(times(1), torch.tensor([3.5]))
    torch.testing.assert_close(times(16)[4:-4], ((torch.arange(16) + 0.5) / 2 - 0.5)[4:-4], atol=0.05, rtol=0)
    torch.testing.assert_close(times(4)[1:-1], torch.tensor([2.5, 4.5]), atol=0.05, rtol=0)


@torch.no_grad()
def test_every_frame_counts_and_so_does_their_order() -> None:
    """Without a table of times, too: the class token sees the frames by one scan, backwards, which has an order."""
    for frames in (4, None):
        model = tiny(frames=frames)
        clips = pixels(1, 4, 8, 8)
        answer = model(clips)
        for frame in range(4):
            changed = clips.clone()
            changed[:, frame] = 255 - changed[:, frame]
            assert not model(changed).allclose(answer, atol=1e-5)
        assert not model(clips.flip(1)).allclose(answer, atol=1e-5)


@torch.no_grad()
def test_the_class_token_sees_the_clip_by_the_backward_scan_alone() -> None:
    """It comes first, where the forward scan has seen nothing but itself."""
    model = tiny(depth=1, frames=None)
    clips = pixels(2, 3, 8, 8)
    assert not model(clips[:1]).allclose(model(clips[1:]), atol=1e-4)
    mixer = model.blocks[0].mixer
    assert isinstance(mixer, S6Mixer)
    mixer.x_proj[1].zero_()  # B and C
    mixer.D[1].zero_()  # which the convolution is before
    torch.testing.assert_close(model(clips[:1]), model(clips[1:]), atol=1e-6, rtol=0)


@torch.no_grad()
def test_weights_for_images_become_those_for_clips(tmp_path: Path) -> None:
    """The authors' clip model of one frame, with no time added, is what its patches and blocks make of an image."""
    reference = load_published(GOLDEN["state_dict"], "videomamba")
    assert isinstance(reference, VideoMamba)
    reference.temporal_positions.zero_()
    clips = GOLDEN["images"][:, :, :3]
    expected = [reference.network(clips[:, :, frame : frame + 1]) for frame in range(3)]
    state = of_images()
    image = load_published(state, "videomamba", frames=None)
    by_default = load_published(state, "videomamba")
    tubes = load_published(state, "videomamba", frames=6, tubelet=3)
    assert isinstance(image, VideoMamba)
    assert isinstance(by_default, VideoMamba)
    assert isinstance(tubes, VideoMamba)
    assert image.temporal_positions is None
    assert by_default.temporal_positions.shape == (8, 48)
    assert tubes.temporal_positions.shape == (2, 48)
    for model in (image, by_default, tubes):
        torch.testing.assert_close(model.network(clips[:, :, 0]), expected[0])
    torch.testing.assert_close(tubes.network(clips), expected[1])  # the frame in the middle
    assert not tubes.network(clips).allclose(expected[0], atol=1e-3)

    save_file(state, tmp_path / "image.safetensors")
    started = VideoMamba(num_classes=9, dim=48, depth=3, grid=4, tubelet=2)
    head = started.head.weight.clone()
    assert init_from(started, tmp_path / "image.safetensors", new_head=None)
    assert started.head.weight.equal(head)
    assert started.patch_embed.proj.weight[:, :, 1].equal(state["patch_embed.proj.weight"])
    assert not started.patch_embed.proj.weight[:, :, 0].any()
    with pytest.raises(InputError, match="dim"):
        init_from(VideoMamba(num_classes=7, dim=64, depth=3, grid=4), tmp_path / "image.safetensors")


def test_what_of_images_cannot_be_told_is_vims() -> None:
    """The layouts are the same: the name alone says which it is, of one's own weights and of Vim's."""
    assert isinstance(load_published(of_images()), Vim)
    of_vim = torch.load(ROOT / "tests/golden/vim.pt", weights_only=True)["state_dict"]
    assert isinstance(load_published(of_vim, "videomamba"), VideoMamba)
    with pytest.raises(InputError, match="laid out as deit, not videomamba"):
        load_published(
            torch.load(ROOT / "tests/golden/deit.pt", weights_only=True)["state_dict"], "videomamba", heads=3
        )
    with pytest.raises(InputError, match="laid out as videomamba, not vim"):
        load_published(GOLDEN["state_dict"], "vim")
    assert inspect(ROOT / "tests/golden/videomamba.pt").fits


@pytest.mark.parametrize("options", [(False, False), (True, False), (False, True), (True, True)])
def test_videomambapro_has_the_same_parameters_and_other_answers(options: tuple[bool, bool]) -> None:
    model = tiny()
    pro = tiny(masked_backward=options[0], residual_state=options[1])
    pro.load_state_dict(model.state_dict())
    clips = pixels(2, 3, 8, 8)
    with torch.no_grad():
        assert pro(clips).allclose(model(clips), atol=1e-5) is (options == (False, False))
    pro(clips).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in pro.parameters())


def test_a_batch_of_clips_trains_and_costs_by_its_frames() -> None:
    model = tiny()
    costs = []
    for frames in (2, 4):
        scene = Scene(pixels(2, frames, 8, 8), *(torch.zeros(2, 6) for _ in range(4)))
        ratio, labels = torch.ones(2, 1), torch.arange(2)
        batch = CanvasBatch(scene, ratio, labels, labels, ratio[:, 0], ["a", "b"], labels > -1, 0)
        assert model.encode(batch).shape == (2, 1, 16)
        costs.append(training_flops(model, batch))
    assert 1.7 < costs[1] / costs[0] <= 2


@torch.no_grad()
def test_autocast_leaves_the_scan_and_the_residual_stream_wide() -> None:
    model = tiny(masked_backward=True, residual_state=True)
    seen = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, output: seen.append((inputs[0].dtype, output.dtype)))
    clips = pixels(2, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = model(clips)
    assert set(seen) == {(torch.float32, torch.float32)}
    torch.testing.assert_close(narrow, model(clips), atol=0.1, rtol=0.05)


def test_it_starts_as_its_authors_do_but_for_the_step_sizes() -> None:
    torch.manual_seed(0)
    model = VideoMamba(dim=64, depth=4)
    mixer = model.blocks[0].mixer
    assert isinstance(mixer, S6Mixer)
    for weight in (mixer.in_proj.weight, mixer.x_proj, model.head.weight):
        assert float(weight.detach().std()) == pytest.approx(0.02, rel=0.1)
    assert float(F.softplus(mixer.dt_bias.detach()).max()) <= 0.11
    assert float(mixer.out_proj.weight.detach().abs().max()) <= 128**-0.5 / 2
    assert not model.temporal_positions.any()


def test_weight_decay_leaves_the_recurrence_tables_and_biases_alone() -> None:
    model = tiny()
    decayed = {name for name, _ in model.named_parameters()} - model.no_weight_decay()
    linear = {"in_proj.weight", "conv_weight", "x_proj", "dt_weight", "out_proj.weight"}
    assert {name.rpartition("mixer.")[2] for name in decayed} == {"patch_embed.proj.weight", "head.weight", *linear}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": 0}, "encoder.frames is 0: give at least 1"),
        ({"tubelet": 0}, "encoder.tubelet is 0: give at least 1"),
        ({"frames": 5, "tubelet": 2}, "encoder.frames is 5, which tubelets of 2 do not fill: give a multiple"),
        ({"d_state": 0}, "encoder.d_state is 0: give at least 1"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        VideoMamba(**TINY | changes)


def test_damaged_weights_are_refused_in_a_sentence() -> None:
    tensors = GOLDEN["state_dict"]
    lacking = {name: tensor for name, tensor in tensors.items() if name != "layers.1.mixer.x_proj_b.weight"}
    with pytest.raises(InputError, match="the file is laid out as videomamba, and .* is missing"):
        VideoMamba.from_published(lacking, "the file")
    with pytest.raises(InputError, match="is of no square"):
        VideoMamba.from_published(tensors | {"pos_embed": tensors["pos_embed"][:, :3]}, "the file")
    for name in ("temporal_pos_embedding", "patch_embed.proj.weight"):
        with pytest.raises(InputError, match="shapes do not belong together"):
            VideoMamba.from_published(tensors | {name: torch.zeros(2, 3)}, "the file")
    for state in (
        of_images() | {"patch_embed.proj.weight": torch.zeros(2)},
        of_images() | {"cls_token": torch.ones(3)},
    ):
        with pytest.raises(InputError, match="shapes do not belong together"):
            VideoMamba.from_published_for(state, "the file", {})
