"""Everything that a suite of results has measured, as arrays over seeds."""

from typing import Any

import numpy as np

Entry = dict[str, Any]


class Curves:
    """Everything measured, by variant, evaluation and condition."""

    def __init__(self, entries: list[Entry]) -> None:
        self.measured = {
            (entry["variant"], entry["seed"], name, condition["resolution"], condition["scan"]): condition
            for entry in entries
            for name, evaluation in entry["evaluations"].items()
            for condition in evaluation["conditions"]
        }

    def seeds(self, variant: str, evaluation: str) -> list[int]:
        """Return the seeds that a variant was measured with."""
        return sorted({key[1] for key in self.measured if (key[0], key[2]) == (variant, evaluation)})

    def resolutions(self, evaluation: str) -> list[int]:
        """Return the canvas sides of an evaluation."""
        return sorted({key[3] for key in self.measured if key[2] == evaluation})

    def scans(self, evaluation: str) -> list[str]:
        """Return the scan patterns of an evaluation, in its own order."""
        return list(dict.fromkeys(key[4] for key in self.measured if key[2] == evaluation))

    def steps(self, evaluation: str) -> list[int]:
        """Return the numbers of glimpses after which an evaluation has results."""
        return sorted(
            {step for key, curves in self.measured.items() if key[2] == evaluation for step in curves["steps"]}
        )

    def of(
        self,
        variant: str,
        evaluation: str,
        resolution: int,
        scan: str = "random",
        name: str = "top1",
        less: str | None = None,
    ) -> np.ndarray:
        """Return a quantity, or its difference from another variant's, by the seeds that there are: (seeds, steps)."""
        seeds = self.seeds(variant, evaluation)
        if less is not None:
            seeds = [seed for seed in seeds if seed in self.seeds(less, evaluation)]

        def rows(variant: str) -> np.ndarray:
            return np.array([self.measured[variant, seed, evaluation, resolution, scan][name] for seed in seeds])

        values = rows(variant) - rows(less) if less else rows(variant)
        return values.reshape(len(seeds), len(self.steps(evaluation)))

    def at(self, step: int, variant: str, evaluation: str, resolution: int, **which: str) -> np.ndarray:
        """Return the same after one step: (seeds,)."""
        return self.of(variant, evaluation, resolution, **which)[:, self.steps(evaluation).index(step)]

    def correct(self, step: int, variant: str, evaluation: str, resolution: int, scan: str) -> dict[int, np.ndarray]:
        """Return by seed which images were answered correctly after one step, in the order of their keys: (N,) bool."""
        found = {}
        for seed in self.seeds(variant, evaluation):
            condition = self.measured[variant, seed, evaluation, resolution, scan]
            if "correct" in condition:
                packed = np.frombuffer(bytes.fromhex(condition["correct"][str(step)]), np.uint8)
                found[seed] = np.unpackbits(packed, count=condition["samples"]).astype(bool)
        return found

    def exits(self, variant: str, evaluation: str, resolution: int, scan: str, rule: str) -> np.ndarray:
        """Return mean glimpses and top-1 by threshold of a rule for exiting early: (seeds, thresholds, 2)."""
        places = [(variant, seed, evaluation, resolution, scan) for seed in self.seeds(variant, evaluation)]
        conditions = [self.measured[place] for place in places if place in self.measured]
        return np.array([c["exits"][rule] for c in conditions if rule in c.get("exits", {})])[..., 1:]
