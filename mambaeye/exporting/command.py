"""`train.py export`, which needs no trainer and no data."""

import argparse
import sys
from typing import NoReturn

from mambaeye.exporting.folder import CHUNK, Checked, export


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
    given = parser.parse_args(words)
    print_checked(export(given.ckpt_path, given.output, given.chunk))
    print(f"{given.output} has them, weights and a card (README.md)")


def print_checked(checked: list[Checked]) -> None:
    """Print a line for every file that was checked."""
    for one in checked:
        print(
            f"{one.file}: {one.bytes / 1e6:.2f} MB, {one.milliseconds:.2f} ms in one thread, differs from torch by "
            f"{one.difference:.0e}"
        )


EXPORT = "Write a checkpoint's model as ONNX, checked against torch, with weights and a model card."
COMMANDS = {"export": export_command}
