"""Find out why a model fails with an order of glimpses: the same glimpses in other orders, and its sense of place.

    python -m benchmarks.orders --ckpt_path runs/quickstart/checkpoints/best.ckpt [--finetune] [--resolutions 48 64 96]

On the embedded digits held out for validation, at each resolution and for each pattern; top-1 is that after the last
glimpse, in %. Prints a JSON line for each experiment and resolution:

- patterns: top-1 by pattern.
- rates: the same with the decay rates A of every layer multiplied, which lengthens or shortens what it remembers.
- gates: by move, the mean decay exp(dt A) of each layer at the second of two random glimpses, told that this move led
  there, and the norm of what it writes: the same pixels for all moves.
- repeated: random places, as many as the grid has tiles, in a new order each time; the grid in one random order each
  time.
- returns: a pattern has every second glimpse only. Those between go back to the middle of the box, or to its top left
  corner; or all of them go to the middle before the pattern begins: the same glimpses, in another order.
- where: how well (row, col) can be read out of the features linearly, RMS error in pixels from the 9th glimpse on (of
  a pattern with returns, at the pattern's own). The readout is fitted to random trajectories of the first half of the
  images and tried on the other half. last_move, last_4_moves: the same from the moves alone; spread: the places'
  standard deviation, which is the error of knowing nothing.
- finetune, with --finetune: top-1 by pattern after four more epochs in which the pattern of every training image is
  drawn from a few.
"""

import argparse
import copy
import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.digits import ensure_digits
from datamodules.shards.locate import open_index
from datamodules.shards.reading import read_images
from datamodules.transforms.images import decode_image, fit_on_canvas
from mambaeye.batch import Scene
from mambaeye.checkpoints import DATA, read_checkpoint
from mambaeye.encoders.mambaeye import MambaEye
from mambaeye.evaluation.diagnosis import diagnose
from mambaeye.geometry.authors_scans import random_fixed_grid
from mambaeye.geometry.box import Box, start_range
from mambaeye.geometry.coverage import information_ratio
from mambaeye.geometry.moves import moves
from mambaeye.geometry.patches import cut_patches
from mambaeye.geometry.scans import SCANS, Scan, grid, random
from mambaeye.loss import scheduled_cross_entropy_of_features
from mambaeye.rollout import Rollout, Step
from mambaeye.weights import load

SEED, BATCH = 0, 64
PATTERNS = ("random", "random_grid", "row_raster", "column_raster", "spiral", "hilbert", "golden_ratio", "centre_out")
MIXTURES = (("random",), ("random", "random_grid"), ("random", "row_raster"))
EPOCHS, RATE = 4, 1e-3
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


class Bench:
    """A model and the images that it is tried on."""

    def __init__(self, encoder: MambaEye, images: list[Image], num_glimpses: int) -> None:
        self.encoder, self.images, self.num_glimpses = encoder, images, num_glimpses
        self.labels = torch.tensor([label for _, label in images])

    def glimpses(self, scan: Scan, side: int) -> tuple[Tensor, Tensor]:
        """Return all images' patches (N, T, 3, P, P) and positions (N, T, 2)."""
        return stacked([view(image, scan, side, self, (SEED, side, n)) for n, image in enumerate(self.images)])

    @torch.no_grad()
    def features(self, scan: Scan, side: int) -> tuple[Tensor, Tensor]:
        """Return all images' features (N, T, D) and positions (N, T, 2)."""
        patches, positions = self.glimpses(scan, side)
        pieces = zip(patches.split(BATCH), positions.split(BATCH), strict=True)
        return torch.cat([self.encoder.features(*piece) for piece in pieces]), positions

    @torch.no_grad()
    def top1(self, scan: Scan, side: int) -> float:
        """Return the share of right answers after the last glimpse, in %."""
        answers = self.encoder.logits(self.features(scan, side)[0][:, -1]).argmax(-1)
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


class Told(Rollout):
    """A walk over patches that are said to lie where they do not: (N, T, 3, P, P) at (N, T, 2)."""

    def __init__(self, encoder: MambaEye, patches: Tensor, positions: Tensor) -> None:
        nothing = torch.zeros(len(patches), dtype=torch.long)
        super().__init__(encoder, Scene(nothing, nothing, positions, nothing, nothing), at_once=1)
        self.patches = patches

    def __iter__(self) -> Iterator[Step]:
        state = self.encoder.initial_state(len(self.patches))
        for at, patch in enumerate(self.patches.split(1, dim=1)):
            positions = self.scene.positions[:, at : at + 1]
            logits, state = self.encoder.stream(patch, positions, state)
            yield Step(at, positions, patch, None, logits, state)


def gates(bench: Bench, side: int) -> dict[str, Any]:
    """Return mean decay and norm of what is written, by layer, at a second glimpse that a move is said to lead to."""
    patches, _ = bench.glimpses(SCANS["random"], side)
    step, across = bench.encoder.config.patch_size, side - bench.encoder.config.patch_size
    result = {}
    for move in ((0, 0), (0, step), (step, 0), (step, -across), (-across, -across), (across, across)):
        told = torch.tensor([(0, 0), move]).expand(len(patches), 2, 2)
        diagnosis = diagnose(Told(bench.encoder, patches[:, :2], told))
        decay, written = diagnosis.decay[:, 1].mean((0, 2)), diagnosis.written[:, 1].mean(0)  # (L,)
        result[str(move)] = {"decay": rounded(decay, 3), "written": rounded(written, 3)}
    return result


def returns(bench: Bench, side: int) -> dict[str, Any]:
    """Return top-1 of every pattern, going back in between."""
    homes = ("middle first", "middle", "corner")
    return {
        home: {name: bench.top1(partial(with_returns, SCANS[name], home), side) for name in PATTERNS} for home in homes
    }


def where(bench: Bench, side: int) -> dict[str, Any]:
    """Return the errors (rows, cols) of linear readouts of the place, by pattern."""
    half = len(bench.images) // 2
    back = {
        f"{name}, returns to the {home}": partial(with_returns, SCANS[name], home)
        for name in ("random_grid", "row_raster", "hilbert")
        for home in ("middle", "corner")
    }
    readouts: dict[str, Tensor] = {}
    result: dict[str, Any] = {}
    for name, scan in ({name: SCANS[name] for name in PATTERNS} | back).items():
        features, positions = bench.features(scan, side)
        steps = moves(positions).double()
        inputs = {"features": features.double()}
        for source, number in (("last_move", 1), ("last_4_moves", 4)):
            inputs[source] = torch.cat([steps.roll(back, dims=1) for back in range(number)], dim=-1)
        tried = slice(SETTLED + 1, None, 2) if "returns" in name else slice(SETTLED, None)
        places = positions[:, tried].double()
        errors = {"spread": places[half:].flatten(0, 1).std(0)}
        for source, values in inputs.items():
            known = torch.cat((values, torch.ones_like(values[..., :1])), dim=-1)[:, tried]  # (N, t, F + 1)
            if name == "random":
                x, y = known[:half].flatten(0, 1), places[:half].flatten(0, 1)
                readouts[source] = torch.linalg.solve(x.T @ x + torch.eye(x.shape[1]).double(), x.T @ y)
            errors[source] = (known[half:] @ readouts[source] - places[half:]).square().mean((0, 1)).sqrt()
        result[name] = {source: rounded(error, 1) for source, error in errors.items()}
    return result


def finetuned(bench: Bench, images: list[Image], names: Sequence[str], canvas: tuple[int, int]) -> Bench:
    """Train a few more epochs; which of the patterns an image gets, and its canvas, is drawn anew each time."""
    encoder = copy.deepcopy(bench.encoder).train()
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=RATE, weight_decay=0.05)
    batches = len(images) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=EPOCHS * batches)
    for epoch in range(EPOCHS):
        order = np.random.default_rng((SEED, epoch)).permutation(len(images))
        for ids in order[: batches * BATCH].reshape(batches, BATCH).tolist():
            views = []
            for number in ids:
                rng = np.random.default_rng((SEED, epoch, number))
                side = int(rng.integers(*canvas, endpoint=True))
                scan = SCANS[names[rng.integers(len(names))]]
                views.append(view(images[number], scan, side, bench, (SEED, epoch, number, 1)))
            patches, positions = stacked(views)
            ratio = information_ratio(positions, [box for *_, box in views], encoder.config.patch_size).float()
            labels = torch.tensor([images[number][1] for number in ids])
            features = encoder.features(patches, positions)
            loss = scheduled_cross_entropy_of_features(features, encoder.head, labels, ratio)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
            optimizer.step()
            schedule.step()
    return Bench(encoder.eval(), bench.images, bench.num_glimpses)


def load_images(folder: Path) -> list[Image]:
    """Read all images of a folder of shards."""
    index = open_index(str(folder), None)
    numbers = np.arange(len(index))
    return list(zip(read_images(index, numbers, 1), index.labels.tolist(), strict=True))


def print_result(experiment: str, side: int, bench: Bench, **result: Any) -> None:
    line = {"experiment": experiment, "resolution": side, "images": len(bench.images), "glimpses": bench.num_glimpses}
    print(json.dumps(line | result), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt_path", required=True, help="a run's checkpoint")
    parser.add_argument("--data_dir", type=Path, default=Path("data"), help="where the embedded digits are")
    parser.add_argument("--resolutions", type=int, nargs="+", default=[48, 64, 96], help="canvas sides, pixels")
    parser.add_argument("--num_glimpses", type=int, default=64, help="glimpses an image")
    parser.add_argument("--finetune", action="store_true", help="train further with other patterns, too")
    args = parser.parse_args()
    torch.set_num_threads(1)
    digits = args.data_dir / "digits"
    ensure_digits(digits)
    saved = read_checkpoint(args.ckpt_path, "--ckpt_path")[DATA]
    bench = Bench(load(args.ckpt_path).eval(), load_images(digits / "val"), args.num_glimpses)
    for side in args.resolutions:
        print_result("patterns", side, bench, top1=bench.top1_by_pattern(side))
        print_result("rates", side, bench, top1=rates(bench, side))
        print_result("gates", side, bench, by_move=gates(bench, side))
        again = {scan.__name__: bench.top1(scan, side) for scan in (random_again, random_fixed_grid)}
        print_result("repeated", side, bench, top1=again)
        print_result("returns", side, bench, top1=returns(bench, side))
        print_result("where", side, bench, error=where(bench, side))
    for names in MIXTURES if args.finetune else ():
        after = finetuned(bench, load_images(digits / "train"), names, saved["train"]["canvas"])
        for side in args.resolutions:
            print_result("finetune", side, after, on=names, top1=after.top1_by_pattern(side))


if __name__ == "__main__":
    main()
