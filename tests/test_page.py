"""The page of runs: one file, which shows what the runs have and takes nothing of theirs for anything but text."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from test_callbacks import fit
from validations import CLASSES, validation

from callbacks.page.__main__ import main
from callbacks.page.charts import over_epochs, over_glimpses, over_sides, reliability
from callbacks.page.runs import read_run
from callbacks.page.write import names_of
from callbacks.reports.curve_records import CurveRecords
from callbacks.reports.film_strip import FilmStrip
from callbacks.reports.run_page import RunPage
from mambaeye.errors import InputError

NASTY = "</script><script>alert('class')</script><img src=x onerror=alert(1)>"
PNG = bytes.fromhex("89504e470d0a1a0a") + b"not a picture"


def leave_run(
    run_dir: Path,
    epochs: int = 3,
    lr: float = 0.1,
    classes: list[str] | None = None,
    canvas: list[int] | None = None,
) -> None:
    """Write what a fit of some epochs leaves in its run directory."""
    (run_dir / "classes").mkdir(parents=True)
    lines = [{"kind": "training", "optimizer_step": step, "epoch": 0, "train/loss": 1 / step} for step in (1, 2, 3)]
    for epoch in range(epochs):
        for result in validation(seed=epoch).conditions:
            lines.append({"kind": "validation", "epoch": epoch, "optimizer_step": 3 * epoch, **result.record()})
    (run_dir / "curves.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"kind": "tra')
    config = f"seed_everything: 3\nmodel:\n  optimizer:\n    lr: {lr}\ndata:\n  train_shards: {json.dumps(NASTY)}\n"
    config += f"  train:\n    canvas: {canvas}\n" if canvas else ""
    (run_dir / "config.yaml").write_text(config)
    conditions = [
        {"resolution": side, "scan": "random", "step": 9, "confusion": [[0, 0, 7], [0, 1, 3], [1, 1, 5]]}
        for side in (32, 48)
    ]
    names = classes or [f"class {place}" for place in range(CLASSES)]
    (run_dir / "classes" / "confusion.json").write_text(json.dumps({"classes": names, "conditions": conditions}))


class Elements(HTMLParser):
    """A page as a browser would read it: elements with their attributes, scripts, and the text between."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] == "script":
            self.scripts.append(data)
        else:
            self.text += data


def test_a_page_has_every_section_and_loads_nothing(tmp_path: Path) -> None:
    leave_run(tmp_path / "run")
    (tmp_path / "run" / "validation").mkdir()
    (tmp_path / "run" / "validation" / "film_strip.png").write_bytes(PNG)
    main([str(tmp_path / "run")])
    page = Elements((tmp_path / "run" / "report.html").read_text())
    headings = (
        "Over glimpses",
        "Over sizes",
        "Over epochs",
        "Training",
        "Reliability",
        "Classes",
        "Pictures",
        "all 3 values",
    )
    for heading in headings:
        assert heading in page.text
    assert "70.0 %" in page.text  # of the class whose 3 of 10 images were taken for another
    assert not [tag for tag, attributes in page.tags if tag in ("link", "iframe") or (tag == "script" and attributes)]
    sources = [attributes["src"] for tag, attributes in page.tags if tag == "img"]
    assert len(sources) == 1
    assert (sources[0] or "").startswith("data:image/png;base64,")
    policy = next(attributes["content"] for tag, attributes in page.tags if "http-equiv" in attributes)
    assert policy == "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


def test_names_are_text_wherever_they_stand(tmp_path: Path) -> None:
    """A class, a value of the config and a run that are called like a script: no element more than without them."""
    leave_run(tmp_path / "plain", classes=["cat", *map(str, range(9))])
    leave_run(tmp_path / NASTY.replace("/", "-"), classes=[NASTY, *map(str, range(9))])
    tags = []
    for name in ("plain", NASTY.replace("/", "-")):
        main([str(tmp_path / name), "-o", str(tmp_path / "page.html")])
        page = Elements((tmp_path / "page.html").read_text())
        tags.append([tag for tag, _ in page.tags])
        assert not [attributes for _, attributes in page.tags if "onerror" in attributes]
        charts = "".join(script for script in page.scripts if "Plotly.newPlot" in script and len(script) < 10**6)
        assert "<img" not in charts
        assert "alert('class')" not in charts  # plotly reads HTML in names: there it is escaped once more
    assert tags[0] == tags[1]
    assert NASTY in page.text


def test_charts_have_the_values_of_the_runs(tmp_path: Path) -> None:
    leave_run(tmp_path / "one")
    run = read_run(tmp_path / "one", "one")
    result = validation(seed=2).conditions[1]
    curve = next(trace for trace in over_glimpses([run]).data if trace.name == "48 px, random")
    assert list(curve.x) == result.steps
    assert list(curve.y) == pytest.approx(result["top1"].tolist(), abs=1e-6)
    epochs = over_epochs([run])
    assert epochs is not None
    curve = [trace for trace in epochs.data if trace.name == "48 px, random"][1]
    expected = [float(validation(seed=epoch).conditions[1]["ece"][-1]) for epoch in range(3)]
    assert list(curve.x) == [0, 1, 2]
    assert list(curve.y) == pytest.approx(expected, abs=1e-6)
    curve = [trace for trace in reliability([run]).data if trace.name == "48 px, random"][-1]
    kept = result.bins["bin_count"][-1] > 0.3  # of 30 answers: a hundredth
    assert list(curve.y) == pytest.approx(result.bins["bin_top1"][-1][kept].tolist(), abs=1e-6)


def test_sizes_are_compared_at_fixed_budgets_and_those_of_training_shaded(tmp_path: Path) -> None:
    leave_run(tmp_path / "one", canvas=[40, 64])
    run = read_run(tmp_path / "one", "one")
    figure = over_sides([run])
    assert figure is not None
    (curve,) = figure.data
    measured = validation(seed=2).conditions  # 9 glimpses: fewer than any budget
    assert curve.name == "random"
    assert list(curve.x) == [32, 48]
    assert list(curve.y) == pytest.approx([result["top1"][-1] for result in measured], abs=1e-6)
    (shade,) = figure.layout.shapes
    assert (shade.x0, shade.x1) == (40, 64)
    both = over_sides([run, replace(run, name="two")])
    assert both is not None
    assert [trace.name for trace in both.data] == ["one: random", "two: random"]
    assert not both.layout.shapes
    assert over_sides([replace(run, last=run.last[:1])]) is None


def test_several_runs_stand_side_by_side_with_what_differs(tmp_path: Path) -> None:
    leave_run(tmp_path / "a" / "run", lr=0.1)
    leave_run(tmp_path / "b" / "run", lr=0.25, epochs=1)
    output = tmp_path / "both.html"
    main([str(tmp_path / "a" / "run"), str(tmp_path / "b" / "run"), "--output", str(output)])
    text = Elements(output.read_text()).text
    differing = text.split("What differs:")[1].split("all 3 values")[0]
    assert re.sub(r"\s+", "", differing) == "a/runb/runmodel.optimizer.lr0.10.25"
    runs = [read_run(tmp_path / name / "run", name) for name in "ab"]
    names = {trace.name for trace in over_glimpses(runs).data}
    assert names == {f"{name}: {side} px, random" for name in "ab" for side in (32, 48)}


def test_runs_are_named_by_what_tells_them_apart(tmp_path: Path) -> None:
    assert names_of([tmp_path / "runs" / "a"]) == ["a"]
    assert names_of([tmp_path / "x" / "run", tmp_path / "y" / "run"]) == ["x/run", "y/run"]
    assert names_of([tmp_path / "a", tmp_path / "a"]) == ["a (1)", "a (2)"]


def test_a_run_without_epochs_shows_what_validate_left(tmp_path: Path) -> None:
    folder = tmp_path / "run" / "validation"
    folder.mkdir(parents=True)
    lines = [{"kind": "validation", "epoch": 0, "optimizer_step": 0, **one.record()} for one in validation().conditions]
    (folder / "curves.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    main([str(tmp_path / "run")])
    text = Elements((tmp_path / "run" / "report.html").read_text()).text
    assert "Over glimpses" in text
    for absent in ("Over epochs", "Training", "Classes", "Pictures", "Config"):
        assert absent not in text


def test_a_folder_that_is_no_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no curves.jsonl with a validation"):
        read_run(tmp_path, "none")
    with pytest.raises(SystemExit, match="give run directories"):
        main([str(tmp_path)])
    assert not (tmp_path / "report.html").exists()


def test_values_that_are_missing_are_gaps(tmp_path: Path) -> None:
    """NaN is null in curves.jsonl, as where nothing was counted."""
    leave_run(tmp_path / "run", epochs=1)
    path = tmp_path / "run" / "curves.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()[:-1]]
    for line in lines:
        if line["kind"] == "validation":
            line |= {name: [None] * 9 for name in ("top1", "top5", "confidence", "ece", "nll")}
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    main([str(tmp_path / "run")])
    assert "\N{EN DASH}" in Elements((tmp_path / "run" / "report.html").read_text()).text


def test_a_matrix_of_many_classes_is_its_lists(tmp_path: Path) -> None:
    leave_run(tmp_path / "run", classes=[f"class {place}" for place in range(1000)])
    main([str(tmp_path / "run")])
    page = Elements((tmp_path / "run" / "report.html").read_text())
    assert "class 0" in page.text
    assert not [script for script in page.scripts if '"type":"heatmap"' in script and len(script) > 100_000]


def test_a_fit_ends_with_its_page(data_dir: Path, tmp_path: Path) -> None:
    """With the film strip; without a validation there is nothing to show, and no page."""
    settings = {"limit_val_batches": 1, "limit_train_batches": 1}
    fit(tmp_path, data_dir, FilmStrip(images=1), CurveRecords(), RunPage(), **settings)
    page = Elements((tmp_path / "report.html").read_text())
    assert "A few images" in page.text
    assert "40" in page.text
    images = [attributes["src"] or "" for tag, attributes in page.tags if tag == "img"]
    assert [image[:30] for image in images] == ["data:image/png;base64,iVBORw0K"]
    for name, settings in (("none", {"limit_val_batches": 0}), ("off", {"limit_val_batches": 1})):
        fit(tmp_path / name, data_dir, CurveRecords(), RunPage(write=name == "none"), limit_train_batches=1, **settings)
        assert not (tmp_path / name / "report.html").exists()
