"""Suites of variants of a config, as plain data: what benchmarks/results.py trains and measures."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from mambaeye.geometry.scans import SCANS

PATTERNS = tuple(name for name in SCANS if name != "varied")  # to be tested on

Flags = dict[str, str]
"""Arguments of train.py by their names: {"data.train.num_glimpses": "64"}."""


@dataclass(frozen=True)
class Claim:
    """A question put to a few variants, which differ in one thing."""

    variants: dict[str, str]
    """Titles in tables and pictures, by name in the suite."""
    at: int
    """Glimpses after which one number compares them."""


@dataclass(frozen=True)
class Suite:
    """A config, its variants, and what is measured of each of them."""

    config: str
    """Path below the checkout; trained as it is, this is the variant "base"."""
    fit: Flags
    """Of every fit, whatever the variant."""
    validate: Flags
    """Of every validation."""
    variants: dict[str, Flags]
    """Changes of a variant's fit to the config."""
    evaluations: dict[str, Flags]
    """Validations by name: their conditions and glimpses."""
    side: int
    """Canvas side of those that shift the image."""
    measured: dict[str, tuple[str, ...]]
    """Evaluations that a claim needs of its variants."""
    claims: dict[str, Claim]
    """The most telling come first, and so do their rows."""
    configs: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Paths of the configs of variants that have others, one over the other."""
    starts: dict[str, str] = field(default_factory=dict)
    """Variants whose fit starts from the last checkpoint of another one, of the same seed."""
    stopping: tuple[str, ...] = ()
    """Evaluations whose rules for exiting early are kept, too."""
    page: str = "docs/results.md"
    """Path of the page that has its tables."""
    costs: dict[str, float] = field(default_factory=dict)
    """Time of a variant's rows as a multiple of the base's, where it is far from 1: for the time that is left."""
    seeds: tuple[int, ...] = (0, 1, 2)

    def rows(self) -> list[tuple[str, int]]:
        """Return (variant, seed), each once, in the order in which they are to be done: by claim, then by seed."""
        every = [(variant, seed) for claim in self.claims.values() for seed in self.seeds for variant in claim.variants]
        return list(dict.fromkeys(every))

    def configs_of(self, variant: str) -> tuple[str, ...]:
        """Return the paths of a variant's configs."""
        return self.configs.get(variant, (self.config,))

    def claims_of(self, variant: str) -> list[str]:
        """Return the names of the claims that a variant is a part of."""
        return [name for name, claim in self.claims.items() if variant in claim.variants]

    def evaluations_of(self, variant: str) -> list[str]:
        """Return the names of the evaluations that a variant's claims need."""
        return list(dict.fromkeys(name for claim in self.claims_of(variant) for name in self.measured[claim]))


def listed(values: Iterable[object]) -> str:
    """Format values as an argument: [a,b,c]."""
    return f"[{','.join(map(str, values))}]"
