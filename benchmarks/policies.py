"""Measure what choosing glimpses costs beside taking them, on a CPU.

    OMP_NUM_THREADS=1 python -m benchmarks.policies [--rounds 15]

Prints JSON lines: for each case the median of the process's own CPU seconds for 64 glimpses of 64 images of 64 pixels,
by an encoder of the quickstart's sizes, and the median of its ratios to the first case in the same round. The cases
follow one another in every round, so that others on the machine disturb all of them alike. Weights are random: the cost
does not depend on them.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from time import process_time

import torch

from mambaeye.batch import Scene
from mambaeye.encoders.mambaeye import EncoderConfig, MambaEye
from mambaeye.policies.learned import LearnedScan
from mambaeye.rollout import Rollout

IMAGES, SIDE, GLIMPSES, CLASSES = 64, 64, 64, 10
QUICKSTART = EncoderConfig(num_classes=CLASSES, dim=96, depth=3, d_state=32, headdim=32)


def scene_of_noise() -> Scene:
    """Return images that fill their canvases, and a plan of uniform glimpses."""
    return Scene(
        canvases=torch.randint(256, (IMAGES, SIDE, SIDE, 3), dtype=torch.uint8),
        boxes=torch.tensor([[0, 0, SIDE, SIDE]], dtype=torch.int32).repeat(IMAGES, 1),
        positions=torch.randint(SIDE - 16 + 1, (IMAGES, GLIMPSES, 2), dtype=torch.int32),
        seeds=torch.arange(IMAGES),
        led=torch.ones(IMAGES, dtype=torch.bool),
    )


def policy_of(encoder: MambaEye, **settings: int) -> LearnedScan:
    """Return a policy for the encoder that never hands over before it is told to."""
    policy = LearnedScan(hand_over=-float("inf"), **settings)
    policy.suit(encoder.feature_dim, CLASSES, 2)
    return policy


def cases() -> dict[str, Callable[[], Rollout]]:
    """Return walks by name; the first is what the others are compared with."""
    encoder, scene, ratio = MambaEye(QUICKSTART).eval(), scene_of_noise(), torch.ones(64, 64)
    walk = partial(Rollout, encoder, scene)
    return {
        "plan, one chunk": partial(walk, None, ratio),
        "plan, glimpse by glimpse": partial(walk, None, ratio, at_once=1),
        "learned, as by default": partial(walk, policy_of(encoder)),
        "learned, 16 candidates": partial(walk, policy_of(encoder, candidates=16)),
        "learned, valued after every glimpse": partial(walk, policy_of(encoder), valued=True),
        "learned, all the way": partial(walk, policy_of(encoder, leads=GLIMPSES)),
        "learned, all the way, 16 candidates": partial(walk, policy_of(encoder, leads=GLIMPSES, candidates=16)),
    }


@torch.no_grad()
def measured(rounds: int) -> Iterator[dict[str, object]]:
    """Yield a line a case."""
    walks = cases()
    times: dict[str, list[float]] = {name: [] for name in walks}
    for number in range(-1, rounds):
        for name, walk in walks.items():
            start = process_time()
            for _ in walk():
                pass
            if number >= 0:  # what comes before warms up
                times[name].append(process_time() - start)
    first = next(iter(times.values()))
    for name, seconds in times.items():
        ratio = median(mine / its for mine, its in zip(seconds, first, strict=True))
        yield {"case": name, "seconds": round(median(seconds), 3), "ratio": round(ratio, 2)}


def main() -> None:
    """Run the command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.policies", description="What choosing glimpses costs.")
    parser.add_argument("--rounds", type=int, default=15, help="how many times each case is measured")
    for line in measured(parser.parse_args().rounds):
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
