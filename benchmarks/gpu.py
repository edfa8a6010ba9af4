"""Check and measure a machine with a CUDA GPU, in ten minutes: what `make gpu` runs.

    python -m benchmarks.gpu [--output runs/gpu] [--minutes 10] [--cifar10 cifar10.tar.xz] [--only PART ...]
    python -m benchmarks.gpu --output docs/results/gpu --page docs/gpu.md

The parts, in this order:

- ceilings: the card, versions, and what its memory and matrix products come to (benchmarks/ceilings.py)
- tests: the tests marked cuda, with one choice of each kernel instead of tuning (MAMBA_DETERMINISTIC)
- training_step: 64 images of 1024 glimpses, against mamba_ssm's stack and ViT-small (benchmarks/training_step.py)
- encoder: forward and backward against mamba_ssm's stack, one glimpse as a CUDA graph (benchmarks/encoder.py)
- sizes: the field's encoders against the size of the image (benchmarks/sizes.py)
- feeding: 40 steps of configs/cifar10.yaml, images a second and the share of time that waited for data
- cifar10: that config for as many epochs as the time that is left allows, and its validation

Each part is processes of its own, which write to OUTPUT/PART.log; its result is in OUTPUT/PART.json as soon as it is
there, and a part with a result is not done again: start it once more to go on. A part that fails or has no time is said
at the end. --page writes what there is as Markdown, behind the words in OUTPUT/notes.md if there are some. --dry goes
through all of it on a CPU, with the least sizes.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any
from xml.etree import ElementTree

from benchmarks.gpu_page import page
from mambaeye.atomic import atomic_write

ROOT = Path(__file__).parents[1]
IMAGES = 50_000  # of an epoch of CIFAR-10
SPARE, VALIDATION = 10, 40  # seconds kept back at the end, and for the validation of CIFAR-10
TESTS_AT_ONCE = 6  # most of their time is compiling
TRAINED = 0.85  # of the time left for CIFAR-10 is planned for: the rest is starting, and checkpoints
PACE = re.compile(r"(\d+) images/s, (\d+)% waiting for data")
STEPS = re.compile(r"done: (\d+) steps")
SHOWN = ("resolution", "scan", "step", "top1", "confidence", "ece")
PYTHON = [sys.executable, "-m"]


@dataclass(frozen=True)
class Settings:
    """Settings of all parts."""

    output: Path
    dry: bool
    cifar10: Path | None
    """Tar of class folders train/ and test/, or none to leave these parts out."""
    workers: int

    @property
    def device(self) -> str:
        """Return the device of benchmarks."""
        return "cpu" if self.dry else "cuda"

    def json(self, part: str) -> Path:
        """Return a part's result."""
        return self.output / f"{part}.json"


class PartError(Exception):
    """A part did not come to its end: the sentence that says so."""


@dataclass(frozen=True)
class Run:
    """The processes of a part."""

    settings: Settings
    part: str
    end: float
    """Second of the clock by which all must have ended."""

    @property
    def left(self) -> float:
        """Return the seconds that are left."""
        return self.end - monotonic()

    def call(self, *arguments: str, seconds: float | None = None, **environment: str) -> str:
        """Run a command in the checkout and return the log so far, to which its output goes.

        Raises:
            PartError: its exit code is not 0, or the time was up.
        """
        log = self.settings.output / f"{self.part}.log"
        with log.open("a") as file:
            print("$", *arguments, file=file, flush=True)
            try:
                code = subprocess.run(
                    arguments,
                    cwd=ROOT,
                    env={**os.environ, **environment},
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    timeout=max(1.0, min(self.left, seconds or self.left)),
                ).returncode
            except subprocess.TimeoutExpired:
                raise PartError(f"{self.part} was stopped, for its time was up: start again to go on ({log})") from None
        if code:
            raise PartError(f"{self.part} ended with exit code {code}: see {log}")
        return log.read_text(errors="replace")

    def write(self, result: Any) -> None:
        """Write the part's result."""
        with atomic_write(self.settings.json(self.part)) as path:
            path.write_text(json.dumps(result, indent=1) + "\n")


def ceilings(run: Run) -> None:
    run.call(*PYTHON, "benchmarks.ceilings", "--device", run.settings.device, "--output", str(made(run)))
    keep(run)


def tests(run: Run) -> None:
    """Count what the tests marked cuda came to; failures are a result, too."""
    report = made(run).with_suffix(".xml")
    workers = "0" if run.settings.dry else str(min(TESTS_AT_ONCE, os.cpu_count() or 1))
    command = [
        *PYTHON,
        "pytest",
        "-m",
        "cuda",
        "--continue-on-collection-errors",
        "-p",
        "no:cacheprovider",
        "-n",
        workers,
        f"--junitxml={report}",
    ]
    try:
        run.call(*command, "tests/test_kernels.py" if run.settings.dry else "tests", MAMBA_DETERMINISTIC="1")
    except PartError:
        if not report.exists():
            raise
    suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    counts = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
    failed = [case.get("name") for case in suite.iter("testcase") if case.find("failure") is not None]
    run.write({**counts, "seconds": float(suite.get("time", 0)), "failed": failed})
    report.unlink()


def training_step(run: Run) -> None:
    least = ["--size", "tiny", "--batch_size", "1", "--num_glimpses", "4", "--rounds", "1"] * run.settings.dry
    run.call(*PYTHON, "benchmarks.training_step", "--device", run.settings.device, "--output", str(made(run)), *least)
    keep(run)


def encoder(run: Run) -> None:
    least = ["--depth", "1", "--rounds", "1", "--batch_size", "1", "--only", "peers"]
    sizes = least if run.settings.dry else ["--batch_size", "16", "--only", "peers", "flat", "cuda_graph"]
    stem = made(run).with_suffix("")
    run.call(*PYTHON, "benchmarks.encoder", "--device", run.settings.device, "--output", str(stem), *sizes)
    keep(run)


def sizes(run: Run) -> None:
    """Measure as many cells as the time allows: those that there are stay in sizes.jsonl."""
    stem = run.settings.output / "sizes"
    least = ["--models", "tiny", "--images", "1", "--longest", "0"]
    more = least if run.settings.dry else ["--precision", "bf16", "--images", "8", "--most_mib", "70000"]
    run.call(*PYTHON, "benchmarks.sizes", "--device", run.settings.device, "--output", str(stem), *more)
    run.write([json.loads(line) for line in stem.with_suffix(".jsonl").read_text().splitlines()])


def feeding(run: Run) -> None:
    """Train for 40 steps, the first 20 of them to warm up."""
    shards(run)
    steps, folder = 2 if run.settings.dry else 20, run.settings.output / "feeding"
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was stopped
    log = run.call(
        *fit(run, folder),
        *flags(max_epochs=2, limit_train_batches=steps, limit_val_batches=0),
    )
    rate, waited = PACE.findall(log)[-1]
    run.write({"images_per_second": int(rate), "percent_waiting": int(waited), "workers": run.settings.workers})


def cifar10(run: Run) -> None:
    """Train for as many epochs as fit, and validate."""
    shards(run)
    folder = run.settings.output / "cifar10"
    plan = folder / "epochs"
    if not plan.exists():  # what a run that is gone on with was begun for
        if not run.settings.json("feeding").exists():
            raise PartError("cifar10 goes by what feeding measures, which has no result")
        rate = json.loads(run.settings.json("feeding").read_text())["images_per_second"]
        epochs = max(1, int(TRAINED * (run.left - VALIDATION) * rate / IMAGES)) if not run.settings.dry else 1
        folder.mkdir(parents=True, exist_ok=True)
        plan.write_text(str(epochs))
    epochs = int(plan.read_text())
    fewer = flags(limit_train_batches=2) if run.settings.dry else []
    log = run.call(
        *fit(run, folder),
        "--ckpt_path=last",
        f"--model.optimizer.warmup_epochs={0.07 * epochs:.2f}",
        *flags(max_epochs=epochs, limit_val_batches=0, max_time=duration(run.left - VALIDATION)),
        *fewer,
    )
    run.call(*validation(run, folder), f"--run_dir={folder}/validation")
    rows = json.loads((folder / "validation/validation.json").read_text())["rows"]
    steps = int(STEPS.findall(log)[-1])
    pace, waited = PACE.findall(log)[-1]
    run.write(
        {
            "epochs": epochs,
            "steps": steps,
            "images_per_second": int(pace),
            "percent_waiting": int(waited),
            "rows": [{name: row[name] for name in SHOWN} for row in rows],
        }
    )


def fit(run: Run, folder: Path) -> list[str]:
    """Return the command of a fit of CIFAR-10."""
    return [sys.executable, "train.py", "fit", *of_cifar10(run), f"--run_dir={folder}"]


def validation(run: Run, folder: Path) -> list[str]:
    """Return the command of the validation of a fit."""
    return [sys.executable, "train.py", "validate", *of_cifar10(run), f"--ckpt_path={folder}/checkpoints/last.ckpt"]


def of_cifar10(run: Run) -> list[str]:
    """Return the arguments that fit and validation share."""
    data = run.settings.output / "data"
    given = ["--config=configs/cifar10.yaml", f"--data.train_shards={data}/train", f"--data.val_shards={data}/test"]
    workers = [f"--data.loader.num_workers={run.settings.workers}"]
    if not run.settings.dry:
        return [*given, *workers]
    small = {"dim": 16, "depth": 1, "d_state": 8, "headdim": 8, "move_embedding_dim": 16}
    least = [*(f"--model.encoder.{name}={value}" for name, value in small.items()), "--data.resolutions=[32]"]
    return [*given, *workers, *least, "--data.loader.batch_size=8", *flags(accelerator="cpu", precision="32-true")]


def flags(**settings: Any) -> list[str]:
    """Return trainer settings as arguments."""
    return [f"--trainer.{name}={value}" for name, value in settings.items()]


def duration(seconds: float) -> str:
    """Return a time as the trainer reads it, DD:HH:MM:SS."""
    minutes, rest = divmod(max(1, int(seconds)), 60)
    return f"00:{minutes // 60:02}:{minutes % 60:02}:{rest:02}"


def shards(run: Run) -> None:
    """Pack CIFAR-10, once."""
    if run.settings.cifar10 is None:
        raise PartError(f"{run.part} is left out: --cifar10 names a tar of the class folders train/ and test/")
    for split in ("train", "test"):
        if not (run.settings.output / "data" / split / "index.json").exists():
            target = str(run.settings.output / "data" / split)
            run.call(*PYTHON, "datamodules.pack", str(run.settings.cifar10), target, "--prefix", f"{split}/")


def made(run: Run) -> Path:
    """Return the file that a benchmark writes, which becomes the result when the benchmark has ended."""
    return run.settings.output / f"{run.part}_made.json"


def keep(run: Run) -> None:
    """Make what a benchmark wrote the result."""
    run.write(json.loads(made(run).read_text()))
    made(run).unlink()


PARTS: dict[str, tuple[Callable[[Run], None], float]] = {
    "ceilings": (ceilings, 60),
    "tests": (tests, 180),
    "training_step": (training_step, 180),
    "encoder": (encoder, 120),
    "sizes": (sizes, 180),
    "feeding": (feeding, 120),
    "cifar10": (cifar10, 600),
}
"""Each with the most seconds that it may take."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("runs/gpu"), help="folder of results and logs")
    parser.add_argument("--minutes", type=float, default=10, help="all that it may take")
    parser.add_argument("--cifar10", type=Path, help="tar with the class folders train/ and test/ of CIFAR-10")
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 2), help="loader workers")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=[*PARTS], help="these parts alone")
    parser.add_argument("--dry", action="store_true", help="on a CPU, with the least sizes")
    parser.add_argument("--page", type=Path, help="write the results that there are to this file, and do nothing else")
    given = parser.parse_args()
    if given.cifar10 and not tarfile.is_tarfile(given.cifar10):
        parser.error(f"--cifar10 {given.cifar10} is no tar: give one with the class folders train/ and test/")
    output = given.output.absolute()
    settings = Settings(output, given.dry, given.cifar10 and given.cifar10.absolute(), given.workers)
    if given.page:
        results = {part: json.loads(path.read_text()) for part in PARTS if (path := settings.json(part)).exists()}
        notes, picture = output / "notes.md", output / "sizes.png"
        told = notes.read_text().strip() if notes.exists() else ""
        shown = os.path.relpath(picture, given.page.absolute().parent) if picture.exists() else ""
        given.page.write_text(page(results, told, shown))
        return
    output.mkdir(parents=True, exist_ok=True)
    end, said = monotonic() + 60 * given.minutes - SPARE, []
    for part in given.only:
        began, (do, most) = monotonic(), PARTS[part]
        if settings.json(part).exists():
            print(f"{part}: done before", flush=True)
            continue
        try:
            if end - began < 1:
                raise PartError(f"{part} had no time: start again to go on")
            do(Run(settings, part, min(end, began + most)))
            print(f"{part}: {monotonic() - began:.0f} s", flush=True)
        except PartError as failure:
            said.append(str(failure))
            print(failure, flush=True)
    if said:
        sys.exit("\n".join(["not done:", *said]))


if __name__ == "__main__":
    main()
