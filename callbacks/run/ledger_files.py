"""A ledger's files, which are lines of JSON: their names, what a kill leaves of them, and cutting them."""

import json
import math
import os
from pathlib import Path
from typing import BinaryIO

BLOCK = 1 << 16  # bytes read at once when looking for a line's start


def ledger_path(run_dir: str | Path, rank: int) -> Path:
    """Return the ledger of a rank."""
    return Path(run_dir) / f"ledger-{rank}.jsonl"


def ledger_paths(run_dir: str | Path) -> dict[int, Path]:
    """Return the ledgers that are there, by rank."""
    ranks = {path.stem.removeprefix("ledger-"): path for path in Path(run_dir).glob("ledger-*.jsonl")}
    return {int(rank): path for rank, path in sorted(ranks.items()) if rank.isdecimal()}


def cut(path: Path, step: int) -> None:
    """Cut a ledger to the lines before an optimizer step, and to whole ones; what follows is another run's past."""
    with path.open("r+b") as file:
        end = end_of_last_line(file, file.seek(0, os.SEEK_END))
        while end:
            start = end_of_last_line(file, end - 1)
            file.seek(start)
            if step_of(file.read(end - start)) < step:
                break
            end = start
        file.truncate(end)


def step_of(line: bytes) -> float:
    """Return the optimizer step of a line; of one that a crash of the machine left unreadable, infinity."""
    try:
        return int(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return math.inf


def end_of_last_line(file: BinaryIO, end: int) -> int:
    """Return the number of bytes up to and with the last line break before some place of a file; 0 if there is none."""
    while end:
        start = max(0, end - BLOCK)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0
