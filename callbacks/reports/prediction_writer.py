"""predictions.jsonl and predictions/: what `predict` leaves behind."""

import hashlib
import json
import logging
import os
import warnings
from collections.abc import Sequence
from io import FileIO
from itertools import zip_longest
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console
from torch import Tensor

from callbacks.plots.panels import save
from callbacks.plots.prediction import PredictedImage, animate, draw
from callbacks.plots.wording import counted
from mambaeye.atomic import atomic_write, refusals
from mambaeye.batch import FileBatch, ImageFile
from mambaeye.contracts import data_of, model_of
from mambaeye.errors import InputError, on_all_ranks
from mambaeye.evaluation.prediction import Prediction

DIGITS = 6  # of a probability
LITTLE = 0.25  # of an image, less than which is worth a word
NAME_BYTES = 100  # of an image's name that are in its plot's

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
        score: Also print how many images were named right, of those that lie in a folder which is called like a class.
    """

    def __init__(self, pictures: bool = False, animate: bool = False, score: bool = False) -> None:
        self.pictures, self.animate, self.score = pictures, animate, score
        self.file: FileIO | None = None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        path = part_path(trainer, trainer.global_rank)
        with refusals(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            # without a buffer, which would be written once more when the disk is full
            self.file = path.open("wb", buffering=0)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: list[Prediction | None],
        batch: FileBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        model, folder = model_of(pl_module), Path(trainer.default_root_dir)
        patch_size = data_of(trainer).patch_size if model.takes == "glimpses" else None
        for row, (file, prediction) in enumerate(zip(batch.files, outputs, strict=True)):
            if prediction is None:
                log.warning("%s", file.error)  # names the file
                line = {"path": file.path, "error": file.error}
            else:
                assert batch.scene is not None
                names = class_names(model.classes, prediction.classes.tolist())
                line = described(file, prediction, names)
                if (self.pictures or self.animate) and data_of(trainer).axes == 2:
                    predicted = PredictedImage.of(batch.scene, row, file, prediction, names, patch_size)
                    line |= self._draw(folder, file.path, predicted)
            self._append(json.dumps(line, ensure_ascii=False) + "\n")
            if prediction is not None:
                say(file.path, names[0], prediction)

    def _append(self, line: str) -> None:
        """Hand a line to the operating system."""
        assert self.file is not None
        left = line.encode(errors="backslashreplace")  # what of a name is not UTF-8 is escaped as JSON does
        with refusals(self.file.name):
            while left:
                left = left[self.file.write(left) :]

    def _draw(self, folder: Path, path: str, predicted: PredictedImage) -> dict[str, str]:
        """Write what was asked for, and return where, below the folder."""
        written, name = {}, picture_name(path)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # letters that the font lacks become boxes
            if self.pictures:
                written["picture"] = f"predictions/{name}.png"
                save(draw(predicted), folder / written["picture"])
            if self.animate:
                written["animation"] = f"predictions/{name}.webp"
                with atomic_write(folder / written["animation"]) as partial:
                    partial.write_bytes(animate(predicted))
        return written

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._close()
        trainer.strategy.barrier()
        with on_all_ranks():
            self._join(trainer, model_of(pl_module).classes)

    @rank_zero_only
    def _join(self, trainer: Trainer, classes: Sequence[str]) -> None:
        """Put the processes' lines together, in turns as they took files, and print how it went."""
        path = Path(trainer.default_root_dir) / "predictions.jsonl"
        parts = [part_path(trainer, rank) for rank in range(trainer.world_size)]
        files = [part.open("rb") for part in parts]
        lines = failed = little = 0
        right: list[bool] = []
        with atomic_write(path) as partial, partial.open("wb") as joined:
            for turn in zip_longest(*files):
                for line in filter(None, turn):
                    joined.write(line)
                    found = json.loads(line)
                    lines += 1
                    failed += "error" in found
                    label = class_of_folder(found["path"], classes)
                    if label is not None and "error" not in found:
                        right.append(found["top5"][0]["class"] == label)
                    little += found.get("stopped") == "budget" and found["information_ratio"] < LITTLE
        for file, part in zip(files, parts, strict=True):
            file.close()
            part.unlink()
        if failed == lines:
            raise InputError(f"none of the {counted(lines, 'file')} could be read as an image: {path} says why")
        said = [f"{path} has {counted(lines - failed, 'predicted image')}"]
        if failed:
            said.append(f"{counted(failed, 'file')} could not be read")
        if skipped := data_of(trainer).skipped_files:
            said.append(f"{counted(skipped, 'file')} without an image's extension left out")
        Console().print(", ".join(said), soft_wrap=True)
        if self.score:
            share = f": {100 * sum(right) / len(right):.1f} % named right" if right else ""
            print(f"{counted(len(right), 'image')} in folders called like a class{share}", flush=True)
        if little:
            Console().print(
                f"of {counted(little, 'image')} the glimpses showed less than {100 * LITTLE:.0f}%: scale larger ones "
                f"down with --data.predict.resize, to a side as in training, or give more "
                f"--data.evaluate.num_glimpses",
                soft_wrap=True,
            )

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self.file is not None:
            self.file.close()


def say(path: str, name: str, prediction: Prediction) -> None:
    """Print what an image was taken for, on one line whatever the names hold."""
    sure, glimpses = 100 * float(prediction.probabilities[0]), counted(prediction.glimpses, "glimpse")
    text = f"{path}: {name}, {sure:.1f}% sure after {glimpses}"
    print(text if text.isprintable() else ascii(text)[1:-1], flush=True)


def part_path(trainer: Trainer, rank: int) -> Path:
    """Return the file that a process writes while it predicts."""
    return Path(trainer.default_root_dir) / f"predictions-{rank}.jsonl"


def described(file: ImageFile, prediction: Prediction, names: list[str]) -> dict[str, Any]:
    """Return an image's line."""
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


def rounded(numbers: Tensor) -> list[float]:
    """Return a tensor's numbers with as many digits as are worth writing."""
    return [round(number, DIGITS) for number in numbers.tolist()]


def class_names(classes: list[str], indices: list[int]) -> list[str]:
    """Return the names of classes, or their indices where no names are known."""
    return [classes[index] if classes else str(index) for index in indices]


def class_of_folder(path: str, classes: Sequence[str]) -> str | None:
    """Return the class that a file lies in a folder of, the nearest one; None if no folder is called like one."""
    return next((name for name in reversed(Path(path).parts[:-1]) if name in classes), None)


def picture_name(path: str) -> str:
    """Return what an image's plot is called: its name, and digits that tell it from others of that name elsewhere."""
    encoded = os.fsencode(path)
    start = os.fsdecode(os.path.basename(encoded)[:NAME_BYTES])
    return f"{start}-{hashlib.sha256(encoded).hexdigest()[:8]}"
