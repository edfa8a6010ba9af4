"""Measure the loss from features in pieces against the dense-target form: time and memory, forward and backward.

    python -m benchmarks.loss

B 8, T 1024, 1000 classes, 256 features. The dense form makes logits (B, T, C) and targets (B, T, C) and calls torch's
cross_entropy; the plain form makes the logits alone. Times are medians of interleaved rounds in one process; memory is
each form's own peak in a process of its own, less what was held before it began. Prints JSON.
"""

import argparse
import json
import multiprocessing
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.encoder import interleaved, memory
from mambaeye.loss import scheduled_cross_entropy, scheduled_cross_entropy_of_features

FORMS = ("dense", "plain", "pieces")


def loss(form: str, head: nn.Linear, features: Tensor, labels: Tensor, ratio: Tensor) -> Tensor:
    if form == "pieces":
        return scheduled_cross_entropy_of_features(features, head, labels, ratio)
    logits = head(features)
    if form == "plain":
        return scheduled_cross_entropy(logits, labels, ratio)
    classes = logits.shape[-1]
    target = (1 - ratio).unsqueeze(-1).expand(-1, -1, classes) / classes  # (B, T, C)
    target = target.scatter_add(2, labels[:, None, None].expand(-1, ratio.shape[1], 1), ratio.unsqueeze(-1))
    return F.cross_entropy(logits.flatten(0, 1), target.flatten(0, 1))


def gradients(form: str, head: nn.Linear, features: Tensor, labels: Tensor, ratio: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss(form, head, features, labels, ratio), [features, *head.parameters()])


def case(batch: int, length: int, classes: int, device: str) -> tuple[nn.Linear, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    head = nn.Linear(256, classes).to(device)
    features = torch.randn(batch, length, 256, device=device, requires_grad=True)
    return head, features, torch.randint(classes, (batch,), device=device), torch.rand(batch, length, device=device)


def extra_mib(form: str, batch: int, length: int, classes: int, device: str) -> float:
    gradients(form, *case(1, 2, classes, device))  # libraries allocate on first use
    data = case(batch, length, classes, device)
    before = memory(device, reset=True)
    gradients(form, *data)
    return memory(device) - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    sizes = (8, 1024, 1000, arguments.device)
    values = [loss(form, *case(*sizes)).item() for form in FORMS]
    times = interleaved({form: partial(gradients, form, *case(*sizes)) for form in FORMS}, arguments.rounds, sizes[-1])
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        extra = {form: pool.apply(extra_mib, (form, *sizes)) for form in FORMS}
    results = {"values": values, "milliseconds": times, "extra_mib": extra}
    results["time, pieces / dense"] = times["pieces"] / times["dense"]
    results["memory, pieces / dense"] = extra["pieces"] / extra["dense"]
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
