"""Does it pay to learn where to look? A learned scan against fixed ones, and encoders trained as long without.

Every encoder is first trained as the base is. From its last checkpoint go on, with the same number of steps on the same
images: the control, on random and Sobol's glimpses alone; co-trained, whose encoder learns on the policy's walks too
after the first half of the steps; the others, whose encoder stays as it was.
"""

from dataclasses import replace

from benchmarks.suites.digits import DIGITS
from benchmarks.suites.suite import Claim, Suite, listed

CONFIG = "configs/learned_scan.yaml"
FIXED = ("random", "varied", "sobol", "random_grid")
SIDES = {"data.resolutions": "[48,64,96,128]", "data.evaluate.num_glimpses": "64"}
STEPS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 18, 20, 24, 28, 32, 40, 48, 56, 64)
IN_TRAINING = {"data.train.canvas": "[32,64]", "data.train_scan": "{random: 2, sobol: 1, learned: 1}"}
FROZEN = IN_TRAINING | {"model.policy_learning.frozen": "1.0"}
SIGHTS = {
    "blind": "[coverage]",
    "no_features": "[posterior,coverage]",
    "no_posterior": "[features,coverage]",
    "no_coverage": "[features,posterior]",
}
TRIED = (2, 8)  # places a glimpse in training, besides the 4 of the config
OFFERED = (4, 16, 256)  # in test, besides its 64

FROM_BASE = {
    "control": IN_TRAINING
    | {"model.policy": "null", "data.train_scan": "{random: 3, sobol: 1}", "data.scans": "[random,sobol]"},
    "learned": IN_TRAINING,
    "frozen": FROZEN,
    **{name: FROZEN | {"model.policy.sees": sights} for name, sights in SIGHTS.items()},
    **{f"tried_{tried}": FROZEN | {"model.policy_learning.candidates": str(tried)} for tried in TRIED},
}

LEARNED_DIGITS = Suite(
    config="configs/digits.yaml",
    fit=DIGITS.fit,
    validate=DIGITS.validate
    | {
        "report.plots": "false",
        "learned_scan.images": "0",
        "answers.write": "true",
        "data.evaluate.report_at": listed(STEPS),
    },
    variants={"base": {}, **FROM_BASE},
    configs=dict.fromkeys(FROM_BASE, (CONFIG,)),
    starts=dict.fromkeys(FROM_BASE, "base"),
    evaluations={
        "fixed": SIDES | {"data.scans": listed(FIXED)},
        "led": SIDES | {"data.scans": "[learned]"},
        **{f"offered_{n}": SIDES | {"data.scans": "[learned]", "model.policy.candidates": str(n)} for n in OFFERED},
        "stopping": SIDES
        | {
            "data.scans": "[random,sobol,learned]",
            "model.early_exit.value": "[1,0.5,0.3,0.2,0.1,0.05,0.03,0.02,0.01,0.005,0]",
        },
    },
    stopping=("stopping",),
    side=64,
    page="docs/learned-scan-results.md",
    measured={
        "fixed": ("fixed",),
        "led": ("led",),
        "stopping": ("stopping",),
        "sights": ("led",),
        "tried": ("led",),
        "offered": ("led", *(f"offered_{n}" for n in OFFERED)),
    },
    claims={
        "fixed": Claim({"base": "before", "control": "control", "learned": "co-trained"}, at=4),
        "led": Claim({"learned": "co-trained", "frozen": "frozen encoder", "blind": "content-blind"}, at=4),
        "stopping": Claim({"learned": "co-trained"}, at=4),
        "sights": Claim(
            {
                "frozen": "all",
                "no_features": "no features",
                "no_posterior": "no posterior",
                "no_coverage": "no coverage",
                "blind": "coverage alone",
            },
            at=4,
        ),
        "offered": Claim({"learned": "co-trained"}, at=4),
        "tried": Claim({"tried_2": "2", "frozen": "4", "tried_8": "8"}, at=4),
    },
    costs=dict.fromkeys(FROM_BASE, 1.5),
)

ON_FASHION = ("control", "learned", "frozen", "blind")
A_FIFTH = {  # of the 60,000 pictures, once: 375 steps, about as many as of the digits
    "trainer.max_epochs": "1",
    "trainer.limit_train_batches": "0.2",
    "trainer.check_val_every_n_epoch": "1",
    "model.optimizer.warmup_epochs": "0.125",
}

LEARNED_FASHION = replace(
    LEARNED_DIGITS,
    config="configs/fashion.yaml",
    validate=LEARNED_DIGITS.validate
    | {
        "data.val_shards": "data/fashion/val",
        "data.loader.batch_size": "64",  # whatever that was in training, so that all see the same pictures:
        "trainer.limit_val_batches": "8",  # 512
    },
    variants={"base": {}, **{name: FROM_BASE[name] | A_FIFTH for name in ON_FASHION}},
    configs=dict.fromkeys(ON_FASHION, ("configs/fashion.yaml", CONFIG)),
    starts=dict.fromkeys(ON_FASHION, "base"),
    evaluations={name: LEARNED_DIGITS.evaluations[name] for name in ("fixed", "led")},
    claims={name: LEARNED_DIGITS.claims[name] for name in ("fixed", "led")},
)
