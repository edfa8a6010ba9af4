"""Measure validation, as whole runs of train.py: peak memory against T, and how long a sweep takes and waits for data.

python -m benchmarks.validation --ckpt_path runs/quickstart/checkpoints/best.ckpt
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import get_args

import torch

from datamodules.loading.config import LoaderConfig
from datamodules.loading.loader import FixedLoader, ShardAccess
from datamodules.shards.locate import open_index
from datamodules.transforms.images import Interpolation
from datamodules.views.evaluate import EvaluateView, EvaluationCanvases
from mambaeye.batch import EvaluationCondition

PAPER = (224, 256, 384, 512, 640, 768, 1024, 1280, 1408, 1536)  # pixels
LENGTHS = (1024, 8192)
SWEEP = {
    "data.resolutions": "[32,48,64,96]",
    "data.scans": "[random,row_raster,spiral,hilbert,sobol,coarse_to_fine]",
    "data.evaluate.num_glimpses": "256",
}


def validate(ckpt_path: str, data_dir: str, settings: dict[str, str]) -> tuple[float, float, str, list[dict]]:
    """Return seconds, peak memory of the process in MiB, what it said of its waiting, and its rows."""
    with tempfile.TemporaryDirectory() as run_dir:
        settings = {"ckpt_path": ckpt_path, "run_dir": run_dir, "data.data_dir": data_dir} | settings
        arguments = [f"--{name}={value}" for name, value in settings.items()]
        command = [sys.executable, "-m", "train", "validate", *arguments, "--trainer.enable_progress_bar=false"]
        # a process between, whose only child is measured
        script = (
            "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True); "
            "print('peak', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
        )
        began = time.perf_counter()
        said = subprocess.run([sys.executable, "-c", script, *command], check=True, capture_output=True, text=True)
        seconds = time.perf_counter() - began
        rows = json.loads((Path(run_dir) / "validation.json").read_text())["rows"]
    peak = int(re.search(r"peak (\d+)", said.stdout)[1]) / 1024
    waited = re.search(r".*waiting for data", said.stdout)[0]
    return seconds, peak, waited, rows


def loading(shards: str, interpolation: Interpolation, batch_size: int = 8, batches: int = 5) -> float:
    """Return one worker's processor seconds per image and condition, decoding included."""
    torch.set_num_threads(1)
    index, config = open_index(shards), LoaderConfig(batch_size, num_workers=0)
    access = ShardAccess(index, config.evaluation_layout(index, ranks=1), rank=0, config=config)
    view = EvaluateView(4096, interpolation=interpolation)
    samples = EvaluationCanvases([EvaluationCondition(side, "random") for side in PAPER], 16, view)
    loader = FixedLoader(access, samples, seed=0, limit=batches)
    began = time.process_time()
    seen = sum(len(batch.labels) for batch in loader)
    return (time.process_time() - began) / seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt_path", required=True, help="a digits model, as the quickstart leaves it")
    parser.add_argument("--data_dir", default="data", help="folder of the embedded digits")
    parser.add_argument("--shards", help="indexed shards of photographs")
    arguments = parser.parse_args()
    for interpolation in get_args(Interpolation) if arguments.shards else ():
        milliseconds = 1e3 * loading(arguments.shards, interpolation)
        print(
            f"one loader worker, {len(PAPER)} resolutions, T 4096, {interpolation}: {milliseconds:.2f} ms an image and "
            f"condition",
            flush=True,
        )
    base = arguments.ckpt_path, arguments.data_dir
    peaks = {}
    for length in LENGTHS:
        settings = {"data.resolutions": "[48]", "data.loader.batch_size": "16", "trainer.limit_val_batches": "3"}
        seconds, peaks[length], waited, _ = validate(*base, settings | {"data.evaluate.num_glimpses": str(length)})
        print(f"T {length}: peak memory {peaks[length]:.0f} MiB, {seconds:.1f} s; {waited}", flush=True)
    print(f"peak memory at T {LENGTHS[1]} / T {LENGTHS[0]}: {peaks[LENGTHS[1]] / peaks[LENGTHS[0]]:.3f}")
    seconds, peak, waited, rows = validate(*base, SWEEP)
    conditions = len({(row["resolution"], row["scan"]) for row in rows})
    length = SWEEP["data.evaluate.num_glimpses"]
    print(f"{conditions} conditions, T {length}: {seconds:.1f} s, peak memory {peak:.0f} MiB; {waited}")


if __name__ == "__main__":
    main()
