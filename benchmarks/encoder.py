"""Measure the encoder's speed and memory in every mode, beside what one would pick instead.

    python -m benchmarks.encoder [--output docs/encoder] [--device cuda]

Four measurements, written to OUTPUT.json and drawn to OUTPUT.png:

- peers: forward, and forward with backward, of B sequences of T 512, interleaved in one process: the encoder, its dense
  projections by themselves (the floor), the transformers library's Mamba2 on a CPU (the extra "benchmarks") or a
  stack of mamba_ssm.Mamba2 on a GPU. Medians, and their ratios.
- lengths: for T from 64 to 8192 the whole sequence, chunks of 256 and glimpse by glimpse, and the same for a ViT of the
  same width and depth, and what it takes more for gradients.
- flat: the second kind of chunk and step against the first, interleaved: chunks of 256 at T 8192 against T 1024, step
  8000 against step 10; and the bytes of the state.
- cuda_graph (GPU): one glimpse of the base size, captured as a graph.

Peak memory is the process's own on a CPU (a fresh process a case, less what it held before the case began), and what
torch had allocated on a GPU.
"""

import argparse
import json
import multiprocessing
import platform
import re
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.progress import track
from torch import Tensor

from benchmarks.peers import Projections, mamba_ssm_stack, transformers_mamba2, vit
from mambaeye.encoders.mambaeye import EncoderConfig, EncoderState, MambaEye

CHUNK = 256
LENGTH = 512  # of the comparison with peers
LENGTHS = [64 << k for k in range(8)]
CASES = ("whole", "whole, with gradients", "chunks of 256", "glimpse by glimpse", "ViT", "ViT, with gradients")
Call = Callable[[], object]


def glimpses(batch: int, length: int, device: str) -> tuple[Tensor, Tensor]:
    """Draw random patches (B, T, 3, 16, 16) uint8 and positions (B, T, 2)."""
    patches = torch.randint(256, (batch, length, 3, 16, 16), dtype=torch.uint8, device=device)
    return patches, torch.randint(1000, (batch, length, 2), device=device)


def forward(model: Any, patches: Tensor, positions: Tensor) -> None:
    with torch.no_grad():
        model.features(patches, positions)


def forward_and_backward(model: Any, patches: Tensor, positions: Tensor) -> None:
    """Compute the gradients of every parameter that the features depend on; nothing is accumulated."""
    outputs = model.features(patches, positions)
    outputs = outputs if isinstance(outputs, list) else [outputs]
    torch.autograd.grad(outputs, list(model.parameters()), [torch.ones_like(t) for t in outputs], allow_unused=True)


@torch.no_grad()
def stream(model: MambaEye, patches: Tensor, positions: Tensor, chunk: int) -> EncoderState:
    """Take the sequence in chunks, drop the logits of each, and return the last state."""
    state = model.initial_state(len(patches))
    for first in range(0, patches.shape[1], chunk):
        some = slice(first, first + chunk)
        _, state = model.stream(patches[:, some], positions[:, some], state)
    return state


def seconds(call: Call, device: str) -> float:
    synchronize(device)
    start = perf_counter()
    call()
    synchronize(device)
    return perf_counter() - start


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def interleaved(calls: dict[str, Call], rounds: int, device: str) -> dict[str, float]:
    """Return the median milliseconds of every call, all of them made once a round."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()  # warm
    for _ in track(range(rounds), description=", ".join(calls)):
        for name, call in calls.items():
            times[name].append(1e3 * seconds(call, device))
    return {name: median(values) for name, values in times.items()}


def peers(config: EncoderConfig, batch: int, rounds: int, device: str) -> dict[str, Any]:
    """Return milliseconds by model, and the ratios that docs/benchmarks.md quotes.

    Without the package that the other model comes from, the encoder is compared with its projections alone.
    """
    models = {"encoder": MambaEye(config), "projections": Projections(config, batch, LENGTH)}
    other, extra, build = ("transformers", "benchmarks", transformers_mamba2)
    if device == "cuda":
        other, extra, build = ("mamba_ssm", "cuda", mamba_ssm_stack)
    if find_spec(other):
        models[other] = build(config)
    else:
        print(f"{other} is not installed and left out: python -m pip install -e '.[{extra}]' brings it")
    data = glimpses(batch, LENGTH, device)
    calls = {}
    for name, model in models.items():
        model.to(device)
        calls[f"{name} forward"] = partial(forward, model, *data)
        calls[f"{name} both"] = partial(forward_and_backward, model, *data)
    times = interleaved(calls, rounds, device)
    compared = [("encoder", "projections")] + [(other, "encoder")] * (other in models)
    ratios = {
        f"{one} / {another}, {what}": times[f"{one} {what}"] / times[f"{another} {what}"]
        for one, another in compared
        for what in ("forward", "both")
    }
    return {"batch": batch, "length": LENGTH, "milliseconds": times, "ratios": ratios}


def measure(case: str, config: EncoderConfig, batch: int, length: int, device: str, threads: int) -> dict[str, Any]:
    """Measure one case at one length: median milliseconds of three, and peak MiB above what was there before."""
    torch.set_num_threads(threads)
    model = (vit if case.startswith("ViT") else MambaEye)(config).to(device)
    data, short = glimpses(batch, length, device), glimpses(batch, 2, device)
    if case == "glimpse by glimpse":
        work = partial(stream, model, chunk=1)
    elif case == "chunks of 256":
        work = partial(stream, model, chunk=CHUNK)
    else:
        work = partial(forward_and_backward if case.endswith("gradients") else forward, model)
    work(*short)  # libraries allocate on first use
    before = memory(device, reset=True)
    times = [seconds(lambda: work(*data), device) for _ in range(3)]
    peak = memory(device)
    milliseconds = 1e3 * median(times)
    return {
        "case": case,
        "length": length,
        "milliseconds": milliseconds,
        "glimpses_per_second": batch * length / milliseconds * 1e3,
        "peak_mib": peak - before,
    }


def memory(device: str, reset: bool = False) -> float:
    """Return the peak MiB so far; with reset, the peak begins anew at what is held now."""
    if device == "cuda":
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated() / 2**20
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    return int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 2**10


def lengths(config: EncoderConfig, batch: int, device: str, longest: int) -> list[dict[str, Any]]:
    """Measure every case at every length; on a CPU, in a process of its own."""
    threads = torch.get_num_threads()
    jobs = [(case, config, batch, length, device, threads) for case in CASES for length in LENGTHS if length <= longest]
    if device == "cuda":
        return [measure(*job) for job in track(jobs, description="lengths")]
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        return [pool.apply(measure, job) for job in track(jobs, description="lengths")]


@torch.no_grad()
def flat(config: EncoderConfig, batch: int, rounds: int, device: str) -> dict[str, float]:
    """Measure what should not depend on how much was seen: the time per glimpse, and the state's bytes."""
    model = MambaEye(config).to(device)
    data = glimpses(batch, 8192, device)
    beginning = tuple(t[:, :1024] for t in data)
    times = interleaved(
        {
            "chunks, T 1024": lambda: [stream(model, *beginning, CHUNK) for _ in range(8)],
            "chunks, T 8192": lambda: stream(model, *data, CHUNK),
        },
        max(3, rounds // 3),
        device,
    )
    young, old = (stream(model, *(t[:, :seen] for t in data), CHUNK) for seen in (10, 8000))
    glimpse = tuple(t[:, :1] for t in data)
    steps = {"step 10": partial(model.stream, *glimpse, young), "step 8000": partial(model.stream, *glimpse, old)}
    times |= interleaved(steps, 100 * rounds, device)
    return {
        **{f"{name}, milliseconds": value for name, value in times.items()},
        "chunks, T 8192 / T 1024, a glimpse": times["chunks, T 8192"] / times["chunks, T 1024"],
        "step 8000 / step 10": times["step 8000"] / times["step 10"],
        "state bytes, step 10": state_bytes(young),
        "state bytes, step 8000": state_bytes(old),
    }


def state_bytes(state: EncoderState) -> int:
    return sum(part.numel() * part.element_size() for part in state)


@torch.no_grad()
def cuda_graph(batch: int = 1) -> dict[str, float]:
    """Return milliseconds per glimpse of the base size, replayed as a CUDA graph and launched as usual."""
    model = MambaEye(EncoderConfig.named("base"), "cuda").cuda()
    patches, positions = glimpses(batch, 1, "cuda")
    state = model.initial_state(batch)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            model.stream(patches, positions, state)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        _, after = model.stream(patches, positions, state)
        for part, new in zip(state, after, strict=True):
            part.copy_(new)
    return {
        "graph": interleaved({"graph": graph.replay}, 200, "cuda")["graph"],
        "launched": interleaved({"launched": lambda: model.stream(patches, positions, state)}, 50, "cuda")["launched"],
    }


def draw(results: dict[str, Any], path: Path) -> None:
    """Draw time and peak memory against T, a line per case."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True)
    for axes, quantity, title in zip(panels, ("milliseconds", "peak_mib"), ("ms", "peak memory, MiB"), strict=True):
        for case in CASES:
            points = [(row["length"], row[quantity]) for row in results["lengths"] if row["case"] == case]
            color = "0.55" if case.startswith("ViT") else f"C{CASES.index(case)}"
            style = "--" if case.endswith("gradients") else "-"
            axes.loglog(*zip(*points, strict=True), style, color=color, marker="o", markersize=3.5, label=case)
        axes.set_title(f"{title}, a batch of {results['batch']}")
        axes.set_xlabel("glimpses (T)")
        ticks = sorted({row["length"] for row in results["lengths"]})
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.grid(color="0.92")
        axes.spines[["top", "right"]].set_visible(False)
    panels[1].legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("encoder"), help="stem of the JSON and the PNG")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--depth", type=int, default=4, help="layers")
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--longest", type=int, default=LENGTHS[-1], help="largest T")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", nargs="*", default=["peers", "flat", "lengths", "cuda_graph"])
    arguments = parser.parse_args()
    torch.manual_seed(0)
    config, batch, device = EncoderConfig(depth=arguments.depth), arguments.batch_size, arguments.device
    results: dict[str, Any] = {"torch": torch.__version__, "machine": platform.processor() or platform.machine()}
    results |= {"device": device, "threads": torch.get_num_threads(), "depth": arguments.depth, "batch": batch}
    if "peers" in arguments.only:
        results["peers"] = peers(config, batch, arguments.rounds, device)
    if "flat" in arguments.only:
        results["flat"] = flat(config, batch, arguments.rounds, device)
    if "cuda_graph" in arguments.only and device == "cuda":
        results["cuda_graph"] = cuda_graph()
    if "lengths" in arguments.only:
        results["lengths"] = lengths(config, batch, device, arguments.longest)
        draw(results, arguments.output.with_suffix(".png"))
    arguments.output.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps({key: value for key, value in results.items() if key != "lengths"}, indent=1))


if __name__ == "__main__":
    main()
