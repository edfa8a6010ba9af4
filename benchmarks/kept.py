"""Look at what the router of a hierarchy over glimpses keeps, and count what an answer costs.

    python -m benchmarks.kept [--output docs/results/kept] novelty=runs/x/checkpoints/last.ckpt flat=...
    python -m benchmarks.kept flat=runs/x/checkpoints/last.ckpt --ways dense  # models come first
    python -m benchmarks.kept --draw [--output docs/results/kept]

HNet or MambaEye, from checkpoints by name, on the embedded digits held out for validation, at one canvas side. A name
that comes again is of one more seed. For each model and each way of looking:

- random, sobol: 576 glimpses anywhere; dense: a raster of 24 x 24 places, row by row, that overlap; shuffled: the same
  places in an order drawn for each image; twice: 288 random ones, each shown twice in a row;
- top1 after the last glimpse, in %, and operations: multiply-adds a glimpse of a forward pass, as torch counts them
  while the model runs on these glimpses (products of matrices and convolutions; padding included), 32 images at a time;
- alone: the same, one image at a time, so that none is filled up to what another keeps (the first 16 images);
- kept: share of the glimpses that go on to the inner network; by_new, the same by the share of a glimpse's pixels that
  no earlier glimpse has shown; of the second showing, in twice;
- far: kept and top1 over 4,608 random glimpses, eight times as many, by stretch, of the first 64 images.

Adds to OUTPUT.json, where a name has its measurements by seed, and prints it as Markdown: means, and the standard
deviation over the seeds where there are some (--draw does that alone). Writes OUTPUT.png, which shows for every pixel
the share of the glimpses over it that were kept, by the models that were given.
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.dense_scans import dense
from benchmarks.markdown import markdown
from benchmarks.orders import Image, load_images
from callbacks.plots.panels import save
from datamodules.digits import ensure_digits
from datamodules.transforms.images import decode_image, fit_on_canvas
from mambaeye.atomic import atomic_write
from mambaeye.encoders.hnet import HNet
from mambaeye.encoders.mambaeye import MambaEye
from mambaeye.errors import InputError
from mambaeye.geometry.box import Box
from mambaeye.geometry.patches import cut_from_canvases
from mambaeye.geometry.scans import random, sobol
from mambaeye.weights import load

SEED, BATCH, ALONE = 0, 32, 16  # images
TOTAL = 24**2  # glimpses
FAR, FAR_IMAGES = 8 * TOTAL, 64
STRETCHES = (0, 32, 128, TOTAL, 2048, FAR)
NEW = (0.0, 0.25, 0.5, 0.75)  # lower ends of shares of new pixels, after none at all
WAYS = ("random", "sobol", "dense", "shuffled", "twice")
SHOWN, DRAWN = 5, {"random", "dense"}  # images of the picture, and ways of looking

Model = HNet | MambaEye
Measured = dict[str, list[dict[str, Any]]]
"""By model, and then by seed."""


class Views(NamedTuple):
    """Images at one size, and where glimpses of them are."""

    canvases: Tensor
    """(N, H, W, 3) uint8."""
    positions: Tensor
    """(N, T, 2) int64."""
    labels: Tensor
    """(N,) int64."""


class Seen(NamedTuple):
    """Answers to some images, after every glimpse, and what they cost."""

    right: Tensor
    """(N, T) bool."""
    kept: Tensor | None
    """(N, T) bool; None for a model without a router."""
    operations: float
    """Multiply-adds a glimpse."""


def places(way: str, box: Box, patch: int, total: int, rng: np.random.Generator) -> np.ndarray:
    """Return (T, 2) positions of one image's glimpses, in one of WAYS."""
    match way:
        case "random":
            return random(box, patch, total, rng)
        case "sobol":
            return sobol(box, patch, total, rng)
        case "twice":
            return random(box, patch, total // 2, rng).repeat(2, axis=0)
    raster = dense(box, patch, total, rng)
    return rng.permutation(raster) if way == "shuffled" else raster


def views_of(images: list[Image], side: int, patch: int, way: str, total: int) -> Views:
    """Fit images on canvases of a side, and say where to look; each image has draws of its own."""
    fitted = [fit_on_canvas(decode_image(data, "an image"), side) for data, _ in images]
    canvases = torch.from_numpy(np.stack([canvas for canvas, _ in fitted]))
    drawn = [np.random.default_rng((SEED, side, WAYS.index(way), number)) for number in range(len(images))]
    walks = [places(way, box, patch, total, rng) for (_, box), rng in zip(fitted, drawn, strict=True)]
    positions = torch.from_numpy(np.stack(walks).astype(np.int64))
    return Views(canvases, positions, torch.tensor([label for _, label in images]))


@torch.no_grad()
def see(model: Model, views: Views, at_once: int = BATCH) -> Seen:
    """Run a model over all images, some at once."""
    right, kept = [], []
    with FlopCounterMode(display=False) as counter:
        for rows in torch.arange(len(views.labels)).split(at_once):
            canvases, positions, labels = (part[rows] for part in views)
            patches = cut_from_canvases(canvases, positions, model.patch_size)
            if isinstance(model, HNet):
                features, routings = model.route(patches, positions)
                kept.append(routings[0].kept)
            else:
                features = model.features(patches, positions)
            right.append(model.logits(features).argmax(-1) == labels[:, None])
    operations = counter.get_total_flops() / 2 / views.positions[..., 0].numel()
    return Seen(torch.cat(right), torch.cat(kept) if kept else None, operations)


def new_pixels(views: Views, patch: int) -> np.ndarray:
    """Return the share of every glimpse's pixels that no earlier one has shown, (N, T)."""
    shares = np.empty(views.positions.shape[:2])
    for image, walk in enumerate(views.positions.tolist()):
        unseen = np.ones(views.canvases.shape[1:3], dtype=bool)
        for step, (row, col) in enumerate(walk):
            window = unseen[row : row + patch, col : col + patch]
            shares[image, step] = window.sum() / patch**2
            window[:] = False
    return shares


def by_new(kept: Tensor, new: np.ndarray) -> dict[str, float | None]:
    """Return the share kept of glimpses with nothing new, and of those with more than each of NEW; None of none."""
    edges = [(0.0, 0.0), *pairwise((*NEW, 1.0))]
    shares: dict[str, float | None] = {}
    for low, high in edges:
        some = kept.numpy()[new == 0 if not high else (new > low) & (new <= high)]
        shares[f"{low:g} to {high:g}" if high else "none"] = round(float(some.mean()), 3) if len(some) else None
    return shares


def share(values: Tensor) -> float:
    """Return a mean, to three digits."""
    return round(float(values.float().mean()), 3)


def measure(model: Model, images: list[Image], side: int, ways: Sequence[str] = WAYS) -> dict[str, Any]:
    """Return what the module's docstring lists, by way of looking."""
    patch, of_ways = model.patch_size, {}
    for way in ways:
        views = views_of(images, side, patch, way, TOTAL)
        seen = see(model, views)
        alone = see(model, Views(*(part[:ALONE] for part in views)), at_once=1)
        one = {"top1": round(100 * share(seen.right[:, -1]), 1), "operations": round(seen.operations)}
        one["alone"] = round(alone.operations)
        if seen.kept is not None:
            one |= {"kept": share(seen.kept), "by_new": by_new(seen.kept, new_pixels(views, patch))}
            if way == "twice":
                one["of_the_second"] = share(seen.kept[:, 1::2])
        of_ways[way] = one
    far = far_off(model, images[:FAR_IMAGES], side) if "random" in ways else {}
    return {"parameters": sum(p.numel() for p in model.parameters()), "ways": of_ways, "far": far}


def far_off(model: Model, images: list[Image], side: int) -> dict[str, dict[str, float | None]]:
    """Return top1 and kept over FAR random glimpses, by stretch."""
    seen = see(model, views_of(images, side, model.patch_size, "random", FAR))
    return {
        f"{first + 1} to {last}": {
            "top1": round(100 * share(seen.right[:, last - 1]), 1),
            "kept": None if seen.kept is None else share(seen.kept[:, first:last]),
        }
        for first, last in pairwise(STRETCHES)
    }


def painted(views: Views, kept: Tensor, number: int, patch: int) -> np.ndarray:
    """Return for every pixel of an image the share of the glimpses over it that were kept; nan where there is none."""
    total, count = np.zeros((2, *views.canvases.shape[1:3]))
    for (row, col), is_kept in zip(views.positions[number].tolist(), kept[number].tolist(), strict=True):
        total[row : row + patch, col : col + patch] += is_kept
        count[row : row + patch, col : col + patch] += 1
    return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


def draw(models: dict[str, HNet], images: list[Image], side: int, ways: Sequence[str] = WAYS) -> Figure:
    """Draw some images, and beside each what every model keeps of random and of dense glimpses, if these are wanted."""
    columns = [(name, way) for name in models for way in ways if way in DRAWN]
    figure = Figure(figsize=(1.7 * (1 + len(columns)) + 0.8, 1.6 * len(images) + 0.5), layout="constrained")
    panels = figure.subplots(len(images), 1 + len(columns), squeeze=False)
    for column, (name, way) in enumerate(columns, start=1):
        model = models[name]
        views = views_of(images, side, model.patch_size, way, TOTAL)
        kept = see(model, views).kept
        assert kept is not None
        for row in range(len(images)):
            paint = painted(views, kept, row, model.patch_size)
            shown = panels[row, column].imshow(paint, vmin=0, vmax=1)
            panels[row, 0].imshow(views.canvases[row].numpy())
        panels[0, column].set_title(f"{name}, {way}", fontsize=9)
    panels[0, 0].set_title(f"{side} px", fontsize=9)
    for axes in panels.ravel():
        axes.set_axis_off()
    figure.colorbar(shown, ax=panels, shrink=0.5, label="glimpses kept, of those over a pixel")
    return figure


def of_seeds(values: Iterable[float | None], digits: int, factor: float = 1.0) -> str:
    """Format the mean of what some seeds have, and the standard deviation if two have it."""
    known = factor * np.array([value for value in values if value is not None])
    if not len(known):
        return ""
    return f"{known.mean():.{digits}f}" + (f" ± {known.std(ddof=1):.{digits}f}" if len(known) > 1 else "")


def tables(measured: Measured) -> str:
    """Format everything measured as Markdown."""
    costs: list[list[object]] = []
    shares: list[list[object]] = []
    far: list[list[object]] = []
    first = next(iter(measured.values()))[0]
    ways, stretches = [*first["ways"]], [*first["far"]]
    for name, seeds in measured.items():
        cells: list[object] = []
        for way in ways:
            of_way = [seed["ways"][way] for seed in seeds]
            # seeds that were measured first have no count of one image at a time
            counts = [of_seeds((w.get(key) for w in of_way), 0, 1e-3) for key in ("operations", "alone")]
            cells.append(" / ".join([of_seeds((w["top1"] for w in of_way), 1), *filter(None, counts)]))
            if "kept" in of_way[0]:
                news = [of_seeds((w["by_new"][edge] for w in of_way), 2) for edge in of_way[0]["by_new"]]
                again = of_seeds((w.get("of_the_second") for w in of_way), 2)
                shares.append([name, way, of_seeds((w["kept"] for w in of_way), 2), *news, again])
        costs.append([name, seeds[0]["parameters"], *cells])
        found = [[seed["far"][stretch] for seed in seeds] for stretch in stretches]
        both = [(of_seeds((s["top1"] for s in some), 1), of_seeds((s["kept"] for s in some), 2)) for some in found]
        far.append([name, *(" / ".join(filter(None, pair)) for pair in both)])
    edges = [f"{low:g} to {high:g}" for low, high in pairwise((*NEW, 1.0))]
    heading: list[object] = ["router", "glimpses", "kept", "nothing new", *edges, "shown again"]
    return "\n\n".join(
        [
            markdown(f"Top-1 (%) after {TOTAL} glimpses / thousand multiply-adds a glimpse, {BATCH} images at a time / "
                     "one at a time:", ["model", "parameters", *ways], costs),
            markdown("Share of the glimpses that is kept, by the share of their pixels that is new:", heading, shares),
            *([markdown("Top-1 (%) at the end of a stretch of random glimpses / share of it that is kept:",
                        ["model", *stretches], far)] if stretches else []),
        ]
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="NAME=CHECKPOINT")
    parser.add_argument("--output", type=Path, default=Path("kept"), help="stem of the JSON and the PNG")
    parser.add_argument("--data_dir", type=Path, default=Path("data"), help="where the embedded digits are")
    parser.add_argument("--side", type=int, default=64, help="canvas side, pixels")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS, help="ways of looking (default: all)")
    parser.add_argument("--draw", action="store_true", help="print the tables of OUTPUT.json alone")
    args = parser.parse_args()
    found = args.output.with_suffix(".json")
    report: dict[str, Any] = {"models": [], "side": args.side, "measured": {}}
    if found.exists():
        report = json.loads(found.read_text())
    elif args.draw or not args.models:
        parser.error(f"there is nothing in {found}: give models, as NAME=CHECKPOINT")
    if args.draw or not args.models:
        print(tables(report["measured"]))
        return
    known = [seed["ways"].keys() for seeds in report["measured"].values() for seed in seeds]
    if report["side"] != args.side or any(ways != set(args.ways) for ways in known):
        parser.error(f"{found} is of another side, or of other ways: give another --output")
    torch.set_num_threads(1)
    digits = args.data_dir / "digits"
    ensure_digits(digits)
    images = load_images(digits / "val")
    models: dict[str, Model] = {}
    for name, _, path in (given.partition("=") for given in args.models):
        try:
            model = load(path).eval()
        except InputError as error:
            parser.error(str(error))
        if not isinstance(model, Model):
            parser.error(f"{path} is of {type(model).__name__}: give checkpoints of HNet or MambaEye")
        report["measured"].setdefault(name, []).append(measure(model, images, args.side, args.ways))
        models.setdefault(name, model)
    report["models"] += args.models
    with atomic_write(found) as partial:
        partial.write_text(json.dumps(report, indent=1) + "\n")
    routed = {name: model for name, model in models.items() if isinstance(model, HNet)}
    if routed and DRAWN & {*args.ways}:
        save(draw(routed, images[:SHOWN], args.side, args.ways), args.output.with_suffix(".png"))
    print(tables(report["measured"]))


if __name__ == "__main__":
    main()
