"""Runs read, their page written."""

import os
from collections.abc import Sequence
from pathlib import Path

from callbacks.page.html import page
from callbacks.page.runs import read_run
from mambaeye.atomic import atomic_write


def write_page(paths: Sequence[Path], output: Path) -> None:
    """Write the page of some run directories.

    Raises:
        InputError: one has no validation.
    """
    runs = [read_run(path, name) for path, name in zip(paths, names_of(paths), strict=True)]
    with atomic_write(output) as partial:
        partial.write_text(page(runs), encoding="utf-8")


def names_of(paths: Sequence[Path]) -> list[str]:
    """Return what tells the runs apart: their paths below the folder that all are in."""
    whole = [os.path.abspath(path) for path in paths]
    above = os.path.commonpath([os.path.dirname(path) for path in whole])
    names = [os.path.relpath(path, above) for path in whole]
    return [name if names.count(name) == 1 else f"{name} ({place + 1})" for place, name in enumerate(names)]
