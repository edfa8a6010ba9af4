"""predictions.jsonl and predictions/: what `predict` leaves behind."""

import json
import logging
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from io import FileIO
from itertools import zip_longest
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from matplotlib.figure import Figure
from rich.console import Console

from callbacks.plots.clip_prediction import PredictedClip, animate_clip, draw_clip
from callbacks.plots.panels import save
from callbacks.plots.prediction import PredictedImage, animate, draw
from callbacks.plots.wording import counted
from callbacks.reports.stream_lines import DIGITS, StreamLines, class_names, picture_name, rounded, top_of
from mambaeye.atomic import atomic_write, refusals
from mambaeye.batch import FileBatch, ImageFile, Scene, TubeBatch
from mambaeye.contracts import data_of, model_of
from mambaeye.encoders.base import GlimpseEncoder
from mambaeye.errors import InputError, on_all_ranks
from mambaeye.evaluation.prediction import Prediction
from mambaeye.evaluation.streaming import StreamAnswer

LITTLE = 0.25  # of an image, less than which is worth a word

log = logging.getLogger(__name__)


class PredictionWriter(Callback):
    """Writes <run directory>/predictions.jsonl, one JSON line an image, in the order of the files.

    A line has path, size (height, width), frames if the file has several, of a clip first_frame, glimpses, stopped (the
    rule that was met, or budget), top5 (class, probability), information_ratio and confidence_by_glimpse; picture if
    there is one. Of a file that cannot be read, path and error. While it goes on, every process writes
    predictions-<rank>.jsonl; in the end these become one. Of a clip that is looked at as it arrives, a line a tube goes
    to a file of its own in predictions/, named by stream in place of confidence_by_glimpse.

    Args:
        pictures: Also draw every image, its trajectory, what was seen and what it was taken for.
        animate: Also write that as an animated WebP.
        score: Also print how many images were named right, of those that lie in a folder which is called like a class.
    """

    def __init__(self, pictures: bool = False, animate: bool = False, score: bool = False) -> None:
        self.pictures, self.animate, self.score = pictures, animate, score
        self.file: FileIO | None = None
        self.lines: StreamLines | None = None  # of the clip of which frames arrive

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if data_of(trainer).streams and (self.pictures or self.animate):
            raise InputError(
                "--pictures and --animate draw clips of data.frames frames, and data.predict.stream takes any number: "
                "leave them or it out"
            )
        path = part_path(trainer, trainer.global_rank)
        with refusals(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            # without a buffer, which would be written once more when the disk is full
            self.file = path.open("wb", buffering=0)

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: list[Prediction | StreamAnswer | None],
        batch: FileBatch | TubeBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        model, folder = model_of(pl_module), Path(trainer.default_root_dir)
        if isinstance(batch, TubeBatch):
            (answer,) = outputs
            assert not isinstance(answer, Prediction)
            self._take_tube(batch, answer, folder, model.classes)
            return
        glimpse = model.encoder.glimpse if isinstance(model.encoder, GlimpseEncoder) else None
        for row, (file, prediction) in enumerate(zip(batch.files, outputs, strict=True)):
            if prediction is None:
                self._append_unread(file)
                continue
            assert batch.scene is not None
            assert isinstance(prediction, Prediction)
            names = class_names(model.classes, prediction.classes.tolist())
            line = described(file, prediction, names)
            if self.pictures or self.animate:
                line |= self._draw(folder, batch.scene, row, file, prediction, names, glimpse)
            self._append(line)
            say(file.path, names[0], float(prediction.probabilities[0]), prediction.glimpses)

    def _take_tube(self, tube: TubeBatch, answer: StreamAnswer | None, folder: Path, classes: list[str]) -> None:
        """Write the answer to what has arrived of a clip, and at its end its line."""
        if self.lines is None:
            self.lines = StreamLines(folder, tube.file.path, classes)
        if tube.scene is not None:
            self.lines.add(answer)
            return
        line = self.lines.ended(tube.file)
        self.lines = None
        if "error" in line:
            self._append_unread(tube.file)
        else:
            self._append(line)
            best = line["top5"][0]
            say(tube.file.path, best["class"], best["probability"], line["glimpses"])

    def _append_unread(self, file: ImageFile) -> None:
        log.warning("%s", file.error)  # names the file
        self._append({"path": file.path, "error": file.error})

    def _append(self, line: dict[str, Any]) -> None:
        """Hand a line to the operating system."""
        assert self.file is not None
        # what of a name is not UTF-8 is escaped as JSON does
        left = (json.dumps(line, ensure_ascii=False) + "\n").encode(errors="backslashreplace")
        with refusals(self.file.name):
            while left:
                left = left[self.file.write(left) :]

    def _draw(
        self,
        folder: Path,
        scene: Scene,
        row: int,
        file: ImageFile,
        prediction: Prediction,
        names: list[str],
        glimpse: tuple[int, ...] | None,
    ) -> dict[str, str]:
        """Write what was asked for, and return where, below the folder."""
        written, name = {}, picture_name(file.path)
        drawn: Callable[[], Figure]
        animated: Callable[[], bytes]
        if file.first is None:
            image = PredictedImage.of(scene, row, file, prediction, names, glimpse[-1] if glimpse else None)
            drawn, animated = partial(draw, image), partial(animate, image)
        else:
            clip = PredictedClip.of(scene, row, file, prediction, names, glimpse)
            drawn, animated = partial(draw_clip, clip), partial(animate_clip, clip)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")  # letters that the font lacks become boxes
            if self.pictures:
                written["picture"] = f"predictions/{name}.png"
                save(drawn(), folder / written["picture"])
            if self.animate:
                written["animation"] = f"predictions/{name}.webp"
                with atomic_write(folder / written["animation"]) as partial_file:
                    partial_file.write_bytes(animated())
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
        noun, a_noun = ("clip", "a clip") if data_of(trainer).axes > 2 else ("image", "an image")
        parts = [part_path(trainer, rank) for rank in range(trainer.world_size)]
        files = [part.open("rb") for part in parts]
        lines = failed = little = longer = 0
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
                    longer += found.get("first_frame", 0) > 0
                    little += found.get("stopped") == "budget" and found["information_ratio"] < LITTLE
        for file, part in zip(files, parts, strict=True):
            file.close()
            part.unlink()
        if failed == lines:
            raise InputError(f"none of the {counted(lines, 'file')} could be read as {a_noun}: {path} says why")
        said = [f"{path} has {counted(lines - failed, f'predicted {noun}')}"]
        if failed:
            said.append(f"{counted(failed, 'file')} could not be read")
        if skipped := data_of(trainer).skipped_files:
            said.append(f"{counted(skipped, 'file')} without {a_noun}'s extension left out")
        Console().print(", ".join(said), soft_wrap=True)
        if self.score:
            share = f": {100 * sum(right) / len(right):.1f} % named right" if right else ""
            print(f"{counted(len(right), 'image')} in folders called like a class{share}", flush=True)
        if little:
            Console().print(
                f"of {counted(little, noun)} the glimpses showed less than {100 * LITTLE:.0f}%: scale larger ones "
                f"down with --data.predict.resize, to a side as in training, or give more "
                f"--data.evaluate.num_glimpses",
                soft_wrap=True,
            )
        if longer:
            Console().print(
                f"of {counted(longer, 'clip')} only frames in the middle were looked at: give more --data.frames, or "
                f"--data.predict.stream true with --data.scans [arriving], which looks at all as they arrive",
                soft_wrap=True,
                markup=False,
            )

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self.file is not None:
            self.file.close()
        if self.lines is not None:
            self.lines.close()


def say(path: str, name: str, probability: float, glimpses: int) -> None:
    """Print what an image or a clip was taken for, on one line whatever the names hold."""
    text = f"{path}: {name}, {100 * probability:.1f}% sure after {counted(glimpses, 'glimpse')}"
    print(text if text.isprintable() else ascii(text)[1:-1], flush=True)


def part_path(trainer: Trainer, rank: int) -> Path:
    """Return the file that a process writes while it predicts."""
    return Path(trainer.default_root_dir) / f"predictions-{rank}.jsonl"


def described(file: ImageFile, prediction: Prediction, names: list[str]) -> dict[str, Any]:
    """Return an image's line."""
    line: dict[str, Any] = {"path": file.path, "size": list(file.size)}
    if file.frames > 1:
        line["frames"] = file.frames
    if file.first is not None:
        line["first_frame"] = file.first
    return line | {
        "glimpses": prediction.glimpses,
        "stopped": prediction.stopped,
        "top5": top_of(names, prediction.probabilities),
        "information_ratio": round(prediction.information_ratio, DIGITS),
        "confidence_by_glimpse": rounded(prediction.confidence),
    }


def class_of_folder(path: str, classes: Sequence[str]) -> str | None:
    """Return the class that a file lies in a folder of, the nearest one; None if no folder is called like one."""
    return next((name for name in reversed(Path(path).parts[:-1]) if name in classes), None)
