"""Time to read a checkpoint, and to compare it with its checksums before: python -m benchmarks.checksums

A file of so many MB of float32 in tensors of a MB, as of an encoder with both of AdamW's moments, read from memory.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from mambaeye.plain_files import load_plain, require_checksums
from mambaeye.weights.tensor_files import load_safetensors, save_safetensors


def seconds(act: Callable[[], object], repeats: int) -> float:
    """Return the shortest time that it took."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        act()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    """Print the times as a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=256, help="size of the file (default: 256, the paper's base)")
    parser.add_argument("--repeats", type=int, default=5, help="the shortest of so many times counts (default: 5)")
    args = parser.parse_args()
    tensors = {str(number): torch.randn(250_000) for number in range(args.megabytes)}
    with tempfile.TemporaryDirectory() as folder:
        path, safe = Path(folder) / "last.ckpt", Path(folder) / "model.safetensors"
        torch.save({"state_dict": tensors}, path)
        save_safetensors(safe, tensors)
        found = {
            "torch.load": seconds(lambda: torch.load(path, weights_only=True), args.repeats),
            "its checksums": seconds(lambda: require_checksums(path), args.repeats),
            "load_plain": seconds(lambda: load_plain(path), args.repeats),
            "safetensors with its checksum": seconds(lambda: load_safetensors(safe), args.repeats),
        }
    print(json.dumps({"megabytes": args.megabytes} | {name: round(value, 3) for name, value in found.items()}))


if __name__ == "__main__":
    main()
