"""The model card of an export: what it is, what it was trained with, how right it is, and where it ends."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mambaeye.checkpoints import DATA, MODEL
from mambaeye.errors import InputError
from mambaeye.exporting.checking import GLIMPSES, IMAGES, TOLERANCE
from mambaeye.exporting.trained import Trained
from mambaeye.saved_values import shown

RESULT = "validation.json"  # in the run's folder
NAMED = 12  # classes
WHAT = {
    "step.onnx": "one glimpse of each image",
    "chunk.onnx": "{chunk} glimpses of each image at once",
    "policy.onnx": "what the learned scan expects of {candidates} places",
}


def card(trained: Trained, manifest: dict[str, Any], ckpt_path: Path) -> str:
    """Return the card, in Markdown.

    Raises:
        InputError: the run's validation.json is damaged.
    """
    rows = validation_rows(ckpt_path)
    parts = [
        front_matter(),
        f"# {manifest['encoder']}, {len(trained.classes)} classes\n",
        "An image classifier that sees small glimpses of an image, one after another, and answers after each. It is "
        f"exported by [MambaEye](https://arxiv.org/abs/2511.19963)'s `train.py export`, and has "
        f"{manifest['parameters']:,} parameters. Classes: {class_list(trained.classes)}.\n",
        "## Files\n",
        files_table(manifest),
        HOW.format(side=manifest["patch_size"], axes=manifest["axes"]),
        "## Sizes\n",
        table(("", ""), [(name, plain(value)) for name, value in trained.encoder.settings.items()]),
        "## Training\n",
        table(("", ""), training(trained)),
        "## Accuracy\n",
        accuracy(rows),
        "## Limits\n",
        limits(trained, manifest),
    ]
    return "\n".join(parts)


HOW = """
A step takes `patches` (images, 3, {side}, {side}) uint8 RGB, `positions` (images, {axes}) int64, the first pixel of
each glimpse (row, column), and the state, `state_*`, which is zeros before the first glimpse; it gives `logits`,
`features` and the next state, `next_*`, of the same size whatever was seen. export.json names and shapes them:

```python
import json

import numpy as np
import onnxruntime

told = json.load(open("export.json"))
session = onnxruntime.InferenceSession("step.onnx")
state = {{f"state_{{part['name']}}": np.zeros((1, *part["shape"]), part["dtype"]) for part in told["state"]}}
for row, col in [(0, 0), (8, 4)]:
    patch = image[row : row + {side}, col : col + {side}].transpose(2, 0, 1)  # image: (height, width, 3) uint8
    glimpse = {{"patches": patch[None], "positions": np.array([[row, col]])}}
    logits, _, *carried = session.run(None, glimpse | state)
    state = dict(zip(state, carried))
print(told["classes"][logits.argmax()])
```

With the project installed, `mambaeye.from_pretrained(folder or name on the hub)` gives the encoder in torch.
`python -m http.server` here shows index.html, which looks at pictures in the browser and sends nothing.
"""


def front_matter() -> str:
    """Return what the Hugging Face hub reads."""
    return "---\nlibrary_name: mambaeye\npipeline_tag: image-classification\ntags: [mamba, onnx, glimpses]\n---\n"


def validation_rows(ckpt_path: Path) -> list[dict[str, Any]]:
    """Return the rows of the last validation in the folder of a checkpoint's run; none where there is no such file.

    Raises:
        InputError: the file is not what validation writes.
    """
    path = ckpt_path.parent.parent / RESULT if ckpt_path.parent.name == "checkpoints" else ckpt_path.parent / RESULT
    if not path.is_file():
        return []
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        return [
            {"resolution": int(row["resolution"]), "scan": shown(row["scan"]), "step": int(row["step"])}
            | {"top1": float(row["top1"]), "samples": int(row["samples"])}
            for row in rows
        ]
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path} is damaged: validate again, or move it away") from None


def accuracy(rows: list[dict[str, Any]]) -> str:
    """Return top-1 after the last glimpse, a line for each size and a column for each scan."""
    if not rows:
        return "There was no validation.json beside the checkpoint's run: it is not known.\n"
    last = max(row["step"] for row in rows)
    found = {(row["resolution"], row["scan"]): row["top1"] for row in rows if row["step"] == last}
    scans = list(dict.fromkeys(scan for _, scan in found))
    lines = [
        (f"{size} px", *(f"{100 * found[size, scan]:.1f}%" if (size, scan) in found else "" for scan in scans))
        for size in sorted({size for size, _ in found})
    ]
    samples = max(row["samples"] for row in rows)
    said = (
        f"Top-1 after {last} glimpses on {samples} images, by canvas and scan, of the run's last validation "
        "(which may have been of another checkpoint of the run).\n"
    )
    return f"{said}\n{table(('canvas', *scans), lines)}"


def training(trained: Trained) -> list[tuple[str, str]]:
    """Return what the model was trained with, name and value."""
    model, data = trained.checkpoint[MODEL], trained.checkpoint[DATA]
    optimizer, train, loader = model.get("optimizer", {}), data.get("train", {}), data.get("loader", {})
    values = {
        "optimizer steps": trained.checkpoint["global_step"],
        "epoch": trained.checkpoint.get("epoch"),
        "images a step": loader.get("batch_size"),
        "canvas side, pixels": train.get("canvas"),
        "glimpses": train.get("num_glimpses"),
        "scan": data.get("train_scan"),
        "learning rate": optimizer.get("lr"),
        "weight decay": optimizer.get("weight_decay"),
        "target": model.get("schedule"),
        "seed": data.get("seed"),
    }
    return [(name, plain(value)) for name, value in values.items() if value is not None]


def limits(trained: Trained, manifest: dict[str, Any]) -> str:
    """Return where it ends, as a list."""
    canvas, worst = manifest["canvas"], max(one["difference"] for one in manifest["files"])
    lines = [
        f"It knows these {len(trained.classes)} classes and no others, and answers on anything.",
        "It was trained on the run's images, and on nothing that would make it fair or safe to decide about people.",
    ]
    if canvas:
        lines.append(f"It was trained on images of {min(canvas)} to {max(canvas)} pixels: others are not its own.")
    if trained.temperature is None:
        lines.append("Its confidence follows what was seen, not the chance of being right: nothing calibrated it.")
    else:
        lines.append(
            "logits are as the network gives them. The temperature that `calibrate` found depends on what was seen, "
            "which no step knows: it is in export.json (`temperature`; docs/calibration.md has the formula), and "
            "index.html uses it."
        )
    if manifest["weights"] != "float32":
        lines.append(
            f"The encoder's matrices are rounded to {manifest['weights']}, in model.safetensors too; the accuracy "
            "above is that of the checkpoint, whose are not."
        )
    lines.append(
        f"Each file was compared with torch, the same weights, on {IMAGES * GLIMPSES:,} random glimpses or more, "
        f"logits and states, before it was put here: they differ by {worst:.0e} at most ({TOLERANCE:.0e} is allowed)."
    )
    return "\n".join(f"- {line}" for line in lines) + "\n"


def files_table(manifest: dict[str, Any]) -> str:
    """Return what each graph does and costs."""
    sizes = {"chunk": manifest["chunk"], "candidates": (manifest["policy"] or {}).get("candidates")}
    lines = [
        (
            f"{one['file']}: {WHAT[one['file']].format(**sizes)}",
            f"{one['bytes'] / 1e6:.2f} MB",
            f"{one['milliseconds']:.2f} ms",
        )
        for one in manifest["files"]
    ]
    said = (
        f"The state of an image takes {manifest['state_bytes'] / 1024:.0f} KiB, however much was seen. Times are of "
        "one image, in one thread of the machine that exported.\n"
    )
    return f"{table(('file', 'size', 'time'), lines)}\n{said}"


def table(head: tuple[str, ...], lines: Sequence[tuple[str, ...]]) -> str:
    """Return a table in Markdown."""
    rows = [head, ("---",) * len(head), *lines]
    return "\n".join(f"| {' | '.join(value.replace('|', '/') for value in row)} |" for row in rows) + "\n"


def class_list(classes: list[str]) -> str:
    """Return the first names of the classes, each on one line and short."""
    names = ", ".join(f"`{shown(name)}`" for name in classes[:NAMED])
    return names if len(classes) <= NAMED else f"{names} and {len(classes) - NAMED} more"


def plain(value: object) -> str:
    """Return a value out of a checkpoint on one line."""
    return shown(", ".join(map(str, value)) if isinstance(value, list | tuple) else value)
