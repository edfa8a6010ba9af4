"""Agreement of a run's processes before they begin: on one command, one code and one port."""

import hashlib
import platform
import socket
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch.distributed as dist
from jsonargparse import Namespace
from lightning import Trainer

from callbacks.run.lightning_internals import port_of_children
from mambaeye.errors import InputError

ROOT = Path(__file__).parents[2]
CODE = ("train.py", "mambaeye/**/*.py", "datamodules/**/*.py", "callbacks/**/*.py")
LIBRARIES = ("torch", "lightning", "numpy", "opencv-python-headless")  # that change what is drawn, seen or computed
NAMED = 3  # differences in a message
# every process may have shards and configs in a place of its own, as long as they hold the same
PLACES = ("config", "data.data_dir", "data.train_shards", "data.val_shards", "data.train_index", "data.val_index")


def facts_of(config: Namespace) -> dict[str, str]:
    """Return what is compared: every argument but PLACES, the project's code, and the versions of what it uses."""
    arguments = {f"--{name}": str(value) for name, value in flat(config.as_dict()).items()}
    for name in PLACES:
        arguments.pop(f"--{name}", None)
    versions = {name: version(name) for name in LIBRARIES}
    return arguments | versions | {"Python": platform.python_version(), "the project's code": code_digest(ROOT)}


def flat(arguments: dict[str, Any], above: str = "") -> dict[str, Any]:
    """Return the plain values in nested arguments, by their full names."""
    values: dict[str, Any] = {}
    for name, value in arguments.items():
        values |= flat(value, f"{above}{name}.") if isinstance(value, dict) else {f"{above}{name}": value}
    return values


def code_digest(root: Path) -> str:
    """Return some digits of a checksum over the project's code."""
    files = sorted(path for pattern in CODE for path in root.glob(pattern))
    content = hashlib.sha256()
    for path in files:
        content.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return content.hexdigest()[:12]


def require_agreement(facts: dict[str, str]) -> None:
    """Compare what every process says of itself; all must call it.

    What differs would train them on other samples than they count, or let them wait for each other forever.

    Raises:
        InputError: two do not say the same, on every process.
    """
    of_all: list[dict[str, str]] = [{}] * dist.get_world_size()
    dist.all_gather_object(of_all, facts)
    for rank, others in enumerate(of_all):
        differences = [
            f"{name} ({others.get(name, 'not given')}, and {of_all[0].get(name, 'not given')} in process 0)"
            for name in sorted(others.keys() | of_all[0].keys())
            if others.get(name) != of_all[0].get(name)
        ]
        if differences:
            more = f" and {len(differences) - NAMED} more" if len(differences) > NAMED else ""
            raise InputError(
                f"process {rank} differs from process 0 in {', '.join(differences[:NAMED])}{more}: start all processes "
                f"with the same command and the same version of the code"
            )


def require_free_port(trainer: Trainer) -> None:
    """Refuse a port that is in use before other processes are started, which would wait for an answer there.

    Raises:
        InputError: it is in use.
    """
    try:
        port = port_of_children(trainer)
        if port is not None:
            socket.create_server(("", port)).close()
    except (OSError, OverflowError, ValueError) as error:
        raise InputError(f"the processes cannot meet at their port ({error}): set another MASTER_PORT") from None
