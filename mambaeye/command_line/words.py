"""The command line's words, before they are parsed."""

from collections.abc import Iterable
from difflib import get_close_matches
from itertools import pairwise
from pathlib import Path

import yaml

from mambaeye.errors import InputError

IMAGES = "--data.images"
POLICY_ARGUMENT = "--model.policy."
CONFIGS = ("--config", "-c")


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


def without_policy_arguments(words: list[str]) -> list[str]:
    """Leave out arguments of a policy: --model.policy.candidates 16, whose class a checkpoint may bring."""
    kept: list[str] = []
    value_follows = False
    for word in words:
        if value_follows and not word.startswith("--"):
            value_follows = False
        elif word.startswith(POLICY_ARGUMENT):
            value_follows = "=" not in word
        else:
            value_follows = False
            kept.append(word)
    return kept


def require_command(words: list[str], commands: Iterable[str]) -> None:
    """Require that the first word is a command.

    Raises:
        InputError: it is something else.
    """
    if words[0] in commands:
        return
    near = get_close_matches(words[0], commands, n=1)
    meant = f"did you mean {near[0]}" if near else f"give one of {', '.join(commands)} first"
    raise InputError(f"{words[0]!r} is no command: {meant}, or --help")


def require_configs(words: list[str]) -> None:
    """Require that the files after --config are YAML with something in it.

    Raises:
        InputError: one is not.
    """
    pairs = [word.partition("=")[::2] for word in words] + [*pairwise(words)]
    for path in (path for flag, path in pairs if flag in CONFIGS and path and not path.startswith("-")):
        if not Path(path).is_file():
            continue  # it may be a URL
        try:
            content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            place = getattr(error, "problem_mark", None)
            where = f" in line {place.line + 1}" if place else ""
            raise InputError(f"--config {path} is not YAML{where}: repair it, or give another file") from None
        if not isinstance(content, dict):
            what = "is empty" if content is None else "has no flags by name"
            raise InputError(f"--config {path} {what}: give a file such as configs/quickstart.yaml")
