"""Measure what the callbacks cost the quickstart.

    python -m benchmarks.callbacks [--epochs 30] [--pairs 3] [--data_dir data]

Prints JSON lines. First one fit of configs/quickstart.yaml with Lightning's profiler around every hook: seconds, share
of the fit's time by callback, and the hooks of training steps as a share of the steps' time. This leaves out what
Lightning does with the values they log; so then pairs of short fits (5 epochs, one validation), with all callbacks and
without any, in turn: the ratio of their times, pair by pair.
"""

import json
import tempfile
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from lightning import Callback, Trainer
from lightning.pytorch.callbacks import Timer

from train import MambaEyeCLI

CONFIG = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
STEP_HOOKS = ("on_train_batch_start", "on_train_batch_end", "on_before_optimizer_step")


class Timed(MambaEyeCLI):
    """The command line with a timer."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        trainer = super().instantiate_trainer(**kwargs)
        trainer.callbacks.insert(0, Timer())
        return trainer


class WithoutCallbacks(Timed):
    """The command line whose runs leave nothing but checkpoints and Lightning's own logs."""

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        trainer = super().instantiate_trainer(**kwargs)
        trainer.callbacks = [callback for callback in trainer.callbacks if not ours(callback)]
        return trainer


def ours(callback: Callback) -> bool:
    """Tell whether a callback is one of this project's."""
    return type(callback).__module__.startswith("callbacks.")


def fit(epochs: int, data_dir: str, cli: type[Timed]) -> tuple[float, Trainer]:
    """Fit, and return the seconds and the trainer."""
    with tempfile.TemporaryDirectory() as run_dir:
        flags = {
            "config": CONFIG,
            "run_dir": run_dir,
            "data.data_dir": data_dir,
            "trainer.max_epochs": epochs,
            "trainer.enable_progress_bar": "false",
            "trainer.enable_model_summary": "false",
            "trainer.profiler": "lightning.pytorch.profilers.SimpleProfiler",
            "trainer.profiler.dirpath": run_dir,
            "trainer.profiler.filename": "profile",
        }
        trainer = cli(["fit", *(f"--{name}={value}" for name, value in flags.items())]).trainer
    (timer,) = (callback for callback in trainer.callbacks if isinstance(callback, Timer))
    return timer.time_elapsed("train"), trainer


def by_callback(trainer: Trainer, hooks: tuple[str, ...] | None = None) -> dict[str, float]:
    """Return the seconds of each of our callbacks, in all hooks or in those."""
    names = [type(callback).__name__ for callback in trainer.callbacks if ours(callback)]
    seconds = dict.fromkeys(names, 0.0)
    for action, times in trainer.profiler.recorded_durations.items():
        owner, _, hook = action.removeprefix("[Callback]").partition(".")
        if owner in seconds and (hooks is None or hook in hooks):
            seconds[owner] += sum(times)
    return seconds


def main() -> None:
    """Run the command line; see the module's docstring."""
    parser = ArgumentParser(prog="python -m benchmarks.callbacks", description="What the callbacks cost.")
    parser.add_argument("--epochs", type=int, default=30, help="of the fit that is looked into")
    parser.add_argument("--pairs", type=int, default=3, help="short fits with and without callbacks")
    parser.add_argument("--data_dir", default="data", help="where the digits are packed")
    options = parser.parse_args()
    seconds, trainer = fit(options.epochs, options.data_dir, Timed)
    costs = by_callback(trainer)
    in_steps = sum(by_callback(trainer, STEP_HOOKS).values())
    steps = sum(trainer.profiler.recorded_durations["run_training_batch"])
    report = {
        "fit_seconds": round(seconds, 1),
        "callbacks_seconds": {name: round(cost, 2) for name, cost in costs.items()},
        "share_of_fit": round(sum(costs.values()) / seconds, 4),
        "share_of_training_steps": round(in_steps / steps, 4),
    }
    print(json.dumps(report), flush=True)
    ratios = []
    for _ in range(options.pairs):
        with_all, without = (fit(5, options.data_dir, cli)[0] for cli in (Timed, WithoutCallbacks))
        ratios.append(round(with_all / without, 4))
        print(json.dumps({"with": round(with_all, 1), "without": round(without, 1), "ratio": ratios[-1]}), flush=True)


if __name__ == "__main__":
    main()
