"""The picture of which encoder for which size and budget: its choices against brute force and counted operations."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.budgets import CLAIM, COMPARED, SHOWN, Choice, best, choices, drawn
from benchmarks.curves import Curves
from benchmarks.equal_cost import built
from benchmarks.macs import multiply_adds
from benchmarks.results import read_entries
from benchmarks.suites import SUITES

RESULTS = Path(__file__).parents[1] / "docs/results"
NUMBERS = st.integers(0, 6).map(float)


@given(st.lists(st.builds(Choice, st.just("one"), NUMBERS, NUMBERS)))
def test_the_best_are_what_a_budget_buys(offered: list[Choice]) -> None:
    kept = best(offered)
    assert kept == sorted(kept, key=lambda choice: choice.cost)
    for budget in range(7):
        bought = max((choice.top1 for choice in offered if choice.cost <= budget), default=None)
        assert bought == max((choice.top1 for choice in kept if choice.cost <= budget), default=None)
    assert len({choice.top1 for choice in kept}) == len(kept)


def entry(variant: str, conditions: list[tuple[int, str, list[int], list[float]]]) -> dict[str, object]:
    named = [dict(zip(("resolution", "scan", "steps", "top1"), condition, strict=True)) for condition in conditions]
    return {"variant": variant, "seed": 0, "evaluations": {"resolutions": {"conditions": named}}}


def test_a_canvas_costs_by_its_side_and_glimpses_by_their_number() -> None:
    suite = SUITES["comparison"]
    curves = Curves(
        [
            entry("vit", [(side, "canvas", [1], [0.6]) for side in (48, 96)]),
            entry("base", [(side, "sobol", [1, 4], [0.1, 0.7]) for side in (48, 96)]),
        ]
    )
    for side in (48, 96):
        ((vit,),) = choices(suite, curves, "vit", side).values()
        assert vit == ("ViT", sum(multiply_adds(built(suite, "vit"), side)) / 1e6, 0.6)
        one, four = choices(suite, curves, "base", side)["sobol"]
        assert four == ("MambaEye, random, 4 sobol", sum(multiply_adds(built(suite, "base"), 4)) / 1e6, 0.7)
        assert one.cost < four.cost < vit.cost
    figure, rows = drawn({"comparison": curves}, (48, 96))
    assert rows[0][:3] == ["comparison", 48, "MambaEye, random, 4 sobol: 70.0"]
    assert [axes.get_title() for axes in figure.axes] == ["comparison, 48 px", "comparison, 96 px"]


@pytest.mark.long
def test_the_table_in_the_docs_is_that_of_the_results() -> None:
    compared = {name: Curves(read_entries(RESULTS / f"{name}.json")) for name in COMPARED}
    _, rows = drawn(compared, SHOWN)
    page = (RESULTS.parent / "comparison.md").read_text()
    assert all(f"| {' | '.join(map(str, row))} |" in page for row in rows)


def test_suites_that_compare_encoders_are_found() -> None:
    assert {"comparison", "comparison_fashion", "comparison_cifar10"} == {*COMPARED}
    assert all(CLAIM in SUITES[name].claims for name in COMPARED)
