"""Charts of one run or several, drawn by the browser: results in, plotly's figures out.

Names are escaped here, for plotly reads some HTML in every text of a chart.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from html import escape
from itertools import cycle

import numpy as np
import plotly.graph_objects as go
from plotly.colors import qualitative
from plotly.subplots import make_subplots

from callbacks.page.runs import MANY, Run, condition_of
from callbacks.plots.wording import shortened
from mambaeye.evaluation.result import Row, budgets_among

COLORS = qualitative.D3
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
OVER_GLIMPSES = {"top1": "top-1", "confidence": "confidence", "ece": "ECE"}
OVER_EPOCHS = {"top1": "top-1", "ece": "ECE", "nll": "-log p(right class)"}
TRAINING = {
    "train/loss": "loss",
    "train/gradient_norm": "gradient norm",
    "train/lr": "learning rate",
    "throughput/images_per_second": "images a second",
}
HEIGHT = 340  # pixels of a row of charts
NUMBERED = 20  # classes at most whose matrix has its counts in it
NAME = 20  # letters
ROOM = 1.1  # left of the smallest and right of the largest canvas side
FEW = 0.01  # share of the answers from which a bin is in a line


class Line:
    """Style and place in the legend of one run under one condition, the same in all charts of a figure."""

    def __init__(self, name: str, color: str, dash: str) -> None:
        self.name, self.color, self.dash = escape(name), color, dash
        self.in_legend = False

    def trace(self, x: Sequence[float], y: Sequence[float | None], markers: bool = False) -> go.Scatter:
        """Return it as a curve; a single point is a marker, for a line would not show."""
        shown, self.in_legend = not self.in_legend, True
        return go.Scatter(
            x=list(x),
            y=list(y),
            name=self.name,
            legendgroup=self.name,
            showlegend=shown,
            mode="lines+markers" if markers or len(x) == 1 else "lines",
            line={"color": self.color, "dash": self.dash, "width": 2},
            marker={"color": self.color, "size": 6},
        )


def lines_of(runs: Sequence[Run]) -> Callable[[Run, Row], Line]:
    """Return what gives each run and condition its line: of one run a colour a condition, of several a colour a run."""
    conditions = list(dict.fromkeys(condition for run in runs for condition in run.conditions))
    conditions += dict.fromkeys(condition_of(row) for run in runs for row in run.validations)
    places = {condition: place for place, condition in enumerate(dict.fromkeys(conditions))}
    known: dict[tuple[str, str], Line] = {}

    def line(run: Run, row: Row) -> Line:
        condition = condition_of(row)
        place, number = places[condition], runs.index(run)
        if len(runs) == 1:
            name, color, dash = condition.title, COLORS[place % len(COLORS)], "solid"
        else:
            name, color = f"{run.name}: {condition.title}", COLORS[number % len(COLORS)]
            dash = DASHES[place % len(DASHES)]
        return known.setdefault((run.name, condition.name), Line(name, color, dash))

    return line


def panels(titles: Sequence[str], xlabel: str, rows: int = 1) -> go.Figure:
    """Return a figure with charts side by side."""
    columns = -(-len(titles) // rows)
    figure = make_subplots(rows, columns, subplot_titles=list(titles), horizontal_spacing=0.06, vertical_spacing=0.2)
    figure.update_xaxes(title_text=xlabel, title_standoff=6)
    figure.update_layout(
        template="plotly_white",
        height=rows * HEIGHT,
        margin={"l": 50, "r": 10, "t": 40, "b": 40},
        legend={"groupclick": "togglegroup"},
        hovermode="closest",
    )
    return figure


def over_glimpses(runs: Sequence[Run]) -> go.Figure:
    """Draw the last validation of every run after each glimpse."""
    figure, line = panels([*OVER_GLIMPSES.values()], "glimpses seen"), lines_of(runs)
    for column, metric in enumerate(OVER_GLIMPSES, 1):
        for run in runs:
            for row in run.last:
                figure.add_trace(line(run, row).trace(row["steps"], row[metric]), 1, column)
    powers = [1 << k for k in range(max(row["steps"][-1] for run in runs for row in run.last).bit_length())]
    figure.update_xaxes(type="log", tickvals=powers[:: -(-len(powers) // 7)])
    figure.update_yaxes(tickformat=".0%", range=[0, 1.02])
    figure.update_yaxes(range=None, rangemode="tozero", col=len(OVER_GLIMPSES))
    return figure


def over_sides(runs: Sequence[Run]) -> go.Figure | None:
    """Draw the last validation against the canvas side at fixed token budgets; None of runs with a single side.

    A line is a scan, and of several runs a run and a scan. Of one run the sides that it was trained on are shaded.
    """
    if all(len({row["resolution"] for row in run.last}) == 1 for run in runs):
        return None
    budgets = budgets_among(runs[0].last[0]["steps"])
    figure = panels([f"top-1 after {budget}" for budget in budgets], "canvas side, pixels")
    for run, scan, line in sized_lines(runs):
        rows = sorted((row for row in run.last if condition_of(row).series == scan), key=lambda row: row["resolution"])
        for column, budget in enumerate(budgets, 1):
            taken = [row for row in rows if budget in row["steps"]]
            top1 = [row["top1"][row["steps"].index(budget)] for row in taken]
            figure.add_trace(line.trace([row["resolution"] for row in taken], top1, markers=True), 1, column)
    if len(runs) == 1 and (trained := runs[0].config.get("data.train.canvas")):
        low, high = json.loads(str(trained))
        figure.add_vrect(low, high, fillcolor="#1f77b4", opacity=0.12, line_width=1, layer="below")
    sides = sorted({row["resolution"] for run in runs for row in run.last})
    ends = [math.log10(sides[0] / ROOM), math.log10(sides[-1] * ROOM)]
    figure.update_xaxes(type="log", tickvals=sides[:: -(-len(sides) // 5)], range=ends)
    figure.update_yaxes(tickformat=".0%", range=[0, 1.02])
    return figure


def sized_lines(runs: Sequence[Run]) -> list[tuple[Run, str, Line]]:
    """Return what each run's scans are drawn with over sizes: of one run a colour a scan, of several a colour a run."""
    scans, lines = list(dict.fromkeys(condition_of(row).series for run in runs for row in run.last)), []
    for number, run in enumerate(runs):
        for place, scan in enumerate(scans):
            if len(runs) == 1:
                lines.append((run, scan, Line(scan, COLORS[place % len(COLORS)], "solid")))
            else:
                dash = DASHES[place % len(DASHES)]
                lines.append((run, scan, Line(f"{run.name}: {scan}", COLORS[number % len(COLORS)], dash)))
    return lines


def over_epochs(runs: Sequence[Run]) -> go.Figure | None:
    """Draw every run's validations after the last glimpse; None if there was none in a fit."""
    if not any(run.validations for run in runs):
        return None
    figure, line = panels([*OVER_EPOCHS.values()], "epoch"), lines_of(runs)
    for column, metric in enumerate(OVER_EPOCHS, 1):
        for run in runs:
            for rows in by_condition(run.validations):
                epochs, values = [row["epoch"] for row in rows], [row[metric][-1] for row in rows]
                figure.add_trace(line(run, rows[0]).trace(epochs, values, markers=True), 1, column)
    figure.update_yaxes(tickformat=".0%", rangemode="tozero")
    figure.update_yaxes(tickformat="", col=len(OVER_EPOCHS))
    return figure


def by_condition(rows: Sequence[Row]) -> list[list[Row]]:
    """Return the rows of each condition."""
    conditions = dict.fromkeys(condition_of(row) for row in rows)
    return [[row for row in rows if condition_of(row) == condition] for condition in conditions]


def training(runs: Sequence[Run]) -> go.Figure | None:
    """Draw what every run logged at its optimizer steps; None if nothing was."""
    logged = {
        name: title for name, title in TRAINING.items() if any(name in row for run in runs for row in run.training)
    }
    if not logged:
        return None
    figure = panels([*logged.values()], "optimizer step")
    lines = [Line(run.name, color, "solid") for run, color in zip(runs, cycle(COLORS), strict=False)]
    for column, name in enumerate(logged, 1):
        for run, line in zip(runs, lines, strict=True):
            rows = [row for row in run.training if row.get(name) is not None]
            steps, values = [row["optimizer_step"] for row in rows], [row[name] for row in rows]
            figure.add_trace(line.trace(steps, values), 1, column)
    figure.update_yaxes(rangemode="tozero")
    return figure


def reliability(runs: Sequence[Run]) -> go.Figure:
    """Draw accuracy against confidence after a few glimpse counts; bins of few answers are left out."""
    steps = [bins["step"] for bins in runs[0].last[0]["reliability"]]
    figure, line = panels([f"after {step}" for step in steps], "confidence"), lines_of(runs)
    for column, step in enumerate(steps, 1):
        figure.add_trace(diagonal(0), 1, column)
        for run in runs:
            for row in run.last:
                points = [*reliable_bins(row, step)]
                if points:
                    confidence, top1 = zip(*points, strict=True)
                    figure.add_trace(line(run, row).trace(confidence, top1, markers=True), 1, column)
    return shares(figure)


def reliable_bins(row: Row, step: int) -> Iterator[tuple[float, float]]:
    """Yield confidence and accuracy of the bins that hold some of the answers after so many glimpses."""
    for bins in row["reliability"]:
        if bins["step"] == step:
            total = sum(bins["bin_count"])
            for count, *point in zip(bins["bin_count"], bins["bin_confidence"], bins["bin_top1"], strict=True):
                if count > FEW * total:
                    yield point[0], point[1]


def information_ratio(runs: Sequence[Run]) -> go.Figure:
    """Draw confidence against the share of the image seen; dotted, what training aims at."""
    titles = {"ratio_true_class_probability": "confidence in the right class", "ratio_confidence": "confidence"}
    figure, line = panels([*titles.values()], "information ratio"), lines_of(runs)
    for column, name in enumerate(titles, 1):
        figure.add_trace(diagonal(1 / runs[0].last[0]["num_classes"]), 1, column)
        for run in runs:
            for row in run.last:
                figure.add_trace(line(run, row).trace(row["ratio_mean"], row[name]), 1, column)
    return shares(figure)


def diagonal(start: float) -> go.Scatter:
    """Return a dotted line to (1, 1)."""
    style = {"color": "#888", "dash": "dot", "width": 1}
    return go.Scatter(x=[0, 1], y=[start, 1], mode="lines", line=style, showlegend=False, hoverinfo="skip")


def shares(figure: go.Figure) -> go.Figure:
    """Make both axes shares of 1."""
    figure.update_xaxes(tickformat=".0%", range=[0, 1.02])
    figure.update_yaxes(tickformat=".0%", range=[0, 1.02])
    return figure


def confusion(run: Run) -> go.Figure | None:
    """Draw a run's confusion matrix, to be chosen by condition; None of no classes, and of very many."""
    number, conditions, middle = len(run.classes), len(run.confusions), len(run.confusions) // 2
    if not 0 < number <= MANY:
        return None
    figure = panels([""], "taken for")
    for place, (_, counted) in enumerate(run.confusions):
        figure.add_trace(heatmap(run.classes, counted, place == middle))
    ticks = {"tickvals": [*range(number)], "ticktext": [escape(shortened(name, NAME)) for name in run.classes]}
    figure.update_xaxes(ticks, tickangle=-90 if number > 10 else None, constrain="domain", showgrid=False)
    figure.update_yaxes(ticks, autorange="reversed", scaleanchor="x", constrain="domain", title_text="class")
    buttons = [
        {"label": escape(condition.title), "method": "restyle", "args": [{"visible": one_of(place, conditions)}]}
        for place, (condition, _) in enumerate(run.confusions)
    ]
    menu = {"buttons": buttons, "active": middle, "x": 0, "xanchor": "left", "y": 1.02, "yanchor": "bottom"}
    figure.update_layout(updatemenus=[menu], height=max(400, 16 * number) + 120, margin={"t": 50})
    return figure


def heatmap(classes: Sequence[str], counted: Sequence[tuple[int, int, int]], visible: bool) -> go.Heatmap:
    """Return a matrix, dark where the share of a row's images is large: as its root, so that rare mistakes show."""
    names, places = [escape(name) for name in classes], [*range(len(classes))]
    matrix = np.zeros((len(names), len(names)), int)
    for label, answer, images in counted:
        matrix[label, answer] = images
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    return go.Heatmap(
        x=places,
        y=places,
        z=np.sqrt(share).round(3).tolist(),
        text=[[images or "" for images in row] for row in matrix.tolist()],
        texttemplate="%{text}" if len(names) <= NUMBERED else None,
        customdata=[[f"{row} taken for {column}" for column in names] for row in names],
        hovertemplate="%{customdata}: %{text} images<extra></extra>",
        colorscale="Blues",
        zmin=0,
        zmax=1,
        showscale=False,
        visible=visible,
    )


def one_of(place: int, number: int) -> list[bool]:
    """Return which of so many traces is to be seen."""
    return [other == place for other in range(number)]
