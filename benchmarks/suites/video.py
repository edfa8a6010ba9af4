"""Is time seen through moves? On clips of real video (benchmarks/moving_video.py, benchmarks/real_clips.py)."""

from dataclasses import replace

from benchmarks.suites.digits import DIGITS
from benchmarks.suites.suite import Claim, Flags, Suite

A_FRAME = 4  # glimpses, as many as VideoMamba has patches
SCANS = "[random,arriving,tube_raster,row_raster]"
GLIMPSE_VIT: Flags = {
    "model.encoder": "GlimpseViT",
    "model.encoder.axes": "3",
    "model.encoder.dim": "48",
    "model.encoder.depth": "3",
    "model.encoder.heads": "4",
    "model.optimizer.lr": "1.0e-3",
}
VIDEO_MAMBA: Flags = {  # parameters within a tenth of MambaEye's 122 k
    "model.encoder": "VideoMamba",
    "model.encoder.dim": "60",
    "model.encoder.depth": "3",
    "model.encoder.d_state": "8",
    "model.encoder.patch": "12",
    "model.encoder.grid": "2",
    "model.encoder.frames": "8",
    "model.optimizer.lr": "3.0e-3",
    "model.schedule": "none",  # it has seen all
}
MASKED: Flags = {"model.encoder.masked_backward": "true"}
RESIDUAL: Flags = {"model.encoder.residual_state": "true"}

OF_TIME: dict[str, Flags] = {
    "base": {},
    "no_time": {"model.encoder.coordinates": "moves_in_space"},
    "positions": {"model.encoder.coordinates": "positions"},
    "tube_2": {"data.tube": "2"},
    "glimpse_vit": GLIMPSE_VIT,
}
TOLD = {
    "base": "moves",
    "no_time": "moves without time",
    "positions": "positions",
    "tube_2": "moves, 2 frames a glimpse",
    "glimpse_vit": "ViT of glimpses",
}
WHOLE: dict[str, Flags] = {
    "videomamba": VIDEO_MAMBA,
    "masked": VIDEO_MAMBA | MASKED,
    "residual": VIDEO_MAMBA | RESIDUAL,
    "pro": VIDEO_MAMBA | MASKED | RESIDUAL,
}
OF_WHOLE = {
    "base": "MambaEye",
    "videomamba": "VideoMamba",
    "masked": "VideoMamba, masked backward",
    "residual": "VideoMamba, residual state",
    "pro": "VideoMamba, both",
}


def of_frames(side: int, frames: int) -> Flags:
    """Return an evaluation of clips of so many frames."""
    return {
        "data.resolutions": f"[{side}]",
        "data.frames": str(frames),
        "data.scans": SCANS,
        "data.evaluate.num_glimpses": str(frames * A_FRAME),
    }


def on(folder: str, classes: int, side: int, frames: str, num_glimpses: int) -> Flags:
    """Return flags of a fit on a set of clips, of a side and of frames from one number to another."""
    return {
        **DIGITS.fit,
        "data.train_shards": f"data/{folder}/train",
        "data.num_classes": str(classes),
        "data.tube": "1",
        "data.resolutions": f"[{side}]",
        "data.train.canvas": f"[{side},{side}]",
        "data.train.frames": frames,
        "data.train.num_glimpses": str(num_glimpses),
    }


MOVING_VIDEO = Suite(
    config="configs/clips.yaml",
    fit={
        **on("moving_video", 4, 24, "[6,8]", 32),
        "data.val_shards": "data/moving_video/val",
        "trainer.max_epochs": "26",
    },
    validate={**DIGITS.validate, "data.val_shards": "data/moving_video/val"},
    variants=OF_TIME | WHOLE,
    evaluations={f"frames_{frames}": of_frames(24, frames) for frames in (8, 4, 12, 16)},
    side=24,
    measured=dict.fromkeys(("time", "whole_clips"), ("frames_8", "frames_4", "frames_12", "frames_16")),
    claims={"time": Claim(TOLD, at=32), "whole_clips": Claim(OF_WHOLE, at=32)},
    page="docs/video-results.md",
    costs=dict.fromkeys(WHOLE, 2.0),
)

FEW = ("base", "no_time", "positions", "tube_2")


def on_other(folder: str, classes: int, variants: tuple[str, ...], evaluations: tuple[str, ...]) -> Suite:
    """Return a part of the suite on moving digits, on another set of them below data."""
    shards = {"data.val_shards": f"data/{folder}/val"}
    train = {"data.train_shards": f"data/{folder}/train", "data.num_classes": str(classes)}
    return replace(
        MOVING_VIDEO,
        fit=MOVING_VIDEO.fit | train | shards,
        validate=MOVING_VIDEO.validate | shards,
        variants={name: OF_TIME[name] for name in variants},
        evaluations={name: MOVING_VIDEO.evaluations[name] for name in evaluations},
        measured={"time": evaluations},
        claims={"time": Claim({name: TOLD[name] for name in variants}, at=32)},
        costs={},
    )


MOVING_BLACK = on_other("moving_black", 4, FEW, ("frames_8", "frames_4", "frames_12", "frames_16"))
MOVING_VIDEO_DIGIT = on_other("moving_video_digit", 10, ("base", "no_time"), ("frames_8",))

LARGER = {
    "model.encoder.dim": "56",
    "model.encoder.patch": "16",
    "model.encoder.grid": "3",
}  # of VideoMamba, on canvases of 48 pixels


def real(folder: str, classes: int, frames: tuple[int, int, int], epochs: int) -> Suite:
    """Return a suite on clips whose class is how they run.

    Args:
        folder: of its shards, below data.
        classes: number of them.
        frames: the least and the most in training, and fewer than those.
        epochs: of a fit.
    """
    least, most, fewer = frames
    later = {**of_frames(48, most), "data.val_shards": f"data/{folder}/later"}
    of_clips = {"videomamba": "VideoMamba", "pro": "VideoMamba, both changes"}
    claims = {
        "time": Claim(TOLD, at=most * A_FRAME),
        "whole_clips": Claim({"base": "MambaEye"} | of_clips, at=most * A_FRAME),
    }
    evaluations = {
        "later": later,
        "other": later | {"data.val_shards": f"data/{folder}/other"},
        "trained_on": later | {"data.val_shards": f"data/{folder}/train", "trainer.limit_val_batches": "7"},  # 448
        "later_shorter": later | of_frames(48, fewer),
    }
    return Suite(
        config="configs/clips.yaml",
        fit={
            **on(folder, classes, 48, f"[{least},{most}]", most * A_FRAME),
            "data.val_shards": f"data/{folder}/later",
            "trainer.max_epochs": str(epochs),
        },
        validate={**DIGITS.validate, "data.val_shards": f"data/{folder}/later"},
        variants=OF_TIME | {name: WHOLE[name] | LARGER | {"model.encoder.frames": str(most)} for name in of_clips},
        evaluations=evaluations,
        side=48,
        measured=dict.fromkeys(claims, tuple(evaluations)),
        claims=claims,
        page="docs/video-results.md",
        costs=dict.fromkeys(of_clips, 2.0),
    )


ARROW_OF_TIME = real("arrow", 2, (12, 16, 8), 12)
VIDEO_SPEED = real("speed", 3, (6, 8, 4), 20)
