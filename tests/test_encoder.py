from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mambaeye.encoders.mambaeye import DEPTHS, EncoderConfig, EncoderState, MambaEye
from mambaeye.errors import InputError
from mambaeye.geometry.moves import embed_moves, moves

SMALL = EncoderConfig(num_classes=5, patch_size=4, dim=16, depth=2, d_state=8, headdim=8, move_embedding_dim=8)


def glimpses(batch: int, length: int, config: EncoderConfig = SMALL) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(length)
    sides = ([config.tube] if config.axes == 3 else []) + [config.patch_size] * 2
    patches = torch.randint(256, (batch, length, 3, *sides), dtype=torch.uint8, generator=generator)
    return patches, torch.randint(64, (batch, length, config.axes), generator=generator)


def small_model(dtype: torch.dtype = torch.float64, config: EncoderConfig = SMALL) -> MambaEye:
    torch.manual_seed(0)
    return MambaEye(config).to(dtype)


def in_pieces(model: MambaEye, patches: Tensor, positions: Tensor, sizes: list[int]) -> tuple[Tensor, EncoderState]:
    state, logits = model.initial_state(len(patches)), []
    for piece in torch.arange(patches.shape[1]).split(sizes):
        some, state = model.stream(patches[:, piece], positions[:, piece], state)
        logits.append(some)
    return torch.cat(logits, dim=1), state


@pytest.mark.parametrize(("size", "millions"), [("tiny", 5.8), ("small", 11.0), ("base", 21.3)])
def test_published_sizes(size: str, millions: float) -> None:
    with torch.device("meta"):
        model = MambaEye.__new__(MambaEye)
        MambaEye.__init__(model, EncoderConfig.named(size))
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == millions


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 130])
def test_recurrent_is_parallel(length: int) -> None:
    model, (patches, positions) = small_model(), glimpses(2, length)
    logits, _ = in_pieces(model, patches, positions, [1] * length)
    torch.testing.assert_close(logits, model(patches, positions), atol=1e-10, rtol=0)


@pytest.mark.parametrize("sizes", [[1, 129], [64, 66], [3, 1, 70, 56], [129, 1]])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_any_split_is_the_whole(sizes: list[int], dtype: torch.dtype, tolerance: float) -> None:
    model, (patches, positions) = small_model(dtype), glimpses(3, 130)
    logits, state = in_pieces(model, patches, positions, sizes)
    torch.testing.assert_close(logits, model(patches, positions), atol=tolerance, rtol=0)
    assert state.steps.tolist() == [130] * 3
    assert state.position.equal(positions[:, -1])


REGISTERED = replace(SMALL, registers_every=4)


@pytest.mark.parametrize("sizes", [[1] * 22, [4, 18], [3, 1, 17, 1], [21, 1]])
def test_registers_come_after_every_fourth_glimpse_wherever_the_sequence_is_cut(sizes: list[int]) -> None:
    model, (patches, positions) = small_model(config=REGISTERED), glimpses(2, 22)
    logits, state = in_pieces(model, patches, positions, sizes)
    torch.testing.assert_close(logits, model(patches, positions), atol=1e-10, rtol=0)
    assert state.steps.tolist() == [22] * 2


def test_registers_are_tokens_whose_answers_are_left_out() -> None:
    """Against the blocks run by hand over the glimpses' tokens, with the register's between."""
    model, (patches, positions) = small_model(config=REGISTERED), glimpses(2, 9)
    assert model.register is not None
    tokens = list(model.embed(patches, positions, None).unbind(1))
    for place in (8, 4):
        tokens.insert(place, model.register.expand(2, -1))
    x, residual = torch.stack(tokens, dim=1), None
    for block in model.layers():
        x, residual, _ = block(x, residual, None, None)
    features = model.norm(residual + x)
    answers = [place for place in range(11) if place not in (4, 9)]
    torch.testing.assert_close(model.features(patches, positions), features[:, answers])


def test_images_of_one_batch_may_have_seen_different_numbers_of_glimpses() -> None:
    model, (patches, positions) = small_model(config=REGISTERED), glimpses(3, 12)
    seen = [5, 2, 6]
    states = [model.stream(*(t[i : i + 1, :n] for t in (patches, positions)), model.initial_state(1))[1]
              for i, n in enumerate(seen)]  # fmt: skip
    together = EncoderState(*(torch.cat(parts) for parts in zip(*states, strict=True)))
    ahead = [torch.stack([t[i, n : n + 6] for i, n in enumerate(seen)]) for t in (patches, positions)]
    logits, state = model.stream(ahead[0], ahead[1], together)
    whole = model(patches, positions)
    expected = torch.stack([whole[i, n : n + 6] for i, n in enumerate(seen)])
    torch.testing.assert_close(logits, expected, atol=1e-10, rtol=0)
    assert state.steps.tolist() == [11, 8, 12]


def test_without_registers_there_is_no_parameter_and_with_them_all_others_start_alike() -> None:
    plain, registered = small_model().state_dict(), small_model(config=REGISTERED).state_dict()
    assert registered.keys() - plain.keys() == {"register"}
    assert all(registered[name].equal(tensor) for name, tensor in plain.items())


def test_gradients_of_a_split_are_those_of_the_whole() -> None:
    model, (patches, positions) = small_model(), glimpses(2, 10)
    whole = torch.autograd.grad(model(patches, positions).sin().sum(), list(model.parameters()))
    logits, _ = in_pieces(model, patches, positions, [1, 4, 5])
    torch.testing.assert_close(torch.autograd.grad(logits.sin().sum(), list(model.parameters())), whole)


def test_strictly_causal() -> None:
    model, (patches, positions) = small_model(), glimpses(1, 70)
    changed, elsewhere = patches.clone(), positions.clone()
    changed[:, 40:], elsewhere[:, 40:] = 255 - changed[:, 40:], elsewhere[:, 40:] + 9
    before, after = model(patches, positions), model(changed, elsewhere)
    assert before[:, :40].equal(after[:, :40])
    assert not before[:, 40:].isclose(after[:, 40:]).all(-1).any()


def test_only_moves_matter_not_positions() -> None:
    model, (patches, positions) = small_model(), glimpses(2, 9)
    assert model(patches, positions).equal(model(patches, positions + 1000))
    torch.testing.assert_close(model(patches, positions.int()), model(patches, positions))


def test_with_positions_for_coordinates_any_split_is_the_whole_and_shifts_matter() -> None:
    model, (patches, positions) = small_model(config=replace(SMALL, coordinates="positions")), glimpses(2, 70)
    whole = model(patches, positions)
    for sizes in ([1] * 70, [3, 1, 66]):
        torch.testing.assert_close(in_pieces(model, patches, positions, sizes)[0], whole, atol=1e-10, rtol=0)
    assert not model(patches, positions + 1000).isclose(whole).all(-1).any()
    moving = small_model()  # with the same weights; its moves are these positions where it goes on by them from (0, 0)
    positions[:, 0] = 0
    assert moving(patches, positions.cumsum(1)).equal(model(patches, positions))


def test_moves_in_space_hide_the_frames_and_nothing_else() -> None:
    sizes = replace(SMALL, axes=3)
    model, told = (small_model(config=replace(sizes, coordinates=kind)) for kind in ("moves_in_space", "moves"))
    draws = torch.Generator().manual_seed(0)
    patches = torch.rand(2, 9, 3, 1, SMALL.patch_size, SMALL.patch_size, dtype=torch.float64, generator=draws)
    positions = torch.randint(0, 50, (2, 9, 3), generator=draws)
    shuffled, within = positions.clone(), positions.clone()
    shuffled[..., 0] = positions[:, torch.randperm(9, generator=draws), 0]
    within[..., 0] = 7  # all of one frame
    logits = model(patches, positions)
    assert logits.equal(model(patches, shuffled))
    assert logits.equal(told(patches, within))  # with the same weights
    assert not logits.isclose(told(patches, positions)).all(-1)[:, 1:].any()
    assert not logits.isclose(model(patches, positions.flip(-1))).all(-1)[:, 1:].any()
    torch.testing.assert_close(in_pieces(model, patches, positions, [4, 5])[0], logits, atol=1e-10, rtol=0)


def test_bytes_and_floats_are_the_same_image() -> None:
    model, (patches, positions) = small_model(), glimpses(2, 9)
    torch.testing.assert_close(model(patches.double() / 255, positions), model(patches, positions), atol=1e-12, rtol=0)


def test_state_can_be_picked_by_row_saved_and_does_not_grow(tmp_path: Path) -> None:
    model, (patches, positions) = small_model(), glimpses(4, 12)
    _, state = in_pieces(model, patches[:, :7], positions[:, :7], [7])
    torch.save(state._asdict(), tmp_path / "state.pt")
    loaded = EncoderState(**torch.load(tmp_path / "state.pt", weights_only=True)).to("cpu")
    rows = torch.tensor([2, 0])
    logits, after = model.stream(patches[rows, 7:], positions[rows, 7:], loaded.rows(rows))
    torch.testing.assert_close(logits, model(patches, positions)[rows, 7:], atol=1e-10, rtol=0)
    assert [part.shape for part in after] == [part.shape for part in model.initial_state(2)]


def test_rows_of_different_age_go_on_together() -> None:
    """A fresh image may join images half seen: its first move is zero, theirs is not."""
    model, (patches, positions) = small_model(), glimpses(2, 8)
    _, old = model.stream(patches[:1, :5], positions[:1, :5], model.initial_state(1))
    mixed = EncoderState(*(torch.cat(parts) for parts in zip(old, model.initial_state(1), strict=True)))
    logits, after = model.stream(patches[:, 5:], positions[:, 5:], mixed)
    torch.testing.assert_close(logits[0], model(patches[:1], positions[:1])[0, 5:], atol=1e-10, rtol=0)
    torch.testing.assert_close(logits[1], model(patches[1:, 5:], positions[1:, 5:])[0], atol=1e-10, rtol=0)
    assert after.steps.tolist() == [8, 3]


@pytest.mark.parametrize("tube", [1, 2, 4])
def test_three_axes(tube: int) -> None:
    config = replace(SMALL, depth=1, axes=3, tube=tube)
    model, (patches, positions) = small_model(config=config), glimpses(2, 6, config)
    assert model.glimpse == (tube, 4, 4)
    assert model.projection.in_features == 3 * tube * 16 + 3 * 8
    logits = model(patches, positions)
    assert logits.shape == (2, 6, 5)
    for axis in range(3):  # a move along one axis alone is seen, from the step on that makes it
        later = positions.clone()
        later[:, 3:, axis] += 5
        assert model(patches, later)[:, :3].equal(logits[:, :3])
        assert not model(patches, later)[:, 3].isclose(logits[:, 3]).any()
    with pytest.raises(InputError, match=f"takes \\(B, T, 3, {tube}, 4, 4\\)"):
        model(patches[:, :, :, 0], positions)


def test_a_tube_of_frames_is_projected_frame_by_frame() -> None:
    """The projection makes of a tube what it makes of its pixels in the order channel, frame, row, column."""
    config = replace(SMALL, axes=3, tube=2)
    model, (patches, positions) = small_model(config=config), glimpses(2, 6, config)
    flat = patches.double().reshape(2, 6, -1) / 255
    place = embed_moves(moves(positions), 8, torch.float64)
    expected = torch.nn.functional.silu(model.projection(torch.cat((flat, place), dim=-1)))
    torch.testing.assert_close(model.embed(patches, positions, None), expected)


def test_autocast_keeps_recurrence_and_residual_wide() -> None:
    model, (patches, positions) = small_model(torch.float32), glimpses(2, 40)
    with torch.autocast("cpu", torch.bfloat16):
        features = model.features(patches, positions)
        _, state = model.stream(patches, positions, model.initial_state(2))
    assert features.dtype == state.ssm.dtype == state.conv.dtype == torch.float32
    torch.testing.assert_close(features, model.features(patches, positions), atol=0.1, rtol=0.1)


def test_initialisation() -> None:
    torch.manual_seed(0)
    model = MambaEye(EncoderConfig(num_classes=50, dim=64, depth=16, headdim=2))
    for linear in (model.projection, model.head):  # torch's own: uniform, up to one over the root of the inputs
        bound = linear.in_features**-0.5
        assert 0.8 * bound < linear.bias.abs().max() <= bound
        assert linear.bias.abs().mean().item() == pytest.approx(bound / 2, rel=0.4)
    mixers = [block.mixer for block in model.blocks]
    steps = torch.cat([torch.nn.functional.softplus(m.dt_bias) for m in mixers])
    decays = torch.cat([m.A_log.exp() for m in mixers])
    assert 0.001 <= steps.min() < 0.0015
    assert 0.08 < steps.max() <= 0.1
    assert steps.log().mean().item() == pytest.approx(-4.6, abs=0.15)  # log-uniform: the middle is 0.01
    assert 1 <= decays.min() < 1.2
    assert decays.mean().item() == pytest.approx(8.5, abs=0.5)
    bound = 1 / (128**0.5 * 16**0.5)  # torch's own bound over the square root of the depth
    assert 0.98 * bound < max(m.out_proj.weight.abs().max().item() for m in mixers) <= bound


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"headdim": 7}, "headdim is 7, which does not divide expand \\* dim = 512: the nearest that does is 8"),
        ({"depth": 0}, "encoder.depth is 0: give at least 1"),
        ({"move_embedding_dim": 7}, "move_embedding_dim is 7: half are sines, so give an even number"),
        ({"d_conv": 1}, "needs 2 taps"),
        ({"registers_every": -1}, "registers_every is -1: give 0 for none, or the glimpses between two"),
        ({"coordinates": "angles"}, "coordinates is 'angles': choose one of moves, positions, moves_in_space"),
        ({"coordinates": "moves_in_space"}, "coordinates is moves_in_space and encoder.axes 2: images have no frames"),
    ],
)
def test_sizes_that_cannot_be(change: dict[str, int | str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        EncoderConfig(**change)


def test_unknown_size() -> None:
    with pytest.raises(InputError, match="'huge': choose one of tiny, small, base"):
        EncoderConfig.named("huge")
    assert {name: EncoderConfig.named(name).depth for name in DEPTHS} == DEPTHS


def test_wrong_input_is_refused_in_one_sentence() -> None:
    model, (patches, positions) = small_model(), glimpses(2, 3)
    for bad_patches, bad_positions, message in [
        (patches[:, :, :1], positions, r"\(2, 3, 1, 4, 4\): this encoder takes \(B, T, 3, 4, 4\)"),
        (patches, positions[:, :2], r"\(2, 2, 2\): these patches need \(2, 3, 2\)"),
        (patches[:, :0], positions[:, :0], "empty: give at least one glimpse"),
        (patches.int(), positions, "int32: give uint8, uint16, or floating"),
        (patches, positions.float(), "float32: give integers"),
    ]:
        with pytest.raises(InputError, match=message):
            model(bad_patches, bad_positions)


def test_a_state_that_is_not_this_models_is_refused() -> None:
    model, (patches, positions) = small_model(torch.float32), glimpses(2, 3)
    other = small_model(torch.float32, EncoderConfig(**{**vars(SMALL), "depth": 3}))
    for state, message in [
        (
            model.initial_state(3),
            r"steps is \(3,\) torch.int64: .* need \(2,\) torch.int64, as from initial_state\(2\)",
        ),
        (small_model().initial_state(2), r"conv is .* torch.float64: .* torch.float32"),
        (other.initial_state(2), r"conv is \(2, 3, 48, 3\) .* need \(2, 2, 48, 3\)"),
        (model.initial_state(2).to("meta"), "state is on meta, the model on cpu: move it with"),
    ]:
        with pytest.raises(InputError, match=message):
            model.stream(patches, positions, state)
