"""A small model with a learned scan, exported once for all tests of what is exported."""

from pathlib import Path

import pytest
import torch
from commands import NO_PICTURES, TINY, flags
from packaging.version import Version

from mambaeye.exporting import export
from mambaeye.exporting.onnx_files import TORCH
from train import main

CHUNK = 5
needs_torch = pytest.mark.skipif(Version(torch.__version__) < TORCH, reason=f"export needs torch {TORCH} or newer")
LEARNED = {
    "model.policy": "LearnedScan",
    "model.policy.candidates": 6,
    "model.policy.dim": 8,
    "model.policy.leads": 5,
    "data.train_scan": "{random: 1, learned: 1}",
    "data.scans": "[random,learned]",
}


def train_small(run_dir: Path, data_dir: Path) -> Path:
    """Train for a step, validate, and return the checkpoint."""
    settings = {**TINY, **LEARNED, "data.data_dir": data_dir, "run_dir": run_dir}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["train.py"])
        main(["fit", *flags(settings | {"trainer.limit_val_batches": 1, "trainer.max_steps": 1})])
        path = run_dir / "checkpoints/last.ckpt"
        few = {**NO_PICTURES, "data.data_dir": data_dir, "ckpt_path": path, "trainer.limit_val_batches": 1}
        main(["validate", *flags(few | {"trainer.accelerator": "cpu", "trainer.enable_progress_bar": "false"})])
    return path


def export_small(checkpoint: Path) -> Path:
    """Export it beside its run."""
    folder = checkpoint.parents[1] / "exported"
    export(checkpoint, folder, CHUNK, tell=lambda line: None)
    return folder
