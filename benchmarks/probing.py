"""Probe frozen features by logistic regression: what a linear map reads out of MambaEye's, and out of pixels.

    python -m benchmarks.probing half /usr/share/datasets/fashion-mnist data/half_idx
    python -m benchmarks.probing measure pixels
    python -m benchmarks.probing measure --drawn random=CHECKPOINT,CHECKPOINT,...
    python -m benchmarks.probing measure digits=CHECKPOINT,... half=CHECKPOINT,...

half writes IDX files of the first five classes alone, for `datamodules.pack`.

measure takes kinds of encoders by name, with the checkpoints of their seeds; with --drawn these give sizes alone, and
weights are drawn. Of the first --images training pictures (of Fashion-MNIST by default) and as many test pictures each
encoder sees --num_glimpses random glimpses, the same for all, on a canvas of --side pixels. Rows are added to --output,
a line each, and the table of all that it has is printed. Read out are:

- last glimpse: the features after it, which the head sees.
- all glimpses: the mean of the features after each of them.
- block 1, 2, ...: the mean of the residual stream behind it.
- pixels: of the picture itself, without an encoder.

Features are standardised by the training pictures. The regression's weights are penalised by half the sum of their
squares times what of PENALTIES answers best on the last tenth of the training pictures, and are fitted to all then.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.markdown import markdown, percent
from benchmarks.orders import Image, load_images
from datamodules.packing.idx import PARTS, find_idx, unpack
from datamodules.transforms.images import decode_image, fit_on_canvas
from mambaeye.encoders.mambaeye import MambaEye
from mambaeye.geometry.patches import cut_patches
from mambaeye.geometry.scans import random
from mambaeye.weights import load

SEED, BATCH = 0, 250
CLASSES_OF_HALF = 5
PENALTIES = (1e-4, 1e-3, 1e-2)
PIXELS = "pixels"
HELD_OUT = 0.1  # of the training pictures, to choose the penalty by


class Sets(NamedTuple):
    """Training and test pictures, as vectors (N, D) float64 and labels (N,)."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


def fit(vectors: Tensor, labels: Tensor, penalty: float) -> Tensor:
    """Return the weights (D + 1, classes) of logistic regression, the intercepts last, which are not penalised.

    Args:
        vectors: (N, D) float64.
        labels: (N,) int64.
        penalty: of half the sum of squared weights, added to the mean cross entropy.
    """
    with_one = F.pad(vectors, (0, 1), value=1)
    weights = vectors.new_zeros(with_one.shape[1], int(labels.max()) + 1, requires_grad=True)
    solver = torch.optim.LBFGS([weights], max_iter=500, tolerance_grad=1e-6, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        solver.zero_grad()
        value = F.cross_entropy(with_one @ weights, labels) + penalty / 2 * weights[:-1].square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    solver.step(loss)  # type: ignore[arg-type]  # torch takes a tensor for a float
    return weights.detach()


def top1(weights: Tensor, vectors: Tensor, labels: Tensor) -> float:
    """Return the share of right answers."""
    answers = (F.pad(vectors, (0, 1), value=1) @ weights).argmax(1)
    return float((answers == labels).double().mean())


def probe(sets: Sets) -> dict[str, float]:
    """Return top1 on the test pictures, and the penalty that was chosen on training pictures."""
    mean, deviation = sets.train.mean(0), sets.train.std(0).clamp_min(1e-6)
    train, test = ((vectors - mean) / deviation for vectors in (sets.train, sets.test))
    few = round(len(train) * (1 - HELD_OUT))
    chosen = max(
        PENALTIES,
        key=lambda penalty: top1(
            fit(train[:few], sets.train_labels[:few], penalty), train[few:], sets.train_labels[few:]
        ),
    )
    weights = fit(train, sets.train_labels, chosen)
    return {"top1": round(top1(weights, test, sets.test_labels), 4), "penalty": chosen}


@torch.no_grad()
def read_out(encoder: MambaEye, patches: Tensor, positions: Tensor) -> dict[str, Tensor]:
    """Return the vectors (N, D) that the module's docstring lists, by their names."""
    features = encoder.forward_features(patches, positions, every_stage=True)
    stages = {f"block {number}": stage.mean(1) for number, stage in enumerate(features.stages, start=1)}
    return {"last glimpse": features.last[:, -1], "all glimpses": features.last.mean(1), **stages}


def seen(images: list[Image], first: int, patch_size: int, side: int, num_glimpses: int) -> tuple[Tensor, Tensor]:
    """Return the patches (N, T, 3, P, P) and positions (N, T, 2) of random glimpses; first numbers the first one."""
    patches, positions = [], []
    for number, (data, _) in enumerate(images, start=first):
        canvas, box = fit_on_canvas(decode_image(data, "a picture"), side)
        places = random(box, patch_size, num_glimpses, np.random.default_rng((SEED, side, number)))
        patches.append(cut_patches(canvas, places, patch_size))
        positions.append(places.astype(np.int32))
    return torch.from_numpy(np.stack(patches)), torch.from_numpy(np.stack(positions))


def vectors_of(encoders: list[MambaEye], images: list[Image], side: int, num_glimpses: int) -> list[dict[str, Tensor]]:
    """Return each encoder's vectors (N, D) float64 of the images, by name; all encoders see the same glimpses."""
    (patch_size,) = {encoder.patch_size for encoder in encoders}
    pieces: list[list[dict[str, Tensor]]] = [[] for _ in encoders]
    for first in range(0, len(images), BATCH):
        glimpses = seen(images[first : first + BATCH], first, patch_size, side, num_glimpses)
        for encoder, of_encoder in zip(encoders, pieces, strict=True):
            of_encoder.append(read_out(encoder, *glimpses))
    return [
        {name: torch.cat([piece[name] for piece in of_encoder]).double() for name in of_encoder[0]}
        for of_encoder in pieces
    ]


def pixels_of(images: list[Image]) -> Tensor:
    """Return the pixels in [0, 1] of images of one size: (N, D) float64."""
    decoded = np.stack([decode_image(data, "a picture") for data, _ in images])
    grey = (decoded[..., :1] == decoded).all()  # whose channels say one thing three times
    return torch.from_numpy(decoded[..., :1] if grey else decoded).flatten(1).double() / 255


def measured(
    kinds: dict[str, list[MambaEye]], train: list[Image], test: list[Image], side: int, num_glimpses: int
) -> Iterator[dict[str, Any]]:
    """Yield a row for each encoder and what is read out of it; for a kind without encoders, of pixels."""
    labels = [torch.tensor([label for _, label in images]) for images in (train, test)]
    for kind, encoders in kinds.items():
        of_both: list[list[dict[str, Tensor]]] = [
            vectors_of(encoders, images, side, num_glimpses) if encoders else [{PIXELS: pixels_of(images)}]
            for images in (train, test)
        ]
        for seed, (of_train, of_test) in enumerate(zip(*of_both, strict=True)):
            for name, vectors in of_train.items():
                found = probe(Sets(vectors, labels[0], of_test[name], labels[1]))
                yield {"encoder": kind, "seed": seed, "read out": name, "values": vectors.shape[1], **found}


def table(rows: list[dict[str, Any]]) -> str:
    """Format top-1 in %, mean and deviation of the seeds, as Markdown."""
    kinds = [kind for kind in dict.fromkeys(row["encoder"] for row in rows) if kind != PIXELS]
    names = [name for name in dict.fromkeys(row["read out"] for row in rows) if name != PIXELS]

    def of(kind: str, name: str) -> str:
        return percent(np.array([row["top1"] for row in rows if (row["encoder"], row["read out"]) == (kind, name)]))

    lines: list[list[object]] = [[kind, *(of(kind, name) for name in names)] for kind in kinds]
    title = f"Top-1 (%) of logistic regression on frozen features; on the pixels themselves {of(PIXELS, PIXELS)}:"
    return markdown(title, ["encoder", *names], lines)


def read(path: Path) -> list[dict[str, Any]]:
    """Read rows that were measured."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_half(source: Path, dest: Path) -> None:
    """Write the images of the first classes of a folder of IDX files into a new folder, as IDX files."""
    pairs = find_idx(source)
    assert pairs is not None, f"{source} has no IDX files"
    dest.mkdir(parents=True)
    unpacked = dest / "unpacked"
    for part, (images, labels) in pairs.items():
        (count, *sides), values = unpack(images, 3, unpacked), np.fromfile(unpacked, np.uint8)
        unpack(labels, 1, unpacked)
        of_images = np.fromfile(unpacked, np.uint8)
        kept = of_images < CLASSES_OF_HALF
        for name, array in (
            (f"{PARTS[part]}-images-idx3-ubyte", values.reshape(count, *sides)[kept]),
            (f"{PARTS[part]}-labels-idx1-ubyte", of_images[kept]),
        ):
            lengths = b"".join(length.to_bytes(4) for length in array.shape)
            (dest / name).write_bytes(bytes((0, 0, 8, array.ndim)) + lengths + array.tobytes())
    unpacked.unlink()


def encoders_of(paths: str, drawn: bool) -> list[MambaEye]:
    """Load encoders from checkpoints, separated by commas; or draw weights of their sizes, seed 0 first."""
    encoders = []
    for seed, path in enumerate(filter(None, paths.split(","))):
        encoder = load(path)
        assert isinstance(encoder, MambaEye), f"{path} holds no MambaEye"
        if drawn:
            torch.manual_seed(seed)
            encoder = MambaEye(**encoder.settings)
        encoders.append(encoder.eval())
    return encoders


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    half = commands.add_parser("half", help="IDX files of the first five classes")
    half.add_argument("source", type=Path, help="folder of IDX files")
    half.add_argument("dest", type=Path, help="new folder")
    measure = commands.add_parser("measure", help="probes of encoders and of pixels")
    measure.add_argument("kinds", nargs="+", help="NAME=CHECKPOINT,CHECKPOINT,... of its seeds; or pixels")
    measure.add_argument("--drawn", action="store_true", help="draw weights of the checkpoints' sizes instead")
    measure.add_argument("--output", type=Path, default=Path("probing.jsonl"), help="rows are added to it")
    measure.add_argument("--data", type=Path, default=Path("data/fashion"), help="folder with shards in train and val")
    measure.add_argument("--images", type=int, default=10_000, help="pictures to train on, and to test on")
    measure.add_argument("--side", type=int, default=48, help="of the canvas, pixels")
    measure.add_argument("--num_glimpses", type=int, default=64, help="glimpses a picture")
    args = parser.parse_args()
    if args.command == "half":
        write_half(args.source, args.dest)
        return
    torch.set_num_threads(1)
    kinds = {name: encoders_of(paths, args.drawn) for name, _, paths in (kind.partition("=") for kind in args.kinds)}
    train, test = (load_images(args.data / split, args.images) for split in ("train", "val"))
    settings = {name: getattr(args, name) for name in ("images", "side", "num_glimpses")}
    with args.output.open("a", buffering=1) as file:  # line by line
        for row in measured(kinds, train, test, args.side, args.num_glimpses):
            file.write(json.dumps(settings | row) + "\n")
    print(table(read(args.output)))


if __name__ == "__main__":
    main()
