"""Does what the method claims hold? On the embedded digits: loss, coordinates, canvases, lengths and scans."""

from benchmarks.suites.suite import PATTERNS, Claim, Flags, Suite, listed


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
