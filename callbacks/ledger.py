"""Audit what a run was trained on, by its ledger: samples seen once, twice or never, by epoch.

Exit code 1 when a sample was seen twice, or an epoch that is over lacks some.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from heapq import merge
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from callbacks.run.ledger_files import ledger_paths
from mambaeye.errors import InputError

NAMED = 3  # samples, batches or epochs in a message
NEEDED = ("epoch", "batch", "batches", "samples", "images", "limited", "keys", "unreadable")

Line = dict[str, Any]
"""A micro-batch, as callbacks.run.ledger.SampleLedger writes it down."""


@dataclass(frozen=True)
class EpochAudit:
    """An epoch in numbers of samples, over all ranks."""

    epoch: int
    once: int
    more: int
    """Seen twice or more often."""
    unreadable: int
    """Left out, as data.loader.max_unreadable allows."""
    never: int
    images: int
    """Of an optimizer step: fewer may be left over at the end of an epoch."""
    repeated: Sequence[str]
    """Examples of those seen more often."""
    missing: Sequence[int]
    """Batches without a line, before the last that has one."""
    over: bool
    limited: bool
    """True where trainer.limit_train_batches cuts it short."""

    @property
    def state(self) -> str:
        """Return how far it is, in words."""
        if not self.over:
            return "in progress"
        return "over, within limit_train_batches" if self.limited else "over"

    @property
    def findings(self) -> list[str]:
        """Return what is wrong with it, in sentences."""
        found = []
        if self.more:
            found.append(f"{self.more} samples were trained on more than once ({some(self.repeated)})")
        if self.missing:
            found.append(f"{len(self.missing)} of a rank's batches have no line ({some(self.missing)})")
        if self.over and not self.limited and self.never >= self.images:
            found.append(f"{self.never} samples were never trained on, enough for a step of {self.images}")
        return [f"epoch {self.epoch}: {sentence}" for sentence in found]


def audit(run_dir: Path) -> list[EpochAudit]:
    """Count a run's samples by epoch, over all ranks.

    Samples that share a key, which those of different shards may, count as one that was seen more often.

    Raises:
        InputError: the run has no ledger, or one that is damaged or of another version.
    """
    paths = ledger_paths(run_dir)
    if not paths:
        raise InputError(
            f"{run_dir} has no ledger-0.jsonl: give the folder of a run that was trained with "
            f"--trainer.callbacks+=callbacks.run.ledger.SampleLedger"
        )
    lines = merge(*map(read, paths.values()), key=itemgetter("epoch"))
    audits = [audit_epoch(epoch, of_epoch) for epoch, of_epoch in groupby(lines, key=itemgetter("epoch"))]
    return [*(replace(passed, over=True) for passed in audits[:-1]), *audits[-1:]]


def read(path: Path) -> Iterator[Line]:
    """Yield a ledger's lines, but for one that is still being written, or was when a run was killed.

    Raises:
        InputError: a line is damaged, or of a version without the entries that are counted.
    """
    with path.open("rb") as file:
        for number, text in enumerate(file, 1):
            if not text.endswith(b"\n"):
                return
            try:
                line = json.loads(text)
                itemgetter(*NEEDED)(line)
            except (ValueError, TypeError, KeyError):
                raise InputError(
                    f"line {number} of {path} is damaged, or of a version that wrote less down: such a ledger cannot "
                    f"be audited"
                ) from None
            yield line


def audit_epoch(epoch: int, lines: Iterable[Line]) -> EpochAudit:
    """Count the samples of an epoch's lines; it is over when its last batch has a line."""
    seen: Counter[str] = Counter()
    unreadable: set[str] = set()
    batches: set[int] = set()
    last: Line = {"batch": -1}
    for line in lines:
        seen.update(line["keys"])
        unreadable.update(line["unreadable"])
        batches.add(line["batch"])
        last = max(last, line, key=itemgetter("batch"))
    repeated = [key for key, times in seen.items() if times > 1]
    return EpochAudit(
        epoch=epoch,
        once=len(seen) - len(repeated),
        more=len(repeated),
        unreadable=len(unreadable),
        never=last["samples"] - len(seen.keys() | unreadable),
        images=last["images"],
        repeated=repeated,
        missing=sorted(set(range(last["batch"])) - batches),
        over=last["batch"] + 1 >= last["batches"],
        limited=last["limited"],
    )


def some(things: Sequence[object]) -> str:
    """Name the first few of many."""
    return ", ".join(map(str, things[:NAMED])) + (", ..." if len(things) > NAMED else "")


def findings(audits: Sequence[EpochAudit]) -> list[str]:
    """Return all that is wrong with a run's epochs, in sentences."""
    epochs = {epoch.epoch for epoch in audits}
    found = [sentence for epoch in audits for sentence in epoch.findings]
    absent = [epoch for epoch in range(max(epochs, default=0)) if epoch not in epochs]
    if absent:
        found.append(f"{len(absent)} epochs have no line ({some(absent)}): they were trained without a ledger")
    return found


def main(args: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m callbacks.ledger", description=__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of the run, with its ledgers")
    run_dir = parser.parse_args(args).run
    try:
        audits = audit(run_dir)
    except InputError as error:
        sys.exit(f"error: {error}")
    print(f"{'epoch':>5} {'once':>9} {'twice':>9} {'unreadable':>10} {'never':>9}")
    for found in audits:
        print(
            f"{found.epoch:>5} {found.once:>9} {found.more:>9} {found.unreadable:>10} {found.never:>9}  {found.state}"
        )
    wrong = findings(audits)
    for sentence in wrong:
        print(sentence)
    if wrong:
        sys.exit(1)


if __name__ == "__main__":
    main()
