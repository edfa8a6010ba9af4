"""Is a model that is trained on varied paths at home on any scan? On the embedded digits and on Fashion-MNIST."""

from dataclasses import replace

from benchmarks.suites.digits import DIGITS
from benchmarks.suites.suite import PATTERNS, Claim, Suite, listed

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
