"""The encoder of a checkpoint among the words of a command line that name one of their own."""

import json
from typing import Any

import yaml
from jsonargparse import Namespace

from mambaeye.command_line.differences import LINKS

ENCODER = "model.encoder"
FLAG = f"--{ENCODER}."


def words_of_saved(encoder: dict[str, Any], asked: Namespace, given: list[str]) -> list[str]:
    """Return flags for the arguments of a checkpoint's encoder that neither configs nor flags state.

    Where these name its class themselves, it cannot be a default below them: a config for the default encoder that the
    class comes after (configs/quickstart.yaml, under an overlay) would be read as one of that class.

    Args:
        encoder: class path and arguments.
        asked: what configs and flags say, without a checkpoint.
        given: the words that it was parsed from.
    """
    stated = {word.removeprefix(FLAG).partition("=")[0].removeprefix("init_args.") for word in given}
    for config in asked.config or ():
        described = (yaml.safe_load(config.get_content()).get("model") or {}).get("encoder") or {}
        if isinstance(described, dict):
            stated |= described.keys() | (described.get("init_args") or {}).keys()
    linked = {target.rpartition(".")[2] for target in LINKS.values()}
    missing = {name: value for name, value in encoder["init_args"].items() if name not in stated | linked}
    return [f"{FLAG}{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in missing.items()]
