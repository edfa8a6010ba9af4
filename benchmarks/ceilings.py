"""Measure what a device can do at most, which other times are compared with: its memory's rate, and matrix products'.

    python -m benchmarks.ceilings [--device cuda] [--output ceilings.json]

A copy of 2 GB on the device (64 MB on a CPU), counting bytes read and written, and products of square matrices of 8192
(512) random numbers: in bf16, in float32, and in float32 with factors in TF32. Medians of ten, after three.
"""

import argparse
import json
import platform
from pathlib import Path
from statistics import median

import torch

from benchmarks.encoder import Call, seconds
from benchmarks.results import machine

ROUNDS, WARM = 10, 3


def fastest(call: Call, device: str) -> float:
    """Return the median seconds of a call."""
    return median([seconds(call, device) for _ in range(WARM + ROUNDS)][WARM:])


def ceilings(device: str) -> dict[str, float]:
    """Return GB/s of a copy and TFLOP/s of matrix products."""
    size, side = (2**31, 8192) if device == "cuda" else (2**26, 512)
    source = torch.randint(256, (size,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    rates = {"copy_gb_per_second": 2 * size / fastest(lambda: target.copy_(source), device) / 1e9}
    for name, dtype, precision in (
        ("bf16", torch.bfloat16, "highest"),
        ("float32", torch.float32, "highest"),
        ("tf32", torch.float32, "high"),
    ):
        torch.set_float32_matmul_precision(precision)
        one, other = (torch.randn(side, side, dtype=dtype, device=device) for _ in range(2))
        taken = fastest(lambda one=one, other=other: one @ other, device)
        rates[f"{name}_tflops"] = 2 * side**3 / taken / 1e12
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="file for the JSON, which is also printed")
    given = parser.parse_args()
    versions = {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda}
    results = {"machine": machine(), **versions, **ceilings(given.device)}
    text = json.dumps(results, indent=1)
    print(text)
    if given.output:
        given.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
