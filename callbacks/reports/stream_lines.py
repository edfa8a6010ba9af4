"""The lines of one clip that is looked at as it arrives: a line a tube, as it comes."""

import hashlib
import json
import os
from io import FileIO
from pathlib import Path
from typing import Any

from torch import Tensor

from mambaeye.atomic import refusals
from mambaeye.batch import ImageFile
from mambaeye.evaluation.streaming import StreamAnswer

DIGITS = 6  # of a probability
NAME_BYTES = 100  # of an image's name that are in its plot's
TOP = 5


class StreamLines:
    """Writes <run directory>/predictions/<name>.jsonl, a JSON line for every tube with a glimpse.

    A line has frames that have arrived, glimpses so far, class and probability after the last of them, and confidence,
    the largest probability after each glimpse of the tube.

    Args:
        folder: the run directory.
        path: of the clip.
        classes: names of the classes; none where they are not known.
    """

    def __init__(self, folder: Path, path: str, classes: list[str]) -> None:
        self.classes = classes
        self.name = f"predictions/{picture_name(path)}.jsonl"
        self.file: FileIO | None = None
        self.path = folder / self.name
        self.answer: StreamAnswer | None = None

    def add(self, answer: StreamAnswer | None) -> None:
        """Hand the line of a tube to the operating system; None where there is no answer yet."""
        if answer is None:
            return
        self.answer = answer
        if not len(answer.confidence):
            return
        with refusals(self.path):
            if self.file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self.file = self.path.open("wb", buffering=0)
            best = answer.probabilities.topk(1)
            line = {
                "frames": answer.frames,
                "glimpses": answer.glimpses,
                "class": class_names(self.classes, best.indices.tolist())[0],
                "probability": rounded(best.values)[0],
                "confidence": rounded(answer.confidence),
            }
            left = (json.dumps(line, ensure_ascii=False) + "\n").encode(errors="backslashreplace")
            while left:
                left = left[self.file.write(left) :]

    def ended(self, file: ImageFile) -> dict[str, Any]:
        """Return the line of the clip as a whole.

        Args:
            file: of the clip, with the number of its frames, and what went wrong, if something did.
        """
        self.close()
        if file.error is not None:
            return {"path": file.path, "error": file.error}
        assert self.answer is not None
        best = self.answer.probabilities.topk(min(TOP, len(self.answer.probabilities)))
        return {
            "path": file.path,
            "size": list(file.size),
            "frames": file.frames,
            "first_frame": 0,
            "glimpses": self.answer.glimpses,
            "stopped": "budget",
            "top5": top_of(class_names(self.classes, best.indices.tolist()), best.values),
            "information_ratio": round(self.answer.information_ratio, DIGITS),
            "stream": self.name,
        }

    def close(self) -> None:
        """Close the file, if it was opened."""
        if self.file is not None:
            self.file.close()


def top_of(names: list[str], probabilities: Tensor) -> list[dict[str, Any]]:
    """Return the likeliest classes by name with their probabilities (K,)."""
    return [{"class": name, "probability": p} for name, p in zip(names, rounded(probabilities), strict=True)]


def rounded(numbers: Tensor) -> list[float]:
    """Return a tensor's numbers with as many digits as are worth writing."""
    return [round(number, DIGITS) for number in numbers.tolist()]


def class_names(classes: list[str], indices: list[int]) -> list[str]:
    """Return the names of classes, or their indices where no names are known."""
    return [classes[index] if classes else str(index) for index in indices]


def picture_name(path: str) -> str:
    """Return what an image's plot is called: its name, and digits that tell it from others of that name elsewhere."""
    encoded = os.fsencode(path)
    start = os.fsdecode(os.path.basename(encoded)[:NAME_BYTES])
    return f"{start}-{hashlib.sha256(encoded).hexdigest()[:8]}"
