"""A prediction of one image: where the glimpses were, what they showed, how sure the model became, and of what."""

from typing import NamedTuple

import cv2
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from torch import Tensor

from callbacks.plots.certainty import Certainty, film
from callbacks.plots.colors import as_rgb
from callbacks.plots.wording import percent, shortened
from mambaeye.batch import ImageFile, Regions, Scene
from mambaeye.evaluation.prediction import Prediction
from mambaeye.geometry.box import Box

AT_ONCE = 256  # glimpses that are read again
LONGER_SIDE = 640  # pixels of an image that are drawn, at most
TIMES = ListedColormap(colormaps["plasma"](np.linspace(0.25, 1, 256)))  # its dark end would not show on dark images
MANY = 300  # glimpses, from which on the way is drawn in thin lines
UNSEEN, FADING = 200, 0.85  # gray, and how much of it is in what was not seen
TITLE = 90  # letters
FIGURE = (12, 3.5)  # inches
PANELS = ((0.012, 0.255), (0.279, 0.255), (0.588, 0.205), (0.82, 0.168))  # left edge and width, in shares of that


class PredictedImage(NamedTuple):
    """One image, where the glimpses of it were, and what it was taken for."""

    title: str
    image: np.ndarray
    """(h, w, 3) uint8, scaled down where it is larger than it will be drawn."""
    starts: np.ndarray
    """(glimpses, 2) upper left corners, (row, col) in pixels of that; none where the encoder took the whole image."""
    side: float
    """Of a glimpse, in pixels of that."""
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
        patch_size: int | None,
    ) -> "PredictedImage":
        """Gather it from a row of a scene and what is known of its file; no patch size for the whole image."""
        box = Box(*scene.boxes[row].tolist())
        scale = min(1, LONGER_SIDE / max(box.size))
        size = max(1, round(scale * box.width)), max(1, round(scale * box.height))
        if not isinstance(scene.canvases, Tensor):
            assert patch_size is not None, "an encoder of canvases sees no regions"
            image = mosaic(scene.canvases, prediction.positions, box, patch_size, size)
        else:
            image = as_rgb(scene.canvases[row][box.slices].cpu().numpy())
            if scale < 1:
                image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        positions = prediction.positions[: None if patch_size else 0]
        return cls(
            title=f"{shortened(file.path, TITLE)}   {file.size[1]} x {file.size[0]} pixels",
            image=image,
            starts=scale * (positions.cpu().numpy() - box.start),
            side=scale * (patch_size or 0),
            num_glimpses=scene.positions.shape[1],
            class_names=class_names,
            prediction=prediction,
        )


def mosaic(regions: Regions, positions: Tensor, box: Box, side: int, size: tuple[int, int]) -> np.ndarray:
    """Return what glimpses show of an image that is read by region, small, and gray elsewhere: (h, w, 3) uint8.

    Args:
        regions: a batch of one.
        positions: (T, 2) integers.
        box: the image's place.
        side: of a glimpse, pixels.
        size: width and height of the result.
    """
    image = np.full((size[1], size[0], 3), UNSEEN, np.uint8)
    scale = np.array(image.shape[:2]) / box.size
    for some in positions.split(AT_ONCE):
        patches = as_rgb(regions.cut(some[None], (side, side))[0].movedim(1, -1).cpu().numpy())  # (t, P, P, 3)
        corners = (scale * (some.cpu().numpy() - box.start)).astype(int)
        for patch, (row, col) in zip(patches, corners.clip(0).tolist(), strict=True):
            height, width = np.ceil(scale * side).astype(int).tolist()
            part = image[row : row + height, col : col + width]
            if part.size:
                part[:] = cv2.resize(patch, (width, height), interpolation=cv2.INTER_AREA)[: len(part), : part.shape[1]]
    return image


class PredictionFigure:
    """Figure of a predicted image, after any of the prediction's steps.

    Attributes:
        figure: as it is after the last one, or the one that `show` was called for.
    """

    def __init__(self, predicted: PredictedImage) -> None:
        self.predicted = predicted
        self.figure = Figure(figsize=FIGURE, dpi=100)
        title = self.figure.suptitle(predicted.title, x=0.012, y=0.975, ha="left", va="top", fontsize=9)
        title.set_parse_math(False)  # names may have dollars
        way, area, curve, bars = (self.figure.add_axes((left, 0.14, width, 0.69)) for left, width in PANELS)
        self._draw_way(way)
        self._draw_area(area)
        self.certainty = Certainty(
            curve, bars, predicted.prediction, predicted.class_names, predicted.num_glimpses, not len(predicted.starts)
        )
        self.show(len(predicted.prediction.steps) - 1)

    def _draw_way(self, axes: Axes) -> None:
        show_image(axes, self.predicted.image)
        height, width = self.predicted.image.shape[:2]
        centres = self.predicted.starts[:, ::-1] + self.predicted.side / 2 - 0.5  # (glimpses, 2), (x, y)
        self.centres = centres.clip(0, (width - 1, height - 1))  # those over narrow images may be off by half a pixel
        glimpses = len(self.centres)
        line, dot = (0.9, 9) if glimpses < MANY else (0.4, 2)
        self.lines = LineCollection([], linewidths=line, alpha=0.8, cmap=TIMES, clip_on=False)
        axes.add_collection(self.lines)
        self.dots = axes.scatter([], [], dot, c=[], linewidths=0, zorder=3, cmap=TIMES, clip_on=False)
        for artist in (self.lines, self.dots):
            artist.set_clim(0, max(1, glimpses - 1))
        self.now = Rectangle((0, 0), self.predicted.side, self.predicted.side, fill=False, color="red")
        axes.add_patch(self.now)
        where = "glimpses, dark to bright" if len(self.predicted.starts) else "what it took, as a whole"
        axes.set_title(where, fontsize=9)

    def _draw_area(self, axes: Axes) -> None:
        image = self.predicted.image
        gray = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        self.faded = (FADING * UNSEEN + (1 - FADING) * gray).astype(np.uint8)
        self.area = show_image(axes, self.faded)
        self.area_title = axes.set_title("", fontsize=9)

    def show(self, place: int) -> None:
        """Change to how it was after the prediction's step of that place."""
        prediction, glimpses = self.predicted.prediction, int(self.predicted.prediction.steps[place])
        last = place == len(prediction.steps) - 1
        centres = self.centres[:glimpses]
        self.lines.set_segments(list(np.stack((centres[:-1], centres[1:]), axis=1)))
        self.lines.set_array(np.arange(1, len(centres)))
        self.dots.set_offsets(centres)
        self.dots.set_array(np.arange(len(centres)))
        self.now.set_visible(not last)
        if not last:
            top, left = self.predicted.starts[glimpses - 1] - 0.5
            self.now.set_xy((left, top))

        shown = seen(self.predicted, glimpses)
        self.area.set_data(np.where(shown[..., None], self.predicted.image, self.faded))
        ratio = prediction.information_ratio if last else float(shown.mean())
        self.area_title.set_text(f"what it saw: {percent(ratio)}")

        self.certainty.show(place)


def show_image(axes: Axes, image: np.ndarray) -> AxesImage:
    """Show an image with square pixels and a thin frame."""
    shown = axes.imshow(image, interpolation="nearest" if max(image.shape) < LONGER_SIDE / 2 else "antialiased")
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set(color="0.6", linewidth=0.6)
    return shown


def seen(predicted: PredictedImage, glimpses: int) -> np.ndarray:
    """Return which pixels of the image, as it is drawn, the first glimpses show: (h, w) bool; each at least one."""
    shown = np.full(predicted.image.shape[:2], not len(predicted.starts))
    first = predicted.starts[:glimpses].round().astype(int)
    after = np.maximum((predicted.starts[:glimpses] + predicted.side).round().astype(int), first + 1)
    for (top, left), (bottom, right) in zip(np.maximum(first, 0).tolist(), after.tolist(), strict=True):
        shown[top:bottom, left:right] = True
    return shown


def draw(predicted: PredictedImage) -> Figure:
    """Return the figure after the last glimpse."""
    return PredictionFigure(predicted).figure


def animate(predicted: PredictedImage) -> bytes:
    """Return the figure step by step, as an animated WebP."""
    return film(PredictionFigure(predicted), len(predicted.prediction.steps))
