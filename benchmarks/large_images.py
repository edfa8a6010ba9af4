"""python -m benchmarks.large_images: memory and time of prediction or validation on tiled TIFFs of growing sides.

Each TIFF is made tile by tile, of smooth colours with noise; then `train.py predict` looks at it by region in a process
of its own, with an untrained MambaEye, and what the process took at most (VmHWM) is printed, beside the same of reading
it whole where --whole says up to which side. With --command validate the TIFF is packed into a shard first, in another
process, and `train.py validate` looks at it as it is, on a canvas of its own side. Needs tifffile.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import tifffile

from benchmarks.markdown import markdown
from mambaeye import weights
from mambaeye.encoders.mambaeye import MambaEye

TILE = 256
REGION = 100_000  # pixels that are read whole
ENCODER = {"num_classes": 10, "dim": 64, "depth": 2, "d_state": 32, "headdim": 32}
RUN = """
import sys
from train import main
sys.argv = ["train.py"]
main({words!r})
for line in open("/proc/self/status"):
    if line.startswith("VmHWM"):
        print(line)
"""


def tiles(side: int, channels: int, bits: int) -> Iterator[np.ndarray]:
    """Yield the tiles of an image, row by row."""
    count = -(-side // TILE)
    scale = (1 << bits) // 256
    for down in range(count):
        for across in range(count):
            rng = np.random.default_rng((down, across))
            ramp = np.add.outer(np.arange(TILE) + TILE * down, np.arange(TILE) + TILE * across) // 64 % 200
            tile = ramp[..., None] + rng.integers(0, 40, (TILE, TILE, channels))
            yield (tile * scale).astype(f"uint{bits}")


def write(path: Path, side: int, channels: int, bits: int, compression: str | None) -> None:
    """Write a tiled TIFF, a tile at a time."""
    tifffile.imwrite(
        path,
        tiles(side, channels, bits),
        shape=(side, side, channels),
        dtype=f"uint{bits}",
        tile=(TILE, TILE),
        photometric="rgb" if channels == 3 else "minisblack",
        planarconfig="contig",
        compression=compression,
        bigtiff=True,
    )


def packed(path: Path, classes: int, limit: int) -> Path:
    """Pack a TIFF as a set of one image, of as many classes as are given, and return the folder of the shard."""
    images, shards, names = (path.with_suffix(suffix) for suffix in (".images", ".shards", ".txt"))
    (images / "0").mkdir(parents=True)
    path.rename(images / "0" / path.name)
    names.write_text("\n".join(map(str, range(classes))))
    words = [str(images), str(shards), "--classes", str(names), "--max_pixels", str(limit)]
    subprocess.run([sys.executable, "-m", "datamodules.pack", *words], capture_output=True, check=True)
    shutil.rmtree(images)
    return shards


def measured(words: list[str]) -> tuple[float, float]:
    """Return peak memory in MB, and seconds."""
    started = time.perf_counter()
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", RUN.format(words=words)], capture_output=True, text=True, check=False
    )
    seconds = time.perf_counter() - started
    if result.returncode:
        sys.exit(result.stderr[-2000:])
    found = re.search(r"VmHWM:\s*(\d+) kB", result.stdout)
    assert found is not None
    return int(found[1]) / 1e3, seconds


def main() -> None:
    """Measure each size, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large_images", description=__doc__)
    parser.add_argument("--command", choices=("predict", "validate"), default="predict")
    parser.add_argument("--sides", type=int, nargs="+", default=[2000, 8000, 20000], metavar="PIXELS")
    parser.add_argument("--whole", type=int, default=0, metavar="PIXELS", help="also read whole up to this side")
    parser.add_argument("--glimpses", type=int, default=1024)
    parser.add_argument("--channels", type=int, default=3)
    parser.add_argument("--bits", type=int, default=8)
    parser.add_argument("--compression", choices=("zlib", "none"), default="zlib")
    parser.add_argument("--scan", default="random")
    given = parser.parse_args()
    rows: list[list[object]] = []
    with TemporaryDirectory() as name:
        folder = Path(name)
        weights.save(MambaEye(**ENCODER, channels=given.channels), folder / "encoder")
        for side in given.sides:
            path = folder / f"{side}.tif"
            compression = None if given.compression == "none" else given.compression
            write(path, side, given.channels, given.bits, compression)
            size = os.path.getsize(path) / 1e6
            if given.command == "validate":
                shards = packed(path, ENCODER["num_classes"], REGION)
                looks = [f"--data.val_shards={shards}", f"--data.resolutions=[{side}]", "--data.evaluate.resize=none"]
            else:
                looks = [f"--data.images={path}"]
            for whole in (False, True)[: 1 + (side <= given.whole)]:
                words = [
                    given.command,
                    *looks,
                    f"--run_dir={folder}",
                    f"--model.init_from={folder}/encoder/model.safetensors",
                ]
                words += [f"--data.evaluate.num_glimpses={given.glimpses}", f"--data.scans=[{given.scan}]"]
                words += [
                    f"--data.channels={given.channels}",
                    f"--data.bits={given.bits}",
                    "--data.loader.num_workers=0",
                ]
                words += ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
                words += [f"--data.loader.max_pixels={10**10 if whole else REGION}"]
                memory, seconds = measured(words)
                how = "whole" if whole else "by region"
                rows.append([f"{side:,}", f"{size:,.0f}", how, str(given.glimpses), f"{memory:,.0f}", f"{seconds:.1f}"])
                print(*rows[-1], sep="  ", flush=True)
            if given.command == "validate":
                shutil.rmtree(shards)
            else:
                path.unlink()
    heading = ["side", "file, MB", "read", "glimpses", "peak memory, MB", "seconds, start included"]
    print(markdown(f"{given.command}, {given.channels} channels of {given.bits} bits, {given.scan}", [*heading], rows))


if __name__ == "__main__":
    main()
