"""Encoders of the field against each other: Vim's directions, on the embedded digits."""

from benchmarks.suites.digits import DIGITS
from benchmarks.suites.suite import Claim, Suite

PAGE = "docs/comparison.md"

DIRECTIONS = Suite(
    config="configs/digits.yaml",
    fit={
        **DIGITS.fit,
        "trainer.max_epochs": "15",
        "model.optimizer.lr": "3.0e-3",
        # as configs/encoders/vim_quickstart.yaml
        "model.encoder": "Vim",
        "model.encoder.dim": "48",
        "model.encoder.depth": "3",
        "model.encoder.d_state": "8",
        "model.encoder.patch": "8",
        "model.encoder.grid": "8",
    },
    validate=DIGITS.validate,
    variants={
        "base": {},
        "one": {"model.encoder.directions": "1"},
        "four": {"model.encoder.directions": "4"},
    },
    evaluations={"resolutions": {"data.resolutions": "[32,48,64,96,128]"}},
    side=48,
    measured={"directions": ("resolutions",)},
    claims={"directions": Claim({"one": "one", "base": "two", "four": "four"}, at=64)},
    page=PAGE,
    costs={"one": 0.6, "four": 2.0},
)
