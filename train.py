"""MambaEye on the command line: python train.py {fit,validate,test,predict} --help"""

import os
import sys
import warnings
from inspect import isabstract
from itertools import pairwise
from typing import Any, Literal

import torch
from jsonargparse import ActionYesNo, Namespace, set_parsing_settings
from lightning import Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger

import mambaeye.encoders
import mambaeye.policies  # noqa: F401  # both define what the command line finds by class name
from callbacks.reports.curve_records import CurveRecords
from callbacks.reports.film_strip import FilmStrip
from callbacks.reports.glimpse_axis import GlimpseAxis
from callbacks.reports.prediction_writer import PredictionWriter
from callbacks.reports.scan_diagnosis import ScanDiagnosis
from callbacks.reports.tensorboard import raise_refusals_once
from callbacks.reports.throughput import Throughput
from callbacks.reports.training_curves import TrainingCurves
from callbacks.reports.validation_figures import ValidationFigures
from callbacks.reports.validation_report import ValidationReport
from callbacks.run.agreement import require_free_port
from callbacks.run.checkpointing import AtomicCheckpointIO, StepCheckpoint
from callbacks.run.config_file import ConfigFile
from callbacks.run.directory import (
    checkpoint_dir,
    default_run_dir,
    find_checkpoint,
    last_checkpoint,
    make_run_dir,
    print_rank_zero,
    read_usable,
)
from callbacks.run.nonfinite import NonFiniteGuard
from callbacks.run.one_writer import OneWriter
from callbacks.run.preemption import Preemption
from callbacks.run.preflight import Preflight
from callbacks.run.stops import StopWithinEpoch
from datamodules.datamodule import ShardDataModule
from mambaeye.checkpoints import command_line_defaults, shards_of
from mambaeye.configurable import Configurable
from mambaeye.encoders.base import Encoder
from mambaeye.encoders.mambaeye import MambaEye
from mambaeye.errors import InputError
from mambaeye.failures import in_one_sentence
from mambaeye.module import ClassifierModule
from mambaeye.policies.base import Policy
from mambaeye.saved_values import shown

# numbers that two sides need are stated once: where the encoder gets them from
LINKS = {
    "data.num_classes": "model.encoder.init_args.num_classes",
    "data.patch_size": "model.encoder.init_args.patch_size",
}
ALWAYS = (Preflight, GlimpseAxis, StopWithinEpoch)
# warnings that nobody who runs this can act on: Lightning's use of other libraries, and what every continued run does
NOT_FOR_USERS = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    r"(?s)\s*.* deprecated in v4\.",
    r"The dirpath has changed from",
    r"Checkpoint directory .* exists and is not empty",
)
TYPES: dict[str, type[Configurable]] = {"encoder": Encoder, "policy": Policy}  # which --model.NAME takes by class name
SCANS = ("data.scans", "data.train_scan")
PRODUCTS = {"high": "TF32", "medium": "bf16"}  # what float32 matrices are multiplied in, by torch's names
IMAGES = "--data.images"
# the shards that a command reads, and what it does there
READS = {
    "fit": {"data.train_shards": "trained", "data.val_shards": "validated"},
    "validate": {"data.val_shards": "validated"},
    "test": {"data.val_shards": "validated"},
    "predict": {},
}
# those that a flag or a config may set, as Lightning calls them one after the other: records have what others log
REPORTS = {
    "training_curves": TrainingCurves,
    "throughput": Throughput,
    "figures": ValidationFigures,
    "film_strip": FilmStrip,
    "diagnosis": ScanDiagnosis,
    "report": ValidationReport,
    "records": CurveRecords,
}


class MambaEyeCLI(LightningCLI):
    """LightningCLI with a run directory, and checkpoints that say what they hold.

    A value is looked for in this order: flags and --config, the checkpoint, the defaults. A checkpoint gives sizes,
    numbers and names, and no place: what is read, written or run comes from flags and --config alone.
    """

    def __init__(self, words: list[str]) -> None:
        """Run a command line, given without the program's name."""
        self.words = words
        super().__init__(
            ClassifierModule,
            ShardDataModule,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            save_config_callback=ConfigFile,
            trainer_defaults={"callbacks": [callback() for callback in ALWAYS]},
            args=words,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # it is static, and knows no command line
        """Return the command that is given alone, if one is: a parser for each of the four takes half a second."""
        commands = super().subcommands()
        return {name: left for name, left in commands.items() if name in self.words[:1]} or commands

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--run_dir",
            type=str | None,
            help="Folder for everything that the run writes (default: runs/<names of the config files>; without a "
            "config, the run that the checkpoint belongs to).",
        )
        parser.add_argument(
            "--float32_matmul_precision",
            type=Literal["highest", "high", "medium"],
            default="highest",
            help="How exactly a GPU multiplies float32 matrices: highest, in float32; high, in TF32 (10 bits of "
            "mantissa), as the authors do; medium, in bf16 (default: highest, as torch's).",
        )
        # two, for Lightning's save_last saves only when the best improves
        checkpoints: dict[str, tuple[type[ModelCheckpoint], dict[str, Any]]] = {
            "last": (StepCheckpoint, {"save_on_train_epoch_end": True}),
            "best": (ModelCheckpoint, {"monitor": "val/top1", "mode": "max"}),
        }
        for name, (kind, settings) in checkpoints.items():
            parser.add_lightning_class_args(kind, name)
            settings |= {"filename": name, "enable_version_counter": False}
            parser.set_defaults({f"{name}.{key}": value for key, value in settings.items()})
            parser.link_arguments("run_dir", f"{name}.dirpath", compute_fn=checkpoint_dir)
        for name, guard in (("preemption", Preemption), ("nonfinite", NonFiniteGuard)):
            parser.add_lightning_class_args(guard, name)
            parser.link_arguments("run_dir", f"{name}.last_checkpoint", compute_fn=last_checkpoint)
        for name, callback in REPORTS.items():
            parser.add_lightning_class_args(callback, name)
        parser.link_arguments("report.plots", "records.plots")
        parser.set_defaults({"model.encoder": {"class_path": MambaEye.class_path()}})
        (encoder,) = (action for action in parser._actions if action.dest == "model.encoder")
        encoder.required = False  # --help would say that it is, for the module itself has no default
        # an epoch that began under other ranks, workers or batch sizes has another length
        parser.set_defaults({"trainer.reload_dataloaders_every_n_epochs": 1})
        parser.link_arguments("run_dir", "trainer.default_root_dir")
        parser.link_arguments("seed_everything", "data.seed", compute_fn=int)
        for source, target in LINKS.items():
            parser.link_arguments(source, target)

    def setup_parser(self, *args: Any, **kwargs: Any) -> None:
        """Add what only predict takes to what all commands do."""
        super().setup_parser(*args, **kwargs)
        if "predict" not in self.subcommands():
            return
        parser = self._parser("predict")
        parser.add_lightning_class_args(PredictionWriter, "predictions")
        for name, what in (("pictures", "a picture"), ("animate", "an animated picture")):
            help_text = f"Also leave {what} of every image in the run directory's predictions/ (default: false)."
            parser.add_argument(f"--{name}", action=ActionYesNo, default=False, help=help_text)
            parser.link_arguments(name, f"predictions.{name}")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse twice: to see which config and checkpoint are meant, then with the defaults that follow from them."""
        refuse_unknown_classes(self.words)
        given, images = split_images(self.words)
        first = parser.parse_args([word for word in given if not word.startswith("--print_config")])
        command = first.subcommand
        asked = first[command]
        run_dir = asked.run_dir or default_run_dir(asked.config or (), asked.ckpt_path)
        ckpt_path = find_checkpoint(command, run_dir, asked.ckpt_path, asked.model.init_from is not None)
        saved, shards = {}, {}
        if ckpt_path:
            checkpoint = read_usable(ckpt_path)
            saved = command_line_defaults(checkpoint, ClassifierModule, ShardDataModule)
            refuse_foreign_scans(saved, asked)
            shards = shards_of(checkpoint)
            require_shards(command, shards, asked)
            print_rank_zero(f"{command} takes {ckpt_path}, saved after {checkpoint['global_step']} optimizer steps")
        defaults = {"run_dir": run_dir, "ckpt_path": ckpt_path, "weights_only": True}
        if command in ("validate", "test"):
            defaults["verbose"] = False  # Lightning's own table; ours has every step
        if command == "predict":
            defaults["return_predictions"] = False  # they are written as they come
        self._parser(command).set_defaults(saved | defaults)
        self.config = parser.parse_args(given)
        config = self.config[command]
        config.data.images = images or config.data.images
        config.ckpt_path = ckpt_path
        if ckpt_path:
            config.model.init_from = None  # the checkpoint has the weights
            print_differences(saved | {name: was for name, was in shards.items() if asked[name] is not None}, config)

    def _parse_ckpt_path(self) -> None:
        """Leave out Lightning's own reading of a checkpoint's sizes, which overrules flags; see parse_arguments."""

    def before_instantiate_classes(self) -> None:
        make_run_dir(self.config[self.subcommand].run_dir)
        precision = self.config[self.subcommand].float32_matmul_precision
        torch.set_float32_matmul_precision(precision)
        if precision in PRODUCTS:
            print_rank_zero(f"float32 matrices are multiplied in {PRODUCTS[precision]} where the device can")
        name = "config.yaml" if self.subcommand == "fit" else f"{self.subcommand}.yaml"
        self.save_config_kwargs = {"config_filename": name}

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self.config[self.subcommand]
        if config.trainer.logger is None and self.subcommand == "fit":
            kwargs["logger"] = TensorBoardLogger(config.run_dir, name="", version="", default_hp_metric=False)
        elif config.trainer.logger is None:  # others log at step 0, and TensorBoard would drop the fit's curves for it
            kwargs["logger"] = False
        plugins = self.config_init[self.subcommand].trainer.plugins or []
        kwargs["plugins"] = [*(plugins if isinstance(plugins, list) else [plugins]), AtomicCheckpointIO()]
        trainer = super().instantiate_trainer(**kwargs)
        require_free_port(trainer)
        return trainer

    def before_fit(self) -> None:
        OneWriter(self.trainer, "fit", self.config["fit"].ckpt_path)
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, Preemption):
                callback.watch(self.trainer)

    def before_predict(self) -> None:
        OneWriter(self.trainer, "predict", self.config["predict"].ckpt_path)


def split_images(words: list[str]) -> tuple[list[str], list[str]]:
    """Split off --data.images and the words after it, which a shell makes of a pattern: (other words, these)."""
    if IMAGES not in words:
        return words, []
    start = words.index(IMAGES) + 1
    end = next((place for place, word in enumerate(words) if place >= start and word.startswith("-")), len(words))
    paths = words[start:end]
    if len(paths) == 1 and paths[0].startswith("["):  # is a list already
        return words, []
    return words[: start - 1] + words[end:], paths


def refuse_unknown_classes(words: list[str]) -> None:
    """Refuse a class name after --model.encoder or --model.policy that no class has, and say which names there are.

    Raises:
        InputError: there is one.
    """
    pairs = [word.partition("=")[::2] for word in words] + [*pairwise(words)]
    for kind, base in TYPES.items():
        known = ["null", *(found.__name__ for found in base.defined_subclasses() if not isabstract(found))]
        for flag, name in pairs:
            if flag == f"--model.{kind}" and name.isidentifier() and name not in known:
                raise InputError(
                    f"no {kind} is called {name!r}: choose one of {', '.join(known[1:])}, or give an import path"
                )


def refuse_foreign_scans(saved: dict[str, Any], asked: Namespace) -> None:
    """Refuse scans that a checkpoint names by import path, unless flags or a config do: a file must not import code.

    Raises:
        InputError: it names one.
    """
    for name in SCANS:
        value = saved.get(name, ())
        scans = [value] if isinstance(value, str) else [*value]  # of shares by scan, the scans
        foreign = [scan for scan in scans if "." in scan and scan not in asked[name]]
        if foreign:
            del saved[name]
            raise InputError(
                f"the checkpoint's {name} is {foreign[0]}, code outside the project: give it with --{name}"
            )


def require_shards(command: str, shards: dict[str, Any], asked: Namespace) -> None:
    """Require that flags or a config say where shards are, if a checkpoint's run had others than the embedded digits.

    Raises:
        InputError: they do not.
    """
    missing = {
        name: f"{did} on {shown(shards[name])}"
        for name, did in READS[command].items()
        if shards[name] is not None and asked[name] is None
    }
    if missing:
        raise InputError(
            f"the checkpoint was {' and '.join(missing.values())}, and a file does not say what is read: "
            f"give --{' and --'.join(missing)}, or the run's --config"
        )


def print_differences(saved: dict[str, Any], config: Namespace) -> None:
    """Print every argument that flags or a config give another value than the checkpoint has, side by side."""
    lines = []
    for name, value in saved.items():
        before, now = leaves(name, value), leaves(name, config.get(name))
        for key in before.keys() & now.keys() - set(LINKS.values()):
            if before[key] != now[key]:
                lines.append(f"  {key.replace('.init_args', '')}: {shown(before[key])} -> {shown(now[key])}")
    if lines:
        print_rank_zero("\n".join(["not as in the checkpoint, and as said now:", *sorted(lines)]))


def leaves(name: str, value: Any) -> dict[str, Any]:
    """Return the plain values below an argument, by their full names, however they were written down or parsed."""
    if isinstance(value, Namespace):
        value = value.as_dict()
    if isinstance(value, dict):
        return {key: leaf for inner in value for key, leaf in leaves(f"{name}.{inner}", value[inner]).items()}
    if name.endswith(".class_path"):  # the same class may go by several paths
        value = value.rpartition(".")[2]
    return {name: list(value) if isinstance(value, tuple) else value}


def main(args: list[str] | None = None) -> None:
    """Run the command line; a user's mistake ends in one sentence and exit code 1."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # classes and scans of one's own, in the folder where one is
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    for message in NOT_FOR_USERS:
        warnings.filterwarnings("ignore", message)
    raise_refusals_once()
    try:
        with in_one_sentence():
            MambaEyeCLI(sys.argv[1:] if args is None else args)
    except (InputError, MisconfigurationException) as error:
        sentence = str(error).rpartition("InputError: ")[2].strip()  # of a loader worker's error, its last line
        sys.exit(f"error: {sentence}")


if __name__ == "__main__":
    main()
