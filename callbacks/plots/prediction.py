"""How the model looked at one image: where, what it saw of it, how sure it became, and of what. As PNG, or moving."""

from typing import Any, NamedTuple

import cv2
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from callbacks.plots.curves import glimpse_axis, share_axis
from mambaeye.batch import Scene

LONGER_SIDE = 640  # pixels of an image that are drawn, at most
TIMES = ListedColormap(colormaps["plasma"](np.linspace(0.25, 1, 256)))  # its dark end would not show on dark images
MANY = 300  # glimpses, from which on the way is drawn in thin lines
UNSEEN, FADING = 200, 0.85  # gray, and how much of it is in what was not seen
NAME, TITLE = 26, 90  # letters
FIGURE = (12, 3.5)  # inches
PANELS = ((0.012, 0.255), (0.279, 0.255), (0.588, 0.205), (0.82, 0.168))  # left edge and width, in shares of that
FRAME, LAST_FRAME = 140, 2500  # milliseconds
BESIDE = 1.3  # of a bar of 100 %: where its number ends
PLAIN = {"parse_math": False}  # names may have dollars


class Look(NamedTuple):
    """One image, how it was looked at, and what it was taken for."""

    title: str
    image: np.ndarray
    """(h, w, 3) uint8, scaled down where it is larger than it will be drawn."""
    starts: np.ndarray
    """(glimpses, 2) upper left corners, (row, col) in pixels of that."""
    side: float
    """Of a glimpse, in pixels of that."""
    budget: int
    """Glimpses that there might have been."""
    names: list[str]
    """Of the likeliest classes."""
    prediction: Any
    """As the module's predict_step gives it."""

    @classmethod
    def at(cls, scene: Scene, patch_size: int, file: Any, prediction: Any, names: list[str]) -> "Look":
        """Of a row of a batch; and what is known of its file."""
        row, col, height, width = scene.boxes[0].tolist()
        image = scene.canvases[0][row : row + height, col : col + width].cpu().numpy()
        scale = min(1, LONGER_SIDE / max(height, width))
        size = max(1, round(scale * width)), max(1, round(scale * height))
        if scale < 1:
            image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        starts = scale * (prediction.positions.cpu().numpy() - (row, col))
        title = f"{shortened(file.path, TITLE)}   {file.size[1]} x {file.size[0]} pixels"
        return cls(title, image, starts, scale * patch_size, scene.positions.shape[1], names, prediction)


def shortened(text: str, letters: int) -> str:
    """What can be shown of a text, with its middle left out where it is long."""
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    half = (letters - 1) // 2
    return text if len(text) <= letters else f"{text[:half]}…{text[-half:]}"


class Drawing:
    """The picture of a look, after any of the prediction's steps.

    Attributes:
        figure: as it is after the last one, or the one that `show` was called for.
    """

    def __init__(self, look: Look) -> None:
        self.look = look
        self.figure = Figure(figsize=FIGURE, dpi=100)
        self.figure.suptitle(look.title, x=0.012, y=0.975, ha="left", va="top", fontsize=9, **PLAIN)
        way, area, curve, bars = (self.figure.add_axes((left, 0.14, width, 0.69)) for left, width in PANELS)
        self._draw_way(way)
        self._draw_area(area)
        self._draw_curve(curve)
        self._draw_bars(bars)
        self.show(len(look.prediction.steps) - 1)

    def _draw_way(self, axes: Axes) -> None:
        show_image(axes, self.look.image)
        height, width = self.look.image.shape[:2]
        centres = self.look.starts[:, ::-1] + self.look.side / 2 - 0.5  # (glimpses, 2), (x, y)
        self.centres = centres.clip(0, (width - 1, height - 1))  # those over narrow images may be off by half a pixel
        glimpses = len(self.centres)
        scale = {"cmap": TIMES, "clim": (0, max(1, glimpses - 1)), "clip_on": False}
        line, dot = (0.9, 9) if glimpses < MANY else (0.4, 2)
        self.lines = axes.add_collection(LineCollection([], linewidths=line, alpha=0.8, **scale))
        self.dots = axes.scatter([], [], dot, c=[], linewidths=0, zorder=3, **scale)
        self.now = axes.add_patch(Rectangle((0, 0), self.look.side, self.look.side, fill=False, color="red"))
        axes.set_title("where it looked, dark to bright", fontsize=9)

    def _draw_area(self, axes: Axes) -> None:
        image = self.look.image
        gray = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        self.faded = (FADING * UNSEEN + (1 - FADING) * gray).astype(np.uint8)
        self.area = show_image(axes, self.faded)
        self.area_title = axes.set_title("", fontsize=9)

    def _draw_curve(self, axes: Axes) -> None:
        (self.curve,) = axes.plot([], [], color="tab:blue", linewidth=1.3)
        (self.end,) = axes.plot([], [], "o", color="tab:red", markersize=5, clip_on=False, zorder=3)
        self.until = axes.axvline(1, color="tab:red", linewidth=0.8, linestyle=":")
        axes.set_xlim(0.93, max(2, self.look.budget) * 1.08)
        glimpse_axis(axes, max(2, self.look.budget))
        share_axis(axes)
        axes.tick_params(labelleft=True)
        self.curve_title = axes.set_title("", fontsize=9)

    def _draw_bars(self, axes: Axes) -> None:
        places = np.arange(len(self.look.names))
        self.bars = axes.barh(places, 0 * places, height=0.8, color=["tab:orange"] + ["0.8"] * (len(places) - 1))
        axes.set(xlim=(0, BESIDE), ylim=(4.5, -0.5), xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.axvline(0, color="0.5", linewidth=1)
        for place, name in zip(places, self.look.names, strict=True):
            axes.text(0.02, place, shortened(name, NAME), fontsize=9, va="center", **PLAIN)
        self.shares = [axes.text(BESIDE, place, "", fontsize=9, va="center", ha="right") for place in places]
        axes.set_title("taken for", fontsize=9)

    def show(self, place: int) -> None:
        """Change to how it was after the prediction's step of that place."""
        prediction, glimpses = self.look.prediction, int(self.look.prediction.steps[place])
        last = place == len(prediction.steps) - 1
        centres = self.centres[:glimpses]
        self.lines.set_segments(np.stack((centres[:-1], centres[1:]), axis=1))
        self.lines.set_array(np.arange(1, glimpses))
        self.dots.set_offsets(centres)
        self.dots.set_array(np.arange(glimpses))
        self.now.set(xy=self.look.starts[glimpses - 1, ::-1] - 0.5, visible=not last)

        shown = seen(self.look, glimpses)
        self.area.set_data(np.where(shown[..., None], self.look.image, self.faded))
        ratio = prediction.information_ratio if last else shown.mean()
        self.area_title.set_text(f"what it saw: {percent(ratio)}")

        confidence = prediction.confidence[:glimpses].tolist()
        self.curve.set_data(range(1, glimpses + 1), confidence)
        self.end.set_data([glimpses], [confidence[-1]])
        self.until.set_xdata([glimpses, glimpses])
        if not last:
            ended = f"{glimpses} glimpse{'s' if glimpses > 1 else ''}"
        elif prediction.stopped == "budget":
            ended = f"all {glimpses} glimpses" if glimpses > 1 else "the only glimpse"
        else:
            ended = f"stopped after {glimpses} of {self.look.budget}: {prediction.stopped}"
        self.curve_title.set_text(f"confidence, {ended}")

        for bar, share, probability in zip(self.bars, self.shares, prediction.by_step[place].tolist(), strict=True):
            bar.set_width(probability)
            share.set_text(percent(probability))


def show_image(axes: Axes, image: np.ndarray) -> Any:
    """An image with its whole pixels and a thin frame."""
    shown = axes.imshow(image, interpolation="nearest" if max(image.shape) < LONGER_SIDE / 2 else "antialiased")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(color="0.6", linewidth=0.6)
    return shown


def percent(share: float) -> str:
    """A share of 1, with a decimal where it says something."""
    return f"{100 * share:.1f} %" if 0.00005 < share < 0.0995 or 0.9 < share < 0.9995 else f"{100 * share:.0f} %"


def seen(look: Look, glimpses: int) -> np.ndarray:
    """Which pixels of the image, as it is drawn, the first glimpses show: (h, w) bool. Each shows one at least."""
    shown = np.zeros(look.image.shape[:2], dtype=bool)
    first = look.starts[:glimpses].round().astype(int)
    after = np.maximum((look.starts[:glimpses] + look.side).round().astype(int), first + 1)
    for (top, left), (bottom, right) in zip(np.maximum(first, 0).tolist(), after.tolist(), strict=True):
        shown[top:bottom, left:right] = True
    return shown


def draw(look: Look) -> Figure:
    """The picture after the last glimpse."""
    return Drawing(look).figure


def animate(look: Look) -> bytes:
    """The picture step by step, as an animated WebP."""
    drawing = Drawing(look)
    canvas = FigureCanvasAgg(drawing.figure)
    animation = cv2.Animation()
    frames = []
    for place in range(len(look.prediction.steps)):
        drawing.show(place)
        canvas.draw()
        frames.append(cv2.cvtColor(np.asarray(canvas.buffer_rgba()), cv2.COLOR_RGBA2BGR))
    animation.frames = frames
    animation.durations = np.array([FRAME] * (len(frames) - 1) + [LAST_FRAME], dtype=np.int32)
    written, encoded = cv2.imencodeanimation(".webp", animation, [cv2.IMWRITE_WEBP_QUALITY, 80])
    assert written
    return encoded.tobytes()
