"""Measure what `train.py calibrate` does: ECE before and after by glimpses and side, and what stopping at 0.9 means.

    python -m benchmarks.calibration [--runs runs/calibration] [--seeds 0 1 2] [--variants own kept plain]

A run is a variant and a seed: `train.py fit` with configs/digits.yaml unless its last.ckpt is there, then `train.py
calibrate` unless that was done. own calibrates on the samples that it was trained on, kept on a tenth that was kept out
of training, plain is trained with plain cross entropy and taken as it is. Measured are the 397 held-out digits, under
validation's own trajectories. Prints Markdown.

The noise of so few images: an ECE sums up absolute differences, so that answers which are calibrated perfectly have one
above 0. By chance is its mean, with whether each answer is right drawn anew by the answer's own confidence.
"""

import argparse
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import mambaeye
from benchmarks.results import call
from datamodules.datamodule import ShardDataModule
from datamodules.loading.config import LoaderConfig
from datamodules.loading.loader import FixedLoader, ShardAccess
from datamodules.shards.index import ShardIndex
from datamodules.views.evaluate import EvaluateView, EvaluationCanvases
from mambaeye.batch import EvaluationCondition
from mambaeye.checkpoints import DATA, read_checkpoint
from mambaeye.evaluation.calibration import coarse, expected_error, fine_edges
from mambaeye.rollout import Rollout
from mambaeye.temperature import TEMPERATURE, temperature_in

VARIANTS: dict[str, dict[str, str]] = {
    "own": {},
    "kept": {"data.held_out": "0.1"},
    "plain": {"model.schedule": "none"},
}
SIDES, STEPS, BINS = (48, 64, 24, 80, 96), (4, 16, 64), 15
STOP_AT = 0.9
DRAWS = 200


class Answers(NamedTuple):
    """All answers to all images at one side."""

    confidence: Tensor
    """(N, T)."""
    right: Tensor
    """(N, T) bool."""

    def ece(self, step: int, right: Tensor | None = None) -> float:
        """Return the ECE after so many glimpses, in %; right (N,) in place of what was measured."""
        confidence = self.confidence[:, step - 1].double()
        right = self.right[:, step - 1] if right is None else right
        fine = torch.bucketize(confidence, fine_edges(BINS, confidence.dtype), right=True) - 1
        sums = [torch.zeros(len(fine_edges(BINS, confidence.dtype)), dtype=torch.float64) for _ in range(3)]
        for total, values in zip(sums, (torch.ones_like(confidence), confidence, right.double()), strict=True):
            total.index_add_(0, fine, values)
        return 100 * float(expected_error(*map(coarse, sums)))

    def ece_by_chance(self, step: int) -> float:
        """Return the mean ECE of answers that are as sure as these and calibrated perfectly, in %."""
        draw, confidence = torch.Generator().manual_seed(0), self.confidence[:, step - 1]
        drawn = [torch.rand(len(confidence), generator=draw) < confidence for _ in range(DRAWS)]
        return float(np.mean([self.ece(step, right) for right in drawn]))

    def stopped(self) -> tuple[float, float, float]:
        """Return the share of images that stop as soon as they are sure enough, how many of them are right, in %, and
        the glimpses that all take on average."""
        met = self.confidence >= STOP_AT
        done = met.any(1)
        first = torch.where(done, met.int().argmax(1), met.shape[1] - 1)
        right = self.right.gather(1, first[:, None])[:, 0]
        correct = 100 * right[done].double().mean().item() if done.any() else float("nan")
        return 100 * done.double().mean().item(), correct, first.double().mean().item() + 1


def prepared(runs: Path, variant: str, seed: int) -> Path:
    """Return the checkpoint of a run, after training and calibrating it unless that was done."""
    run_dir = runs / f"{variant}-{seed}"
    last, words = run_dir / "checkpoints/last.ckpt", [f"--{name}={value}" for name, value in VARIANTS[variant].items()]
    run_dir.mkdir(parents=True, exist_ok=True)
    if not last.exists():
        config = ["--config", "configs/digits.yaml", "--run_dir", str(run_dir), "--seed_everything", str(seed)]
        call(["fit", *config, *words], run_dir / "fit.log")
    calibrated = last.with_name("last-calibrated.ckpt")
    if not calibrated.exists() and variant != "plain":
        call(["calibrate", "--ckpt_path", str(last)], run_dir / "calibrate.log")
    return last if variant == "plain" else calibrated


@torch.no_grad()
def measured(path: Path) -> dict[tuple[int, bool], Answers]:
    """Return the answers of a checkpoint at every side, before and after: by side, and whether they are tempered."""
    checkpoint = read_checkpoint(path, "the checkpoint")
    temperature = temperature_in(checkpoint[TEMPERATURE]) if TEMPERATURE in checkpoint else None
    encoder, data = mambaeye.load(path).eval(), ShardDataModule()
    data.prepare_data()
    index, config = ShardIndex.read(data.splits.digits / "val"), LoaderConfig(num_workers=0)
    access = ShardAccess(index, config.evaluation_layout(index, 1), 0, config)
    view = EvaluateView(num_glimpses=max(STEPS), interpolation="area")
    samples = EvaluationCanvases([EvaluationCondition(side, "random") for side in SIDES], encoder.patch_size, view)
    found: dict[tuple[int, bool], list[Answers]] = {}
    for batch in FixedLoader(access, samples, checkpoint[DATA]["seed"]):
        for tempered in {False, temperature is not None}:
            of_walk = temperature if tempered else None
            walk = Rollout(encoder, batch.scene, None, batch.information_ratio, temperature=of_walk)
            logits = torch.cat([step.logits for step in walk], dim=1)[batch.valid]  # (b, T, C)
            right = logits.argmax(-1) == batch.labels[batch.valid][:, None]
            answers = Answers(logits.softmax(-1).amax(-1), right)
            found.setdefault((SIDES[batch.condition], tempered), []).append(answers)
    return {key: Answers(*(torch.cat(parts) for parts in zip(*all_of, strict=True))) for key, all_of in found.items()}


def mean(values: list[float]) -> str:
    """Return a mean over the seeds that have a value, with their standard deviation if there are several."""
    there = [value for value in values if value == value]
    spread = f" ± {np.std(there, ddof=1):.1f}" if len(there) > 1 else ""
    return f"{np.mean(there):.1f}{spread}" if there else "-"


def table(headings: list[str], lines: list[list[str]]) -> str:
    """Return a table in Markdown."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, ["---"] * len(headings), *lines))


def ece_table(runs: dict[str, list[dict[tuple[int, bool], Answers]]]) -> str:
    """Return ECE and, in brackets, by chance, by side and variant, before and after."""
    lines = []
    for side in SIDES:
        for variant, seeds in runs.items():
            for tempered in (False, True):
                some = [found[side, tempered] for found in seeds if (side, tempered) in found]
                if some:
                    measured_ones = [mean([one.ece(step) for one in some]) for step in STEPS]
                    by_chance = [np.mean([one.ece_by_chance(step) for one in some]) for step in STEPS]
                    cells = [f"{ece} ({least:.1f})" for ece, least in zip(measured_ones, by_chance, strict=True)]
                    top1 = [100 * one.right[:, STEPS[-1] - 1].double().mean().item() for one in some]
                    lines.append([str(side), variant, "after" if tempered else "before", *cells, mean(top1)])
    return table(["side", "trained", "temperature", *map(str, STEPS), f"top-1 at {STEPS[-1]}"], lines)


def stop_table(runs: dict[str, list[dict[tuple[int, bool], Answers]]]) -> str:
    """Return what stopping at that confidence means, by side and variant, before and after."""
    lines = []
    for side in SIDES:
        for variant, seeds in runs.items():
            for tempered in (False, True):
                some = [found[side, tempered].stopped() for found in seeds if (side, tempered) in found]
                if some:
                    cells = [mean([one[place] for one in some]) for place in range(3)]
                    lines.append([str(side), variant, "after" if tempered else "before", *cells])
    return table(["side", "trained", "temperature", "stop, %", "of them right, %", "glimpses of all"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/calibration"), help="folder of the runs")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    args = parser.parse_args()
    runs = {name: [measured(prepared(args.runs, name, seed)) for seed in args.seeds] for name in args.variants}
    for seeds in runs.values():
        for found in seeds:
            for side, tempered in found:
                assert found[side, tempered].right.equal(found[side, False].right), "top-1 must stay what it was"
    print(f"ECE (%) after so many glimpses, and by chance:\n\n{ece_table(runs)}\n")
    print(f"Stopping at a confidence of {STOP_AT}:\n\n{stop_table(runs)}")


if __name__ == "__main__":
    main()
