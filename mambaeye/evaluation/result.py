"""The one shape of a validation: what it measured, condition by condition, for every callback to draw from.

Shapes: S kept steps (glimpse counts), M confidence bins (and one more for a confidence of exactly 1), R bins of the
information ratio, C classes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mambaeye.batch import EvaluationCondition

METRICS = (
    "top1",
    "top5",
    "confidence",
    "true_class_probability",
    "information_ratio",
    "nll",
    "brier",
    "ece",
    "mce",
    "adaptive_ece",
)
"""Everything that is measured after a glimpse, by name: see StepMetrics.compute."""
BINS = ("bin_count", "bin_confidence", "bin_top1")
BY_RATIO = ("ratio_count", "ratio_mean", "ratio_confidence", "ratio_true_class_probability", "ratio_top1")
TOKEN_BUDGETS = (64, 256, 1024)
"""Glimpses after which sizes are compared, as models of any resolution usually are: by the length of the sequence."""
DECIMALS = 6

Row = dict[str, Any]
"""A line of a table: names and plain values."""


@dataclass(frozen=True)
class ConditionResult:
    """Measurements of all images under one condition."""

    condition: EvaluationCondition
    num_classes: int
    steps: list[int]
    """Glimpse counts that were kept."""
    report_at: list[int]
    """Those of them that make a row of a table."""
    samples: np.ndarray
    """(S,) int64: images counted after so many glimpses."""
    metrics: Mapping[str, np.ndarray]
    """(S,) float64 by name, the names of METRICS; NaN without images."""
    bin_edges: np.ndarray
    """(M + 1,): lower edges of the confidence bins."""
    bins: Mapping[str, np.ndarray]
    """(S, M + 1) by name, the names of BINS."""
    by_ratio: Mapping[str, np.ndarray]
    """(R,) by name, the names of BY_RATIO."""
    confusion: np.ndarray | None = None
    """(C, C) int64: answers after the last glimpse, a row a label; None where there are too many classes."""

    def __getitem__(self, metric: str) -> np.ndarray:
        """Return a metric after every kept step: (S,)."""
        return self.metrics[metric]

    @property
    def title(self) -> str:
        """Return what the condition is called in a picture."""
        return self.condition.title

    @property
    def ratio_scheduled(self) -> np.ndarray:
        """Return the probability of the right class that training aims at, by bin of the information ratio: (R,)."""
        ratio = self.by_ratio["ratio_mean"]
        return ratio + (1 - ratio) / self.num_classes

    def at(self, step: int) -> int:
        """Return the place of a glimpse count among the kept steps."""
        return self.steps.index(step)

    def rows(self) -> list[Row]:
        """Return a row for each glimpse count that is reported: resolution, scan, step, samples and METRICS."""
        return [
            self.condition.columns
            | {"step": step, "samples": int(self.samples[at])}
            | {name: float(self.metrics[name][at]) for name in METRICS}
            for step in self.report_at
            for at in (self.at(step),)
        ]

    def record(self) -> Row:
        """Return everything as plain numbers to six decimals, None for NaN: a line of curves.jsonl."""
        record: Row = {**self.condition.columns, "num_classes": self.num_classes, "steps": self.steps}
        record["samples"] = to_builtin(self.samples)
        record |= {name: to_builtin(self.metrics[name]) for name in METRICS}
        record["bin_edges"] = to_builtin(self.bin_edges)
        record["reliability"] = [
            {"step": step} | {name: to_builtin(self.bins[name][self.at(step)]) for name in BINS}
            for step in spread_steps(self.steps)
        ]
        record |= {name: to_builtin(self.by_ratio[name]) for name in BY_RATIO}
        record["ratio_scheduled"] = to_builtin(self.ratio_scheduled)
        return record


@dataclass(frozen=True)
class EarlyExitResult:
    """Answers under one rule for exiting early, under one condition."""

    condition: EvaluationCondition
    rule: str
    """confidence, stable or entropy."""
    threshold: float
    glimpses: float
    """Taken on average."""
    stopped: float
    """Share of the images that met the rule."""
    samples: int
    metrics: Mapping[str, float]
    """By name, the names of METRICS."""

    def row(self) -> Row:
        """Return it as a line of a table."""
        own = {name: getattr(self, name) for name in ("rule", "threshold", "glimpses", "stopped", "samples")}
        return self.condition.columns | own | dict(self.metrics)


@dataclass(frozen=True)
class ValidationResult:
    """A whole validation."""

    conditions: list[ConditionResult]
    early_exit: list[EarlyExitResult]
    protocol: Mapping[str, Any]
    """The view of images that it took: data.evaluate by name, plain values; and the temperature of answers, if any."""

    @property
    def top1(self) -> float:
        """Return the mean over conditions of top-1 after the last glimpse: what picks the best checkpoint."""
        return float(np.mean([result["top1"][-1] for result in self.conditions]))

    @property
    def has_sizes(self) -> bool:
        """Tell whether several resolutions were measured."""
        return len({result.condition.resolution for result in self.conditions}) > 1

    def rows(self) -> list[Row]:
        """Return the rows of all conditions: validation.json's."""
        return [row for result in self.conditions for row in result.rows()]

    def early_exit_rows(self) -> list[Row]:
        """Return a row for each condition and rule."""
        return [result.row() for result in self.early_exit]


def spread_steps(steps: list[int], number: int = 4) -> list[int]:
    """Return a few of some glimpse counts, from the first to the last in even ratios: 1, 4, 16, 64 of 1..64."""
    wanted = [steps[-1] ** (k / (number - 1)) for k in range(number)]
    return sorted({min(steps, key=lambda step: abs(step - want)) for want in wanted})


def budgets_among(steps: list[int]) -> list[int]:
    """Return the token budgets among some glimpse counts; where there are none, the last count."""
    return [budget for budget in TOKEN_BUDGETS if budget in steps] or [steps[-1]]


def to_builtin(values: np.ndarray) -> Any:
    """Return an array as (nested) lists of numbers to six decimals; None for NaN."""

    def rounded(value: Any) -> Any:
        if isinstance(value, list):
            return [rounded(inner) for inner in value]
        return None if value != value else round(value, DECIMALS)

    return rounded(values.tolist())
