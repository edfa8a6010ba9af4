"""A prediction of one clip: its frames with the glimpses where they lie, and how sure the model became of what."""

import math
from typing import NamedTuple

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.figure import Figure

from callbacks.plots.certainty import Certainty, film
from callbacks.plots.prediction import FADING, TIMES, TITLE, UNSEEN, show_image
from callbacks.plots.wording import percent, shortened
from mambaeye.batch import ImageFile, Scene
from mambaeye.evaluation.prediction import Prediction
from mambaeye.geometry.box import Box

LONGER_SIDE = 320  # pixels of a frame that are kept, at most
ACROSS, MOST = 8, 16  # frames in a row of the strip, and in the strip
GAP = 0.06  # between two, in sides of a frame
WIDTH, LEFT, ACROSS_STRIP = 12, 0.012, 0.976  # inches of the figure; shares of them
TALLEST = 1.4  # sides: what a strip's row is high at most, by the width of a frame
LOWER = 2.7  # inches of the panels below the strip
PANELS = ((0.012, 0.21), (0.275, 0.5), (0.82, 0.168))  # left edge and width, in shares of the figure
MANY = 100  # glimpses on a frame, from which on their edges would hide it


class PredictedClip(NamedTuple):
    """The frames of a clip that were looked at, where the glimpses of them were, and what it was taken for."""

    title: str
    frames: np.ndarray
    """(F, h, w, 3) uint8, scaled down where they are larger than they will be drawn."""
    first: int
    """Number of the first of them in the clip."""
    length: int
    """Frames of the clip."""
    starts: np.ndarray
    """(glimpses, 3) first pixels, (frame, row, col) in pixels of these frames; none where the encoder took all."""
    sides: np.ndarray
    """(3,) sides of a glimpse: frames, and pixels of these."""
    num_glimpses: int
    """Glimpses that there might have been."""
    class_names: list[str]
    """Of the likeliest classes."""
    prediction: Prediction

    @classmethod
    def of(
        cls,
        scene: Scene,
        row: int,
        file: ImageFile,
        prediction: Prediction,
        class_names: list[str],
        glimpse: tuple[int, ...] | None,
    ) -> "PredictedClip":
        """Gather it from a row of a scene and what is known of its file; no sides of a glimpse for the whole clip."""
        box = Box(*scene.boxes[row].tolist())
        frames = scene.pixels[row][box.slices].cpu().numpy()
        scale = min(1, LONGER_SIDE / max(box.height, box.width))
        if scale < 1:
            size = max(1, round(scale * box.width)), max(1, round(scale * box.height))
            frames = np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames])
        positions = prediction.positions[: None if glimpse else 0].cpu().numpy()
        scales = np.array((1, scale, scale))
        return cls(
            title=f"{shortened(file.path, TITLE)}   {file.frames} frames of {file.size[1]} x {file.size[0]} pixels",
            frames=frames,
            first=file.first or 0,
            length=file.frames,
            starts=scales * (positions - box.start),
            sides=scales * (glimpse or (1, 1, 1)),
            num_glimpses=scene.positions.shape[1],
            class_names=class_names,
            prediction=prediction,
        )

    def on_frame(self, frame: int, glimpses: int) -> np.ndarray:
        """Return which of the first glimpses show part of a frame, as their indices from 0."""
        starts = self.starts[:glimpses, 0]
        shown: np.ndarray = np.flatnonzero((starts <= frame) & (frame < starts + self.sides[0]))
        return shown

    def seen(self, glimpses: int) -> np.ndarray:
        """Return which pixels of the frames the first glimpses show: (F, h, w) bool; each at least one of a frame."""
        shown = np.full(self.frames.shape[:3], not len(self.starts))
        first = self.starts[:glimpses].round().astype(int)
        after = np.maximum((self.starts[:glimpses] + self.sides).round().astype(int), first + 1)
        for start, stop in zip(np.maximum(first, 0).tolist(), after.tolist(), strict=True):
            shown[tuple(slice(*ends) for ends in zip(start, stop, strict=True))] = True
        return shown


class ClipFigure:
    """Figure of a predicted clip, after any of the prediction's steps.

    A strip of its frames, or of some that are evenly spaced; below it the frame that the latest glimpse begins on,
    confidence, and the likeliest classes. What was not seen is faded; edges of glimpses go from dark to bright.

    Attributes:
        figure: as it is after the last one, or the one that `show` was called for.
    """

    def __init__(self, predicted: PredictedClip) -> None:
        self.predicted = predicted
        gray = np.stack(
            [cv2.cvtColor(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB) for frame in predicted.frames]
        )
        self.faded = (FADING * UNSEEN + (1 - FADING) * gray).astype(np.uint8)
        count, height, width = predicted.frames.shape[:3]
        self.in_strip = np.linspace(0, count - 1, min(count, MOST)).round().astype(int)
        self.gap = max(1, round(GAP * max(height, width)))
        rows = math.ceil(len(self.in_strip) / ACROSS)
        self.columns = math.ceil(len(self.in_strip) / rows)
        self.tile = np.array((height + self.gap, width + self.gap))
        strip = WIDTH * ACROSS_STRIP / ACROSS * rows * min(TALLEST, self.tile[0] / self.tile[1])  # inches
        tall = 0.45 + strip + LOWER
        self.figure = Figure(figsize=(WIDTH, tall), dpi=100)
        title = self.figure.suptitle(predicted.title, x=LEFT, y=1 - 0.1 / tall, ha="left", va="top", fontsize=9)
        title.set_parse_math(False)  # names may have dollars
        self._draw_strip(self.figure.add_axes((LEFT, LOWER / tall, ACROSS_STRIP, strip / tall)), rows)
        now, curve, bars = (
            self.figure.add_axes((left, 0.45 / tall, width, (LOWER - 0.85) / tall)) for left, width in PANELS
        )
        self._draw_now(now)
        self.certainty = Certainty(
            curve, bars, predicted.prediction, predicted.class_names, predicted.num_glimpses, not len(predicted.starts)
        )
        self.show(len(predicted.prediction.steps) - 1)

    def _draw_strip(self, axes: Axes, rows: int) -> None:
        height, width = (rows, self.columns) * self.tile - self.gap
        self.background = np.full((height, width, 3), 255, np.uint8)
        self.strip = show_image(axes, self.background)
        axes.set_anchor("W")
        axes.spines[:].set_visible(False)
        self.strip_edges = outlines(axes)
        for place, frame in enumerate(self.in_strip.tolist()):
            top, left = self._corner(place)
            text = str(self.predicted.first + frame)
            halo = {"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 0.8}
            axes.text(left, top, text, fontsize=7, ha="left", va="top", bbox=halo)

    def _draw_now(self, axes: Axes) -> None:
        self.now = show_image(axes, self.faded[0])
        axes.set_anchor("W")
        self.now_edges = outlines(axes)
        self.now_title = axes.set_title("", fontsize=9, loc="left")

    def _corner(self, place: int) -> np.ndarray:
        """Return the upper left corner of the strip's frame of a place, (row, col)."""
        corner: np.ndarray = np.array(divmod(place, self.columns)) * self.tile
        return corner

    def show(self, place: int) -> None:
        """Change to how it was after the prediction's step of that place."""
        predicted, prediction = self.predicted, self.predicted.prediction
        glimpses, last = int(prediction.steps[place]), place == len(prediction.steps) - 1
        seen = predicted.seen(glimpses)
        shown = np.where(seen[..., None], predicted.frames, self.faded)
        count, height, width = shown.shape[:3]

        strip, edges, of = self.background.copy(), [], []
        for at, frame in enumerate(self.in_strip.tolist()):
            top, left = self._corner(at)
            strip[top : top + height, left : left + width] = shown[frame]
            here = self._outlined(frame, glimpses)
            edges.append(self._edges(here) + (left, top))
            of.append(here)
        self.strip.set_data(strip)
        self._set_edges(self.strip_edges, np.concatenate(edges), np.concatenate(of), None if last else glimpses - 1)

        latest = count // 2
        if len(predicted.starts):
            latest = int(np.clip(predicted.starts[glimpses - 1, 0], 0, count - 1))
        self.now.set_data(shown[latest])
        here = self._outlined(latest, glimpses)
        self._set_edges(self.now_edges, self._edges(here), here, None if last else glimpses - 1)
        ratio = prediction.information_ratio if last else float(seen.mean())
        self.now_title.set_text(f"frame {predicted.first + latest}; of all it saw {percent(ratio)}")
        self.certainty.show(place)

    def _outlined(self, frame: int, glimpses: int) -> np.ndarray:
        """Return which of the first glimpses on a frame are outlined: none where they are too many."""
        here = self.predicted.on_frame(frame, glimpses)
        return here if len(here) <= MANY else here[:0]

    def _edges(self, glimpses: np.ndarray) -> np.ndarray:
        """Return the corners of some glimpses on their frames, (n, 4, 2) as (x, y)."""
        _, rows, cols = self.predicted.sides
        corners = np.array([(0, 0), (cols, 0), (cols, rows), (0, rows)]) - 0.5
        edges: np.ndarray = self.predicted.starts[glimpses][:, None, :0:-1] + corners
        height, width = self.predicted.frames.shape[1:3]
        return edges.clip(-0.5, (width - 0.5, height - 0.5))  # glimpses may stand over narrow frames

    def _set_edges(self, drawn: PolyCollection, edges: np.ndarray, glimpses: np.ndarray, now: int | None) -> None:
        """Draw the edges of glimpses in the colours of their turns, and those of the latest in red."""
        colors = TIMES(glimpses / max(1, len(self.predicted.starts) - 1))
        colors[glimpses == now] = (1, 0, 0, 1)
        drawn.set_verts([*edges])
        drawn.set_edgecolor(colors)  # type: ignore[arg-type]  # takes arrays too
        drawn.set_linewidth([2.2 if glimpse == now else 1.1 for glimpse in glimpses.tolist()])


def outlines(axes: Axes) -> PolyCollection:
    """Return a collection of edges on an image, yet without one."""
    edges = PolyCollection([], facecolors="none")
    axes.add_collection(edges, autolim=False)
    return edges


def draw_clip(predicted: PredictedClip) -> Figure:
    """Return the figure after the last glimpse."""
    return ClipFigure(predicted).figure


def animate_clip(predicted: PredictedClip) -> bytes:
    """Return the figure step by step, as an animated WebP."""
    return film(ClipFigure(predicted), len(predicted.prediction.steps))
