"""Lightning's argument parser, with help and errors of our own."""

import argparse
import sys
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from mambaeye.command_line.help import brief, reword
from mambaeye.command_line.mistakes import explained


class Parser(LightningArgumentParser):
    """Takes no abbreviated flags, and answers a mistake in two lines: what was given, and what is expected.

    Attributes:
        command: the command that it parses, if its help is to be the brief one.
    """

    command: str | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def format_help(self, formatter: argparse.HelpFormatter | None = None) -> str:
        """Return the flags that people change where there is a command, else all there are."""
        reword(self)
        if self.command:
            return brief(self, self.command)
        text: str = super().format_help() if formatter is None else super().format_help(formatter)
        return text

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """End with exit code 2 and two lines."""
        if not self.exit_on_error:  # tries one of several types
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        given, expected = explained(message, parser)
        sys.stderr.write(f"error: {given}\nexpected: {expected}\n")
        sys.exit(2)
