"""Find out why a model fails with an order of glimpses: the same glimpses in other orders, and its sense of place.

    python -m benchmarks.orders --ckpt_path runs/results/any_scan/{base,varied}-{0,1,2}/checkpoints/last.ckpt

On the embedded digits held out for validation, at each resolution and for each pattern; top-1 is that after the last
glimpse, in %. Prints a JSON line for each checkpoint, resolution and experiment:

- patterns: top-1 by pattern.
- rates: the same with the decay rates A of every layer multiplied, which lengthens or shortens what it remembers.
- repeated: random places, as many as the grid has tiles, in a new order each time; the grid in one random order each
  time.
- grid: what of the grid costs. shifted: a new shift of the grid for every pass, so that moves are multiples of 16 and
  the cuts are others each time. jittered: every visit to a tile is off by up to so many pixels along each axis.
  "cut as / told as": the pixels of one at the positions of the other, which is a lie of at most 8 pixels each way.
- lies: top-1 when all glimpses are told to lie in the middle (still), or anywhere (anywhere), by the pattern that they
  are cut by: how much the answer rests on places.
- returns: a pattern has every second glimpse only. Those between go back to the middle of the box, or to its top left
  corner; or all of them go to the middle before the pattern begins: the same glimpses, in another order.
- where: how well (row, col) can be read out of the features linearly, RMS error in pixels from the 9th glimpse on (of
  a pattern with returns, at the pattern's own). One readout is fitted to random trajectories of the first half of the
  images, and one to varied ones; both are tried on the other half. last_move, last_4_moves: the same from the moves
  alone; spread: the places' standard deviation, which is the error of knowing nothing.
"""

import argparse
import copy
import json
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.digits import ensure_digits
from datamodules.shards.locate import open_index
from datamodules.shards.reading import read_images
from datamodules.transforms.images import decode_image, fit_on_canvas
from mambaeye.encoders.mambaeye import MambaEye
from mambaeye.geometry.authors_scans import random_fixed_grid
from mambaeye.geometry.box import Box, start_range
from mambaeye.geometry.moves import moves
from mambaeye.geometry.patches import cut_patches
from mambaeye.geometry.scans import SCANS, Scan, grid, random
from mambaeye.weights import load

SEED, BATCH = 0, 64
PATTERNS = ("random", "random_grid", "row_raster", "column_raster", "spiral", "hilbert", "golden_ratio", "centre_out")
JITTERS = (1, 2, 4, 8)  # pixels
FITTED = ("random", "varied")  # what readouts are fitted to
SETTLED = 8  # glimpses before the first whose place is read out

Image = tuple[bytes, int]
"""Encoded, and its label."""


def random_again(box: Box, patch_size: int, num_glimpses: int, rng: np.random.Generator) -> np.ndarray:
    """Draw as many random places as the grid has tiles, and visit each once before any is visited again."""
    places = random(box, patch_size, grid(box, patch_size)[..., 0].size, rng)
    return np.concatenate([rng.permutation(places) for _ in range(-(-num_glimpses // len(places)))])[:num_glimpses]


def with_returns(
    scan: Scan, home: str, box: Box, patch_size: int, num_glimpses: int, rng: np.random.Generator
) -> np.ndarray:
    """Follow a pattern at every second glimpse; the others are at home: "middle", "corner", or the "middle first"."""
    positions = scan(box, patch_size, num_glimpses // 2, rng)
    first, last = start_range(box, patch_size)
    place = first if home == "corner" else (first + last) // 2
    homes = np.broadcast_to(place, positions.shape)
    if home == "middle first":
        return np.concatenate((homes, positions))
    return np.stack((homes, positions), axis=1).reshape(-1, 2)


def shifted(box: Box, patch_size: int, num_glimpses: int, rng: np.random.Generator) -> np.ndarray:
    """Visit in a random order the grid's tiles that are within the box after a shift, a new one for every pass."""
    first, last = start_range(box, patch_size)
    taken: list[np.ndarray] = []
    while sum(map(len, taken)) < num_glimpses:
        shift = rng.integers(np.minimum(patch_size, last - first + 1))
        axes = [np.arange(low, high + 1, patch_size) for low, high in zip(first + shift, last, strict=True)]
        taken.append(rng.permutation(np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, box.axes)))
    return np.concatenate(taken)[:num_glimpses]


def jittered(
    scan: Scan, most: int, box: Box, patch_size: int, num_glimpses: int, rng: np.random.Generator
) -> np.ndarray:
    """Follow a pattern, off by up to so many pixels along each axis, anew at every glimpse."""
    positions = scan(box, patch_size, num_glimpses, rng)
    offsets = rng.integers(-most, most, positions.shape, endpoint=True)
    return np.clip(positions + offsets, *start_range(box, patch_size))


class Bench:
    """A model and the images that it is tried on."""

    def __init__(self, encoder: MambaEye, images: list[Image], num_glimpses: int) -> None:
        self.encoder, self.images, self.num_glimpses = encoder, images, num_glimpses
        self.labels = torch.tensor([label for _, label in images])

    def glimpses(self, scan: Scan, side: int) -> tuple[Tensor, Tensor]:
        """Return all images' patches (N, T, 3, P, P) and positions (N, T, 2)."""
        return stacked([view(image, scan, side, self, (SEED, side, n)) for n, image in enumerate(self.images)])

    @torch.no_grad()
    def features(self, scan: Scan, side: int, told: Scan | None = None) -> tuple[Tensor, Tensor]:
        """Return all images' features (N, T, D) and positions (N, T, 2): of glimpses that are told to lie elsewhere."""
        patches, positions = self.glimpses(scan, side)
        if told is not None:
            positions = self.glimpses(told, side)[1]
        pieces = zip(patches.split(BATCH), positions.split(BATCH), strict=True)
        return torch.cat([self.encoder.features(*piece) for piece in pieces]), positions

    @torch.no_grad()
    def top1(self, scan: Scan, side: int, told: Scan | None = None) -> float:
        """Return the share of right answers after the last glimpse, in %."""
        answers = self.encoder.logits(self.features(scan, side, told)[0][:, -1]).argmax(-1)
        return percent((answers == self.labels).float().mean())

    def top1_by_pattern(self, side: int, names: Sequence[str] = PATTERNS) -> dict[str, float]:
        return {name: self.top1(SCANS[name], side) for name in names}


def view(image: Image, scan: Scan, side: int, bench: Bench, key: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, Box]:
    """Fit an image on a canvas of that side, and return its patches, positions and box."""
    patch_size = bench.encoder.config.patch_size
    canvas, box = fit_on_canvas(decode_image(image[0], "an image"), side)
    positions = scan(box, patch_size, bench.num_glimpses, np.random.default_rng(key))
    return cut_patches(canvas, positions, patch_size), positions, box


def stacked(views: list[tuple[np.ndarray, np.ndarray, Box]]) -> tuple[Tensor, Tensor]:
    """Stack the patches and positions of some images."""
    patches, positions, _ = zip(*views, strict=True)
    return torch.from_numpy(np.stack(patches)), torch.from_numpy(np.stack(positions).astype(np.int32))


def percent(share: Tensor) -> float:
    return round(100 * float(share), 1)


def rounded(values: Tensor, digits: int) -> list[float]:
    return [round(value, digits) for value in values.tolist()]


def rates(bench: Bench, side: int) -> dict[str, Any]:
    """Return top-1 with the rates A multiplied."""
    result, encoder = {}, bench.encoder
    for factor in (0.25, 0.5, 1, 2):
        changed = copy.deepcopy(encoder)
        for block in changed.blocks:
            block.mixer.A_log.data += np.log(factor)
        result[str(factor)] = Bench(changed, bench.images, bench.num_glimpses).top1_by_pattern(side, PATTERNS[:3])
    return result


def repeated(bench: Bench, side: int) -> dict[str, Any]:
    """Return top-1 of a few places that are seen again and again."""
    return {scan.__name__: bench.top1(scan, side) for scan in (random_again, random_fixed_grid)}


def grids(bench: Bench, side: int) -> dict[str, Any]:
    """Return top-1 of the grid, of the grid without one of its traits at a time, and of lies about the places."""
    on_grid = SCANS["random_grid"]
    off_grid, beside = partial(jittered, on_grid, JITTERS[-1]), partial(jittered, random, JITTERS[-1])
    return {
        "shifted": bench.top1(shifted, side),
        **{f"jittered by {most}": bench.top1(partial(jittered, on_grid, most), side) for most in JITTERS},
        "cut as random_grid, told as jittered by 8": bench.top1(on_grid, side, off_grid),
        "cut as jittered by 8, told as random_grid": bench.top1(off_grid, side, on_grid),
        "cut as random, told as jittered by 8": bench.top1(random, side, beside),
    }


def still(box: Box, patch_size: int, num_glimpses: int, rng: np.random.Generator) -> np.ndarray:
    """Stay in the middle."""
    first, last = start_range(box, patch_size)
    return np.broadcast_to((first + last) // 2, (num_glimpses, box.axes))


def anywhere(box: Box, patch_size: int, num_glimpses: int, rng: np.random.Generator) -> np.ndarray:
    """Draw random places, and not those that random draws from the same generator."""
    return random(box, patch_size, 2 * num_glimpses, rng)[num_glimpses:]


def lies(bench: Bench, side: int) -> dict[str, Any]:
    """Return top-1 of some patterns' pixels, told to lie elsewhere."""
    return {
        told.__name__: {name: bench.top1(SCANS[name], side, told) for name in PATTERNS[:4]}
        for told in (still, anywhere)
    }


def returns(bench: Bench, side: int) -> dict[str, Any]:
    """Return top-1 of every pattern, going back in between."""
    homes = ("middle first", "middle", "corner")
    return {
        home: {name: bench.top1(partial(with_returns, SCANS[name], home), side) for name in PATTERNS} for home in homes
    }


def where(bench: Bench, side: int) -> dict[str, Any]:
    """Return the errors (rows, cols) of linear readouts of the place, by what they were fitted to and by pattern."""
    half = len(bench.images) // 2
    back = {
        f"{name}, returns to the {home}": partial(with_returns, SCANS[name], home)
        for name in ("random_grid", "row_raster", "hilbert")
        for home in ("middle", "corner")
    }
    readouts: dict[tuple[str, str], Tensor] = {}
    result: dict[str, Any] = {fitted: {} for fitted in FITTED}
    for name, scan in ({name: SCANS[name] for name in dict.fromkeys((*FITTED, *PATTERNS))} | back).items():
        features, positions = bench.features(scan, side)
        steps = moves(positions).double()
        inputs = {"features": features.double()}
        for source, number in (("last_move", 1), ("last_4_moves", 4)):
            inputs[source] = torch.cat([steps.roll(back, dims=1) for back in range(number)], dim=-1)
        tried = slice(SETTLED + 1, None, 2) if "returns" in name else slice(SETTLED, None)
        places = positions[:, tried].double()
        known = {
            source: torch.cat((values, torch.ones_like(values[..., :1])), dim=-1)[:, tried]  # (N, t, F + 1)
            for source, values in inputs.items()
        }
        if name in FITTED:
            for source, values in known.items():
                x, y = values[:half].flatten(0, 1), places[:half].flatten(0, 1)
                readouts[name, source] = torch.linalg.solve(x.T @ x + torch.eye(x.shape[1]).double(), x.T @ y)
        for fitted in (fitted for fitted in FITTED if (fitted, "features") in readouts):
            errors = {"spread": places[half:].flatten(0, 1).std(0)}
            for source, values in known.items():
                read = values[half:] @ readouts[fitted, source]
                errors[source] = (read - places[half:]).square().mean((0, 1)).sqrt()
            result[fitted][name] = {source: rounded(error, 1) for source, error in errors.items()}
    return result


def load_images(folder: Path, most: int | None = None) -> list[Image]:
    """Read the first images of a folder of shards, so many at most: by default all."""
    index = open_index(str(folder), None)
    numbers = np.arange(len(index))[:most]
    return list(zip(read_images(index, numbers, 1), index.labels[:most].tolist(), strict=True))


EXPERIMENTS: dict[str, Callable[[Bench, int], dict[str, Any]]] = {
    "patterns": Bench.top1_by_pattern,
    "rates": rates,
    "repeated": repeated,
    "grid": grids,
    "lies": lies,
    "returns": returns,
    "where": where,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt_path", required=True, nargs="+", help="runs' checkpoints")
    parser.add_argument("--data_dir", type=Path, default=Path("data"), help="where the embedded digits are")
    parser.add_argument("--resolutions", type=int, nargs="+", default=[48, 64, 96], help="canvas sides, pixels")
    parser.add_argument("--num_glimpses", type=int, default=64, help="glimpses an image")
    parser.add_argument("--experiments", nargs="+", choices=EXPERIMENTS, default=list(EXPERIMENTS), help="these alone")
    args = parser.parse_args()
    torch.set_num_threads(1)
    digits = args.data_dir / "digits"
    ensure_digits(digits)
    images = load_images(digits / "val")
    for path, side in product(args.ckpt_path, args.resolutions):
        bench = Bench(load(path).eval(), images, args.num_glimpses)
        for name in args.experiments:
            result = EXPERIMENTS[name](bench, side)
            print(json.dumps({"ckpt_path": path, "resolution": side, "experiment": name, **result}), flush=True)


if __name__ == "__main__":
    main()
