"""predictions.jsonl and predictions/: what `predict` leaves behind."""

import hashlib
import json
import logging
import os
import warnings
from itertools import zip_longest
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from callbacks.plots.curves import save
from callbacks.plots.prediction import Look, animate, draw
from mambaeye.atomic import atomic_write
from mambaeye.contracts import data_of
from mambaeye.errors import InputError, on_all_ranks

DIGITS = 6  # of a probability
NAME_BYTES = 100  # of an image's name that are in its picture's

log = logging.getLogger(__name__)


class PredictionWriter(Callback):
    """Writes <run directory>/predictions.jsonl, one JSON line an image, in the order of the files.

    A line has path, size (height, width), frames if the file has several, glimpses, stopped (the rule that was met, or
    budget), top5 (class, probability), information_ratio and confidence_by_glimpse; picture if there is one. Of a file
    that cannot be read, path and error. While it goes on, every process writes predictions-<rank>.jsonl; in the end
    these become one.

    Args:
        pictures: Also draw every image, its trajectory, what was seen and what it was taken for.
        animate: Also write that as an animated WebP.
    """

    def __init__(self, pictures: bool = False, animate: bool = False) -> None:
        self.pictures, self.animate = pictures, animate

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        path = part(trainer, trainer.global_rank)
        path.parent.mkdir(parents=True, exist_ok=True)
        # what of a name is not UTF-8 is escaped as JSON does
        self.file = path.open("w", buffering=1, encoding="utf-8", errors="backslashreplace")

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: list[Any],
        batch: Any,
        batch_idx: int,
    ) -> None:
        for row, (file, prediction) in enumerate(zip(batch.files, outputs, strict=True)):
            if prediction is None:
                log.warning("%s", file.error)
                line = {"path": file.path, "error": file.error}
            else:
                names = class_names(pl_module.classes, prediction.classes.tolist())
                line = described(file, prediction, names)
                if self.pictures or self.animate:
                    scene, patch_size = batch.scene.rows(slice(row, row + 1)), data_of(trainer).patch_size
                    look = Look.at(scene, patch_size, file, prediction, names)
                    line |= self.draw(Path(trainer.default_root_dir), file.path, look)
            self.file.write(json.dumps(line, ensure_ascii=False) + "\n")

    def draw(self, folder: Path, path: str, look: Look) -> dict[str, str]:
        """Write what was asked for, and say where, below the folder."""
        written, name = {}, picture_name(path)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # letters that the font lacks become boxes
            if self.pictures:
                written["picture"] = f"predictions/{name}.png"
                save(draw(look), folder / written["picture"])
            if self.animate:
                written["animation"] = f"predictions/{name}.webp"
                with atomic_write(folder / written["animation"]) as partial:
                    partial.write_bytes(animate(look))
        return written

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.file.close()
        trainer.strategy.barrier()
        with on_all_ranks():
            self.finish(trainer)

    @rank_zero_only
    def finish(self, trainer: Trainer) -> None:
        """Put the processes' lines together, in turns as they took files, and say how it went."""
        path = Path(trainer.default_root_dir) / "predictions.jsonl"
        parts = [part(trainer, rank) for rank in range(trainer.world_size)]
        files = [part.open("rb") for part in parts]
        lines = failed = 0
        with atomic_write(path) as partial, partial.open("wb") as whole:
            for turn in zip_longest(*files):
                for line in filter(None, turn):
                    whole.write(line)
                    lines += 1
                    failed += "error" in json.loads(line)
        for file, part_path in zip(files, parts, strict=True):
            file.close()
            part_path.unlink()
        if failed == lines:
            raise InputError(f"none of the {counted(lines, 'file')} could be read as an image: {path} says why")
        said = [f"{path} has {counted(lines - failed, 'predicted image')}"]
        if failed:
            said.append(f"{counted(failed, 'file')} could not be read")
        if left_out := data_of(trainer).skipped_files:
            said.append(f"{counted(left_out, 'file')} without an image's extension left out")
        Console().print(", ".join(said), soft_wrap=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if file := getattr(self, "file", None):
            file.close()


def counted(number: int, what: str) -> str:
    """So many of them."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def part(trainer: Trainer, rank: int) -> Path:
    """What a process writes while it predicts."""
    return Path(trainer.default_root_dir) / f"predictions-{rank}.jsonl"


def described(file: Any, prediction: Any, names: list[str]) -> dict[str, Any]:
    """An image's line."""
    line: dict[str, Any] = {"path": file.path, "size": list(file.size)}
    if file.frames > 1:
        line["frames"] = file.frames
    probabilities = rounded(prediction.probabilities)
    return line | {
        "glimpses": prediction.glimpses,
        "stopped": prediction.stopped,
        "top5": [{"class": name, "probability": p} for name, p in zip(names, probabilities, strict=True)],
        "information_ratio": round(prediction.information_ratio, DIGITS),
        "confidence_by_glimpse": rounded(prediction.confidence),
    }


def rounded(numbers: Any) -> list[float]:
    """A tensor's numbers, as many digits as are worth writing."""
    return [round(number, DIGITS) for number in numbers.tolist()]


def class_names(classes: list[str], numbers: list[int]) -> list[str]:
    """The names of classes, or their numbers where no names are known."""
    return [classes[number] if classes else str(number) for number in numbers]


def picture_name(path: str) -> str:
    """What an image's picture is called: its name, and a few digits that tell it from others of that name elsewhere."""
    encoded = os.fsencode(path)
    start = os.fsdecode(os.path.basename(encoded)[:NAME_BYTES])
    return f"{start}-{hashlib.sha256(encoded).hexdigest()[:8]}"
