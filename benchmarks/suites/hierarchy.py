"""A hierarchy over glimpses against flat encoders of as many operations and parameters, and against other routers."""

from dataclasses import replace

from benchmarks.suites.any_scan import ANY_SCAN_FASHION
from benchmarks.suites.digits import DIGITS
from benchmarks.suites.suite import Claim, Flags, Suite

HNET: Flags = {  # as wide as configs/digits.yaml's MambaEye
    "model.encoder.dim": "64",
    "model.encoder.move_embedding_dim": "64",
    "model.optimizer.lr": "4.0e-3",
    "trainer.max_epochs": "30",
    "data.train_scan": "random",
}
ROUTERS: dict[str, Flags] = {
    "novelty": {"model.encoder.router": "novelty"},
    "neighbours": {"model.encoder.router": "neighbours"},
    "similarity": {"model.encoder.router": "similarity"},
    "stride": {"model.encoder.router": "stride"},
    "random": {"model.encoder.router": "random"},
    "no_resum": {"model.encoder.resum": "false"},
    "no_smooth": {"model.encoder.smooth": "false"},
}

HIERARCHY = Suite(
    config="configs/digits.yaml",
    configs=dict.fromkeys(ROUTERS, ("configs/digits.yaml", "configs/encoders/hnet_quickstart.yaml")),
    fit=DIGITS.fit,
    validate=DIGITS.validate,
    variants={
        "base": {},
        "flat_3": {"model.encoder.depth": "3"},
        "flat_4": {"model.encoder.depth": "4"},
        **{name: HNET | changed for name, changed in ROUTERS.items()},
    },
    evaluations={
        "resolutions": {
            "data.resolutions": "[32,48,64,96,128]",
            "data.scans": "[random,sobol]",
            "data.evaluate.num_glimpses": "512",
        }
    },
    side=48,
    measured={"hierarchy": ("resolutions",)},
    claims={
        "hierarchy": Claim(
            {
                "base": "flat, 2 blocks",
                "flat_3": "flat, 3 blocks: as many operations",
                "flat_4": "flat, 4 blocks: as many parameters",
                "novelty": "novelty",
                "neighbours": "neighbours",
                "similarity": "similarity",
                "stride": "stride",
                "random": "random",
                "no_resum": "novelty, no re-summed move",
                "no_smooth": "novelty, no smoothing",
            },
            at=512,
        )
    },
    page="docs/hierarchy.md",
    costs={"flat_3": 1.4, "flat_4": 1.8, **dict.fromkeys(ROUTERS, 2.2)},
)

FOUR: Flags = {**HNET, "trainer.max_epochs": "10", "model.encoder.blocks": "[1,4]", "model.encoder.shrink": "4"}

HIERARCHY_SAVING = replace(
    HIERARCHY,
    configs=dict.fromkeys(("novelty", "stride", "random"), HIERARCHY.configs["novelty"]),
    fit={**DIGITS.fit, "trainer.max_epochs": "10", "data.train.num_glimpses": "128"},
    variants={
        "base": {},
        "flat_6": {"model.encoder.depth": "6"},
        "flat_3": {"model.encoder.depth": "3"},
        **{router: FOUR | ROUTERS[router] for router in ("novelty", "stride", "random")},
    },
    claims={
        "hierarchy": Claim(
            {
                "base": "flat, 2 blocks",
                "flat_6": "flat, 6 blocks: as many parameters",
                "flat_3": "flat, 3 blocks: as many operations",
                "novelty": "novelty, one of four",
                "stride": "stride, one of four",
                "random": "random, one of four",
            },
            at=512,
        )
    },
    costs={"flat_6": 2.9, "flat_3": 1.4, **dict.fromkeys(("novelty", "stride", "random"), 2.2)},
)

ON_FASHION: Flags = {"trainer.max_epochs": "2", "model.optimizer.warmup_epochs": "0.2"}
FASHION_ROUTERS = ("novelty", "neighbours", "stride", "random", "two_stages")

HIERARCHY_FASHION = replace(
    HIERARCHY,
    config="configs/fashion.yaml",
    configs=dict.fromkeys(FASHION_ROUTERS, ("configs/fashion.yaml", "configs/encoders/hnet_quickstart.yaml")),
    validate=ANY_SCAN_FASHION.validate,
    variants={
        **{name: HIERARCHY.variants[name] for name in ("base", "flat_3", "flat_4")},
        **{name: HNET | ROUTERS[name] | ON_FASHION for name in FASHION_ROUTERS[:-1]},
        "two_stages": HNET | ROUTERS["novelty"] | ON_FASHION | {"model.encoder.blocks": "[1,1,2]"},
    },
    claims={
        "hierarchy": Claim(
            {
                **{
                    name: HIERARCHY.claims["hierarchy"].variants[name]
                    for name in ("base", "flat_3", "flat_4", *FASHION_ROUTERS[:-1])
                },
                "two_stages": "novelty, two stages",
            },
            at=512,
        )
    },
    costs={**HIERARCHY.costs, "two_stages": 3.0},
)
