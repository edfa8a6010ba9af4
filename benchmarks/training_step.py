"""Measure a training step against the same stack built from mamba_ssm's own blocks with the dense loss.

    python -m benchmarks.training_step

Base size, 64 images of 1024 glimpses, 1000 classes, bf16-mixed, AdamW: forward, loss, backward and optimizer step, both
sides interleaved in one process. Prints JSON: milliseconds, images a second, the most memory allocated, and the ratios.
Without a GPU the peer is the transformers library's Mamba2, memory is left out, and smaller sizes are wise:

    python -m benchmarks.training_step --size tiny --batch_size 2 --num_glimpses 128
"""

import argparse
import json
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.encoder import glimpses, interleaved, memory
from benchmarks.loss import loss
from benchmarks.peers import mamba_ssm_stack, transformers_mamba2
from mambaeye.encoders.mambaeye import DEPTHS, EncoderConfig, MambaEye
from mambaeye.optim import OptimizerConfig


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", choices=list(DEPTHS), default="base")
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--num_glimpses", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=10)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    device, config = arguments.device, EncoderConfig.named(arguments.size)
    labels = torch.randint(config.num_classes, (arguments.batch_size,), device=device)
    ratio = torch.rand(arguments.batch_size, arguments.num_glimpses, device=device).sort(1).values
    data = (*glimpses(arguments.batch_size, arguments.num_glimpses, device), labels, ratio)
    other = "mamba_ssm" if device == "cuda" else "transformers"
    peer = mamba_ssm_stack if device == "cuda" else transformers_mamba2
    steps = {
        "mambaeye": Step(MambaEye(config), config, "pieces", device),
        other: Step(peer(config), config, "dense", device),
    }
    times = interleaved({name: partial(step, *data) for name, step in steps.items()}, arguments.rounds, device)
    results: dict[str, Any] = {
        "size": arguments.size,
        "batch": arguments.batch_size,
        "num_glimpses": arguments.num_glimpses,
    }
    results |= {"milliseconds": times, "images_per_second": {k: 1e3 * len(labels) / v for k, v in times.items()}}
    results[f"images a second, mambaeye / {other}"] = times[other] / times["mambaeye"]
    if device == "cuda":
        peaks = {}
        for name, step in steps.items():
            before = memory(device, reset=True)
            step(*data)
            peaks[name] = memory(device) - before
        results["extra_peak_mib"] = peaks
        results[f"memory, mambaeye / {other}"] = peaks["mambaeye"] / peaks[other]
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
