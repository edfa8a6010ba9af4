"""The page of one run or several: a single HTML file that needs no server and no network.

Everything that comes from a run, names of classes and files among it, is text: it is escaped here and in charts.py. The
page's own policy lets the browser load nothing from anywhere.
"""

import base64
from collections.abc import Callable, Iterator, Sequence
from html import escape

import plotly.graph_objects as go
from plotly.io import to_html
from plotly.offline import get_plotlyjs

from callbacks.page import charts
from callbacks.page.runs import Run, condition_of
from mambaeye.evaluation.classes import ClassCounts

POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1360px; margin: 0 auto; padding: 0 24px 48px }
h1 { font-size: 24px; margin: 24px 0 8px } h2 { font-size: 19px; margin: 36px 0 4px }
h3 { font-size: 15px; margin: 20px 0 4px } p { margin: 4px 0; color: #555; max-width: 90ch }
table { border-collapse: collapse; font-size: 14px } .wide { overflow-x: auto }
th, td { padding: 3px 12px 3px 0; text-align: right; border-bottom: 1px solid #e5e5e5; white-space: nowrap }
th:first-child, td:first-child { text-align: left } td.text { text-align: left; white-space: normal }
.runs { display: grid; gap: 8px 32px } .runs > div, .pair > div { min-width: 0 }
.alone .pair { display: grid; gap: 8px 32px; grid-template-columns: 3fr 2fr }
img { max-width: 100% } code { font-size: 13px } details { margin-top: 8px } summary { cursor: pointer }
"""
COLUMNS = 3  # runs beside each other, at most
WORST = 10  # classes that are listed


def page(runs: Sequence[Run]) -> str:
    """Return the page of some runs, side by side."""
    title = escape(", ".join(run.name for run in runs))
    return (
        f'<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"><title>{title}</title>'
        f"<style>{STYLE}</style><script>{get_plotlyjs()}</script></head><body><h1>{title}</h1>"
        f"<p>Drag in a chart to zoom, double-click to go back; click a line's name to hide it.</p>"
        f"{''.join(sections(runs))}</body></html>\n"
    )


def sections(runs: Sequence[Run]) -> Iterator[str]:
    """Yield the page's sections; what no run has is left out."""
    yield summary(runs)
    yield section("Over glimpses", "The last validation, after every glimpse.", chart(charts.over_glimpses(runs)))
    yield section(
        "Over sizes",
        "The last validation, at fixed numbers of glimpses; of one run, the canvas sides of its training are shaded.",
        chart(charts.over_sides(runs)),
    )
    yield section(
        "Over epochs", "Every validation of the fit, after the last glimpse.", chart(charts.over_epochs(runs))
    )
    yield section("Training", "As logged, by optimizer step.", chart(charts.training(runs)))
    yield section(
        "Reliability",
        "Accuracy against confidence: on the dotted line confidence is what it should be, above it too low. "
        "Bins with fewer than one answer in a hundred are left out.",
        chart(charts.reliability(runs)),
    )
    yield section(
        "Confidence and what was seen",
        "Against the share of the image that glimpses have shown; dotted, what training aims at.",
        chart(charts.information_ratio(runs)),
    )
    yield section("Classes", "", beside(runs, classes))
    yield section("Pictures", "", beside(runs, pictures))
    yield section("Config", "", config(runs))


def section(title: str, text: str, content: str) -> str:
    """Return a section; none without content."""
    return f"<h2>{title}</h2><p>{text}</p>{content}" if content else ""


def chart(figure: go.Figure | None) -> str:
    """Return a chart, drawn by the script that the page has once."""
    if figure is None:
        return ""
    settings = {"displayModeBar": False, "responsive": True}
    height = figure.layout.height
    div: str = to_html(figure, full_html=False, include_plotlyjs=False, config=settings, default_height=height)
    return div


def beside(runs: Sequence[Run], part: Callable[[Run], str]) -> str:
    """Return a part of every run, the runs beside each other and under their names if there are several."""
    parts = [(run.name, part(run)) for run in runs]
    heads = [f"<h3>{escape(name)}</h3>" if len(runs) > 1 else "" for name, _ in parts]
    found = [f"<div>{head}{content}</div>" for head, (_, content) in zip(heads, parts, strict=True) if content]
    if not found:
        return ""
    # charts are drawn while the browser still reads the page, so that columns must not depend on what follows
    columns = f"grid-template-columns: repeat({min(len(runs), COLUMNS)}, minmax(0, 1fr))"
    return f'<div class="runs{" alone" if len(runs) == 1 else ""}" style="{columns}">{"".join(found)}</div>'


def summary(runs: Sequence[Run]) -> str:
    """Return a table: accuracy, confidence and calibration of every run after the last glimpse."""
    headings = ["run", "side", "scan", "images", "glimpses", "top-1", "top-5", "confidence", "ECE"]
    rows = []
    for run in runs:
        for record in run.last:
            condition = condition_of(record)
            shares = [share(record[name][-1]) for name in ("top1", "top5", "confidence", "ece")]
            counts = [str(record["samples"][-1]), str(record["steps"][-1])]
            rows.append([run.name, str(condition.resolution), condition.series, *counts, *shares])
    return table(headings, rows)


def share(value: float | None) -> str:
    """Return a share of 1 in percent; a dash for none."""
    return "\N{EN DASH}" if value is None else f"{100 * value:.1f} %"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table of text."""
    head = "".join(f"<th>{escape(heading)}</th>" for heading in headings)
    body = "".join(f"<tr>{''.join(f'<td>{escape(entry)}</td>' for entry in row)}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def classes(run: Run) -> str:
    """Return a run's confusion matrix, and the classes that were right least often."""
    if not run.confusions:
        return ""
    condition, counted = run.confusions[len(run.confusions) // 2]
    worst = sorted((one for one in counts(len(run.classes), counted) if one.images), key=lambda one: one.accuracy)
    rows = [[run.classes[one.label], str(one.images), share(one.accuracy), str(one.answered)] for one in worst[:WORST]]
    listed = table(["class", "images", "right", "images taken for it"], rows)
    listed = f"<div><p>Right least often, {escape(condition.title)}:</p>{listed}</div>"
    return f'<div class="pair"><div>{chart(charts.confusion(run))}</div>{listed}</div>'


def counts(number: int, counted: Sequence[tuple[int, int, int]]) -> list[ClassCounts]:
    """Return what was counted of every class."""
    images, right, answered = [0] * number, [0] * number, [0] * number
    for label, answer, some in counted:
        images[label] += some
        answered[answer] += some
        right[label] += some if label == answer else 0
    return [ClassCounts(label, *of) for label, of in enumerate(zip(images, right, answered, strict=True))]


def pictures(run: Run) -> str:
    """Return a run's pictures."""
    return "".join(
        f'<p>{title}</p><img alt="{title}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'
        for title, png in run.pictures
    )


def config(runs: Sequence[Run]) -> str:
    """Return what differs between the runs' configs, and all of them."""
    names = list(dict.fromkeys(name for run in runs for name in run.config))
    rows = [[name, *(str(run.config.get(name, "")) for run in runs)] for name in names]
    differing = [row for row in rows if len({*row[1:]}) > 1]
    headings = ["", *(run.name for run in runs)]
    if not rows:
        return ""
    everything = f"<details><summary>all {len(rows)} values</summary>{table(headings, rows)}</details>"
    if len(runs) == 1:
        return everything
    return f"<p>What differs:</p>{table(headings, differing)}{everything}"
