"""Suites of variants of one config, as plain data: what benchmarks/results.py trains and measures."""

from dataclasses import dataclass, field, replace

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
    costs: dict[str, float] = field(default_factory=dict)
    """Time of a variant's rows as a multiple of the base's, where it is far from 1: for the time that is left."""
    seeds: tuple[int, ...] = (0, 1, 2)

    def rows(self) -> list[tuple[str, int]]:
        """Return (variant, seed), each once, in the order in which they are to be done: by claim, then by seed."""
        every = [(variant, seed) for claim in self.claims.values() for seed in self.seeds for variant in claim.variants]
        return list(dict.fromkeys(every))

    def claims_of(self, variant: str) -> list[str]:
        """Return the names of the claims that a variant is a part of."""
        return [name for name, claim in self.claims.items() if variant in claim.variants]

    def evaluations_of(self, variant: str) -> list[str]:
        """Return the names of the evaluations that a variant's claims need."""
        return list(dict.fromkeys(name for claim in self.claims_of(variant) for name in self.measured[claim]))


def listed(values: object) -> str:
    """Format values as an argument: [a,b,c]."""
    return f"[{','.join(map(str, values))}]"


def shifts(resolution: int, length: int, pixels: tuple[int, ...]) -> dict[str, Flags]:
    """Return evaluations of images that lie so many pixels further down and right."""
    flags = {"data.resolutions": f"[{resolution}]", "data.scans": "[random]", "data.evaluate.num_glimpses": str(length)}
    return {f"shift_{shift}": flags | {"data.evaluate.shift": f"[{shift},{shift}]"} for shift in pixels}


SCHEDULES = {"base": "scheduled loss", "plain": "plain cross entropy"}
COORDINATES = {"base": "moves", "positions": "positions"}

DIGITS = Suite(
    config="configs/digits.yaml",
    fit={"trainer.limit_val_batches": "0"},  # what is measured is measured by validate, on the last checkpoint
    validate={"trainer.accelerator": "cpu", "trainer.enable_progress_bar": "false", "film_strip.images": "0"},
    variants={
        "base": {},
        "plain": {"model.schedule": "none"},
        "positions": {"model.encoder.coordinates": "positions"},
        "canvas_32": {"data.train.canvas": "[32,32]"},
        "canvas_64": {"data.train.canvas": "[64,64]"},
        "canvas_32_96": {"data.train.canvas": "[32,96]"},
        "length_16": {"data.train.num_glimpses": "16"},
        "length_64": {"data.train.num_glimpses": "64"},
        "length_128": {"data.train.num_glimpses": "128"},
        **{f"scan_{scan}": {"data.train_scan": scan} for scan in PATTERNS if scan != "random"},
    },
    evaluations={
        "resolutions": {
            "data.resolutions": "[32,48,64,96,128]",
            "data.scans": "[random]",
            "data.evaluate.num_glimpses": "256",
        },
        "scans": {"data.resolutions": "[48,96]", "data.scans": listed(PATTERNS), "data.evaluate.num_glimpses": "64"},
        **shifts(48, 64, (16, 64, 256)),
    },
    side=48,
    measured={
        "loss": ("resolutions",),
        "coordinates": ("resolutions", "shift_16", "shift_64", "shift_256"),
        "canvases": ("resolutions",),
        "lengths": ("resolutions",),
        "scans": ("scans",),
    },
    claims={
        "loss": Claim(SCHEDULES, at=64),
        "coordinates": Claim(COORDINATES, at=64),
        "canvases": Claim(
            {"canvas_32": "32", "base": "32 to 64", "canvas_64": "64", "canvas_32_96": "32 to 96"}, at=64
        ),
        "lengths": Claim({"length_16": "16", "base": "32", "length_64": "64", "length_128": "128"}, at=64),
        "scans": Claim(
            {"base": "random"} | {f"scan_{scan}": scan for scan in PATTERNS if scan != "random"},
            at=32,  # as in training: a grid repeats, and more rounds of it than were trained are another question
        ),
    },
    costs={"length_16": 0.7, "length_64": 1.7, "length_128": 3.0},
)

CIFAR10 = Suite(
    config="configs/cifar10.yaml",
    fit={"trainer.limit_val_batches": "0"},
    validate={
        "data.val_shards": "data/cifar10/test",  # which no checkpoint may name
        "trainer.precision": "bf16-mixed",
        "trainer.enable_progress_bar": "false",
        "film_strip.images": "0",
    },
    variants={
        "base": {},
        "plain": {"model.schedule": "none"},
        "positions": {"model.encoder.coordinates": "positions"},
        "canvas_32": {"data.train.canvas": "[32,32]"},
        "canvas_64": {"data.train.canvas": "[64,64]"},
        "canvas_128": {"data.train.canvas": "[128,128]"},
        "length_64": {"data.train.num_glimpses": "64"},
        "length_1024": {"data.train.num_glimpses": "1024"},
        **{f"scan_{scan}": {"data.train_scan": scan} for scan in ("random_grid", "row_raster", "hilbert", "sobol")},
    },
    evaluations={
        "resolutions": {
            "data.resolutions": "[32,64,96,128,192]",
            "data.scans": "[random]",
            "data.evaluate.num_glimpses": "1024",
        },
        "scans": {"data.resolutions": "[64,128]", "data.scans": listed(PATTERNS), "data.evaluate.num_glimpses": "256"},
        **shifts(64, 256, (16, 64, 256)),
    },
    side=64,
    measured=DIGITS.measured,
    claims={
        "loss": Claim(SCHEDULES, at=256),
        "coordinates": Claim(COORDINATES, at=256),
        "canvases": Claim({"canvas_32": "32", "canvas_64": "64", "canvas_128": "128", "base": "32 to 128"}, at=256),
        "lengths": Claim({"length_64": "64", "base": "256", "length_1024": "1024"}, at=256),
        "scans": Claim(
            {"base": "random"} | {f"scan_{scan}": scan for scan in ("random_grid", "row_raster", "hilbert", "sobol")},
            at=256,
        ),
    },
    costs={"length_64": 0.4, "length_1024": 3.5},
)

ANY_SCAN = Suite(
    config="configs/digits.yaml",
    fit=DIGITS.fit,
    validate=DIGITS.validate,
    variants={
        "base": {},
        "varied": {"data.train_scan": "varied"},
        "wide": {"data.train.canvas": "[24,96]"},
        "varied_wide": {"data.train_scan": "varied", "data.train.canvas": "[24,96]"},
        "wide_long": {"data.train.canvas": "[24,96]", "trainer.max_epochs": "60"},
        "varied_wide_long": {
            "data.train_scan": "varied",
            "data.train.canvas": "[24,96]",
            "trainer.max_epochs": "60",
        },
    },
    evaluations={
        "paths": {
            "data.resolutions": "[24,32,48,64,96,128]",
            "data.scans": listed(PATTERNS),
            "data.evaluate.num_glimpses": "64",
        }
    },
    side=48,
    measured={"paths": ("paths",)},
    claims={
        "paths": Claim(
            {
                "base": "random, 32 to 64",
                "varied": "varied, 32 to 64",
                "wide": "random, 24 to 96",
                "varied_wide": "varied, 24 to 96",
                "wide_long": "random, 24 to 96, 60 epochs",
                "varied_wide_long": "varied, 24 to 96, 60 epochs",
            },
            at=64,
        )
    },
    costs={"varied": 1.2, "wide": 1.2, "varied_wide": 1.3, "wide_long": 2.0, "varied_wide_long": 2.2},
)

EQUAL_STEPS = ("base", "varied", "wide", "varied_wide")

ANY_SCAN_FASHION = replace(
    ANY_SCAN,
    config="configs/fashion.yaml",
    validate={
        **DIGITS.validate,
        "report.plots": "false",  # of 78 conditions
        "data.val_shards": "data/fashion/val",
        "trainer.limit_val_batches": "8",  # 512 pictures: a share of 0.85 of them has a standard error of 1.6 points
    },
    variants={name: ANY_SCAN.variants[name] for name in EQUAL_STEPS},
    claims={"paths": Claim({name: ANY_SCAN.claims["paths"].variants[name] for name in EQUAL_STEPS}, at=64)},
)

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
    costs={"one": 0.6, "four": 2.0},
)

SUITES = {
    "digits": DIGITS,
    "cifar10": CIFAR10,
    "any_scan": ANY_SCAN,
    "any_scan_fashion": ANY_SCAN_FASHION,
    "comparison_directions": DIRECTIONS,
}
