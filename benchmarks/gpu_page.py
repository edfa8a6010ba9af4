"""Write what benchmarks.gpu measured as a page: a section for every part that there is."""

from collections.abc import Callable
from typing import Any

from benchmarks import sizes
from benchmarks.markdown import markdown

Result = Any


def ceilings(result: Result) -> str:
    rows = [
        ["a copy in its memory, bytes read and written, GB/s", f"{result['copy_gb_per_second']:,.0f}"],
        *(
            [f"products of matrices in {name}, TFLOP/s", f"{result[key]:,.1f}"]
            for name, key in (
                ("bf16", "bf16_tflops"),
                ("float32 with factors in TF32", "tf32_tflops"),
                ("float32", "float32_tflops"),
            )
        ),
    ]
    versions = f"{result['machine']}; Python {result['python']}, torch {result['torch']}, CUDA {result['cuda']}"
    return markdown(f"{versions}.", ["what it can do at most", ""], rows)


def tests(result: Result) -> str:
    passed = result["tests"] - result["failures"] - result["errors"] - result["skipped"]
    failed = f": {', '.join(result['failed'])}" if result["failed"] else ""
    return (
        f"`pytest -m cuda`: {passed} passed, {result['failures'] + result['errors']} failed{failed}, "
        f"{result['skipped']} skipped, in {result['seconds']:.0f} s."
    )


def training_step(result: Result) -> str:
    peaks = result.get("extra_peak_mib", {})
    rows = [
        [
            name,
            f"{time:.1f}",
            f"{result['images_per_second'][name]:,.0f}",
            f"{result['milliseconds, mambaeye / another'][name]:.2f}",
            f"{peaks[name] / 1024:.1f}" if name in peaks else "",
        ]
        for name, time in result["milliseconds"].items()
    ]
    of = f"{result['size']} size, {result['batch']} images of {result['num_glimpses']} glimpses, bf16-mixed, AdamW"
    share = result["share of the matrix products' rate"]
    counted = (
        f"A step of ours is {result['gflops of a step'] / 1e3:.1f} TFLOPs, {share:.0%} of the rate of bf16 products."
    )
    heading = ["a step of", "ms", "images/s", "ours / it, time", "GiB beyond weights"]
    return markdown(f"`python -m benchmarks.training_step`: {of}, in turn. {counted}", heading, rows)


def encoder(result: Result) -> str:
    peers = result["peers"]
    rows = [[name, f"{time:.2f}"] for name, time in peers["milliseconds"].items()]
    rows += [[name, f"{ratio:.2f}"] for name, ratio in peers["ratios"].items()]
    title = (
        f"`python -m benchmarks.encoder`: float32, {result['depth']} layers, {peers['batch']} sequences of "
        f"{peers['length']} glimpses; milliseconds, and ratios."
    )
    made = [markdown(title, ["", ""], rows)]
    if "flat" in result:
        made.append(markdown("What should not grow:", ["", ""], [[k, f"{v:,.2f}"] for k, v in result["flat"].items()]))
    if "cuda_graph" in result:
        graph = result["cuda_graph"]
        made.append(
            f"One glimpse of the base size takes {graph['graph']:.2f} ms as a CUDA graph, and "
            f"{graph['launched']:.2f} ms launched as usual."
        )
    return "\n\n".join(made)


def sizes_of(result: Result) -> str:
    first = result[0]
    precision = first.get("precision", "float32")
    said = f"`python -m benchmarks.sizes --device cuda --precision {precision} --images {first['images']}`."
    return f"{said}\n\n{sizes.tables(result)}"


def feeding(result: Result) -> str:
    return (
        f"configs/cifar10.yaml with {result['workers']} loader workers, after the first epoch's 20 steps: "
        f"{result['images_per_second']:,} images a second, {result['percent_waiting']}% of the time waiting for data."
    )


def cifar10(result: Result) -> str:
    steps = sorted({row["step"] for row in result["rows"] if row["step"].bit_count() == 1})
    answers = {(row["resolution"], row["scan"], row["step"]): row["top1"] for row in result["rows"]}
    conditions = sorted({condition[:2] for condition in answers})
    rows = [[*condition, *(f"{100 * answers[(*condition, step)]:.1f}" for step in steps)] for condition in conditions]
    title = (
        f"configs/cifar10.yaml for {result['epochs']} epochs ({result['steps']:,} steps) instead of 100, "
        f"{result['images_per_second']:,} images a second, {result['percent_waiting']}% waiting for data; "
        f"top-1 (%) after so many glimpses:"
    )
    return markdown(title, ["pixels", "scan", *steps], rows)


SECTIONS: dict[str, tuple[str, Callable[[Result], str]]] = {
    "ceilings": ("The card", ceilings),
    "tests": ("Tests", tests),
    "training_step": ("A training step", training_step),
    "encoder": ("The encoder", encoder),
    "sizes": ("Cost against size", sizes_of),
    "feeding": ("Feeding", feeding),
    "cifar10": ("CIFAR-10", cifar10),
}


def page(results: dict[str, Result], notes: str = "", picture: str = "") -> str:
    """Return the page: what each part came to, and which have not been run.

    Args:
        results: of the parts, by their names.
        notes: Markdown that goes before them: how it was measured, what is to be borne in mind.
        picture: path of the picture of the sizes, as seen from the page, if there is one.
    """
    made = ["# On a GPU", "`make gpu` measures all of this in ten minutes; `--page` makes this page of its results."]
    made += [notes] * bool(notes)
    for part, (title, section) in SECTIONS.items():
        made.append(f"## {title}\n\n" + (section(results[part]) if part in results else "Not measured."))
        if part == "sizes" and part in results and picture:
            made.append(f"![Seconds and peak memory against the canvas side]({picture})")
    return "\n\n".join(made) + "\n"
