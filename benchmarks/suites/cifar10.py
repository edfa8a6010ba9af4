"""The same questions as on the digits, put to photographs of CIFAR-10, at a size for a GPU."""

from benchmarks.suites.digits import COORDINATES, DIGITS, SCHEDULES, shifts
from benchmarks.suites.suite import PATTERNS, Claim, Suite, listed

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
