"""MambaEye on the command line: python train.py {fit,validate,test,predict} --help"""

import os
import sys
import warnings
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from jsonargparse import ActionYesNo, Namespace, set_parsing_settings
from lightning import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.distributed import DistError

from callbacks.reports.diagnosis import ScanDiagnosis
from callbacks.reports.figures import ValidationFigures
from callbacks.reports.film_strip import FilmStrip
from callbacks.reports.glimpse_axis import GlimpseAxis
from callbacks.reports.predictions import PredictionWriter
from callbacks.reports.records import CurveRecords
from callbacks.reports.throughput import Throughput
from callbacks.reports.training import TrainingCurves
from callbacks.reports.validation import ValidationReport
from callbacks.run.checkpointing import AtomicCheckpointIO, StepCheckpoint
from callbacks.run.nonfinite import NonFiniteGuard
from callbacks.run.preemption import Preemption
from callbacks.run.preflight import Preflight
from datamodules.datamodule import ShardDataModule
from mambaeye.errors import InputError
from mambaeye.module import MambaEyeModule

# numbers that two sides need are stated once: where the model gets them from
LINKS = {"data.num_classes": "model.encoder.num_classes", "data.patch_size": "model.encoder.patch_size"}
ALWAYS = (Preflight, CurveRecords, GlimpseAxis, ValidationReport)
IMAGES = "--data.images"
# those that cost something, which a flag or a config may set; they come first, and CurveRecords has their numbers too
COSTLY = {
    "training_curves": TrainingCurves,
    "throughput": Throughput,
    "figures": ValidationFigures,
    "film_strip": FilmStrip,
    "diagnosis": ScanDiagnosis,
}


class MambaEyeCLI(LightningCLI):
    """LightningCLI with a run directory, and checkpoints that say what they hold.

    A value is looked for in this order: flags and --config, the checkpoint, the defaults.
    """

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--run_dir",
            type=str | None,
            help="Folder for everything that the run writes (default: runs/<name of the config file>; without a "
            "config, the run that the checkpoint belongs to).",
        )
        # two, for Lightning's save_last saves only when the best improves
        checkpoints = {
            "last": (StepCheckpoint, {"save_on_train_epoch_end": True}),
            "best": (ModelCheckpoint, {"monitor": "val/top1", "mode": "max"}),
        }
        for name, (kind, settings) in checkpoints.items():
            parser.add_lightning_class_args(kind, name)
            settings |= {"filename": name, "enable_version_counter": False}
            parser.set_defaults({f"{name}.{key}": value for key, value in settings.items()})
            parser.link_arguments("run_dir", f"{name}.dirpath", compute_fn=checkpoint_dir)
        for name, kind in (("preemption", Preemption), ("nonfinite", NonFiniteGuard)):
            parser.add_lightning_class_args(kind, name)
            parser.link_arguments("run_dir", f"{name}.last_checkpoint", compute_fn=last_checkpoint)
        for name, callback in COSTLY.items():
            parser.add_lightning_class_args(callback, name)
        # an epoch that began under other ranks, workers or batch sizes has another length
        parser.set_defaults({"trainer.reload_dataloaders_every_n_epochs": 1})
        parser.link_arguments("run_dir", "trainer.default_root_dir")
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)
        for source, target in LINKS.items():
            parser.link_arguments(source, target)

    def setup_parser(self, *args: Any, **kwargs: Any) -> None:
        """What only predict takes, besides what all commands do."""
        super().setup_parser(*args, **kwargs)
        parser = self._parser("predict")
        parser.add_lightning_class_args(PredictionWriter, "predictions")
        for name, what in (("pictures", "a picture"), ("animate", "an animated picture")):
            help_text = f"Also leave {what} of every image in the run directory's predictions/ (default: false)."
            parser.add_argument(f"--{name}", action=ActionYesNo, default=False, help=help_text)
            parser.link_arguments(name, f"predictions.{name}")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse twice: to see which config and checkpoint are meant, then with the defaults that follow from them."""
        given, images = without_images(sys.argv[1:] if args is None else args)
        first = parser.parse_args([word for word in given if not word.startswith("--print_config")])
        command = first.subcommand
        defaults = run_defaults(command, first[command])
        saved = {}
        if ckpt_path := defaults["ckpt_path"]:
            saved, steps = checkpoint_hyperparameters(ckpt_path)
            say(f"{command} takes {ckpt_path}, saved after {steps} optimizer steps")
        self._parser(command).set_defaults(saved | defaults)
        self.config = parser.parse_args(given)
        config = self.config[command]
        config.data.images = images or config.data.images
        config.ckpt_path = ckpt_path
        if ckpt_path:
            config.model.init_from = None  # the checkpoint has the weights
            show_differences(saved, config)

    def _parse_ckpt_path(self) -> None:
        """Lightning's own reading of a checkpoint's sizes, which overrules flags; ours is in parse_arguments."""

    def before_instantiate_classes(self) -> None:
        run_dir = Path(self.config[self.subcommand].run_dir)
        try:
            run_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{run_dir} cannot be made ({error.strerror}): choose another --run_dir") from None
        if not os.access(run_dir, os.W_OK):
            raise InputError(f"{run_dir} cannot be written to: choose another --run_dir")
        name = "config.yaml" if self.subcommand == "fit" else f"{self.subcommand}.yaml"
        self.save_config_kwargs = {"config_filename": name, "overwrite": True}

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self.config[self.subcommand]
        if config.trainer.logger is None and self.subcommand == "fit":
            kwargs["logger"] = TensorBoardLogger(config.run_dir, name="", version="", default_hp_metric=False)
        elif config.trainer.logger is None:  # others log at step 0, and TensorBoard would drop the fit's curves for it
            kwargs["logger"] = False
        plugins = self.config_init[self.subcommand].trainer.plugins or []
        kwargs["plugins"] = [*(plugins if isinstance(plugins, list) else [plugins]), AtomicCheckpointIO()]
        return super().instantiate_trainer(**kwargs)


def checkpoint_dir(run_dir: str | None) -> str:
    """Where a run keeps its checkpoints."""
    return str(Path(run_dir or "runs") / "checkpoints")


def last_checkpoint(run_dir: str | None) -> str:
    """What --ckpt_path last means."""
    return str(Path(checkpoint_dir(run_dir)) / "last.ckpt")


def run_defaults(command: str, config: Namespace) -> dict[str, Any]:
    """Defaults that follow from what was asked for: the run directory, the checkpoint's path, and what it holds.

    Raises:
        InputError: the command needs a checkpoint and there is none, or a new run would overwrite another.
    """
    asked = config.ckpt_path
    if config.run_dir:
        run_dir = Path(config.run_dir)
    elif config.config:
        run_dir = Path("runs") / Path(str(config.config[-1])).stem
    elif asked and Path(asked).parent.name == "checkpoints":
        run_dir = Path(asked).parent.parent
    else:
        run_dir = Path("runs/default")
    last = Path(last_checkpoint(str(run_dir)))
    if asked == "last":
        asked = str(last) if last.exists() else None
        if asked is None and command == "fit":
            say(f"{last} does not exist: starting afresh")
    elif asked is None and command == "fit" and last.exists():
        raise InputError(
            f"{run_dir} already holds a run: continue it with --ckpt_path last, or choose another --run_dir"
        )
    if asked is None and command != "fit" and config.model.init_from is None:
        raise InputError(
            f"{command} has no weights ({last} may be some): give --ckpt_path a checkpoint, or --model.init_from"
        )
    defaults: dict[str, Any] = {"run_dir": str(run_dir), "ckpt_path": asked, "weights_only": True}
    if command in ("validate", "test"):
        defaults["verbose"] = False  # Lightning's own table; ours has every step
    if command == "predict":
        defaults["return_predictions"] = False  # they are written as they come
    return defaults


def without_images(words: list[str]) -> tuple[list[str], list[str]]:
    """The command line without --data.images and the words after it; and these: what a shell makes of a pattern."""
    if IMAGES not in words:
        return words, []
    start = words.index(IMAGES) + 1
    end = next((place for place, word in enumerate(words) if place >= start and word.startswith("-")), len(words))
    paths = words[start:end]
    if len(paths) == 1 and paths[0].startswith("["):  # is a list already
        return words, []
    return words[: start - 1] + words[end:], paths


def checkpoint_hyperparameters(path: str) -> tuple[dict[str, Any], int]:
    """The model's and the data's arguments that a checkpoint was trained with, as parser keys; its optimizer steps.

    Raises:
        InputError: the file is not there, or not a checkpoint of ours.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        model, data = checkpoint["hyper_parameters"], checkpoint["datamodule_hyper_parameters"]
        steps = checkpoint["global_step"]
    except FileNotFoundError:
        raise InputError(f"--ckpt_path {path} does not exist") from None
    except (UnpicklingError, RuntimeError, OSError, EOFError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--ckpt_path {path} is damaged or not a checkpoint of a MambaEye run: {reason}") from None
    keys = {f"data.{key}": value for key, value in data.items() if key[0] != "_"}
    keys["seed_everything"] = keys.pop("data.seed")
    for key, value in model.items():
        nested = value.items() if isinstance(value, dict) else [(None, value)]
        keys |= {f"model.{key}" + (f".{name}" if name else ""): inner for name, inner in nested if key[0] != "_"}
    return {key: value for key, value in keys.items() if key not in LINKS.values()}, steps


def show_differences(saved: dict[str, Any], config: Namespace) -> None:
    """Every argument that flags or a config give another value than the checkpoint has, side by side."""
    lines = []
    for key, value in saved.items():
        before, now = plain(value), plain(config.get(key))
        if before != now:
            lines.append(f"  {key}: {before} -> {now}")
    if lines:
        say("\n".join(["not as in the checkpoint, and as said now:", *lines]))


def plain(value: Any) -> Any:
    """The same in dictionaries and lists, as it may have been written down or parsed."""
    if isinstance(value, Namespace):
        value = value.as_dict()
    if isinstance(value, dict):
        return {name: plain(inner) for name, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value


@rank_zero_only
def say(text: str) -> None:
    """Print it once a run."""
    print(text, flush=True)


def main(args: list[str] | None = None) -> None:
    """Run the command line; a user's mistake ends in one sentence and exit code 1."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    warnings.filterwarnings("ignore", message="`isinstance\\(treespec, LeafSpec\\)` is deprecated")  # Lightning's own
    try:
        MambaEyeCLI(
            MambaEyeModule,
            ShardDataModule,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            trainer_defaults={"callbacks": [callback() for callback in ALWAYS]},
            args=args,
        )
    except (InputError, MisconfigurationException) as error:
        sentence = str(error).rpartition("InputError: ")[2].strip()  # of a loader worker's error, its last line
        sys.exit(f"error: {sentence}")
    except RuntimeError as error:
        if not isinstance(error, DistError) and "gloo" not in str(error):
            raise
        reason = str(error).strip().splitlines()[0]
        if "EADDRINUSE" in str(error):
            sys.exit(f"error: the port that the processes meet at is in use: set another MASTER_PORT ({reason})")
        sys.exit(
            f"error: another process of this run has ended or cannot be reached: see what it said, then go on with "
            f"--ckpt_path last ({reason})"
        )


if __name__ == "__main__":
    main()
