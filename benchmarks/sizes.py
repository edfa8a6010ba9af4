"""Measure what the field's encoders cost by the size of the image: images a second and peak memory.

    python -m benchmarks.sizes [--output docs/results/sizes] [--models vit_tiny vim_tiny,directions=4]
    python -m benchmarks.sizes --device cuda --precision bf16 --images 8 --output docs/results/sizes_gpu

Models are named as their overlays in configs/encoders, with random weights; arguments of their own follow after commas.
One that takes canvases is measured at every side; one that takes glimpses costs the same on any canvas, and is measured
at every number of glimpses. Inference takes glimpses in chunks of 256 with carried state, as validation does; training
is a forward and a backward pass of the loss of all answers, without an optimizer.

On a CPU every cell is a process of its own, with one thread. Seconds are its CPU time, so that others on the machine
disturb them less, the least of up to three runs after one at the smallest size; on a GPU, the clock's. Memory is the
highest that the process held (on a GPU, that torch had allocated) less what it held before the model was built. Cells
that would take longer or more memory than the limits, judged by the next smaller one, are left out. bf16 is autocast's,
as in training.

Each cell is a line of OUTPUT.jsonl as soon as it is measured, and not measured again. Tables (Markdown, on the console)
and OUTPUT.png are made of that file; --draw does nothing else.
"""

import argparse
import json
import multiprocessing
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch
import yaml
from matplotlib import colormaps
from matplotlib.figure import Figure

from benchmarks.encoder import glimpses, memory, stream, synchronize
from benchmarks.markdown import markdown
from benchmarks.results import machine
from callbacks.plots.panels import save
from mambaeye.batch import CanvasBatch, GlimpseBatch, Scene
from mambaeye.encoders.base import CausalEncoder, Encoder
from mambaeye.encoders.mambaeye import MambaEye
from mambaeye.flops import training_flops
from mambaeye.loss import scheduled_cross_entropy_of_features

ROOT = Path(__file__).parents[1]
TITLES = {
    "vit_tiny": "ViT-tiny",
    "vit_small": "ViT-small",
    "vim_tiny": "Vim-tiny",
    "vim_small": "Vim-small",
    "tiny": "MambaEye-tiny",
    "small": "MambaEye-small",
    "mambar_tiny": "Mamba-R-tiny",
    "localvim_tiny": "LocalVim-tiny",
    "adventurer_tiny": "Adventurer-tiny",
    "himamba_style_tiny": "Hi-Mamba-style-tiny",
    "vmamba_tiny": "VMamba-tiny",
    "localvmamba_tiny": "LocalVMamba-tiny",
    "spatialmamba_tiny": "Spatial-Mamba-tiny",
    "efficientvim_m1": "EfficientViM-M1",
    "efficientvim_m4": "EfficientViM-M4",
}
MODELS = ("vit_tiny", "vit_small", "vim_tiny", "vim_small", "tiny", "small")
SIDES = (224, 384, 512, 768, 1024, 1536)
GLIMPSES = (256, 1024, 4096)
CHUNK = 256  # glimpses that validation takes at once
ROUNDS, LONG = 3, 4.0  # runs of a cell; one of so many seconds is the last
FLOAT32 = "float32"
MODES = ("inference", "training")
COUNTED = "operations"
Line = dict[str, Any]


def build(model: str) -> Encoder:
    """Build an encoder with random weights: the name of an overlay, and after commas arguments of its own."""
    name, *changes = model.split(",")
    described = yaml.safe_load((ROOT / f"configs/encoders/{name}.yaml").read_text())["model"]["encoder"]
    changed = {key: yaml.safe_load(value) for key, _, value in (change.partition("=") for change in changes)}
    (system,) = (c for c in Encoder.defined_subclasses() if c.__name__ == described["class_path"])
    torch.manual_seed(0)
    encoder: Encoder = system(**described["init_args"] | changed)
    return encoder


def batch_of(encoder: Encoder, size: int, images: int, device: str) -> GlimpseBatch | CanvasBatch:
    """Draw a training batch: size is the side of canvases, or the number of glimpses."""
    labels = torch.zeros(images, dtype=torch.long, device=device)
    ratio = torch.ones(images, size if isinstance(encoder, CausalEncoder) else 1, device=device)
    rest = (ratio, labels, labels, torch.ones(images), [""] * images, torch.ones(images, dtype=torch.bool))
    if isinstance(encoder, CausalEncoder):
        return GlimpseBatch(*glimpses(images, size, device), *rest)
    canvases = torch.randint(256, (images, size, size, 3), dtype=torch.uint8, device=device)
    boxes = torch.tensor([[0, 0, size, size]], dtype=torch.int32).expand(images, 4)
    return CanvasBatch(Scene(canvases, boxes, boxes[:, None, :2], labels, labels > 0), *rest, condition=0)


def work(encoder: Encoder, batch: GlimpseBatch | CanvasBatch, mode: str) -> None:
    """Run one pass of inference or training over a batch."""
    if mode == "training":
        encoder.zero_grad(set_to_none=True)
        features = encoder.encode(batch)
        scheduled_cross_entropy_of_features(features, encoder.head, batch.labels, batch.information_ratio).backward()
        return
    with torch.no_grad():
        if isinstance(encoder, MambaEye) and isinstance(batch, GlimpseBatch):
            stream(encoder, batch.patches, batch.positions, CHUNK)
        else:
            encoder.logits(encoder.encode(batch))


def measure(
    model: str, mode: str, size: int, images: int, device: str, precision: str = FLOAT32, rounds: int = ROUNDS
) -> Line:
    """Measure one cell in this process, on one thread: the line of the file, without what it cost to count."""
    torch.set_num_threads(1)
    held = memory(device, reset=True)
    encoder = build(model).to(device)
    smallest = (GLIMPSES if isinstance(encoder, CausalEncoder) else SIDES)[0]
    batch = batch_of(encoder, size, images, device)
    times: list[float] = []
    clock = process_time if device == "cpu" else perf_counter
    with torch.autocast(device, torch.bfloat16, enabled=precision != FLOAT32):
        work(encoder, batch_of(encoder, min(size, smallest), images, device), mode)  # libraries allocate on first use
        while len(times) < rounds and (not times or times[-1] < LONG):
            synchronize(device)
            start = clock()
            work(encoder, batch, mode)
            synchronize(device)
            times.append(clock() - start)
    return {
        **cell(encoder, model, mode, size, images, device, precision),
        "seconds": round(min(times), 4),
        "runs": len(times),
        "peak_mib": round(memory(device) - held, 1),
        "parameters": sum(parameter.numel() for parameter in encoder.parameters()),
        "machine": machine(),
        "torch": torch.__version__,
    }


def cell(encoder: Encoder, model: str, mode: str, size: int, images: int, device: str, precision: str) -> Line:
    """Return what tells a cell from others; lines of float32 do not name it."""
    told = {} if precision == FLOAT32 else {"precision": precision}
    return {"model": model, "mode": mode, kind_of(encoder): size, "images": images, "device": device, **told}


def operations(model: str, size: int) -> int:
    """Return the floating-point operations of a training step of one image.

    Counted of one and of two blocks, for all blocks cost the same.
    """
    depth = build(model).settings["depth"]
    one, two = (build(f"{model},depth={blocks}") for blocks in (1, 2))
    first, second = (training_flops(encoder, batch_of(encoder, size, 1, "cpu")) for encoder in (one, two))
    return first + (depth - 1) * (second - first)


def kind_of(encoder: Encoder) -> str:
    """Return what an encoder's cost grows with."""
    return "glimpses" if isinstance(encoder, CausalEncoder) else "side"


def sizes_of(encoder: Encoder) -> tuple[int, ...]:
    """Return the sizes that an encoder is measured at."""
    return GLIMPSES if isinstance(encoder, CausalEncoder) else SIDES


def read(path: Path) -> list[Line]:
    """Read the lines that there are."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def add(path: Path, line: Line) -> None:
    """Add a line to the file, and say it."""
    with path.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)


def fill(
    path: Path, models: list[str], images: int, device: str, precision: str, longest: float, most_mib: float
) -> None:
    """Measure what the file lacks, each model and mode from the smallest size up, as far as the limits allow."""
    context = multiprocessing.get_context("spawn")
    for model in models:
        encoder = build(model)
        for mode in MODES:
            before: Line | None = None
            for size in sizes_of(encoder):
                asked = cell(encoder, model, mode, size, images, device, precision)
                line = next((line for line in read(path) if asked.items() <= line.items()), None)
                if line is None and before is not None and beyond(before, size, longest, most_mib):
                    print(f"left out: {asked}", flush=True)
                    break
                if line is None:
                    settings = (model, mode, size, images, device, precision)
                    if device == "cpu":
                        with context.Pool(1) as pool:
                            line = pool.apply(measure, settings)
                    else:  # torch tells what it allocated, so no process of its own is needed
                        line = measure(*settings)
                    add(path, line)
                before = line


def beyond(before: Line, size: int, longest: float, most_mib: float) -> bool:
    """Tell whether a cell would go beyond the limits if it grew from the one before as its pixels or glimpses do."""
    grows = (size / size_in(before)) ** (1 if "glimpses" in before else 2)
    return bool(grows * before["seconds"] > longest or grows * before["peak_mib"] > most_mib)


def count(path: Path, models: list[str]) -> None:
    """Count the operations of what was measured, where the file lacks them: of those whose blocks are all alike."""
    for model in models:
        encoder = build(model)
        if "depth" not in encoder.settings:
            continue
        measured = {size_in(line) for line in read(path) if line["model"] == model}
        for size in sorted(measured):
            asked = {"model": model, "mode": COUNTED, kind_of(encoder): size}
            if not any(asked.items() <= line.items() for line in read(path)):
                add(path, asked | {"gflops": round(operations(model, size) / 1e9, 2)})


def size_in(line: Line) -> int:
    """Return the side of the canvas, or the number of glimpses, of a line."""
    size: int = line.get("side") or line["glimpses"]
    return size


def tables(lines: list[Line]) -> str:
    """Format the cells as Markdown: a table of inference, of training, and of operations."""
    titles = {
        "inference": "Inference, images a second / MiB, by canvas side (pixels):",
        "training": "Training, images a second / MiB:",
        COUNTED: "Operations of a training step of one image, GFLOPs:",
    }
    made = []
    for mode, title in titles.items():
        rows: list[list[object]] = []
        for name, cells in curves_of(lines, mode).items():
            shown = {size: value(line) for size, line in cells.items()}
            rows.append([name, *(shown.get(side, shown.get(None, "")) for side in SIDES)])
        if rows:
            made.append(markdown(title, ["model", *SIDES], rows))
    return "\n\n".join(made)


def value(line: Line) -> str:
    """Format a cell."""
    if line["mode"] == COUNTED:
        return f"{line['gflops']:.0f}"
    rate = line["images"] / line["seconds"]
    return f"{f'{rate:.3g}' if rate < 100 else f'{rate:,.0f}'} / {line['peak_mib']:.0f}"


def curves_of(lines: list[Line], mode: str) -> dict[str, dict[int | None, Line]]:
    """Return the cells of a mode by name and side; one of glimpses has a name for each number, and any side (None)."""
    curves: dict[str, dict[int | None, Line]] = {}
    for line in (line for line in lines if line["mode"] == mode):
        glimpses = line.get("glimpses")
        name = TITLES.get(line["model"], line["model"]) + (f", {glimpses} glimpses" if glimpses else "")
        curves.setdefault(name, {})[line.get("side")] = line
    return curves


def draw(lines: list[Line]) -> Figure:
    """Draw seconds and memory against the canvas side, a row of panels a mode; what takes glimpses is level.

    Models with arguments of their own are left to the tables.
    """
    lines = [line for line in lines if line["model"] in TITLES]
    figure = Figure(figsize=(10, 7), layout="constrained")
    grid = figure.subplots(2, 2, sharex=True)
    for mode, panels in zip(MODES, grid, strict=True):
        curves = curves_of(lines, mode)
        for axes, quantity, title in zip(panels, ("seconds", "peak_mib"), ("seconds", "peak memory, MiB"), strict=True):
            for number, (name, cells) in enumerate(curves.items()):
                level = None in cells
                values = [(side, cells[None if level else side][quantity]) for side in SIDES if level or side in cells]
                color = colormaps["tab20"](number)
                axes.loglog(*zip(*values, strict=True), ":" if level else "-o", color=color, markersize=3.5, label=name)
            axes.set_title(f"{mode}: {title}", fontsize=10)
            axes.set_xticks(SIDES, [*map(str, SIDES)])
            axes.minorticks_off()
            axes.grid(color="0.92")
            axes.spines[["top", "right"]].set_visible(False)
    for axes in grid[1]:
        axes.set_xlabel("canvas side, pixels")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=8)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("sizes"), help="stem of the JSON lines and the PNG")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--models", nargs="+", default=[*MODELS])
    parser.add_argument("--images", type=int, default=1, help="images at once")
    parser.add_argument("--precision", choices=[FLOAT32, "bf16"], default=FLOAT32)
    parser.add_argument("--longest", type=float, default=60, help="seconds that a cell may take")
    parser.add_argument("--most_mib", type=float, default=8000, help="memory that a cell may take")
    parser.add_argument(
        "--count", action=argparse.BooleanOptionalAction, default=True, help="operations, which takes minutes"
    )
    parser.add_argument("--draw", action="store_true", help="tables and picture of what there is")
    given = parser.parse_args()
    path = given.output.with_suffix(".jsonl")
    if not given.draw:
        limits = (given.longest, given.most_mib)
        fill(path, given.models, given.images, given.device, given.precision, *limits)
        if given.count:
            count(path, given.models)
    if lines := read(path):
        save(draw(lines), given.output.with_suffix(".png"))
        print(tables(lines))


if __name__ == "__main__":
    main()
