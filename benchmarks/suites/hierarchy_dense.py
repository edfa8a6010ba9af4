"""A hierarchy over rasters of overlapping places, whose glimpses are like their neighbours."""

from dataclasses import replace

from benchmarks.suites.digits import DIGITS
from benchmarks.suites.hierarchy import FOUR, HIERARCHY, HIERARCHY_SAVING, ROUTERS
from benchmarks.suites.suite import Claim, Flags

DENSE = "benchmarks.dense_scans.dense"
ON_DENSE: Flags = {"data.train_scan": DENSE}
MORE_RATIO: Flags = {"model.encoder.ratio_weight": "0.3"}  # ten times the published weight
FLAT = ("base", "flat_6", "flat_3")
LEARNT = ("neighbours", "novelty")
FINE = ("flat_6", "flat_3", "neighbours", "stride")  # trained on the finer raster, too

OF_ROUTERS = {router: FOUR | ROUTERS[router] | ON_DENSE for router in (*LEARNT, "similarity", "stride")}
VARIANTS: dict[str, Flags] = {
    **{name: HIERARCHY_SAVING.variants[name] for name in FLAT},
    **OF_ROUTERS,
    **{f"{router}_ratio": OF_ROUTERS[router] | MORE_RATIO for router in LEARNT},
}
VARIANTS |= {f"{name}_fine": VARIANTS[name] | {"data.train.num_glimpses": "576"} for name in FINE}

TITLES = {
    **{name: HIERARCHY_SAVING.claims["hierarchy"].variants[name] for name in FLAT},
    **{router: f"{router}, one of four" for router in OF_ROUTERS},
    **{f"{router}_ratio": f"{router}, ten times the ratio loss" for router in LEARNT},
}
TITLES |= {f"{name}_fine": f"{TITLES[name].partition(':')[0]}; trained on 576" for name in FINE}

COSTS = {**dict.fromkeys(VARIANTS, 2.2), "base": 1.0, "flat_6": 2.9, "flat_3": 1.4}
COSTS |= {f"{name}_fine": 4 * COSTS[name] for name in FINE}

HIERARCHY_DENSE = replace(
    HIERARCHY_SAVING,
    configs={name: HIERARCHY.configs["novelty"] for name, flags in VARIANTS.items() if "model.encoder.router" in flags},
    fit={**DIGITS.fit, **ON_DENSE, "trainer.max_epochs": "10", "data.train.num_glimpses": "144"},
    validate={**DIGITS.validate, **ON_DENSE},  # for what a checkpoint names of code is not loaded
    variants=VARIANTS,
    evaluations={
        name: {
            "data.resolutions": "[32,48,64,96,128]",
            "data.scans": f"[{DENSE}]",
            "data.evaluate.num_glimpses": number,
        }
        for name, number in (("resolutions", "576"), ("as_trained", "144"))
    },
    measured={"hierarchy": ("resolutions", "as_trained")},
    claims={"hierarchy": Claim(TITLES, at=576)},
    costs=COSTS,
)
