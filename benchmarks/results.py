"""Train and measure the variants of a config, three seeds each: does what the method claims hold?

    python -m benchmarks.results digits [--output docs/results] [--runs runs/results] [--draw]
    python -m benchmarks.results digits --variants base plain --seeds 0 --output x --runs x -- --trainer.max_steps=2

The suites are in benchmarks/suites/. A row is a variant and a seed: `train.py fit` into a run directory, then
`train.py validate` of its last checkpoint for what its claims need, as command lines that one could type. Everything
measured goes into <output>/<suite>.json, an entry a row; tables (Markdown, on the console) and pictures
(<output>/<suite>-*.png) are made from that file alone, by --draw without training anything.

Stop it and start it again as you like: what is in the file is not done again, a fit that was killed goes on from its
last checkpoint, and a row whose settings or config have changed since is done anew. Arguments after -- go to every fit
and validate, and need an --output and --runs of their own.
"""

import argparse
import datetime
import hashlib
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
import yaml
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.curves import Entry
from benchmarks.drawing import draw
from benchmarks.suites import SUITES
from benchmarks.suites.suite import Flags, Suite
from benchmarks.tables import tables
from mambaeye.atomic import atomic_write
from mambaeye.errors import InputError

ROOT = Path(__file__).parents[1]
KEPT = ("top1", "top5", "confidence", "ece", "nll", "information_ratio")
SETTINGS = "settings.json"


@dataclass(frozen=True)
class Bench:
    """A suite with its folders."""

    name: str
    suite: Suite
    output: Path
    """Folder of <name>.json and the pictures."""
    runs: Path
    """Folder below which runs are kept."""
    more: tuple[str, ...] = ()
    """Arguments of every fit and validate."""

    @property
    def results(self) -> Path:
        """Return the path of the file with everything measured."""
        return self.output / f"{self.name}.json"

    def read(self) -> dict[str, Entry]:
        """Read the entries by row, as far as there are any."""
        if not self.results.exists():
            return {}
        return {row_name(entry["variant"], entry["seed"]): entry for entry in read_entries(self.results)}

    def write(self, entries: dict[str, Entry]) -> None:
        """Write all entries, a line each, in the suite's order."""
        order = [row_name(*row) for row in self.suite.rows()]
        known = sorted(entries, key=lambda name: order.index(name) if name in order else len(order))
        lines = ",\n".join(json.dumps(entries[name]) for name in known)
        with atomic_write(self.results) as partial:
            partial.write_text(f'{{"suite": "{self.name}", "rows": [\n{lines}\n]}}\n')

    def run_dir(self, variant: str, seed: int) -> Path:
        """Return the folder of a row's run, relative to the checkout if it is below it."""
        path = (self.runs / self.name / row_name(variant, seed)).resolve()
        return path.relative_to(ROOT) if path.is_relative_to(ROOT) else path

    def fit_arguments(self, variant: str, seed: int) -> list[str]:
        """Return the arguments of train.py that train a row."""
        flags = {"seed_everything": str(seed), **self.suite.fit, **self.suite.variants[variant]}
        if variant in self.suite.starts:
            flags["model.init_from"] = str(self.last(self.suite.starts[variant], seed))
        configs = [word for path in self.suite.configs_of(variant) for word in ("--config", path)]
        asked = ["fit", *configs, "--run_dir", str(self.run_dir(variant, seed)), "--ckpt_path", "last"]
        return [*asked, *words(flags), *self.more]

    def last(self, variant: str, seed: int) -> Path:
        """Return the path of a row's last checkpoint, as that of its run."""
        return self.run_dir(variant, seed) / "checkpoints/last.ckpt"

    def validate_arguments(self, variant: str, seed: int, evaluation: str) -> list[str]:
        """Return the arguments of train.py that measure a row."""
        run_dir = self.run_dir(variant, seed)
        asked = ["validate", "--run_dir", str(run_dir / evaluation)]
        flags = {**self.suite.validate, **self.suite.evaluations[evaluation]}
        return [*asked, "--ckpt_path", str(self.last(variant, seed)), *words(flags), *self.more]

    def settings(self, variant: str, seed: int) -> Entry:
        """Return what decides a fit: its command, and a digest of the config that it names, without comments."""
        configs = [yaml.safe_load((ROOT / path).read_text()) for path in self.suite.configs_of(variant)]
        known = configs[0] if len(configs) == 1 else configs
        digest = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()
        return {"fit": shown(self.fit_arguments(variant, seed)), "config_sha256": digest}

    def missing(self, entries: dict[str, Entry], variant: str, seed: int) -> list[str] | None:
        """List the evaluations that a row lacks.

        None if it must be trained for them: it never was, or with other settings, or its run is gone.
        """
        entry = entries.get(row_name(variant, seed), {})
        if any(entry.get(key) != value for key, value in self.settings(variant, seed).items()):
            return None
        lacking = [
            evaluation
            for evaluation in self.suite.evaluations_of(variant)
            if entry["evaluations"].get(evaluation, {}).get("command")
            != shown(self.validate_arguments(variant, seed, evaluation))
        ]
        trained = (ROOT / self.last(variant, seed)).exists()
        return lacking if trained or not lacking else None

    def do(self, entries: dict[str, Entry], variant: str, seed: int) -> None:
        """Train and measure what a row lacks, and write down each result as it comes."""
        name, missing = row_name(variant, seed), self.missing(entries, variant, seed)
        if missing is None:
            entries[name] = self.fit(variant, seed)
            self.write(entries)
            missing = self.suite.evaluations_of(variant)
        for evaluation in missing:
            entries[name]["evaluations"][evaluation] = self.validate(variant, seed, evaluation)
            self.write(entries)

    def fit(self, variant: str, seed: int) -> Entry:
        """Train a row, going on where these settings had brought it, and return its entry, without evaluations.

        A row that it starts from is trained first, if its run is gone.
        """
        start = self.suite.starts.get(variant)
        if start is not None and not (ROOT / self.last(start, seed)).exists():
            self.fit(start, seed)
        run_dir, settings = ROOT / self.run_dir(variant, seed), self.settings(variant, seed)
        if run_dir.exists():
            if not (run_dir / SETTINGS).exists():
                raise InputError(f"{run_dir} is not a run of benchmarks.results: move it away, or give other --runs")
            if json.loads((run_dir / SETTINGS).read_text()) != settings:
                shutil.rmtree(run_dir)
        continued = (ROOT / self.last(variant, seed)).exists()
        with atomic_write(run_dir / SETTINGS) as partial:
            partial.write_text(json.dumps(settings, indent=1) + "\n")
        seconds = call(self.fit_arguments(variant, seed), run_dir / "fit.log")
        return {
            "variant": variant,
            "seed": seed,
            "claims": self.suite.claims_of(variant),
            **settings,
            "date": datetime.date.today().isoformat(),
            "machine": machine(),
            "seconds": seconds,
            **({"continued": True} if continued else {}),  # then the seconds are those of the last part
            "evaluations": {},
        }

    def validate(self, variant: str, seed: int, evaluation: str) -> Entry:
        """Measure a row: curves over glimpses under each condition, to four digits."""
        arguments = self.validate_arguments(variant, seed, evaluation)
        folder = ROOT / self.run_dir(variant, seed) / evaluation
        folder.mkdir(parents=True, exist_ok=True)
        seconds = call(arguments, folder / "validate.log")
        conditions: dict[tuple[int, str], Entry] = {}
        measured = json.loads((folder / "validation.json").read_text())
        for row in measured["rows"]:
            condition = conditions.setdefault(
                (row["resolution"], row["scan"]),
                {"resolution": row["resolution"], "scan": row["scan"], "samples": row["samples"]},
            )
            condition.setdefault("steps", []).append(row["step"])
            for quantity in KEPT:
                condition.setdefault(quantity, []).append(round(row[quantity], 4))
        for path in folder.glob("validation/answers/*.csv"):
            resolution, _, scan = path.stem.partition("_")
            condition = conditions[int(resolution), scan]
            condition["correct"] = correct(path, condition["steps"])
        for row in measured["early_exit"] if evaluation in self.suite.stopping else ():
            rules = conditions[row["resolution"], row["scan"]].setdefault("exits", {})
            rules.setdefault(row["rule"], []).append(
                [row["threshold"], round(row["glimpses"], 2), round(row["top1"], 4)]
            )
        return {"command": shown(arguments), "seconds": seconds, "conditions": list(conditions.values())}


def correct(path: Path, steps: list[int]) -> dict[int, str]:
    """Return which images were answered correctly, in the order of the rows, as hexadecimal bits, by powers of two."""
    table = np.genfromtxt(path, delimiter=",", names=True, dtype=None, encoding="utf-8")
    powers = [step for step in steps if step.bit_count() == 1]
    return {step: np.packbits(table[f"answer_{step}"] == table["label"]).tobytes().hex() for step in powers}


def row_name(variant: str, seed: int) -> str:
    """Return a row's name, which is its run directory's."""
    return f"{variant}-{seed}"


def words(flags: Flags) -> list[str]:
    """Return flags as the shell would split them."""
    return [word for name, value in flags.items() for word in (f"--{name}", value)]


def shown(arguments: list[str]) -> str:
    """Return the command line as one would type it in the checkout."""
    return shlex.join(["python", "train.py", *arguments])


def read_entries(path: Path) -> list[Entry]:
    """Read the entries of a results file."""
    return json.loads(path.read_text())["rows"]


def call(arguments: list[str], log: Path) -> float:
    """Run train.py in the checkout, append its output to a log, and return the seconds that it took.

    Raises:
        subprocess.CalledProcessError: its exit code is not 0.
    """
    start = perf_counter()
    with log.open("a") as file:
        command = [sys.executable, "train.py", *arguments]
        subprocess.run(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, check=True)
    return round(perf_counter() - start, 1)


def machine() -> str:
    """Describe processor and accelerator."""
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text().splitlines() if cpus.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    words = f"{os.cpu_count()} cores of {models[0] if models else platform.processor() or platform.machine()}"
    words += f", {torch.get_num_threads()} used" if torch.get_num_threads() != os.cpu_count() else ""
    return words + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU")


def run(bench: Bench, rows: list[tuple[str, int]]) -> list[str]:
    """Do all rows that are not done, and return a sentence for each that failed."""
    entries, failed = bench.read(), []
    lacking = [(row, bench.missing(entries, *row)) for row in rows]
    left = [(row, cost(bench.suite, row[0], missing)) for row, missing in lacking if missing != []]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[left]}")) as progress:
        task = progress.add_task(bench.name, total=len(rows), completed=len(rows) - len(left), left="")
        start, done, total = perf_counter(), 0.0, sum(each for _, each in left)
        for row, each in left:
            progress.update(task, description=row_name(*row))
            began = perf_counter()
            try:
                bench.do(entries, *row)
                said = f"{row_name(*row)}: {perf_counter() - began:.0f} s"
            except subprocess.CalledProcessError as error:
                log = error.cmd[error.cmd.index("--run_dir") + 1]
                failed.append(said := f"{row_name(*row)} ended with exit code {error.returncode}: see the log in {log}")
            done += each
            time_left = f"about {(perf_counter() - start) / done * (total - done) / 60:.0f} minutes left"
            progress.update(task, advance=1, left=time_left)
            progress.console.print(said, f"({time_left})", soft_wrap=True, highlight=False)
    return failed


def cost(suite: Suite, variant: str, missing: list[str] | None) -> float:
    """Estimate the time that a row takes as a multiple of the base's; an evaluation is a quarter of it."""
    if missing is None:
        return suite.costs.get(variant, 1.0)
    return 0.25 * len(missing)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("--output", type=Path, help="folder of the results and pictures (default: docs/results)")
    parser.add_argument("--runs", type=Path, help="folder of the runs (default: runs/results)")
    parser.add_argument("--variants", nargs="+", help="these alone")
    parser.add_argument("--seeds", nargs="+", type=int, help="these alone")
    parser.add_argument("--draw", action="store_true", help="tables and pictures of the results that there are")
    given = sys.argv[1:]
    end = given.index("--") if "--" in given else len(given)  # argparse takes none after options
    args, more = parser.parse_args(given[:end]), given[end + 1 :]
    suite = SUITES[args.suite]
    if more and not (args.output and args.runs):
        parser.error("arguments of your own make other results: give an --output and --runs of their own")
    if unknown := set(args.variants or ()) - suite.variants.keys():
        parser.error(f"{args.suite} has no variant {', '.join(sorted(unknown))}: choose of {', '.join(suite.variants)}")
    output, runs = args.output or ROOT / "docs/results", args.runs or ROOT / "runs/results"
    bench = Bench(args.suite, suite, output, runs, tuple(more))
    failed = []
    if not args.draw:
        wanted = [
            (variant, seed)
            for variant, seed in suite.rows()
            if variant in (args.variants or suite.variants) and seed in (args.seeds or suite.seeds)
        ]
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped: start it again to go on"))  # and with it the fit
        failed = run(bench, wanted)
    if bench.results.exists():
        entries = read_entries(bench.results)
        draw(suite, entries, output / args.suite)
        print("\n\n".join(tables(suite, entries).values()))
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
