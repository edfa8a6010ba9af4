"""Random faults, by number: a run that one strikes, and that goes on, ends as the run that none does.

`python tests/faults.py 17` strikes with number 17 again; without a number, with all. Each prints what it did.
"""

import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from commands import TINY, flags, ledger
from fork_server import ForkServer

from callbacks.ledger import audit, findings
from callbacks.run.ledger_files import ledger_paths
from datamodules.digits import ensure_digits

FAULTS = 60
AT_ONCE = 2
ROUNDING = 1e-4  # of weights, where ranks shared the sums otherwise
PATIENCE = 120.0  # seconds after which a run hangs
EPOCHS, BATCH, STEPS = 2, 72, 5  # an epoch has 5 steps of 397 digits
HALF = 7  # steps of a run that was told to go
SETTINGS = {
    **TINY,
    "data.loader.batch_size": BATCH,
    "data.resolutions": "[32]",
    "data.scans": "[random]",
    "trainer.max_epochs": EPOCHS,
    "trainer.num_sanity_val_steps": 0,
    "trainer.limit_val_batches": 1,
    "trainer.logger": "false",
    "last.every_n_train_steps": 2,
}
LEDGER = "--trainer.callbacks+=callbacks.run.ledger.SampleLedger"
LAST = Path("checkpoints/last.ckpt")


class Layout(NamedTuple):
    """The processes that work on a run."""

    ranks: int
    workers: int

    def __str__(self) -> str:
        return f"{self.ranks} x {self.workers}"


LAYOUTS = [Layout(1, 0), Layout(1, 1), Layout(1, 2), Layout(2, 0), Layout(2, 1)]


@dataclass
class Run:
    """Processes of one command on a run directory."""

    bench: "Bench"
    folder: Path
    command: str
    layout: Layout
    accumulation: int
    more: Sequence[str] = ()
    file_limit: int | None = None
    pids: list[int] = field(default_factory=list)

    def start(self) -> "Run":
        ranks, workers = self.layout
        settings = SETTINGS | {
            "run_dir": self.folder / "run",
            "data.train_shards": self.folder / "shards",
            "data.val_shards": self.folder / "shards",
            "data.loader.micro_batch_size": BATCH // ranks // self.accumulation,
            "data.loader.num_workers": workers,
            "trainer.devices": ranks,
            "ckpt_path": "last",
        }
        arguments = [*flags(settings), *self.more]
        if self.command == "fit":
            arguments.append(LEDGER)
        else:
            fitting = ("max_epochs", "last.", "num_sanity")
            arguments = [flag for flag in arguments if not any(name in flag for name in fitting)]
        ddp: dict[str, str] = {}
        if ranks > 1:
            with socket.socket() as free:
                free.bind(("localhost", 0))
                ddp = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}
        for rank in range(ranks):
            if ranks > 1:
                ddp["LOCAL_RANK"] = str(rank)
            log = self.folder / f"rank-{rank}.log"
            self.pids.append(self.bench.server.start([self.command, *arguments], log, self.file_limit, **ddp))
        return self

    def signal(self, number: int) -> None:
        """Send a signal to every process of the run."""
        for pid in self.pids:
            try:
                os.killpg(pid, number)
            except ProcessLookupError:
                continue

    def end(self) -> list[int]:
        """Return the exit code of every rank.

        Raises:
            AssertionError: one hangs.
        """
        codes = [self.bench.server.end_of(pid, PATIENCE) for pid in self.pids]
        if None in codes:
            self.signal(signal.SIGKILL)
            raise AssertionError(f"{self.command} of {self.layout} hangs: {self.said()[-2000:]}")
        return [code for code in codes if code is not None]

    def finish(self) -> None:
        """Wait for the end.

        Raises:
            AssertionError: it is not a good one.
        """
        codes = self.end()
        assert not any(codes), f"{self.command} of {self.layout} ended with {codes}: {self.said()[-3000:]}"

    def said(self) -> str:
        """Return what all ranks have said since the folder was made."""
        return "".join(path.read_text() for path in sorted(self.folder.glob("rank-*.log")))

    def lines(self) -> int:
        """Return the length of rank 0's ledger."""
        book = self.folder / "run/ledger-0.jsonl"
        return book.read_bytes().count(b"\n") if book.exists() else 0

    def wait(self, draw: random.Random, batches: int) -> str:
        """Wait for a random moment, of opening the data or after some of so many batches, and name it."""
        begun, more = self.lines(), draw.randrange(batches)
        end = time.monotonic() + PATIENCE
        pause = draw.uniform(0, 0.05 if more else 2)
        while more and self.lines() < begun + more and time.monotonic() < end:
            if all(self.bench.server.end_of(pid, 0) is not None for pid in self.pids):
                return "its end"
            time.sleep(0.002)
        time.sleep(pause)
        return f"batch {begun + more}" if more else f"{pause:.2f} s"


@dataclass(frozen=True)
class Case:
    """The run that a fault strikes."""

    bench: "Bench"
    draw: random.Random
    folder: Path
    first: Layout
    """Of the run that it strikes."""
    then: Layout
    """Of the run that goes on."""
    accumulation: int
    batches: int
    """That the first run has left to do."""

    def run(self, layout: Layout | None = None, **settings: Any) -> Run:
        """Start fit, going on from the last checkpoint if there is one."""
        return Run(self.bench, self.folder, "fit", layout or self.first, self.accumulation, **settings).start()

    def killed(self) -> None:
        """Leave a run with a checkpoint, killed after it."""
        run = self.run()
        while not (self.folder / "run" / LAST).exists():
            assert run.bench.server.end_of(run.pids[0], 0.005) is None, run.said()
        run.wait(self.draw, self.batches)
        run.signal(signal.SIGKILL)
        run.end()

    def require_refusal(self, run: Run) -> None:
        """Require that a run ends in one sentence."""
        codes = run.end()
        assert any(codes), "the fault was not noticed"
        assert "error: " in run.said(), run.said()[-2000:]
        assert "Traceback" not in run.said(), run.said()[-3000:]


def kill(case: Case) -> str:
    """SIGKILL of all processes at once."""
    run = case.run()
    moment = run.wait(case.draw, case.batches)
    run.signal(signal.SIGKILL)
    run.end()
    return f"at {moment}"


def kill_one_rank(case: Case) -> str:
    """SIGKILL of one rank, with its workers; the other ends by itself."""
    run = case.run()
    moment = run.wait(case.draw, case.batches)
    rank = case.draw.randrange(case.first.ranks)
    try:
        os.killpg(run.pids[rank], signal.SIGKILL)
    except ProcessLookupError:
        moment += ", too late"
    run.end()
    return f"of rank {rank} at {moment}"


def terminate(case: Case) -> str:
    """SIGTERM to all processes: 75 once a fit has begun, and at any rate an end."""
    run = case.run()
    moment = run.wait(case.draw, case.batches)
    run.signal(signal.SIGTERM)
    codes = run.end()
    assert set(codes) <= {0, 1, os.EX_TEMPFAIL, -signal.SIGTERM}, (codes, run.said()[-2000:])
    return f"at {moment}, exit codes {codes}"


def interrupt(case: Case) -> str:
    """SIGINT to all processes, as Ctrl+C sends it."""
    run = case.run()
    moment = run.wait(case.draw, case.batches)
    run.signal(signal.SIGINT)
    return f"at {moment}, exit codes {run.end()}"


def kill_worker(case: Case) -> str:
    """SIGKILL of a loader worker, as the kernel does when memory is short."""
    first = case.first._replace(workers=max(1, case.first.workers))
    run = case.run(first)
    moment = run.wait(case.draw, case.batches - 1)
    pid = case.draw.choice(run.pids)
    try:
        workers = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        os.kill(int(case.draw.choice(workers)), signal.SIGKILL)
    except (OSError, IndexError):
        moment += ", where there is none"
    return f"at {moment}, exit codes {run.end()}"


def truncate(case: Case) -> str:
    """A checkpoint that breaks off: refused; the run goes on from an older one."""
    return damage(case, lambda data: data[: case.draw.randrange(len(data))])


def damage(case: Case, change: Callable[[bytes], bytes]) -> str:
    """Damage last.ckpt of a run that was killed; it is refused, and best.ckpt or nothing is gone on from."""
    case.killed()
    last = case.folder / "run" / LAST
    data = last.read_bytes()
    last.write_bytes(change(data))
    case.require_refusal(case.run())
    older = last.with_name("best.ckpt")
    last.unlink()
    if older.exists():
        older.rename(last)
    return f"{len(data)} bytes; went on from {'best.ckpt' if last.exists() else 'nothing'}"


def flip_bit(case: Case) -> str:
    """A bit of a checkpoint that turns: refused, or between the records of the file and harmless."""
    case.killed()
    last = case.folder / "run" / LAST
    data = last.read_bytes()
    place = case.draw.randrange(len(data))
    last.write_bytes(data[:place] + bytes([data[place] ^ 1 << case.draw.randrange(8)]) + data[place + 1 :])
    run = case.run()
    story = f"in byte {place} of {len(data)}"
    if not any(run.end()):
        return f"{story}, harmless"
    assert f"{last} is damaged" in run.said(), run.said()[-2000:]
    case.require_refusal(run)
    last.write_bytes(data)
    return story


def fit_twice(case: Case) -> str:
    """A second fit on the same folder, of another layout: one of both ends at once."""
    runs = [case.run()]
    moment = runs[0].wait(case.draw, case.batches)
    runs.append(case.run(case.then))
    refused = [index for index, run in enumerate(runs) if any(run.end())]
    assert len(refused) < len(runs), runs[0].said()[-3000:]
    for index in refused:
        case.require_refusal(runs[index])
        assert "error: another fit is writing to" in runs[index].said()
    return f"at {moment}, {len(refused)} refused"


def leave_partial(case: Case) -> str:
    """Leave noise beside a checkpoint, as a kill in the middle of a write does."""
    case.killed()
    partial = case.folder / "run/checkpoints/.last.ckpt.partial"
    partial.write_bytes(case.draw.randbytes(case.draw.randrange(100_000)))
    return f"{partial.stat().st_size} bytes"


def break_shard(case: Case) -> str:
    """A shard that breaks off while one run reads it, and is whole again for the next."""
    shards = sorted((case.folder / "shards").glob("*.tar"))
    shard = case.draw.choice(shards)
    data = shard.read_bytes()
    size = case.draw.randrange(len(data) // 2)
    shard.write_bytes(data[:size])
    run = case.run()
    case.require_refusal(run)
    shard.write_bytes(data)
    return f"{shard.name} at {size} of {len(data)} bytes"


def fill_disk(case: Case) -> str:
    """No room for a checkpoint: a sentence, and the older one stays whole."""
    alone = case.first._replace(workers=0)  # whose memory is files too
    run = case.run(alone, file_limit=case.draw.randrange(100_000, 250_000))
    case.require_refusal(run)
    last = case.folder / "run" / LAST
    if last.exists():
        torch.load(last, weights_only=True)
    return "on the checkpoint"


def disturb_validation(case: Case) -> str:
    """SIGKILL, SIGTERM or SIGINT in validate: the checkpoint is as it was, and the next validate says the same."""
    case.run().finish()
    last = (case.folder / "run" / LAST).read_bytes()
    settings = case.bench, case.folder, "validate", case.first, case.accumulation
    number = case.draw.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
    run = Run(*settings).start()
    pause = case.draw.uniform(0, 2)
    time.sleep(pause)
    run.signal(number)
    codes = run.end()
    assert (case.folder / "run" / LAST).read_bytes() == last
    said = []
    for layout in (case.first, case.then):
        Run(*settings[:3], layout, case.accumulation).start().finish()
        said.append(json.loads((case.folder / "run/validation.json").read_text())["rows"])
    same = case.first.ranks == case.then.ranks
    assert said[0] == said[1] if same else all(close(*rows) for rows in zip(*said, strict=True))
    return f"{number.name} after {pause:.2f} s, exit codes {codes}"


def close(row: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return whether two rows of a validation are equal but for the order of sums."""
    numbers = [name for name, value in row.items() if isinstance(value, float)]
    rest = [{name: value for name, value in either.items() if name not in numbers} for either in (row, other)]
    return rest[0] == rest[1] and all(abs(row[name] - other[name]) < ROUNDING for name in numbers)


# one fault in each twelve
KINDS = (
    *(kill, terminate, interrupt, kill_worker, truncate, flip_bit, fill_disk, break_shard, disturb_validation),
    *(kill_one_rank, leave_partial, fit_twice),
)


class Bench:
    """The setting of all faults: shards, a fork server, and the runs that none strikes."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.server = folder, ForkServer()
        ensure_digits(folder / "digits")
        self.whole, self.half = cache(self._whole), cache(self._half)

    def _whole(self, ranks: int, accumulation: int) -> Path:
        """Return the run directory of a run that nothing strikes."""
        folder = self._prepare(f"whole-{ranks}-{accumulation}")
        Run(self, folder, "fit", Layout(ranks, 0), accumulation).start().finish()
        return folder / "run"

    def _half(self, ranks: int, accumulation: int) -> Path:
        """Return the run directory of a run that was told to go in the middle of its second epoch."""
        folder = self._prepare(f"half-{ranks}-{accumulation}")
        moment = {"moment": "train_batch_start", "count": HALF * accumulation - 1, "numbers": [int(signal.SIGTERM)]}
        told = flags({f"trainer.callbacks.{name}": value for name, value in (moment | {"rank": 0}).items()})
        told = ["--trainer.callbacks+=signals.SendSignal", *told]
        codes = Run(self, folder, "fit", Layout(ranks, 0), accumulation, told).start().end()
        assert set(codes) == {os.EX_TEMPFAIL}, codes
        return folder / "run"

    def _prepare(self, name: str) -> Path:
        folder = self.folder / name
        shutil.copytree(self.folder / "digits/val", folder / "shards")
        return folder

    def strike(self, number: int) -> str:
        """Strike with a fault, go on, and compare with the run that none strikes; return what was done.

        Raises:
            AssertionError: it is not the same in the end.
        """
        draw = random.Random(number)
        kind = KINDS[number % len(KINDS)]
        first, then = draw.choice(LAYOUTS), draw.choice(LAYOUTS)
        if kind is kill_one_rank:
            first = first._replace(ranks=2, workers=min(1, first.workers))
        accumulation, resumed = draw.choice((1, 2)), draw.random() < 0.4
        folder = self._prepare(f"fault-{number}")
        if resumed:
            shutil.copytree(self.half(first.ranks, accumulation), folder / "run")
        batches = (EPOCHS * STEPS - HALF * resumed) * accumulation
        case = Case(self, draw, folder, first, then, accumulation, batches)
        story = f"fault {number}: {kind.__name__} in {'a resumed fit' if resumed else 'fit'} of {first}, then {then}"
        try:
            story += f", {kind(case)}"
            case.run(then).finish()
            self._compare(case)
        except AssertionError as error:
            raise AssertionError(f"{story}: {error}") from error
        shutil.rmtree(folder)
        return story

    def _compare(self, case: Case) -> None:
        """Require the ledger and the weights of the run that nothing struck."""
        run_dir = case.folder / "run"
        whole = self.whole(case.first.ranks, case.accumulation)
        audits = audit(run_dir)
        assert not findings(audits), findings(audits)
        assert [epoch.over for epoch in audits] == [True] * EPOCHS, [epoch.state for epoch in audits]
        taken = [samples_by_step(path) for path in (run_dir, whole)]
        assert taken[0].keys() == taken[1].keys(), f"steps {list(taken[0])}"
        other = [step for step, keys in taken[1].items() if keys != taken[0][step]]
        assert not other, f"steps {other} were of other samples"
        same = case.first.ranks == case.then.ranks
        ends = [torch.load(path / LAST, weights_only=True) for path in (run_dir, whole)]
        assert ends[0]["global_step"] == ends[1]["global_step"] == EPOCHS * STEPS, ends[0]["global_step"]
        weights = [checkpoint["state_dict"] for checkpoint in ends]
        off = max(float((weights[0][name] - weights[1][name]).abs().max()) for name in weights[1])
        assert off <= (0 if same else ROUNDING), f"weights are off by {off:g}"


def samples_by_step(run_dir: Path) -> dict[int, list[str]]:
    """Return which samples each optimizer step was of, over all ranks."""
    steps: dict[int, list[str]] = {}
    for rank in ledger_paths(run_dir):
        for line in ledger(run_dir, rank):
            steps.setdefault(line["step"], []).extend(line["keys"])
    return {step: sorted(keys) for step, keys in sorted(steps.items())}


def strike_all(numbers: Sequence[int], folder: Path) -> list[str]:
    """Strike with faults, some at once, print what each did, and return what went wrong."""
    wrong = []
    bench = Bench(folder)

    def strike(number: int) -> None:
        try:
            print(bench.strike(number), flush=True)
        except AssertionError as error:
            wrong.append(str(error))
            print(f"WRONG {error}", flush=True)

    with ThreadPoolExecutor(AT_ONCE) as threads:
        for prepare in (bench.whole, bench.half):  # at once, and each but once
            list(threads.map(prepare, *zip(*product((1, 2), (1, 2)), strict=True)))
        list(threads.map(strike, numbers))
    bench.server.close()
    return wrong


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        sys.exit(bool(strike_all([int(number) for number in sys.argv[1:]] or range(FAULTS), Path(name))))
