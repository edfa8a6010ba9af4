"""The config.yaml of a run that is continued: the user's own, so that it counts as a --config does."""

from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentParser, Namespace

from mambaeye.command_line.differences import differing

CONFIG = "config.yaml"
NOT_COMPARED = ("ckpt_path", "config", "run_dir", "weights_only")


def run_config(run_dir: str, asked: Namespace, ckpt_path: str | None) -> Path | None:
    """Return the config that a run is continued with: its own, where --ckpt_path last found a checkpoint.

    Args:
        run_dir: of the run.
        asked: the arguments of fit; with a --config among them, that one holds instead.
        ckpt_path: the checkpoint that was found.
    """
    path = Path(run_dir) / CONFIG
    takes = asked.ckpt_path == "last" and not asked.config and ckpt_path is not None
    return path if takes and path.is_file() else None


def without_repeats(callbacks: Any) -> Any:
    """Return callbacks without what is listed twice: once in a run's config, and by the flag that is repeated."""
    if not isinstance(callbacks, list):
        return callbacks
    return [callback for place, callback in enumerate(callbacks) if callback not in callbacks[:place]]


def changes(path: Path, parser: ArgumentParser, config: Namespace) -> list[str]:
    """Return a line for every argument that flags give another value than a run's config has."""
    now = yaml.safe_load(parser.dump(config, skip_none=False))
    was = yaml.safe_load(path.read_text(encoding="utf-8"))
    return [line for name in was.keys() - NOT_COMPARED for line in differing(name, was[name], now.get(name))]
