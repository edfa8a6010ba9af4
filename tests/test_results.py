"""The results suites: what they would run, what they leave alone, and what becomes of their numbers."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from commands import TINY, flags

from benchmarks.curves import Curves
from benchmarks.drawing import draw
from benchmarks.hierarchy_drawing import draw_hierarchy
from benchmarks.learned_tables import Arm, area, glimpses_to, paired, stopping_tables, summed
from benchmarks.results import Bench, correct, read_entries, run, words
from benchmarks.suites import SUITES
from benchmarks.suites.suite import Claim, Suite
from benchmarks.tables import tables
from mambaeye.errors import InputError
from mambaeye.geometry.scans import SCANS, scan_pattern
from train import main

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("name", ["digits", "cifar10"])
def test_commands_of_a_suite_parse_and_differ_from_the_base_in_one_thing(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("sys.argv", ["train.py"])
    suite = SUITES[name]
    bench = Bench(name, suite, tmp_path, tmp_path)

    def parsed(arguments: list[str]) -> list[str]:
        """The whole configuration, line by line, but for the run directory."""
        with pytest.raises(SystemExit) as stop:
            main([*arguments, "--print_config"])
        assert stop.value.code == 0
        return [line for line in capsys.readouterr().out.splitlines() if str(tmp_path) not in line]

    # of each kind one, all at once, and so with evaluations: a command line takes seconds to parse
    base = bench.fit_arguments("base", 0)
    kinds = {key: variant for variant, changed in suite.variants.items() for key in changed}
    added = [word for variant in kinds.values() for word in bench.fit_arguments(variant, 0)[len(base) :]]
    pairs = zip(parsed(base), parsed([*base, *added]), strict=True)
    now = [after.strip() for before, after in pairs if before != after]
    assert len(now) == len(kinds) == 5
    for key, variant in kinds.items():
        value = suite.variants[variant][key]
        side = value.strip("[]").split(",")[1] if key == "data.train.canvas" else None
        assert (f"{key.rpartition('.')[2]}: {value}" if side is None else f"- {side}") in now
    asked = bench.validate_arguments("base", 0, "scans")
    at = asked.index("--ckpt_path")
    more = words(suite.evaluations["resolutions"] | suite.evaluations["shift_64"])
    parsed([*asked[:at], *asked[at + 2 :], *more, "--model.init_from=any"])


@pytest.mark.parametrize("name", ["digits", "cifar10"])
def test_variants_differ_from_the_base_in_one_thing(name: str) -> None:
    assert all(len(changed) == 1 for variant, changed in SUITES[name].variants.items() if variant != "base")


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_has_three_seeds_of_all_that_its_claims_need(name: str) -> None:
    suite = SUITES[name]
    assert len(set(suite.rows())) == len(suite.rows()) == 3 * len(suite.variants)
    for variant, changed in suite.variants.items():
        assert suite.claims_of(variant)
        assert bool(changed) == (variant != "base")
        given = yaml.safe_load(changed.get("data.train_scan", "random"))
        for scan in [given] if isinstance(given, str) else given:
            assert scan == "learned" or scan_pattern(scan)  # which raises for what is none
        assert all((ROOT / path).exists() for path in suite.configs_of(variant))
    for variant, start in suite.starts.items():
        assert suite.rows().index((start, 0)) < suite.rows().index((variant, 0))
        assert set(suite.evaluations_of(variant)) <= suite.evaluations.keys()
    for claim in {"scans", "paths"} & suite.claims.keys():
        assert set(suite.evaluations[claim]["data.scans"][1:-1].split(",")) == set(SCANS) - {"varied"}
    asked = {name for variant in suite.variants for name in suite.evaluations_of(variant)}
    assert asked == suite.evaluations.keys()


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_on_shards_names_those_to_validate_on(name: str) -> None:
    """A checkpoint does not: validate would ask for them."""
    config = yaml.safe_load((ROOT / SUITES[name].config).read_text())
    trained = SUITES[name].fit.get("data.val_shards", config["data"].get("val_shards"))
    assert SUITES[name].validate.get("data.val_shards") == trained


SMALL = Suite(
    config="configs/digits.yaml",
    fit={**{key: str(value) for key, value in TINY.items() if "encoder" in key}, "trainer.limit_val_batches": "0"},
    validate={"trainer.accelerator": "cpu", "film_strip.images": "0"},
    variants={"base": {}, "plain": {"data.train.num_glimpses": "0"}},
    evaluations={
        "resolutions": {"data.resolutions": "[32,40]", "data.evaluate.num_glimpses": "4"},
        "shift_9": {"data.resolutions": "[32]", "data.evaluate.num_glimpses": "4", "data.evaluate.shift": "[9,9]"},
    },
    side=32,
    measured={"loss": ("resolutions",), "coordinates": ("resolutions", "shift_9")},
    claims={
        "loss": Claim({"base": "scheduled", "plain": "plain"}, at=4),
        "coordinates": Claim({"base": "moves", "plain": "other"}, at=4),
    },
    seeds=(5,),
)


def calls_counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return what run calls from now on: fit, or the folder's name of a validation."""
    calls: list[str] = []
    real = subprocess.run

    def counting(command: list[str], **how: Any) -> Any:
        calls.append(Path(command[command.index("--run_dir") + 1]).name if command[2] == "validate" else command[2])
        return real(command, **how)

    monkeypatch.setattr(subprocess, "run", counting)
    return calls


@pytest.mark.long
def test_rows_are_done_once_and_anew_when_their_settings_change(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = calls_counted(monkeypatch)
    more = (f"--data.data_dir={data_dir}", "--trainer.max_steps=2")
    suite = replace(SMALL, measured={"loss": ("resolutions",), "coordinates": ("resolutions",)})
    bench = Bench("small", suite, tmp_path / "out", tmp_path / "runs", more)
    (failed,) = run(bench, [("plain", 5), ("base", 5)])
    assert calls == ["fit", "fit", "resolutions"]  # what fails is named, and the next row goes on
    assert failed.startswith("plain-5 ended with exit code 1: see the log in ")
    assert (
        "error: data.train.num_glimpses is 0: give at least 1" in (tmp_path / "runs/small/plain-5/fit.log").read_text()
    )
    (entry,) = read_entries(bench.results)
    assert (entry["variant"], entry["seed"], entry["claims"]) == ("base", 5, ["loss", "coordinates"])
    assert "--seed_everything 5 " in entry["fit"]
    measured = json.loads((tmp_path / "runs/small/base-5/resolutions/validation.json").read_text())["rows"]
    curves = {condition["resolution"]: condition for condition in entry["evaluations"]["resolutions"]["conditions"]}
    assert len(measured) == 2 * 3
    for row in measured:
        curve = curves[row["resolution"]]
        at = curve["steps"].index(row["step"])
        assert curve["samples"] == row["samples"] == 397
        assert all(curve[name][at] == pytest.approx(row[name], abs=6e-5) for name in ("top1", "ece", "nll"))
    calls.clear()
    assert run(bench, [("base", 5)]) == []
    assert calls == []
    other = {"resolutions": SMALL.evaluations["shift_9"]}
    assert run(replace(bench, suite=replace(suite, evaluations=other)), [("base", 5)]) == []
    assert calls == ["resolutions"]  # the fit is as it was
    shutil.rmtree(tmp_path / "runs/small/base-5/checkpoints")
    assert bench.missing(bench.read(), "base", 5) is None  # it is trained anew for what it lacks,
    again = replace(bench, suite=replace(suite, evaluations=other))
    assert again.missing(again.read(), "base", 5) == []  # and for nothing else
    calls.clear()
    slower = replace(SMALL, variants={"base": {"model.optimizer.lr": "1.0e-05"}}, claims={})
    assert run(replace(bench, suite=slower), [("base", 5)]) == []
    assert calls == ["fit"]
    assert "lr: 1.0e-05" in (tmp_path / "runs/small/base-5/config.yaml").read_text()
    assert not (tmp_path / "runs/small/base-5/resolutions").exists()  # it was the other fit's


def test_a_folder_that_is_not_a_run_is_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / "small/base-5/mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("precious")
    with pytest.raises(InputError, match="base-5 is not a run of benchmarks.results: move it away"):
        Bench("small", SMALL, tmp_path, tmp_path).fit("base", 5)
    assert mine.read_text() == "precious"


def entries(suite: Suite, top1: dict[tuple[str, int], float]) -> list[dict[str, Any]]:
    """Results in which all numbers of a row are one, but for the canvas: a tenth less for each after the first."""
    made = []
    for (variant, seed), value in top1.items():
        evaluations = {}
        for name, settings in suite.evaluations.items():
            sides, length = json.loads(settings["data.resolutions"]), int(settings["data.evaluate.num_glimpses"])
            steps = [1 << k for k in range(length.bit_length())]
            scans = settings.get("data.scans", "[random]")[1:-1].split(",")
            evaluations[name] = {
                "conditions": [
                    {"resolution": side, "scan": scan, "steps": steps}
                    | dict.fromkeys(("top1", "ece"), [value - 0.1 * place] * len(steps))
                    for place, side in enumerate(sides)
                    for scan in scans
                ]
            }
        made.append({"variant": variant, "seed": seed, "evaluations": evaluations})
    return made


def test_tables_have_means_deviations_and_differences_by_seed() -> None:
    """Numbers worked out by hand; the third seed has no partner, and takes no part in differences."""
    top1 = {("base", 0): 0.90, ("base", 1): 0.92, ("base", 2): 0.97, ("plain", 0): 0.80, ("plain", 1): 0.84}
    made = tables(SMALL, entries(SMALL, top1))
    assert "| 32 | scheduled | 93.0 ± 3.6 | 93.0 ± 3.6 |" in made["loss-top1"]
    assert "| 32 | plain | 82.0 ± 2.8 | 82.0 ± 2.8 |" in made["loss-top1"]
    assert "| 40 | *difference* | +9.0 ± 1.4 | +9.0 ± 1.4 |" in made["loss-ece"]
    assert made["coordinates-shift"].splitlines()[2:5] == [
        "| told | 0 | 9 |",
        "| --- | --- | --- |",
        "| moves | 93.0 ± 3.6 | 93.0 ± 3.6 |",
    ]
    assert "| other |  |  |" in tables(SMALL, entries(SMALL, {("base", 0): 0.9}))["coordinates-shift"]
    assert "| moves | 90.0 | 90.0 |" in tables(SMALL, entries(SMALL, {("base", 0): 0.9}))["coordinates-shift"]
    assert tables(SMALL, []) == {}


def test_the_glimpses_to_an_accuracy_its_area_and_pairs_are_as_worked_out_by_hand() -> None:
    steps = [1, 2, 4, 16]
    values = np.array([[0.1, 0.5, 0.8, 1.0], [0.9, 0.2, 0.2, 0.2], [0.1, 0.1, 0.1, 0.1]])
    assert glimpses_to(values, steps).tolist() == pytest.approx([10.0, 1.0, np.nan], nan_ok=True)
    assert summed(glimpses_to(values, steps)) == "2 of 3 seeds do"
    assert summed(glimpses_to(values[:2], steps)) == "5.5 ± 6.4"
    assert area(values, steps).tolist() == pytest.approx([(0.3 + 0.65 + 2 * 0.9) / 4, (0.55 + 0.6) / 4, 0.1])


def test_glimpses_that_a_rule_takes_to_an_accuracy_are_interpolated_between_its_thresholds() -> None:
    suite = SUITES["learned_digits"]
    exits = {"confidence": [[0.9, 16.0, 0.92], [0.5, 2.0, 0.6], [0.7, 6.0, 0.82]], "stable": [[2, 3.0, 0.5]]}
    condition = {"resolution": 48, "scan": "sobol", "steps": [64], "exits": exits}
    random = condition | {"scan": "random", "exits": {}}
    rows = [{"variant": "learned", "seed": 0, "evaluations": {"stopping": {"conditions": [condition, random]}}}]
    (table,) = dict(stopping_tables(suite, suite.claims["stopping"], Curves(rows))).values()
    assert "| 48 | Sobol, confidence | 3.8 | 5.6 | 14.0 | never |" in table  # 2 + 4 * 10/22, 2 + 4 * 20/22, 6 + 8
    assert "stable" not in table  # it comes to none of these
    assert "random" not in table


def test_differences_are_paired_by_image_and_seed(tmp_path: Path) -> None:
    labels, answers = [0, 1, 2, 0, 1], {"one": [0, 1, 2, 0, 0], "other": [0, 0, 2, 1, 1]}
    rows = []
    for variant, given in answers.items():
        path = tmp_path / f"{variant}.csv"
        lines = [f"sample,{label},{answer},0.5" for label, answer in zip(labels, given, strict=True)]
        path.write_text("\n".join(["key,label,answer_4,confidence_4", *lines]) + "\n")
        condition = {"resolution": 48, "scan": "sobol", "steps": [4], "samples": 5, "correct": correct(path, [4])}
        evaluation = {"conditions": [json.loads(json.dumps(condition))]}
        rows += [{"variant": variant, "seed": seed, "evaluations": {"fixed": evaluation}} for seed in (0, 1)]
    one, other = (Arm(variant, "fixed", "sobol", variant) for variant in answers)
    # 0, +100, 0, +100 and -100: their mean is 20, and their standard deviation 83.7
    assert paired(Curves(rows), one, other, 48, 4) == f"+20.0 ± {1.96 * 7000**0.5 / 5**0.5:.1f} (+20.0 to +20.0)"
    assert paired(Curves(rows[:2]), one, other, 48, 4) == ""


@pytest.mark.long
@pytest.mark.parametrize("name", SUITES)
@pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
def test_pictures_of_all_claims_and_of_those_that_there_are(name: str, seeds: tuple[int, ...], tmp_path: Path) -> None:
    suite = SUITES[name]
    some = {(variant, seed): 0.9 for variant, seed in suite.rows() if seed in seeds}
    draw(suite, entries(suite, some), tmp_path / name)
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}-{claim}.png" for claim in suite.claims}
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()
    last = [*next(iter(suite.claims.values())).variants][-1]
    draw(suite, entries(suite, {(last, 0): 0.5}), tmp_path / name)
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}-{claim}.png" for claim in suite.claims_of(last)}


def test_hierarchies_are_drawn_by_seed_in_every_length_that_was_measured() -> None:
    suite = SUITES["hierarchy_dense"]

    def conditions(step: int, top1: float) -> dict[str, Any]:
        return {
            "conditions": [
                {"resolution": side, "scan": "dense", "steps": [1, step], "top1": [0.1, top1]} for side in (32, 48)
            ]
        }

    top1 = {("stride", 0): 0.9, ("stride", 1): 0.8, ("base", 0): 0.7}
    rows = [
        {
            "variant": variant,
            "seed": seed,
            "evaluations": {"resolutions": conditions(576, value), "as_trained": conditions(144, value + 0.05)},
        }
        for (variant, seed), value in top1.items()
    ]
    left, right = draw_hierarchy(suite, suite.claims["hierarchy"], Curves(rows)).axes
    assert [text.get_text() for text in left.get_yticklabels()] == ["flat, 2 blocks", "stride, one of four"]
    for axes in (left, right):
        drawn = np.sort(np.concatenate([np.atleast_1d(line.get_xdata()) for line in axes.get_lines()]))
        seeds, means = [0.7, 0.75, 0.8, 0.9, 0.85, 0.95], [0.7, 0.75, 0.85, 0.9]
        assert drawn == pytest.approx(sorted([*seeds, *means]))
    assert left.get_legend_handles_labels()[1] == ["144 glimpses", "576 glimpses"]


@pytest.mark.long
def test_the_tables_in_the_docs_are_those_of_the_results() -> None:
    for path in sorted((ROOT / "docs/results").glob("*.json")):
        if path.stem in SUITES:
            text = (ROOT / SUITES[path.stem].page).read_text()
            for name, table in tables(SUITES[path.stem], read_entries(path)).items():
                assert table in text, f"{path.name}: {name}"


@pytest.mark.long
def test_a_suite_that_is_killed_goes_on_where_it_was(data_dir: Path, tmp_path: Path) -> None:
    """Killed with its fit between two epochs, and started again: the weights' numbers are those of one that was not."""
    small = [
        *flags({key: value for key, value in TINY.items() if key.startswith("model")}),
        "--data.train.num_glimpses=4",
    ]
    more = [*small, f"--data.data_dir={data_dir}", "--trainer.max_epochs=8"]
    chosen = ["digits", "--variants", "plain", "--seeds", "0"]

    def start(place: str) -> subprocess.Popen[str]:
        places = ["--output", str(tmp_path / place), "--runs", str(tmp_path / place)]
        command = [sys.executable, "-m", "benchmarks.results", *chosen, *places, "--", *more]
        return subprocess.Popen(command, cwd=ROOT, start_new_session=True)

    whole = start("whole")
    assert whole.wait(timeout=300) == 0
    killed = start("killed")
    last = tmp_path / "killed/digits/plain-0/checkpoints/last.ckpt"
    while not last.exists():
        assert killed.poll() is None
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "killed/digits.json").exists()
    assert start("killed").wait(timeout=300) == 0
    log = (last.parents[1] / "fit.log").read_text()
    assert "saved after " in log
    one, other = (read_entries(tmp_path / place / "digits.json")[0] for place in ("whole", "killed"))
    assert other["continued"]
    assert one["evaluations"]["resolutions"]["conditions"] == other["evaluations"]["resolutions"]["conditions"]
