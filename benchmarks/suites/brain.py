"""Regions of the brain: crops of a real MRI by cubes, tested on the other half and on another brain."""

from benchmarks.suites.suite import Claim, Suite

GLIMPSES = {
    "data.evaluate.num_glimpses": "125",
    "data.evaluate.report_at": "[24,27]",
}  # 27, 125: all of 24, 40

BRAIN = Suite(
    config="configs/volumes.yaml",
    fit={"trainer.limit_val_batches": "0", "trainer.max_epochs": "12"},
    validate={
        "trainer.accelerator": "cpu",
        "trainer.enable_progress_bar": "false",
        "film_strip.images": "0",
        "report.plots": "false",
        "data.val_shards": "data/regions/val",
    },
    variants={
        "base": {},
        "positions": {"model.encoder.coordinates": "positions"},
        "varied": {"data.train_scan": "varied"},
        "sobol": {"data.train_scan": "sobol"},
        # parameters within a tenth of MambaEye's 172 k
        "glimpse_vit": {
            "model.encoder": "GlimpseViT",
            "model.encoder.axes": "3",
            "model.encoder.dim": "60",
            "model.encoder.depth": "2",
            "model.encoder.heads": "4",
            "model.optimizer.lr": "1.0e-3",
        },
        "videomamba": {
            "model.schedule": "none",  # for it sees all
            "model.encoder": "VideoMamba",
            "model.encoder.dim": "64",
            "model.encoder.depth": "2",
            "model.encoder.d_state": "8",
            "model.encoder.patch": "8",
            "model.encoder.tubelet": "8",
            "model.encoder.grid": "3",
            "model.encoder.frames": "24",
            "model.optimizer.lr": "3.0e-3",
            "data.train.canvas": "[24,24]",  # of 27 cubes, where others look at 24
        },
    },
    evaluations={
        "resolutions": GLIMPSES | {"data.resolutions": "[24,40,48]", "data.scans": "[random,sobol]"},
        # as in training, for what answers once, after all glimpses
        "few": {"data.evaluate.num_glimpses": "24", "data.resolutions": "[40]", "data.scans": "[random,sobol]"},
        "rasters": GLIMPSES | {"data.resolutions": "[40]", "data.scans": "[row_raster,tube_raster,arriving]"},
        "other": GLIMPSES
        | {
            "data.val_shards": "data/regions/other",
            "data.resolutions": "[24,40]",
            "data.scans": "[random,sobol]",
        },
    },
    side=40,
    measured={"brain": ("resolutions", "few", "rasters", "other")},
    claims={
        "brain": Claim(
            {
                "base": "MambaEye, random",
                "positions": "MambaEye, told positions",
                "varied": "MambaEye, varied",
                "sobol": "MambaEye, Sobol",
                "glimpse_vit": "ViT of glimpses",
                "videomamba": "VideoMamba",
            },
            at=24,
        )
    },
    page="docs/brain.md",
)
