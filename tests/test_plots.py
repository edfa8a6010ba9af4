"""Contents of plots, against the results that they are drawn from; no fit."""

import io
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from PIL import Image, ImageSequence
from validations import RULES, validation

from callbacks.plots.calibration import EpochECE, confidence_by_information_ratio, ece_by_epoch, reliability
from callbacks.plots.clip_prediction import ClipFigure, PredictedClip, animate_clip
from callbacks.plots.curves import accuracy_and_confidence, training_curves
from callbacks.plots.early_exit import early_exit
from callbacks.plots.film_strip import UNSEEN, Film, film_strip, seen
from callbacks.plots.prediction import PredictedImage, PredictionFigure, animate
from callbacks.plots.resolutions import (
    accuracy_by_area,
    accuracy_by_glimpse,
    accuracy_by_length,
    accuracy_by_resolution,
    token_budgets,
)
from callbacks.plots.wording import counted, percent, shortened
from mambaeye.batch import ImageFile, Scene
from mambaeye.evaluation.prediction import Prediction
from mambaeye.evaluation.result import ValidationResult


def drawn(figure: Figure) -> list[dict[str, np.ndarray]]:
    """The lines of every panel by their labels, (points, 2); and that it can be drawn at all."""
    figure.savefig(io.BytesIO(), format="png", dpi=30)
    return [{str(line.get_label()): line.get_xydata() for line in axes.lines} for axes in figure.axes]


def test_accuracy_and_confidence_are_those_of_every_step() -> None:
    results = validation(scans=("random", "spiral")).conditions
    panels = drawn(accuracy_and_confidence(results))
    assert len(panels) == 4
    for lines, result in zip(panels, results, strict=True):
        np.testing.assert_array_equal(lines["top-1"], np.stack((result.steps, result["top1"]), axis=1))
        np.testing.assert_array_equal(lines["confidence"], np.stack((result.steps, result["confidence"]), axis=1))


def test_reliability_has_a_point_for_every_bin_as_large_as_its_share() -> None:
    results = validation(scans=("random", "spiral")).conditions
    figure = reliability(results)
    drawn(figure)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:4] == ["random, 1 glimpse", "random, 2 glimpses", "random, 4 glimpses", "random, 9 glimpses"]
    spiral, at = [result for result in results if result.condition.scan == "spiral"], 3
    for points, result in zip(figure.axes[6].collections, spiral, strict=True):  # after 4 glimpses
        expected = np.stack((result.bins["bin_confidence"][at], result.bins["bin_top1"][at]), axis=1)
        np.testing.assert_array_equal(np.ma.filled(points.get_offsets(), np.nan), expected)
        assert points.get_sizes() == pytest.approx(150 * result.bins["bin_count"][at] / 30)


def test_lengths_stand_side_by_side() -> None:
    """A point for each length, on a line for each resolution and scan."""
    results = validation(scans=("random", "spiral")).conditions
    of_lengths = [
        replace(result, condition=result.condition._replace(frames=frames)) for frames in (24, 8) for result in results
    ]
    panels = drawn(accuracy_by_length(of_lengths))
    for step, lines in zip((1, 2, 4, 9), panels, strict=True):
        assert lines.keys() == {result.title for result in results}
        for result in results:
            top1 = result["top1"][result.at(step)]
            assert lines[result.title].tolist() == [[8, top1], [24, top1]]


CARD = 340  # pixels that TensorBoard gives a figure's width until it is clicked


def test_what_is_drawn_for_tensorboard_is_legible_there() -> None:
    """At four resolutions, no font is under 5.5 pixels; and the figures show what the large ones do."""
    results = validation(resolutions=(32, 48, 64, 96)).conditions
    history = [EpochECE(epoch, one.title, one.steps, one["ece"]) for epoch in (4, 9) for one in results]
    draws = (accuracy_and_confidence, reliability, confidence_by_information_ratio)
    small = [draw(results, small=True) for draw in draws]
    for figure, draw in zip(small, draws, strict=True):
        for panel, other in zip(drawn(figure), drawn(draw(results)), strict=True):
            assert panel.keys() == other.keys()
            for name in panel:
                np.testing.assert_array_equal(panel[name], other[name])
    for figure in [*small, ece_by_epoch(history)]:
        drawn(figure)
        texts = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
        assert min(text.get_fontsize() for text in texts) / 72 * CARD / figure.get_figwidth() > 5.5


def test_confidence_is_set_against_the_target_of_training() -> None:
    results = validation().conditions
    for lines, name in zip(
        drawn(confidence_by_information_ratio(results)),
        ("ratio_true_class_probability", "ratio_confidence"),
        strict=True,
    ):
        np.testing.assert_allclose(lines["target"], [[0, 0.1], [1, 1]])
        for result in results:
            expected = np.stack((result.by_ratio["ratio_mean"], result.by_ratio[name]), axis=1)
            np.testing.assert_array_equal(lines[f"{result.condition.resolution} px"], expected)


def test_resolutions_and_scans_stand_side_by_side() -> None:
    results = validation(scans=("random", "spiral", "sobol")).conditions
    by_glimpse, by_area = drawn(accuracy_by_glimpse(results)), drawn(accuracy_by_area(results))
    assert len(by_glimpse) == len(by_area) == 2
    by_side = drawn(accuracy_by_resolution(results))
    for result in results:
        side, scan, _ = result.condition
        place = (32, 48).index(side)
        np.testing.assert_array_equal(by_glimpse[place][scan], np.stack((result.steps, result["top1"]), axis=1))
        np.testing.assert_array_equal(by_area[place][scan][:, 0], result["information_ratio"])
        for lines, step in zip(by_side, (1, 2, 4, 9), strict=True):
            assert [side, result["top1"][step - 1]] in lines[scan].tolist()


@pytest.mark.parametrize(
    ("num_glimpses", "answers_at", "budgets"),
    [(9, None, [9]), (64, None, [64]), (300, None, [64, 256]), (1024, None, [64, 256, 1024]), (300, (300,), [300])],
)
def test_token_budgets_draw_the_rows_of_every_size_and_shade_those_of_training(
    num_glimpses: int, answers_at: tuple[int, ...] | None, budgets: list[int]
) -> None:
    result = validation((48, 24, 96), ("random", "spiral"), num_glimpses, answers_at)
    figure = token_budgets(result.conditions, (32, 64))
    rows = {(row["resolution"], row["scan"], row["step"]): row["top1"] for row in result.rows()}
    for lines, axes, scan in zip(drawn(figure), figure.axes, ("random", "spiral"), strict=True):
        assert list(lines) == [f"{budget} glimpses" for budget in budgets]
        for budget, points in zip(budgets, lines.values(), strict=True):
            assert points.tolist() == [[side, rows[side, scan, budget]] for side in (24, 48, 96)]
        (shade,) = axes.patches
        assert isinstance(shade, Rectangle)
        assert (shade.get_x(), shade.get_width()) == (32, 32)
        assert axes.get_xlim() == pytest.approx((24 / 1.1, 96 * 1.1))
        assert axes.get_title().startswith(scan)


def test_early_exits_are_set_against_a_fixed_number_of_glimpses() -> None:
    result = validation(rules=RULES)
    for lines, condition in zip(drawn(early_exit(result, "ece", "ECE")), result.conditions, strict=True):
        np.testing.assert_array_equal(lines["fixed number"][:, 1], condition["ece"])
        exits = [exited for exited in result.early_exit if exited.condition == condition.condition]
        assert sorted(map(tuple, lines["confidence"])) == sorted((e.glimpses, e.metrics["ece"]) for e in exits[:2])
        for exited in exits[2:]:
            assert lines[exited.rule].tolist() == [[exited.glimpses, exited.metrics["ece"]]]


@pytest.mark.parametrize("result", [validation(answers_at=(9,), rules=RULES), validation(num_glimpses=1, rules=RULES)])
def test_a_single_answer_is_a_visible_point(result: ValidationResult) -> None:
    """Of encoders that answer once, after all glimpses or a whole canvas."""
    results = result.conditions
    assert all(len(one.steps) == 1 for one in results)
    history = [EpochECE(0, one.title, one.steps, one["ece"]) for one in results]
    for figure in (reliability(results), ece_by_epoch(history), accuracy_by_resolution(results)):
        drawn(figure)
    for figure in (accuracy_and_confidence(results), accuracy_by_glimpse(results), early_exit(result, "top1", "top-1")):
        drawn(figure)
        assert all(line.get_marker() == "." for axes in figure.axes for line in axes.lines)


def test_ece_by_epoch_is_a_map_of_all_epochs_that_kept_the_same_steps() -> None:
    draw = np.random.default_rng(0)
    entries = [
        EpochECE(epoch, title, [1, 2, 9], draw.random(3).astype(np.float16))
        for epoch in (0, 5, 7)
        for title in ("32 px, random", "48 px, random")
    ]
    others = [EpochECE(3, "32 px, random", [1, 2], np.zeros(2))]
    figure = ece_by_epoch([*others, *entries])
    drawn(figure)
    first, second = (mesh for mesh in figure.axes[0].collections if isinstance(mesh, QuadMesh))
    np.testing.assert_array_equal(first.get_array(), np.stack([entry.ece for entry in entries[::2]], axis=1))
    np.testing.assert_array_equal(second.get_array(), np.stack([entry.ece for entry in entries[1::2]], axis=1))
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["0", "5", "7"] * 2


def test_training_curves_take_what_lines_have() -> None:
    lines = [
        {"optimizer_step": 10, "train/gradient_norm": 2.0, "train_loss_by_glimpse/early": 1.0},
        {"optimizer_step": 20, "train/gradient_norm": None, "train_loss_by_glimpse/late": 0.5},
    ]
    loss, ratio, norm, speed = drawn(training_curves(lines))
    assert [points.tolist() for points in loss.values()] == [[[10, 1.0]], [[20, 0.5]]]
    assert [points.tolist() for points in norm.values()] == [[[10, 2.0]]]
    assert ratio == speed == {}


@given(
    places=st.lists(st.tuples(st.integers(-2, 7), st.integers(-2, 7)), min_size=1, max_size=6), steps=st.integers(0, 6)
)
def test_what_was_seen(places: list[tuple[int, int]], steps: int) -> None:
    """A pixel is gray until a glimpse shows it, and then as the image has it; glimpses may stand over the canvas."""
    around = np.random.default_rng(0).integers(0, 199, (14, 14, 3), dtype=np.uint8)
    image = around[3:-3, 3:-3]
    patches = np.stack([around[3 + row : 6 + row, 3 + col : 6 + col].transpose(2, 0, 1) for row, col in places])
    picture = seen(Film(patches, np.array(places), np.zeros((len(places), 2)), 0), steps, 8)
    for row in range(8):
        for col in range(8):
            shown = any(r <= row < r + 3 and c <= col < c + 3 for r, c in places[:steps])
            assert (picture[row, col] == (image[row, col] if shown else UNSEEN)).all()


def test_a_film_strip_of_one_glimpse_and_two_classes() -> None:
    film = Film(np.zeros((1, 3, 2, 2), np.uint8), np.zeros((1, 2), int), np.array([[0.25, 0.75]]), 1)
    bars, way = film_strip([film], 6, ["a", "b"]).axes[0].collections
    lengths = [end[0] - start[0] for start, end in bars.get_segments()]
    assert lengths == pytest.approx([0.95 * 0.75, 0.95 * 0.25])  # the winner first
    assert [tuple(color[:3]) for color in bars.get_colors()] == [to_rgb("tab:green"), to_rgb("0.7")]
    assert len(way.get_segments()) == 0  # no turn was taken


def predicted(num_glimpses: int, answers: int, patch_size: int | None) -> PredictedImage:
    """A prediction of an image of 20 x 30 pixels on a larger canvas, with so many answers, the last after the end."""
    steps = torch.arange(num_glimpses - answers, num_glimpses) + 1
    probabilities = torch.linspace(0.1, 0.6, answers)
    prediction = Prediction(
        glimpses=num_glimpses,
        stopped="budget",
        information_ratio=0.5,
        classes=torch.tensor([1, 0]),
        probabilities=torch.tensor([0.6, 0.4]),
        confidence=probabilities,
        steps=steps,
        by_step=torch.stack((probabilities, 1 - probabilities), dim=1),
        positions=torch.stack((torch.arange(num_glimpses), 2 * torch.arange(num_glimpses)), dim=1) + 5,
    )
    canvas = torch.randint(256, (2, 40, 50, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[0, 0, 40, 50], [5, 5, 20, 30]])
    scene = Scene(canvas, boxes, torch.zeros(2, num_glimpses, 2), torch.zeros(2), torch.zeros(2))
    return PredictedImage.of(scene, 1, ImageFile("a.png", (200, 300)), prediction, ["b", "a"], patch_size)


def test_a_prediction_shows_glimpses_and_how_sure_the_model_became() -> None:
    image = predicted(4, 4, 8)
    assert image.image.shape == (20, 30, 3)
    figure = PredictionFigure(image)
    way, area, curve, _ = figure.figure.axes
    for place in range(4):
        figure.show(place)
        assert way.collections[1].get_offsets().tolist() == [[3.5 + 2 * t, 3.5 + t] for t in range(place + 1)]
        np.testing.assert_allclose(curve.lines[0].get_xydata(), [[t + 1, 0.1 + t / 6] for t in range(place + 1)])
        mask = np.zeros((20, 30), dtype=bool)
        for t in range(place + 1):
            mask[t : t + 8, 2 * t : 2 * t + 8] = True
        shown = (area.images[0].get_array() == image.image).all(-1)
        assert shown[mask].all()
        assert shown[~mask].mean() < 0.1
    assert area.get_title() == "what it saw: 50 %"
    assert curve.get_title() == "confidence, all 4 glimpses"


@pytest.mark.parametrize(("num_glimpses", "patch_size", "centres"), [(4, 8, 4), (1, None, 0)])
def test_a_prediction_of_one_answer_is_drawn_too(num_glimpses: int, patch_size: int | None, centres: int) -> None:
    """After all glimpses, or of a whole canvas: then all of it was seen, and nowhere in particular."""
    image = predicted(num_glimpses, 1, patch_size)
    way, area, curve, _ = PredictionFigure(image).figure.axes
    assert len(way.collections[1].get_offsets()) == centres
    assert curve.lines[0].get_xydata().tolist() == [[num_glimpses, pytest.approx(0.1)]]
    assert (area.images[0].get_array() == image.image).all() == (patch_size is None)
    assert Image.open(io.BytesIO(animate(image))).n_frames == 1


def test_an_animation_has_a_frame_for_every_step() -> None:
    frames = [
        np.asarray(frame.convert("RGB"), int)
        for frame in ImageSequence.Iterator(Image.open(io.BytesIO(animate(predicted(3, 3, 8)))))
    ]
    assert len(frames) == 3
    assert all(np.abs(one - other).max() > 50 for one, other in pairwise(frames))


def predicted_clip(positions: torch.Tensor, glimpse: tuple[int, ...] | None, frames: int = 5) -> PredictedClip:
    """A prediction of a clip of frames of 20 x 30 pixels on a larger canvas, with an answer after every glimpse."""
    count = len(positions)
    shares = torch.linspace(0.1, 0.6, count)
    prediction = Prediction(
        glimpses=count,
        stopped="budget",
        information_ratio=0.5,
        classes=torch.tensor([1, 0]),
        probabilities=torch.tensor([0.6, 0.4]),
        confidence=shares,
        steps=torch.arange(count) + 1,
        by_step=torch.stack((shares, 1 - shares), dim=1),
        positions=positions,
    )
    draw = torch.Generator().manual_seed(0)
    canvas = torch.randint(201, 256, (1, frames + 3, 40, 50, 3), dtype=torch.uint8, generator=draw)
    scene = Scene(canvas, torch.tensor([[1, 5, 5, frames, 20, 30]]), positions[None], *torch.zeros(2, 1))
    return PredictedClip.of(scene, 0, ImageFile("a.avi", (200, 300), 40, 12), prediction, ["b", "a"], glimpse)


@settings(max_examples=30)
@given(
    places=st.lists(st.tuples(st.integers(-1, 6), st.integers(0, 25), st.integers(0, 35)), min_size=1, max_size=6),
    tube=st.integers(1, 3),
)
def test_a_clip_shows_glimpses_on_the_frames_that_they_show(places: list[tuple[int, int, int]], tube: int) -> None:
    """Pixels of the clip are bright, and what is not seen is faded; every edge lies around its glimpse."""
    starts = np.array(places)
    clip = predicted_clip(torch.from_numpy(starts) + torch.tensor([1, 5, 5]), (tube, 8, 8))
    seen_of = clip.seen(len(places))
    pixels = np.stack(np.indices((5, 20, 30)), axis=-1)[..., None, :]  # against (glimpses, 3)
    inside = (starts <= pixels) & (pixels < starts + (tube, 8, 8))
    np.testing.assert_array_equal(seen_of, inside.all(-1).any(-1))
    for frame in range(5):
        assert clip.on_frame(frame, 9).tolist() == [n for n, (t, *_) in enumerate(places) if t <= frame < t + tube]


def test_a_clip_is_drawn_step_by_step() -> None:
    starts = np.array([(0, 0, 0), (2, 3, 4), (3, 12, 22)])
    clip = predicted_clip(torch.from_numpy(starts) + torch.tensor([1, 5, 5]), (2, 8, 8))
    figure = ClipFigure(clip)
    strip, now, curve, _ = figure.figure.axes
    assert [text.get_text() for text in strip.texts] == ["12", "13", "14", "15", "16"]
    for place, (frame, row, col) in enumerate(starts.tolist()):
        figure.show(place)
        assert now.get_title("left").startswith(f"frame {12 + frame};")
        edges = [path.vertices for path in now.collections[0].get_paths()]
        assert edges[-1].min(0).tolist() == [col - 0.5, row - 0.5]
        assert edges[-1].max(0).tolist() == [min(col + 8, 30) - 0.5, min(row + 8, 20) - 0.5]
        assert len(strip.collections[0].get_paths()) == 2 * (place + 1)  # on two frames each
        shown = (now.images[0].get_array() == clip.frames[frame]).all(-1)
        np.testing.assert_array_equal(shown, clip.seen(place + 1)[frame])
        assert len(curve.lines[0].get_xydata()) == place + 1
    assert Image.open(io.BytesIO(animate_clip(clip))).n_frames == 3


@pytest.mark.parametrize("frames", [1, 40])
def test_a_clip_that_was_taken_as_a_whole_or_is_long_is_drawn_too(frames: int) -> None:
    clip = predicted_clip(torch.zeros(1, 3, dtype=torch.long), None, frames)
    figure = ClipFigure(clip)
    assert figure.figure.axes[2].get_title() == "confidence, of all at once"
    assert not figure.figure.axes[0].collections[0].get_paths()
    assert len(figure.in_strip) == min(frames, 16)
    drawn(figure.figure)


def test_words_and_numbers() -> None:
    assert [counted(number, "file") for number in (0, 1, 2)] == ["0 files", "1 file", "2 files"]
    assert [percent(share) for share in (0, 0.004, 0.5, 0.951, 1)] == ["0 %", "0.4 %", "50 %", "95.1 %", "100 %"]
    assert shortened("a\nb", 5) == "a?b"
    assert shortened("abcdefgh", 5) == "ab…gh"
