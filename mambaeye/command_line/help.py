"""Help that helps: the commands with an example each, the flags that people change, and all flags in plain words."""

import re
from argparse import Action, ArgumentParser
from textwrap import fill, indent

OVERVIEW = """\
MambaEye sees an image as a sequence of small glimpses and says after every glimpse what it is.

usage: python train.py COMMAND [--config FILE] [--FLAG VALUE ...]

commands, with an example each:

  fit       train a model, or go on with a run
            python train.py fit --config configs/folder.yaml --data.folder PHOTOS
  validate  measure a checkpoint on validation images, and draw its curves
            python train.py validate --ckpt_path runs/quickstart/checkpoints/best.ckpt
  test      do the same, into test.json
            python train.py test --ckpt_path runs/quickstart/checkpoints/best.ckpt
  predict   say what is on pictures of your own
            python train.py predict --ckpt_path runs/quickstart/checkpoints/best.ckpt --data.images photos
  calibrate make confidence mean accuracy: write a checkpoint beside one, with a temperature for its answers
            python train.py calibrate --ckpt_path runs/quickstart/checkpoints/best.ckpt
  export    write ONNX files that do what a checkpoint's model does, checked, with a model card and a page
            python train.py export --ckpt_path runs/quickstart/checkpoints/best.ckpt --output exported
  demo      show that page: a model that looks at pictures in the browser
            python train.py demo --ckpt_path runs/quickstart/checkpoints/best.ckpt

COMMAND --help      the flags that people change
COMMAND --help.all  all of them
"""
FULL_HELP = "--help.all"
WIDTH = 110
OF_A_CHECKPOINT = (
    *("ckpt_path", "run_dir", "config", "data.val_shards", "data.data_dir", "data.resolutions", "data.scans"),
    *("data.evaluate.num_glimpses", "data.evaluate.resize", "data.loader.batch_size", "data.loader.micro_batch_size"),
    *("data.loader.num_workers", "model.init_from", "model.calibrated", "report.plots", "answers.write"),
    *("trainer.accelerator", "trainer.devices"),
)
# the flags that people change, by command
COMMON = {
    "fit": (
        *("config", "run_dir", "ckpt_path", "seed_everything"),
        *("data.folder", "data.train_shards", "data.val_shards", "data.num_classes", "data.resolutions"),
        *("data.train.canvas", "data.train.num_glimpses", "data.evaluate.num_glimpses"),
        *("data.loader.batch_size", "data.loader.micro_batch_size", "data.loader.num_workers"),
        *("model.init_from", "model.optimizer.lr"),
        *("trainer.max_epochs", "trainer.devices", "trainer.precision"),
    ),
    "validate": OF_A_CHECKPOINT,
    "test": OF_A_CHECKPOINT,
    "predict": (
        *("ckpt_path", "data.images", "pictures", "animate", "run_dir", "config", "data.scans"),
        *("data.evaluate.num_glimpses", "data.predict.resize", "model.exit_criteria.confidence"),
        *("model.exit_criteria.stable", "model.exit_criteria.entropy", "model.exit_criteria.value"),
        "data.loader.max_pixels",
        *("data.loader.num_workers", "model.init_from", "model.calibrated", "trainer.accelerator", "trainer.devices"),
    ),
    "calibrate": (
        *("ckpt_path", "run_dir", "config", "data.folder", "data.train_shards", "data.data_dir", "data.train.canvas"),
        *("data.train_scan", "data.evaluate.num_glimpses", "data.loader.batch_size", "data.loader.micro_batch_size"),
        *("data.loader.num_workers", "trainer.accelerator", "trainer.precision"),
    ),
}
# where Lightning's own words are wrong or say nothing here
OURS = {
    "config": "YAML file of flags; of several, the later ones count.",
    "seed_everything": "Seed of the weights and the data; true draws one.",
    "ckpt_path": "Checkpoint to go on from, measure or predict with: a path, or last, the run directory's own. "
    "fit --ckpt_path last takes the run's config.yaml, too, unless --config is given.",
    "weights_only": "Left to train.py: checkpoints are read without running code.",
    "verbose": "Print Lightning's own table of metrics, too.",
    "return_predictions": "Left to train.py: predictions are written as they come.",
    "trainer.devices": "Devices or processes: a number, a list of indices, -1 for all there are, or auto.",
    "trainer.max_epochs": "Epochs after which training ends; -1 for never.",
    "trainer.precision": "Precision of training: 32-true, bf16-mixed, 16-mixed, bf16-true and others.",
    "trainer.accelerator": "Device to run on: cpu, gpu, mps or auto.",
}
# titles of groups, Lightning's (how they begin) and ours
TITLES = {
    "Customize every aspect": "Lightning's Trainer",
    "Saves as Lightning's ModelCheckpoint": "last.ckpt, which is never saved within an optimizer step",
    "Save the model": "best.ckpt, by Lightning's ModelCheckpoint",
    "Runs the full": "What a fit begins from",
    "Perform one": "What is measured, and how",
    "Run inference": "What predicts, and how",
}
# reStructuredText -> the words themselves
MARKUP = (
    (re.compile(r":\w+:`([^`<]+) <[^`>]*>`"), r"\1"),  # :ref:`words <place>`
    (re.compile(r":\w+:`~[\w.]*?(\w+)`"), r"\1"),  # :class:`~place.Name`
    (re.compile(r":\w+:`\.?([^`]*)`"), r"\1"),  # :class:`Name`
    (re.compile(r"`([^`<]+) <[^`>]*>`_+"), r"\1"),  # `words <URL>`_
    (re.compile(r"``?([^`]+)``?"), r"\1"),
    (re.compile(r"\s*\.\. \w+::\s*"), " "),  # .. note::
    (re.compile(r"\s+"), " "),
)


def plain(text: str) -> str:
    """Return a docstring's text without reStructuredText's markup."""
    for pattern, replacement in MARKUP:
        text = pattern.sub(replacement, text)
    return text


def reword(parser: ArgumentParser) -> None:
    """Put a parser's help into plain words."""
    for group in parser._action_groups:
        title = plain(group.title or "")
        group.title = next((ours for theirs, ours in TITLES.items() if title.startswith(theirs)), title)
    for action in parser._actions:
        reword_action(action)


def reword_action(action: Action) -> None:
    """Put an argument's help into plain words."""
    if action.dest in OURS:
        action.help = OURS[action.dest]
    elif isinstance(action.help, str):
        action.help = plain(action.help)


def brief(parser: ArgumentParser, command: str) -> str:
    """Return a command's help: the flags that people change, each with its default and its first sentence."""
    actions = {action.dest: action for action in parser._actions}
    lines = [
        f"usage: python train.py {command} [--config FILE] [--FLAG VALUE ...]",
        "",
        "the flags that people change:",
    ]
    for name in COMMON[command]:
        action = actions[name]
        default = "" if action.default in (None, "==SUPPRESS==") else f" (default: {shortly(action.default)})"
        what = fill(f"{action.help or ''}{default}", WIDTH - 6, break_on_hyphens=False)
        lines += [f"  --{name}", indent(what.replace("%%", "%"), " " * 6)]
    lines += [
        "",
        f"all flags:             python train.py {command} {FULL_HELP}",
        "an encoder's sizes:    --model.encoder.depth 12 and so on; --model.encoder.help MambaEye lists them",
        "a config to start at:  --print_config",
    ]
    return "\n".join(lines) + "\n"


def shortly(value: object) -> str:
    """Return a default as one would write it behind its flag."""
    if isinstance(value, bool):
        return str(value).lower()
    return "[" + ",".join(map(str, value)) + "]" if isinstance(value, list | tuple) else str(value)
