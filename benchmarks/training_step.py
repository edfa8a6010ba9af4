"""Measure a training step against the same stack built from mamba_ssm's own blocks with the dense loss, and ViT-small.

    python -m benchmarks.training_step [--output training_step.json]

Base size, 64 images of 1024 glimpses, 1000 classes, bf16-mixed, AdamW: forward, loss, backward and optimizer step, all
interleaved in one process. ViT-small, which has as many parameters as the base size, takes canvases: of 224 pixels, and
of as many patches as there are glimpses. JSON: milliseconds, images a second, the most memory allocated, the ratios,
and the share of the device's matrix products that the operations of a step come to (benchmarks/ceilings.py's bf16).
Without a GPU the peer is the transformers library's Mamba2 (left out if it is not installed), memory is left out, and
smaller sizes are wise:

    python -m benchmarks.training_step --size tiny --batch_size 2 --num_glimpses 128
"""

import argparse
import json
import math
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.ceilings import ceilings
from benchmarks.encoder import glimpses, interleaved, memory
from benchmarks.loss import loss
from benchmarks.peers import mamba_ssm_stack, transformers_mamba2
from benchmarks.sizes import batch_of, build
from mambaeye.encoders.mambaeye import DEPTHS, EncoderConfig, MambaEye
from mambaeye.flops import training_flops
from mambaeye.loss import scheduled_cross_entropy_of_features
from mambaeye.optim import OptimizerConfig

VIT, SIDE = "vit_small", 224


class Step:
    """One of the two compared: a stack, its head, its form of the loss and its optimizer."""

    def __init__(self, stack: Any, config: EncoderConfig, form: str, device: str) -> None:
        self.stack, self.form, self.device = stack.to(device), form, device
        self.head = nn.Linear(config.dim, config.num_classes, device=device)
        parameters = [*self.stack.parameters(), *self.head.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, OptimizerConfig.lr, weight_decay=OptimizerConfig.weight_decay)

    def __call__(self, patches: Tensor, positions: Tensor, labels: Tensor, ratio: Tensor) -> None:
        with torch.autocast(self.device, torch.bfloat16):
            features = self.stack.features(patches, positions)
            value = loss(self.form, self.head, features, labels, ratio)
        value.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def canvas_step(side: int, images: int, device: str) -> Callable[[], None]:
    """Return a training step of ViT-small on canvases of a side."""
    encoder, batch = build(VIT).to(device), batch_of(build(VIT), side, images, device)
    optimizer = torch.optim.AdamW(encoder.parameters(), OptimizerConfig.lr, weight_decay=OptimizerConfig.weight_decay)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16):
            features = encoder.encode(batch)
            value = scheduled_cross_entropy_of_features(features, encoder.head, batch.labels, batch.information_ratio)
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", choices=list(DEPTHS), default="base")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--num_glimpses", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--output", type=Path, help="file for the JSON, which is also printed")
    given = parser.parse_args()
    torch.manual_seed(0)
    device, images, config = given.device, given.batch_size, EncoderConfig.named(given.size)
    labels = torch.randint(config.num_classes, (images,), device=device)
    ratio = torch.rand(images, given.num_glimpses, device=device).sort(1).values
    data = (*glimpses(images, given.num_glimpses, device), labels, ratio)
    other = "mamba_ssm" if device == "cuda" else "transformers"
    peer = mamba_ssm_stack if device == "cuda" else transformers_mamba2
    steps: dict[str, Callable[[], None]] = {
        "mambaeye": partial(Step(MambaEye(config), config, "pieces", device), *data)
    }
    if find_spec(other):
        steps[other] = partial(Step(peer(config), config, "dense", device), *data)
    equal = build(VIT).patch * math.isqrt(given.num_glimpses)
    for side in sorted({SIDE, equal}):
        steps[f"{VIT}, {side} pixels"] = canvas_step(side, images, device)
    times = interleaved(steps, given.rounds, device)
    operations = images * training_flops(
        MambaEye(config, "torch"), batch_of(MambaEye(config), given.num_glimpses, 1, "cpu")
    )
    results: dict[str, Any] = {
        "size": given.size,
        "batch": images,
        "num_glimpses": given.num_glimpses,
        "milliseconds": times,
        "images_per_second": {name: 1e3 * images / time for name, time in times.items()},
        "milliseconds, mambaeye / another": {name: times["mambaeye"] / time for name, time in times.items()},
        "gflops of a step": operations / 1e9,
        "share of the matrix products' rate": operations / times["mambaeye"] / 1e9 / ceilings(device)["bf16_tflops"],
    }
    if device == "cuda":
        peaks = {}
        for name, step in steps.items():
            before = memory(device, reset=True)
            step()
            peaks[name] = memory(device) - before
        results["extra_peak_mib"] = peaks
        results["memory, mambaeye / another"] = {name: peaks["mambaeye"] / peak for name, peak in peaks.items()}
    text = json.dumps(results, indent=1)
    print(text)
    if given.output:
        given.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
