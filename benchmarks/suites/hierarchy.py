"""A hierarchy over glimpses against flat encoders of as many operations and parameters, and against other routers."""

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
