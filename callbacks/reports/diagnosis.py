"""Why scans differ: what happens to the encoder's states, and how its gaze moves, cell beside cell."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse.typing import NonNegativeInt
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, PercentFormatter

from callbacks.plots.curves import cell_name, numbers, save
from callbacks.reports.figures import add_figure, garbage_kept_young
from callbacks.reports.records import Record, of_fit, validation_records
from callbacks.reports.validation import write_table
from mambaeye.atomic import atomic_write
from mambaeye.contracts import data_of, model_of
from mambaeye.evaluation.diagnosis import diagnose

BY_LAYER = ("norm", "change", "written")  # of a layer
BY_HEAD = ("decay", "left")  # of each of its heads
BINS = 25  # of moves, an axis, or up to twice as many
ROWS = {
    "norm": "|state|",
    "written": "|written|",
    "change": "change of state",
    "decay": "decay exp(dt A)",
    "left": "left at the end",
}
PANEL = (2.45, 1.3)  # inches
MOVES = 2.1  # inches, the height of the panels of moves
LEFT, TOP, BOTTOM = 0.75, 0.5, 0.45  # inches around the panels


class ScanDiagnosis(Callback):
    """Looks into the encoder during a validation: states, decays and moves of every cell, side by side.

    After `validate`, the folder validation/ has diagnosis.png, diagnosis.csv (a row for each cell, kept step and layer)
    and diagnosis.json (each cell's means over glimpses, and its moves); in a fit, every validation's picture is in
    TensorBoard. docs/scans.md says how to read it.

    Args:
        images: Of how many images in each cell, the first of the first process; 0 for no diagnosis. It takes glimpses
            one by one, which on CPU takes about ten times as long as validating these images.
    """

    def __init__(self, images: NonNegativeInt = 0) -> None:
        self.images = images
        self.sums: dict[int, dict[str, np.ndarray]] = {}
        self.moves: dict[int, list[np.ndarray]] = {}

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.sums, self.moves = {}, {}

    @rank_zero_only
    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        cell = batch.condition
        moves = self.moves.setdefault(cell, [])
        if trainer.sanity_checking or len(moves) >= self.images:
            return
        with trainer.precision_plugin.forward_context():
            walk = model_of(pl_module).rollout(batch, self.images - len(moves), num_glimpses_at_once=1)
            diagnosis = diagnose(walk)
            positions = diagnosis.positions
        moves += [np.diff(trajectory, axis=0) for trajectory in positions.cpu().numpy()]
        sums = {name: getattr(diagnosis, name).sum(0).double().numpy() for name in (*BY_LAYER, *BY_HEAD)}
        sums["norm_squared"] = diagnosis.norm.double().square().sum(0).numpy()
        before = self.sums.get(cell, dict.fromkeys(sums, 0.0))
        self.sums[cell] = {name: before[name] + added for name, added in sums.items()}

    @rank_zero_only
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or not any(self.moves.values()):
            return
        records = [
            record | state_record(record["steps"], self.sums[cell], len(self.moves[cell]))
            for cell, record in enumerate(validation_records(trainer))
        ]
        data = data_of(trainer)
        sides = (condition.resolution for condition in data.conditions)
        reach = max(*data.canvas_range, *sides) - data.patch_size
        edges = move_edges(reach)
        training = training_moves(edges, data.canvas_range, data.patch_size)
        for cell, record in enumerate(records):
            moves = np.concatenate(self.moves[cell])  # (M, 2)
            record["moves"] = shares(moves, edges)
            beyond = np.abs(moves).max(1, initial=0) > data.canvas_range[1] - data.patch_size
            record["moves_beyond_training"] = float(beyond.mean()) if len(moves) else 0.0
        with garbage_kept_young():
            figure = diagnosis_figure(records, edges, training)
            if of_fit(trainer):
                add_figure(trainer, "diagnosis", figure)
            else:
                folder = Path(trainer.default_root_dir) / "validation"
                save(figure, folder / "diagnosis.png")
                write_table(folder / "diagnosis.csv", [row for record in records for row in by_step_and_layer(record)])
                write_summary(folder / "diagnosis.json", records, edges, training)
            del figure


def state_record(steps: list[int], sums: dict[str, np.ndarray], images: int) -> Record:
    """Sums over images -> means at the steps kept, (steps, layers), and each layer's memory.

    norm_sd is over images, decay_sd over heads; of left, left_least and left_most are the heads' extremes. memory is
    the sum of left over all glimpses: how many the state holds in the end, as if it held them whole, by (layer, head).
    """
    means = {name: total / images for name, total in sums.items()}
    at = np.array(steps) - 1
    record: Record = {"images": images, "memory": means["left"].sum(0)}
    record |= {f"mean_{name}": means[name].mean(0) for name in BY_LAYER}
    record["mean_decay"] = means["decay"].mean((0, 2))
    means = {name: mean[at] for name, mean in means.items()}
    record |= {name: means[name] for name in BY_LAYER}
    record["norm_sd"] = np.sqrt(np.maximum(means["norm_squared"] - means["norm"] ** 2, 0))
    record |= {name: means[name].mean(2) for name in BY_HEAD}
    record["decay_sd"] = means["decay"].std(2)
    record["left_least"], record["left_most"] = means["left"].min(2), means["left"].max(2)
    return record


def by_step_and_layer(record: Record) -> list[dict[str, Any]]:
    """A row for each kept step and layer, counted from 1."""
    names = (*BY_LAYER, "norm_sd", *BY_HEAD, "decay_sd", "left_least", "left_most")
    cell = {"resolution": record["resolution"], "scan": record["scan"]}
    layers = range(record["norm"].shape[1])
    return [
        cell | {"step": step, "layer": layer + 1} | {name: float(f"{record[name][at, layer]:.6g}") for name in names}
        for at, step in enumerate(record["steps"])
        for layer in layers
    ]


def write_summary(path: Path, records: list[Record], edges: np.ndarray, training: np.ndarray) -> None:
    """What diagnosis.json holds: moves as shares by (rows, cols) bin, and each cell's layers in a few numbers."""
    cells = []
    for record in records:
        cell = {name: record[name] for name in ("resolution", "scan", "images", "moves_beyond_training")}
        cell["top1"] = record["top1"][-1]
        cell["layers"] = [
            {"memory": memory.mean(), "memory_least": memory.min(), "memory_most": memory.max()}
            | {name: record[f"mean_{name}"][layer] for name in (*BY_LAYER, "decay")}
            for layer, memory in enumerate(record["memory"])
        ]
        cells.append(cell | {"moves": record["moves"].tolist()})
    moves = {"edges": edges.tolist(), "shares": training.tolist()}
    with atomic_write(path) as partial:
        partial.write_text(json.dumps({"cells": cells, "training_moves": moves}) + "\n")


def move_edges(reach: int) -> np.ndarray:
    """Edges of the bins that moves of up to so many pixels fall into, along rows as along columns.

    All hold the same odd number of moves, and the middle one is around the zero move.
    """
    width = (2 * reach + 1) // BINS | 1
    beside = -(-(reach - width // 2) // width)  # bins on either side of the middle one
    return (np.arange(2 * beside + 2) - beside - 0.5) * width


def shares(moves: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Which share of moves (M, 2) falls into each bin: (rows, cols)."""
    return np.histogram2d(*moves.T, bins=(edges, edges))[0] / max(1, len(moves))


def training_moves(edges: np.ndarray, canvas: tuple[int, int], patch_size: int) -> np.ndarray:
    """The same of training, in expectation: independent glimpses anywhere on canvases of all sides alike.

    Trajectories that keep to an image smaller than its canvas have shorter moves than these.
    """
    total = np.zeros((len(edges) - 1,) * 2)
    sides = range(canvas[0], canvas[1] + 1)
    for side in sides:
        starts = side - patch_size + 1
        move = np.arange(1 - starts, starts)
        likelihood = (starts - np.abs(move)) / starts**2  # of the difference of two uniform starts
        axis = np.histogram(move, edges, weights=likelihood)[0]
        total += np.outer(axis, axis) / len(sides)
    return total


def diagnosis_figure(records: list[Record], edges: np.ndarray, training: np.ndarray) -> Figure:
    """A column a cell: top-1, moves (training's in outline), and by layer what happens to the states."""
    columns, heights = len(records), [PANEL[1], MOVES, *[PANEL[1]] * len(ROWS)]
    width, height = LEFT + columns * PANEL[0], TOP + sum(heights) + BOTTOM
    figure = Figure(figsize=(width, height), dpi=100)
    layers = records[0]["norm"].shape[1]
    colors = colormaps["viridis"](np.linspace(0, 0.85, layers))
    tops = TOP + np.cumsum([0, *heights])
    first: dict[str, Axes] = {}
    for place, record in enumerate(records):
        for name, top, tall in zip(("top1", "moves", *ROWS), tops, heights, strict=False):
            inner = PANEL[0] * 0.9, tall - (0.55 if name == "moves" else 0.16)
            below = 1 - (top + inner[1]) / height
            box = ((LEFT + place * PANEL[0]) / width, below, inner[0] / width, inner[1] / height)
            axes = figure.add_axes(box, sharex=first.get(name), sharey=first.get(name))
            first.setdefault(name, axes)
            if name == "moves":
                draw_moves(axes, record, edges, training)
            else:
                draw_by_step(axes, name, record, colors)
                axes.tick_params(labelbottom=name == "left")
            axes.tick_params(labelsize=7, labelleft=place == 0)
        figure.text(box[0] + box[2] / 2, 1 - 0.32 / height, title(record), ha="center", fontsize=9)
    for name, axes in first.items():
        axes.set_ylabel({"top1": "top-1", "moves": "rows moved"}.get(name) or ROWS[name], fontsize=8)
    some = sorted({0, layers // 2, layers - 1})
    handles = [Line2D([], [], color=colors[layer], label=f"layer {layer + 1}") for layer in some]
    first["norm"].legend(handles=handles, loc="lower right", frameon=False, fontsize=7, labelspacing=0.2)
    frame = {"facecolor": "white", "linewidth": 0, "pad": 1}
    where = {"transform": first["moves"].transAxes, "bbox": frame}
    first["moves"].text(0.02, 0.03, "training: 50%, 95%", color="tab:orange", fontsize=7, **where)
    return figure


def title(record: Record) -> str:
    """A cell and how it ends."""
    return f"{cell_name(record)}: {100 * record['top1'][-1]:.1f}%"


def draw_by_step(axes: Axes, name: str, record: Record, colors: np.ndarray) -> None:
    """One quantity against glimpses, a line a layer; of what is left, the extremes of all heads shaded."""
    steps = record["steps"]
    if name == "top1":
        axes.plot(steps, numbers(record["top1"]), color="black", linewidth=1)
        axes.set_ylim(0, 1.02)
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    else:
        for layer, color in enumerate(colors):
            axes.plot(steps, record[name][:, layer], color=color, linewidth=1)
        if name in ("norm", "written", "change"):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_locator(NullLocator())
    if name == "left":
        axes.fill_between(steps, record["left_least"].min(1), record["left_most"].max(1), color="0.92", linewidth=0)
        axes.set_xlabel("glimpse", fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylim(0, 1.02)
    axes.grid(color="0.9")
    axes.spines[["top", "right"]].set_visible(False)


def draw_moves(axes: Axes, record: Record, edges: np.ndarray, training: np.ndarray) -> None:
    """Moves by bin, larger dots for more, rows downwards; outlined, where a half and 95% of training's are."""
    middles = (edges[:-1] + edges[1:]) / 2
    row, col = record["moves"].nonzero()
    sizes = 150 * record["moves"][row, col] ** 0.7  # so that rare moves are still to be seen
    axes.scatter(middles[col], middles[row], sizes, color="tab:blue", alpha=0.7, linewidth=0, clip_on=False)
    ranked = np.sort(training.ravel())[::-1]
    levels = [ranked[np.searchsorted(ranked.cumsum(), inside)] for inside in (0.95, 0.5)]
    if levels[0] < levels[1]:
        axes.contour(middles, middles, training, levels=levels, colors="tab:orange", linewidths=(0.7, 1.2))
    axes.set(xlim=edges[[0, -1]], ylim=edges[[-1, 0]])
    axes.set_xlabel("columns moved", fontsize=8, labelpad=1)
    if beyond := record["moves_beyond_training"]:
        where = {"transform": axes.transAxes, "ha": "right", "fontsize": 7}
        axes.text(0.98, 0.03, f"{100 * beyond:.0f}% beyond training's", **where)
