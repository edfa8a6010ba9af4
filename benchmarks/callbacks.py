"""What the callbacks cost the quickstart.

    python -m benchmarks.callbacks [--epochs 30] [--pairs 3] [--data_dir data]

Prints JSON lines. First one fit of configs/quickstart.yaml with Lightning's profiler around every hook: seconds, share
of the fit's time by callback, and the hooks of training steps as a share of the steps' time. This leaves out what
Lightning does with the values they log; so then pairs of short fits (5 epochs, one validation), with all callbacks and
without any, in turn: the ratio of their times, pair by pair.
"""

import json
import tempfile
from argparse import ArgumentParser
from collections import defaultdict
from pathlib import Path

from lightning import Callback
from lightning.pytorch.callbacks import Timer

from datamodules.datamodule import ShardDataModule
from mambaeye.module import MambaEyeModule
from train import MambaEyeCLI, default_callbacks

CONFIG = Path(__file__).parents[1] / "configs" / "quickstart.yaml"
STEP_HOOKS = ("on_train_batch_start", "on_train_batch_end", "on_before_optimizer_step")


def fit(epochs: int, data_dir: str, callbacks: list[Callback]) -> tuple[float, dict[str, float]]:
    """Seconds of a fit, and of every action in it that Lightning's profiler names."""
    timer = Timer()
    with tempfile.TemporaryDirectory() as run_dir:
        cli = MambaEyeCLI(
            MambaEyeModule,
            ShardDataModule,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            trainer_defaults={
                "callbacks": [*callbacks, timer],
                "profiler": {
                    "class_path": "lightning.pytorch.profilers.SimpleProfiler",
                    "init_args": {"dirpath": run_dir, "filename": "profile"},
                },
                "enable_progress_bar": False,
                "enable_model_summary": False,
            },
            args=[
                "fit",
                f"--config={CONFIG}",
                f"--run_dir={run_dir}",
                f"--data.data_dir={data_dir}",
                f"--trainer.max_epochs={epochs}",
            ],
        )
    actions = cli.trainer.profiler.recorded_durations
    return timer.time_elapsed("train"), {name: sum(times) for name, times in actions.items()}


def by_callback(actions: dict[str, float], hooks: tuple[str, ...] | None = None) -> dict[str, float]:
    """Seconds of each of our callbacks, in all hooks or in those."""
    seconds, ours = defaultdict(float), {type(callback).__name__ for callback in default_callbacks()}
    for name, value in actions.items():
        owner, _, hook = name.removeprefix("[Callback]").partition(".")
        if name.startswith("[Callback]") and owner in ours and (hooks is None or hook in hooks):
            seconds[owner] += value
    return seconds


def main() -> None:
    """Command line: see above."""
    parser = ArgumentParser(prog="python -m benchmarks.callbacks", description="What the callbacks cost.")
    parser.add_argument("--epochs", type=int, default=30, help="of the fit that is looked into")
    parser.add_argument("--pairs", type=int, default=3, help="short fits with and without callbacks")
    parser.add_argument("--data_dir", default="data", help="where the digits are packed")
    options = parser.parse_args()
    seconds, actions = fit(options.epochs, options.data_dir, default_callbacks())
    costs = by_callback(actions)
    in_steps = sum(by_callback(actions, STEP_HOOKS).values())
    report = {
        "fit_seconds": round(seconds, 1),
        "callbacks_seconds": {name: round(cost, 2) for name, cost in costs.items()},
        "share_of_fit": round(sum(costs.values()) / seconds, 4),
        "share_of_training_steps": round(in_steps / actions["run_training_batch"], 4),
    }
    print(json.dumps(report), flush=True)
    ratios = []
    for _ in range(options.pairs):
        with_all, without = (fit(5, options.data_dir, callbacks)[0] for callbacks in (default_callbacks(), []))
        ratios.append(round(with_all / without, 4))
        print(json.dumps({"with": round(with_all, 1), "without": round(without, 1), "ratio": ratios[-1]}), flush=True)


if __name__ == "__main__":
    main()
