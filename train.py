"""MambaEye on the command line: python train.py {fit,validate,test,predict,calibrate,export,demo} --help"""

import logging
import os
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse import ActionYesNo, Namespace, set_parsing_settings
from lightning import Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

import mambaeye.encoders
import mambaeye.policies  # noqa: F401  # both define what the command line finds by class name
from callbacks.reports.answers import Answers
from callbacks.reports.class_report import ClassReport
from callbacks.reports.confident_mistakes import ConfidentMistakes
from callbacks.reports.console import ConsoleLines
from callbacks.reports.curve_records import CurveRecords
from callbacks.reports.film_strip import FilmStrip
from callbacks.reports.glimpse_axis import GlimpseAxis
from callbacks.reports.learned_scan import LearnedScanReport
from callbacks.reports.prediction_writer import PredictionWriter
from callbacks.reports.run_description import RunDescription
from callbacks.reports.run_page import RunPage
from callbacks.reports.scan_diagnosis import ScanDiagnosis
from callbacks.reports.tensorboard import logger_of, raise_refusals_once
from callbacks.reports.throughput import Throughput
from callbacks.reports.training_curves import TrainingCurves
from callbacks.reports.validation_figures import ValidationFigures
from callbacks.reports.validation_report import ValidationReport
from callbacks.run.agreement import require_free_port
from callbacks.run.calibration import CalibratingTrainer
from callbacks.run.checkpointing import AtomicCheckpointIO, StepCheckpoint
from callbacks.run.config_file import ConfigFile
from callbacks.run.continuation import Continuation
from callbacks.run.directory import (
    checkpoint_dir,
    default_run_dir,
    find_checkpoint,
    forget_failed_start,
    last_checkpoint,
    make_run_dir,
    print_rank_zero,
    read_usable,
)
from callbacks.run.lightning_internals import disable_signal_handlers
from callbacks.run.nonfinite import NonFiniteGuard
from callbacks.run.one_writer import OneWriter
from callbacks.run.preemption import Preemption
from callbacks.run.preflight import Preflight
from callbacks.run.stops import StopWithinEpoch
from datamodules.calibration import CalibrationDataModule
from datamodules.datamodule import ShardDataModule
from datamodules.packing.folder import class_names
from mambaeye import weights
from mambaeye.calibrating import CalibratingModule
from mambaeye.checkpoints import MODEL, command_line_defaults, remembered, unsaid
from mambaeye.command_line.differences import LINKS, differing, refuse_foreign_scans, require_shards
from mambaeye.command_line.ending import ending_among_others
from mambaeye.command_line.gpu_overlay import gpu_overlay
from mambaeye.command_line.help import COMMON, FULL_HELP, OVERVIEW
from mambaeye.command_line.parser import Parser
from mambaeye.command_line.run_config import changes, run_config, without_repeats
from mambaeye.command_line.saved_encoder import ENCODER, words_of_saved
from mambaeye.command_line.values import refuse_devices, refuse_values
from mambaeye.command_line.words import require_command, require_configs, split_images, without_policy_arguments
from mambaeye.encoders.mambaeye import MambaEye
from mambaeye.errors import InputError, mistake_in
from mambaeye.exporting.command import COMMANDS
from mambaeye.failures import first_line, in_one_sentence
from mambaeye.module import ClassifierModule
from mambaeye.optim import require_same_groups
from mambaeye.weights.starting import arguments_of_weights

ALWAYS = (Preflight, GlimpseAxis, RunDescription, StopWithinEpoch, Continuation, ConsoleLines)
# warnings that nobody who runs this can act on: Lightning's use of other libraries, and what every continued run does
NOT_FOR_USERS = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    r"(?s)\s*.* deprecated in v4\.",
    r"The dirpath has changed from",
    r"Checkpoint directory .* exists and is not empty",
    r"Found \d+ module\(s\) in eval mode at the start of training",  # those that are frozen
)
# what Lightning's arguments are in a command: its own table is off, for ours has every step; predictions are written as
# they come; and a new head, which has learnt nothing, has nothing to say
OF_COMMAND: dict[str, dict[str, Any]] = {
    "fit": {},
    "validate": {"verbose": False, "model.new_head": False},
    "test": {"verbose": False, "model.new_head": False},
    "predict": {"return_predictions": False, "model.new_head": False},
    "calibrate": {"trainer.devices": 1, "model.new_head": False},
}
PRODUCTS = {"high": "TF32", "medium": "bf16"}  # what float32 matrices are multiplied in, by torch's names
# those that a flag or a config may set, as Lightning calls them one after the other: records have what others log
REPORTS = {
    "training_curves": TrainingCurves,
    "throughput": Throughput,
    "figures": ValidationFigures,
    "film_strip": FilmStrip,
    "classes": ClassReport,
    "mistakes": ConfidentMistakes,
    "diagnosis": ScanDiagnosis,
    "learned_scan": LearnedScanReport,
    "report": ValidationReport,
    "answers": Answers,
    "records": CurveRecords,
    "page": RunPage,
}
ADVERTISED = ("litlogger", "TPU available")  # of Lightning's own lines on the console


class MambaEyeCLI(LightningCLI):
    """LightningCLI with a run directory, and checkpoints that say what they hold.

    A value is looked for in this order: flags and --config, the checkpoint, the defaults. A checkpoint gives sizes,
    numbers and names, and no place: what is read, written or run comes from flags and --config alone.
    """

    def __init__(self, words: list[str]) -> None:
        """Run a command line, given without the program's name."""
        self.words = words
        self.new_run: str | None = None  # directory that was made for it
        calibrates = words[0] == "calibrate"
        try:
            super().__init__(
                CalibratingModule if calibrates else ClassifierModule,
                CalibrationDataModule if calibrates else ShardDataModule,
                trainer_class=CalibratingTrainer if calibrates else Trainer,
                seed_everything_default=0,
                parser_class=Parser,
                auto_configure_optimizers=False,
                save_config_callback=ConfigFile,
                trainer_defaults={"callbacks": [callback() for callback in ALWAYS]},
                args=words,
            )
        except BaseException:
            if self.new_run is not None:
                forget_failed_start(self.new_run)
            raise

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # it is static, and knows no command line
        """Return the command that is given alone: a parser for each of the five takes half a second."""
        ours = super().subcommands() | {"calibrate": {"model", "datamodule"}}
        return {name: left for name, left in ours.items() if name == self.words[0]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--run_dir",
            type=str | None,
            help="Folder for everything that the run writes (default: runs/<names of the config files>; without a "
            "config, the run that the checkpoint belongs to).",
        )
        parser.add_argument(
            "--float32_matmul_precision",
            type=Literal["highest", "high", "medium"] | None,
            help="How exactly a GPU multiplies float32 matrices: highest, in float32; high, in TF32 (10 bits of "
            "mantissa), as the authors do; medium, in bf16. The recurrence stays float32 (default: high for fit on a "
            "GPU, highest elsewhere).",
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
        for name in ("records", "classes"):
            parser.link_arguments("report.plots", f"{name}.plots")
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
        given, images = split_images(self.words)
        command = given[0]
        if FULL_HELP in given:
            given = [command, "--help"]
        else:
            vars(self._parser(command))["command"] = command  # its help is brief
        require_configs(given)
        asked = self._asked(given)
        refuse_values(asked)
        run_dir = asked.run_dir or default_run_dir(asked.config or (), asked.ckpt_path)
        ckpt_path = find_checkpoint(command, run_dir, asked.ckpt_path, asked.model.init_from is not None)
        own = run_config(run_dir, asked, ckpt_path) if command == "fit" else None
        if own:
            given = [command, f"--config={own}", f"--run_dir={run_dir}", *given[1:]]
            asked = self._asked(given)
            refuse_values(asked)
            print_rank_zero(f"fit takes {own}, and what flags say otherwise")
        checkpoint = read_usable(ckpt_path) if ckpt_path else None
        if checkpoint and ckpt_path:
            saved = self._saved(checkpoint, ckpt_path, asked)
        elif asked.model.init_from and not any(word.startswith("--print_config") for word in given):
            saved = arguments_of_weights(asked.model.init_from, asked.model.encoder.class_path)
            if command == "fit":  # which has the data's number of classes, with a new head if need be
                saved.pop("data.num_classes", None)
        else:
            saved = {}
        if asked.data.folder and not checkpoint and command != "predict":
            saved |= {"data.num_classes": len(class_names(asked.data.folder))}
        places = {"run_dir": run_dir, "ckpt_path": ckpt_path, "weights_only": True}
        defaults = saved | places | OF_COMMAND[command]
        class_path = saved.get(ENCODER, {}).get("class_path")
        if class_path == asked.model.encoder.class_path != MambaEye.class_path():  # named by configs or flags
            given = [*given, *words_of_saved(defaults.pop(ENCODER), asked, given)]
        self._parser(command).set_defaults(defaults)
        self.config = parser.parse_args(given)
        config = self.config[command]
        config.trainer.callbacks = without_repeats(config.trainer.callbacks)
        config.data.images = images or config.data.images
        config.ckpt_path = ckpt_path
        if checkpoint:
            if command == "fit":
                require_same_groups(checkpoint[MODEL], config.model.head_only, config.model.optimizer.backbone_lr)
            config.model.init_from = config.model.new_head = None  # the checkpoint has the weights
            told = {name: was for name, was in remembered(checkpoint).items() if asked[name] is not None}
            self._print_changes(saved | told, own, config)

    def _asked(self, given: list[str]) -> Namespace:
        """Return what the words say, before a checkpoint's values are known."""
        words = [word for word in without_policy_arguments(given) if not word.startswith("--print_config")]
        asked: Namespace = self.parser.parse_args(words)[given[0]]
        return asked

    def _saved(self, checkpoint: dict[str, Any], ckpt_path: str, asked: Namespace) -> dict[str, Any]:
        """Return the arguments that a checkpoint gives, and say what it lacks; refuse one that cannot be taken."""
        command = self.words[0]
        saved = command_line_defaults(checkpoint, ClassifierModule, ShardDataModule)
        weights.require_own_sizes(checkpoint, ckpt_path)
        refuse_foreign_scans(saved, asked)
        require_shards(command, remembered(checkpoint), asked)
        print_rank_zero(f"{command} takes {ckpt_path}, saved after {checkpoint['global_step']} optimizer steps")
        if missing := unsaid(checkpoint, ClassifierModule, ShardDataModule):
            print_rank_zero(f"it is of another version, without {', '.join(missing)}: their defaults hold")
        return saved

    def _print_changes(self, saved: dict[str, Any], own: Path | None, config: Namespace) -> None:
        """Print what is said otherwise now than a checkpoint has it, and than the run's own config."""
        lines = [line for name, was in saved.items() for line in differing(name, was, config.get(name))]
        print_list("not as in the checkpoint, and as said now:", lines)
        if own:
            more = set(changes(own, self._parser(self.words[0]), config)) - set(lines)
            print_list(f"not as in {own}, and as said now:", more)

    def _parse_ckpt_path(self) -> None:
        """Leave out Lightning's own reading of a checkpoint's sizes, which overrules flags; see parse_arguments."""

    def before_instantiate_classes(self) -> None:
        trainer = self.config[self.subcommand].trainer
        refuse_devices(trainer.accelerator, trainer.devices)  # here, for a config may be printed anywhere
        run_dir = self.config[self.subcommand].run_dir
        self.new_run = run_dir if make_run_dir(run_dir) else None
        set_products(self.config[self.subcommand].float32_matmul_precision or "highest")
        name = "config.yaml" if self.subcommand == "fit" else f"{self.subcommand}.yaml"
        self.save_config_kwargs = {"config_filename": name}

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self.config[self.subcommand]
        if config.trainer.logger is None:
            kwargs["logger"] = logger_of(str(self.subcommand), config.run_dir)
        if config.trainer.enable_progress_bar is None and not sys.stdout.isatty():
            kwargs["enable_progress_bar"] = False  # a file or a pipe gets whole lines instead
        plugins = self.config_init[self.subcommand].trainer.plugins or []
        kwargs["plugins"] = [*(plugins if isinstance(plugins, list) else [plugins]), AtomicCheckpointIO()]
        try:
            trainer = super().instantiate_trainer(**kwargs)
        except ValueError as error:  # of an argument, in Lightning's words
            raise InputError(f"the trainer's arguments cannot be: {first_line(str(error))}") from None
        require_free_port(trainer)
        if self.subcommand != "fit":
            disable_signal_handlers(trainer)  # there is nothing to save: a signal ends it
        return trainer

    def before_fit(self) -> None:
        config = self.config["fit"]
        OneWriter(self.trainer, "fit", config.ckpt_path)
        if not config.float32_matmul_precision and self.trainer.strategy.root_device.type == "cuda":
            set_products("high")
        if not config.ckpt_path and (larger := gpu_overlay(config.config or (), self.trainer.strategy.root_device)):
            print_rank_zero(larger)
        for callback in self.trainer.callbacks:  # type: ignore[attr-defined]  # which Lightning declares nowhere
            if isinstance(callback, Preemption):
                callback.watch(self.trainer)

    def before_calibrate(self) -> None:
        """Leave out callbacks, which a run's config may have, but what shows progress and the config's file."""
        kept = [one for one in self.trainer.callbacks if isinstance(one, ProgressBar | ConfigFile)]  # type: ignore[attr-defined]
        self.trainer.callbacks = kept  # type: ignore[attr-defined]

    def before_predict(self) -> None:
        OneWriter(self.trainer, "predict", self.config["predict"].ckpt_path)


def set_products(precision: str) -> None:
    """Set how float32 matrices are multiplied, and say so if it is not as exactly as can be."""
    torch.set_float32_matmul_precision(precision)
    if precision in PRODUCTS:
        print_rank_zero(f"float32 matrices are multiplied in {PRODUCTS[precision]} where the device can")


def is_for_users(record: logging.LogRecord) -> bool:
    """Tell whether a line of Lightning's log is neither an advertisement nor of hardware that nobody asked for."""
    return not any(word in record.getMessage() for word in ADVERTISED)


def print_list(title: str, lines: Iterable[str]) -> None:
    """Print lines below a title, if there are any."""
    if listed := sorted(lines):
        print_rank_zero("\n".join([title, *listed]))


def main(args: list[str] | None = None) -> None:
    """Run the command line; a user's mistake ends in one sentence and exit code 1."""
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # classes and scans of one's own, in the folder where one is
    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    for message in NOT_FOR_USERS:
        warnings.filterwarnings("ignore", message)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(is_for_users)
    raise_refusals_once()
    words = sys.argv[1:] if args is None else args
    if not words or words[0] in ("-h", "--help"):
        print(OVERVIEW, end="")
        return
    try:
        require_command(words, (*COMMON, *COMMANDS))
        with in_one_sentence():
            if words[0] in COMMANDS:
                COMMANDS[words[0]](words[1:])
            else:
                MambaEyeCLI(words)
    except (ValueError, MisconfigurationException) as error:
        mistake = error if isinstance(error, MisconfigurationException) else mistake_in(error)
        if mistake is None:
            raise
        sentence = str(mistake).rpartition("InputError: ")[2].strip()  # of a loader worker's error, its last line
        sys.exit(f"error: {sentence}")


if __name__ == "__main__":
    with ending_among_others():
        main()
