"""The one shape of a validation: its rows and records are the arrays that it holds."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from validations import RULES, validation

from mambaeye.evaluation.result import METRICS, spread_steps, to_builtin


@given(num_glimpses=st.integers(1, 5000))
def test_spread_steps_are_few_kept_steps_from_first_to_last(num_glimpses: int) -> None:
    steps = [step for step in range(1, num_glimpses + 1) if step < 10 or step % 7 == 0 or step == num_glimpses]
    some = spread_steps(steps)
    assert some == sorted(set(some))
    assert {1, num_glimpses} <= set(some) <= set(steps)
    assert len(some) <= 4


def test_plain_numbers() -> None:
    assert to_builtin(np.array([[0.12345678, np.nan], [1, 2]])) == [[0.123457, None], [1, 2]]
    assert to_builtin(np.array(7)) == 7


def test_rows_are_the_reported_steps_of_every_condition() -> None:
    result = validation(scans=("random", "spiral"))
    rows = result.rows()
    steps = [1, 2, 4, 8, 9]
    assert [row["step"] for row in rows] == steps * 4
    for row, (condition, step) in zip(rows, [(c, step) for c in result.conditions for step in steps], strict=True):
        assert (row["resolution"], row["scan"], row["samples"]) == (*condition.condition[:2], 30)
        assert "frames" not in row
        assert [row[name] for name in METRICS] == [condition[name][step - 1] for name in METRICS]
    assert result.top1 == pytest.approx(np.mean([condition["top1"][-1] for condition in result.conditions]))


def test_records_are_strict_json_of_everything() -> None:
    (result,) = validation(resolutions=(32,)).conditions
    record = json.loads(json.dumps(result.record(), allow_nan=False))
    for name in METRICS:
        assert record[name] == pytest.approx(result[name].tolist(), abs=1e-6)
    assert [bins["step"] for bins in record["reliability"]] == [1, 2, 4, 9]
    ratio = np.array(record["ratio_mean"], dtype=float)
    np.testing.assert_allclose(np.array(record["ratio_scheduled"], dtype=float), ratio + (1 - ratio) / 10, atol=1e-5)


def test_early_exits_have_a_row_for_every_condition_and_rule() -> None:
    rows = validation(rules=RULES).early_exit_rows()
    assert [(row["rule"], row["threshold"]) for row in rows] == RULES * 2
    assert [row["resolution"] for row in rows] == [32] * 5 + [48] * 5
    assert all(1 <= row["glimpses"] <= 9 and 0 <= row["stopped"] <= 1 for row in rows)
