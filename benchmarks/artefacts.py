"""Look for artefacts: tokens whose features are far longer than the others', and what the model is without them.

    python -m benchmarks.artefacts [--output docs/results/artefacts] vim=runs/vim/checkpoints/last.ckpt mamba_r=...

Vim, Mamba-R and MambaEye, from checkpoints by name, on the first --images of a folder of --shards (by default, on all
embedded digits held out for validation); MambaEye takes as many random glimpses as --num_glimpses. A token is a patch
or a glimpse; class tokens and registers are left out. For each model and canvas side:

- outlying: share of tokens whose norm is over three times the layer's median, after each block, in %, as Darcet et al.
  2024 cut DINOv2's; p99: the norm that one token in a hundred has over the median; blank: share of tokens that show no
  more than a flat patch, and of the tenth with the highest norms after the last block.
- top1: with all tokens, and without a tenth of them from the start: those of the highest norm after the last block, of
  the lowest, and drawn (the mean of five draws), in %.
- parameters, operations of a training step of one image, and CPU milliseconds an image in inference.

Writes OUTPUT.json and OUTPUT.png, which shows the norms after the last block over the image, and prints Markdown.
"""

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from time import process_time
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from benchmarks.markdown import markdown
from benchmarks.orders import Image, load_images
from callbacks.plots.panels import save
from datamodules.digits import ensure_digits
from datamodules.transforms.images import decode_image, fit_on_canvas
from mambaeye.batch import CanvasBatch, GlimpseBatch, Scene
from mambaeye.encoders.mamba_r import MambaR
from mambaeye.encoders.mambaeye import MambaEye
from mambaeye.encoders.vim import Vim
from mambaeye.flops import training_flops
from mambaeye.geometry.patches import cut_from_canvases
from mambaeye.geometry.scans import random
from mambaeye.ops.dense import resized, take_out
from mambaeye.ops.features import on_canvas, recorded
from mambaeye.weights import load

Looker = MambaEye | MambaR | Vim
SEED, BATCH, DRAWS = 0, 64, 5
OUTLYING = 3.0  # times the median
DROPPED = 0.1  # of the tokens
FLAT = 0.05  # standard deviation of a patch's pixels in [0, 1]
SHOWN = 5  # images of the picture
TOP1 = ("top1", "without the highest", "without drawn", "without the lowest")


class Views(NamedTuple):
    """Images at one size, as a model takes them."""

    canvases: Tensor
    """(N, H, W, 3) uint8."""
    positions: Tensor
    """(N, T, 2): first pixels of the tokens' patches."""
    patches: Tensor
    """(N, T, 3, P, P) uint8."""
    labels: Tensor
    """(N,)."""

    def flat(self) -> Tensor:
        """Tell which patches show nothing: (N, T) bool."""
        return (self.patches.flatten(2).float() / 255).std(-1) < FLAT


class Seen(NamedTuple):
    """A model's tokens and answers for some images."""

    norms: Tensor
    """(N, layers, T), after each block."""
    right: Tensor
    """(N,) bool."""


def views_of(encoder: Looker, images: list[Image], side: int, num_glimpses: int) -> Views:
    """Fit images on canvases of a side, and cut the patches of the grid, or random glimpses."""
    fitted = [fit_on_canvas(decode_image(data, "an image"), side) for data, _ in images]
    canvases = torch.from_numpy(np.stack([canvas for canvas, _ in fitted]))
    if isinstance(encoder, MambaEye):
        patch = encoder.patch_size
        walks = [
            random(box, patch, num_glimpses, np.random.default_rng((SEED, side, number)))
            for number, (_, box) in enumerate(fitted)
        ]
        positions = torch.from_numpy(np.stack(walks).astype(np.int64))
    else:
        patch = encoder.patch
        assert side % patch == 0, f"{side} pixels are no grid of patches of {patch}"
        places = torch.arange(0, side, patch)
        positions = torch.cartesian_prod(places, places).expand(len(images), -1, -1)
    labels = torch.tensor([label for _, label in images])
    return Views(canvases, positions, cut_from_canvases(canvases, positions, patch), labels)


def token_norms(encoder: Looker, streams: list[Tensor], tokens: int) -> Tensor:
    """Return the norms (B, layers, T) of what was recorded behind the blocks, extra tokens left out."""
    places = encoder.extra_places(tokens)
    return torch.stack([take_out(stream, places)[0].norm(dim=-1) for stream in streams], dim=1)


@contextmanager
def patches_alone(encoder: MambaR | Vim, kept: Tensor) -> Iterator[None]:
    """Let an encoder see these patches alone, kept (B, T) in increasing order, with the positions that they have."""
    assert not isinstance(encoder, Vim) or (encoder.directions <= 2 and encoder.order == "raster")  # one row will do
    table = encoder.positions

    def select(module: nn.Module, inputs: Any, patches: Tensor) -> Tensor:
        x = (patches + resized(table, *patches.shape[1:3])).flatten(1, 2)
        return x.gather(1, kept.unsqueeze(-1).expand(-1, -1, x.shape[-1])).unsqueeze(1)  # a grid of one row

    hook = encoder.patch_embed.register_forward_hook(select)
    encoder.positions = nn.Parameter(torch.zeros_like(table))
    try:
        yield
    finally:
        hook.remove()
        encoder.positions = table


@torch.no_grad()
def see(encoder: Looker, views: Views, kept: Tensor | None = None) -> Seen:
    """Run a model over all images, with all tokens or with those kept (N, T), in increasing order."""
    norms, right = [], []
    for rows in torch.arange(len(views.labels)).split(BATCH):
        some = Views(*(part[rows] for part in views))
        keep = torch.arange(views.positions.shape[1]).expand(len(rows), -1) if kept is None else kept[rows]
        with recorded(encoder.feature_modules()[0]) as streams:
            if isinstance(encoder, MambaEye):
                image = torch.arange(len(rows)).unsqueeze(1)
                logits = encoder(some.patches[image, keep], some.positions[image, keep])[:, -1]
            else:
                with nullcontext() if kept is None else patches_alone(encoder, keep):
                    logits = encoder(some.canvases)
        norms.append(token_norms(encoder, streams, keep.shape[1]))
        right.append(logits.argmax(-1) == some.labels)
    return Seen(torch.cat(norms), torch.cat(right))


def without_each(scores: Tensor) -> Tensor:
    """Return the tokens, increasing, that are left without the tenth with the highest scores: (N, T) -> (N, kept)."""
    dropped = max(1, round(DROPPED * scores.shape[1]))
    return scores.argsort(dim=1)[:, : scores.shape[1] - dropped].sort(dim=1).values


def percent(values: Tensor) -> float:
    """Return a mean in %, to a digit."""
    return round(100 * float(values.float().mean()), 1)


def measure(encoder: Looker, views: Views) -> dict[str, Any]:
    """Return what the module's docstring lists."""
    see(encoder, Views(*(part[:BATCH] for part in views)))  # warm
    start = process_time()
    seen = see(encoder, views)
    seconds = process_time() - start
    median = seen.norms.transpose(0, 1).flatten(1).median(dim=1).values  # (layers,)
    relative = seen.norms / median[:, None]
    last, flat = seen.norms[:, -1], views.flat()
    top = last.argsort(dim=1)[:, -max(1, round(DROPPED * last.shape[1])) :]
    draw = torch.Generator().manual_seed(SEED)
    drawn = [see(encoder, views, without_each(torch.rand(last.shape, generator=draw))).right for _ in range(DRAWS)]
    return {
        "outlying": [percent(layer > OUTLYING) for layer in relative.unbind(1)],
        "p99": [round(layer.quantile(0.99).item(), 2) for layer in relative.transpose(0, 1).flatten(1)],
        "blank": percent(flat),
        "blank of the tenth": percent(flat.gather(1, top)),
        "top1": percent(seen.right),
        "without the highest": percent(see(encoder, views, without_each(last)).right),
        "without the lowest": percent(see(encoder, views, without_each(-last)).right),
        "without drawn": percent(torch.cat(drawn)),
        "parameters": sum(parameter.numel() for parameter in encoder.parameters()),
        "training_flops": training_flops(encoder, batch_of(encoder, views)),
        "milliseconds": round(1e3 * seconds / len(views.labels), 2),
    }


def batch_of(encoder: Looker, views: Views) -> GlimpseBatch | CanvasBatch:
    """Return a training batch of the first image, of which only shapes count."""
    one = Views(*(part[:1] for part in views))
    ratio = torch.ones(one.positions.shape[:2])
    rest = (ratio, one.labels, one.labels, torch.ones(1), [""], torch.ones(1, dtype=torch.bool))
    if isinstance(encoder, MambaEye):
        return GlimpseBatch(one.patches, one.positions, *rest)
    boxes = torch.tensor([[0, 0, *one.canvases.shape[1:3]]], dtype=torch.int32)
    return CanvasBatch(Scene(one.canvases, boxes, one.positions, one.labels, one.labels > 0), *rest, condition=0)


def painted(views: Views, norms: Tensor, number: int) -> np.ndarray:
    """Return an image's map of norms: where patches overlap, their mean; (H, W), nan where there is none."""
    canvas = (views.canvases.shape[1], views.canvases.shape[2])
    values, positions = norms[number][None, :, None], views.positions[number][None]
    (plane,), weights = on_canvas(values, positions, views.patches.shape[-1], canvas)
    shown: np.ndarray = plane[0].where(weights[0] > 0, torch.nan).numpy()
    return shown


def draw(encoders: dict[str, Looker], images: list[Image], side: int, num_glimpses: int) -> Figure:
    """Draw some images, and beside each the norms after the last block of every model, over their median."""
    figure = Figure(figsize=(1.7 * (1 + len(encoders)) + 0.8, 1.6 * SHOWN + 0.3), layout="constrained")
    panels = figure.subplots(SHOWN, 1 + len(encoders), squeeze=False)
    for column, (name, encoder) in enumerate(encoders.items(), start=1):
        views = views_of(encoder, images, side, num_glimpses)
        last = see(encoder, views).norms[:, -1]
        for row in range(SHOWN):
            shown = panels[row, column].imshow(painted(views, last / last.median(), row), vmin=0.5, vmax=1.5)
            panels[row, 0].imshow(views.canvases[row].numpy())
        panels[0, column].set_title(name, fontsize=9)
    panels[0, 0].set_title(f"{side} px", fontsize=9)
    for axes in panels.ravel():
        axes.set_axis_off()
    figure.colorbar(shown, ax=panels, shrink=0.5, extend="both", label="norm / median, after the last block")
    return figure


def tables(measured: list[dict[str, Any]]) -> str:
    """Format everything measured as Markdown."""
    depth = max(len(m["outlying"]) for m in measured)
    layers: list[list[object]] = []
    rows: list[list[object]] = []
    for m in measured:
        of_blocks = [f"{share} / {high}" for share, high in zip(m["outlying"], m["p99"], strict=True)]
        layers.append([m["side"], m["model"], *of_blocks, *[""] * (depth - len(of_blocks))])
        costs = (m["parameters"], round(m["training_flops"] / 1e6), m["milliseconds"])
        rows.append([m["side"], m["model"], *(m[key] for key in TOP1), m["blank"], m["blank of the tenth"], *costs])
    blocks: list[object] = [f"block {block + 1}" for block in range(depth)]
    named: list[object] = ["blank, %", "of the tenth, %", "parameters", "MFLOPs of training", "ms"]
    first = "Outlying tokens (%) / the 99th percentile of norms over the median, after each block:"
    second = (
        "Top-1 (%) with all tokens and without a tenth of them; blank patches, and those of the highest tenth; costs:"
    )
    one = markdown(first, ["side", "model", *blocks], layers)
    return f"{one}\n\n{markdown(second, ['side', 'model', *TOP1, *named], rows)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="NAME=CHECKPOINT")
    parser.add_argument("--output", type=Path, default=Path("artefacts"), help="stem of the JSON and the PNG")
    parser.add_argument("--shards", type=Path, help="a folder of shards with their index (default: the digits)")
    parser.add_argument("--images", type=int, help="so many at most")
    parser.add_argument("--data_dir", type=Path, default=Path("data"), help="where the embedded digits are")
    parser.add_argument("--sides", type=int, nargs="+", default=[64], help="canvas sides, pixels")
    parser.add_argument("--num_glimpses", type=int, default=64, help="glimpses an image")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.shards is None:
        ensure_digits(args.data_dir / "digits")
    images = load_images(args.shards or args.data_dir / "digits/val", args.images)
    encoders: dict[str, Looker] = {}
    for name, _, path in (given.partition("=") for given in args.models):
        encoder = load(path).eval()
        assert isinstance(encoder, Looker), f"{name} is none of {Looker}"
        encoders[name] = encoder
    measured = [
        {"side": side, "model": name, **measure(encoder, views_of(encoder, images, side, args.num_glimpses))}
        for side in args.sides
        for name, encoder in encoders.items()
    ]
    args.output.with_suffix(".json").write_text(
        json.dumps({"models": args.models, "measured": measured}, indent=1) + "\n"
    )
    save(draw(encoders, images[:SHOWN], args.sides[0], args.num_glimpses), args.output.with_suffix(".png"))
    print(tables(measured))


if __name__ == "__main__":
    main()
