"""`train.py export` and `train.py demo`, which need no trainer and no data."""

import argparse
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NoReturn, get_args

from mambaeye.errors import InputError
from mambaeye.exporting.folder import CHUNK, MANIFEST, Checked, export
from mambaeye.exporting.narrow import Weights
from mambaeye.exporting.serving import PORT, serve, server_of


class Parser(argparse.ArgumentParser):
    """Answers a mistake as the other commands do: in two lines, with exit code 2."""

    def error(self, message: str) -> NoReturn:
        sys.stderr.write(f"error: {message}\nexpected: {' '.join(self.format_usage().split()[1:])}\n")
        sys.exit(2)


def export_command(words: list[str]) -> None:
    """Run `train.py export`, given what is behind its name."""
    parser = Parser(prog="python train.py export", description=EXPORT, allow_abbrev=False)
    parser.add_argument("--ckpt_path", required=True, metavar="FILE", help="Checkpoint of a run.")
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="Folder to write; an earlier export is replaced."
    )
    parser.add_argument("--chunk", type=int, default=CHUNK, help=f"Glimpses that chunk.onnx takes (default: {CHUNK}).")
    parser.add_argument(
        "--weights",
        choices=get_args(Weights),
        default="float32",
        help="Type that the encoder's matrices are rounded to and kept in (default: float32).",
    )
    given = parser.parse_args(words)
    print_checked(export(given.ckpt_path, given.output, given.chunk, given.weights))
    print(
        f"{given.output} has them, weights, a card (README.md) and a page: python train.py demo --folder {given.output}"
    )


def demo_command(words: list[str]) -> None:
    """Run `train.py demo`, given what is behind its name."""
    parser = Parser(prog="python train.py demo", description=DEMO, allow_abbrev=False)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--ckpt_path", metavar="FILE", help="Checkpoint of a run, exported for as long as it is shown.")
    what.add_argument("--folder", metavar="DIR", help="Folder that export wrote.")
    parser.add_argument("--port", type=int, default=PORT, help=f"Port here; 0 for a free one (default: {PORT}).")
    given = parser.parse_args(words)
    if given.folder is not None:
        if not (Path(given.folder) / MANIFEST).is_file():
            raise InputError(f"--folder {given.folder} is no export: write one with python train.py export")
        serve(Path(given.folder), given.port)
        return
    with suppress(KeyboardInterrupt), TemporaryDirectory(prefix="mambaeye-") as temporary:
        folder = Path(temporary) / "export"
        with server_of(folder, given.port):  # before the export, which takes longer than to say that it cannot be had
            pass
        export(given.ckpt_path, folder)
        serve(folder, given.port)


def print_checked(checked: list[Checked]) -> None:
    """Print a line for every file that was checked."""
    for one in checked:
        print(
            f"{one.file}: {one.bytes / 1e6:.2f} MB, {one.milliseconds:.2f} ms in one thread, differs from torch by "
            f"{one.difference:.0e}"
        )


EXPORT = "Write a checkpoint's model as ONNX, checked against torch, with weights, a card and a page that looks."
DEMO = "Show the page that looks, on this machine alone."
COMMANDS = {"export": export_command, "demo": demo_command}
