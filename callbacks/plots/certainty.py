"""Panels that all pictures of predictions share, how sure the model became and of what, and films of them."""

from collections.abc import Sequence
from typing import Protocol

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from callbacks.plots.panels import glimpse_axis, share_axis
from callbacks.plots.wording import counted, percent, shortened
from mambaeye.evaluation.prediction import Prediction

NAME = 26  # letters
FRAME, LAST_FRAME = 140, 2500  # milliseconds
BESIDE = 1.3  # of a bar of 100 %: where its number ends


class Certainty:
    """The curve of confidence, and bars of the likeliest classes, after any of a prediction's steps.

    Args:
        curve: axes for one.
        bars: axes for the other.
        prediction: what they show.
        class_names: of the likeliest classes.
        num_glimpses: that there might have been.
        as_a_whole: whether the encoder took all at once.
    """

    def __init__(
        self,
        curve: Axes,
        bars: Axes,
        prediction: Prediction,
        class_names: Sequence[str],
        num_glimpses: int,
        as_a_whole: bool,
    ) -> None:
        self.prediction, self.num_glimpses, self.as_a_whole = prediction, num_glimpses, as_a_whole
        self._draw_curve(curve)
        self._draw_bars(bars, class_names)

    def _draw_curve(self, axes: Axes) -> None:
        (self.curve,) = axes.plot([], [], color="tab:blue", linewidth=1.3)
        (self.end,) = axes.plot([], [], "o", color="tab:red", markersize=5, clip_on=False, zorder=3)
        self.until = axes.axvline(1, color="tab:red", linewidth=0.8, linestyle=":")
        axes.set_xlim(0.93, max(2, self.num_glimpses) * 1.08)
        glimpse_axis(axes, max(2, self.num_glimpses))
        share_axis(axes)
        axes.tick_params(labelleft=True)
        self.curve_title = axes.set_title("", fontsize=9)

    def _draw_bars(self, axes: Axes, class_names: Sequence[str]) -> None:
        places = range(len(class_names))
        colors = ["tab:orange", *["0.8" for _ in places[1:]]]
        self.bars = axes.barh(places, [0.0 for _ in places], height=0.8, color=colors)
        axes.set(xlim=(0, BESIDE), ylim=(4.5, -0.5), xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.axvline(0, color="0.5", linewidth=1)
        for place, name in zip(places, class_names, strict=True):
            axes.text(0.02, place, shortened(name, NAME), fontsize=9, va="center", parse_math=False)
        self.shares = [axes.text(BESIDE, place, "", fontsize=9, va="center", ha="right") for place in places]
        axes.set_title("taken for", fontsize=9)

    def show(self, place: int) -> None:
        """Change to how it was after the prediction's step of that place."""
        prediction, glimpses = self.prediction, int(self.prediction.steps[place])
        first = prediction.glimpses - len(prediction.confidence)  # glimpses before the first answer
        last = place == len(prediction.steps) - 1
        confidence = prediction.confidence[: glimpses - first].tolist()
        self.curve.set_data(range(first + 1, glimpses + 1), confidence)
        self.end.set_data([glimpses], [confidence[-1]])
        self.until.set_xdata([glimpses, glimpses])
        if self.as_a_whole:
            ended = "of all at once"
        elif not last:
            ended = counted(glimpses, "glimpse")
        elif prediction.stopped == "budget":
            ended = f"all {glimpses} glimpses" if glimpses > 1 else "the only glimpse"
        else:
            ended = f"stopped after {glimpses} of {self.num_glimpses}: {prediction.stopped}"
        self.curve_title.set_text(f"confidence, {ended}")

        for bar, share, probability in zip(self.bars, self.shares, prediction.by_step[place].tolist(), strict=True):
            bar.set_width(probability)
            share.set_text(percent(probability))


class Drawing(Protocol):
    """A figure that changes from step to step of a prediction."""

    figure: Figure

    def show(self, place: int) -> None:
        """Change to how it was after the prediction's step of that place."""


def film(drawing: Drawing, steps: int) -> bytes:
    """Return a drawing step by step, as an animated WebP."""
    canvas = FigureCanvasAgg(drawing.figure)
    animation = cv2.Animation()
    frames = []
    for place in range(steps):
        drawing.show(place)
        canvas.draw()  # type: ignore[no-untyped-call]
        drawn = np.asarray(canvas.buffer_rgba())  # type: ignore[no-untyped-call]
        frames.append(cv2.cvtColor(drawn, cv2.COLOR_RGBA2BGR))
    animation.frames = frames
    durations = np.array([FRAME] * (len(frames) - 1) + [LAST_FRAME], dtype=np.int32)
    animation.durations = durations  # type: ignore[assignment]  # which takes an array alone
    written, encoded = cv2.imencodeanimation(".webp", animation, [cv2.IMWRITE_WEBP_QUALITY, 80])
    assert written
    return encoded.tobytes()
