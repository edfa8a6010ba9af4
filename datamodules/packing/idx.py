"""IDX files as a source: images and labels of MNIST and its kin, as they are given out, plain or gzipped.

The format: two zero bytes, one byte for the kind of values (8: unsigned bytes), one for the number of axes; the length
of each axis in four bytes, the most significant first; then the values, along the last axis first.
"""

import gzip
import math
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import cv2
import numpy as np

from datamodules.packing.listing import TRAIN, VAL, Listing
from datamodules.packing.sources import Entry, Images, Member
from datamodules.transforms.headers import PixelLimit
from mambaeye.errors import InputError

NAME = re.compile(r"(train|t10k)-(images|labels)[-.]idx[13]-ubyte(\.gz)?")
PARTS = {TRAIN: "train", VAL: "t10k"}
UNSIGNED_BYTES = 8
GZIP = b"\x1f\x8b"
LARGEST = 1 << 31  # bytes of values in a file; EMNIST's largest has 0.55 GB
PIECE = 1 << 20  # bytes copied at once

Pairs = dict[str, tuple[Path, Path]]
"""Files of images and of labels, by part."""


@dataclass(frozen=True)
class IdxImages:
    """Greyscale images that lie one after another in a file, read as PNGs."""

    name: str
    """For messages."""
    path: Path
    """Pixels alone, uint8, without a header."""
    height: int
    """In pixels."""
    width: int
    """In pixels."""
    prefix: str = ""

    def read(self, member: Member) -> bytes:
        """Read an image, and return it as a PNG."""
        with self.path.open("rb") as file:
            file.seek(member.offset)
            pixels = np.frombuffer(file.read(member.size), np.uint8).reshape(self.height, self.width)
        _, png = cv2.imencode(".png", pixels)
        return png.tobytes()


def find_idx(folder: Path) -> Pairs | None:
    """Return the IDX files of a folder by part; None if it has none. A plain file goes before the same gzipped.

    Raises:
        InputError: some of the four are there, and some are not.
    """
    found: dict[tuple[str, str], Path] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if match := NAME.fullmatch(path.name):
            found.setdefault((match[1], match[2]), path)
    if not found:
        return None
    for name in PARTS.values():
        for kind, axes in (("images", 3), ("labels", 1)):
            if (name, kind) not in found:
                raise InputError(
                    f"{folder} has {next(iter(found.values())).name} and no {name}-{kind}-idx{axes}-ubyte: put all "
                    f"four files there, images and labels of train and t10k"
                )
    return {part: (found[name, "images"], found[name, "labels"]) for part, name in PARTS.items()}


def list_idx(name: str, pairs: Pairs, classes: Sequence[str] | None, limit: PixelLimit, folder: Path) -> Listing:
    """List the images of IDX files: those called train to train on, those called t10k to validate on.

    Args:
        name: for messages.
        pairs: the files.
        classes: class names, label 0 first; None takes the labels themselves, "0" and on.
        limit: of an image's pixels.
        folder: is given the files' values.

    Raises:
        InputError: a file is no such file, or damaged, cut short or too large; images and labels do not belong
            together; there is no name for a label.
    """
    parts: dict[str, tuple[Images, list[Entry]]] = {}
    for part, (images, labels) in pairs.items():
        pixels_path, labels_path = folder / f"{part}.pixels", folder / f"{part}.labels"
        count, height, width = unpack(images, 3, pixels_path)
        (label_count,) = unpack(labels, 1, labels_path)
        if count != label_count:
            raise InputError(
                f"{images} has {count} images, and {labels.name} has {label_count} labels: take both from one set"
            )
        if height * width > limit.pixels:
            raise InputError(
                f"{images} has images of {height} x {width} pixels, more than the {limit.pixels} of {limit.flag}: "
                f"copy it again, or raise the limit"
            )
        source = IdxImages(images.name, pixels_path, height, width)
        numbers = np.fromfile(labels_path, np.uint8).tolist()
        size, changed = height * width, images.stat().st_mtime_ns
        parts[part] = (
            source,
            [
                Entry(f"{PARTS[part]}-{at:06d}", "png", label, Member(f"{images.name}/{at}", at * size, size, changed))
                for at, label in enumerate(numbers)
            ],
        )
    highest = max(entry.label for _, entries in parts.values() for entry in entries)
    names = [str(label) for label in range(highest + 1)] if classes is None else list(classes)
    if highest >= len(names):
        raise InputError(f"{name} has the label {highest}, and --classes names 0 to {len(names) - 1}: name every class")
    return Listing(name, names, parts, [])


def unpack(path: Path, axes: int, dest: Path) -> tuple[int, ...]:
    """Copy the values in an IDX file, gzipped or not, into a file of their own, and return the length of each axis.

    Raises:
        InputError: it is no such file, or damaged, cut short or too large.
    """
    with path.open("rb") as raw:
        packed = raw.read(len(GZIP)) == GZIP
        raw.seek(0)
        file = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if packed else raw
        try:
            shape = read_header(file, path, axes)
            copy_values(file, path, math.prod(shape), dest)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise InputError(f"{path} is damaged or cut short ({error}): copy it again") from None
    return shape


def read_header(file: BinaryIO, path: Path, axes: int) -> tuple[int, ...]:
    """Read the start of an IDX file of unsigned bytes, and return the length of each axis.

    Raises:
        InputError: it is none with so many axes, is empty, or says that it is larger than any such file.
    """
    start = bytes((0, 0, UNSIGNED_BYTES, axes))
    header = file.read(len(start) + 4 * axes)
    if not header.startswith(start) or len(header) < len(start) + 4 * axes:
        raise InputError(
            f"{path} begins with {header[:4].hex() or 'nothing'}, and an IDX file of "
            f"{'images' if axes == 3 else 'labels'} with {start.hex()}: copy it again"
        )
    shape = tuple(int.from_bytes(header[at : at + 4]) for at in range(len(start), len(header), 4))
    if not 0 < math.prod(shape) <= LARGEST:
        raise InputError(
            f"{path} says that it holds {' x '.join(map(str, shape))} bytes, and files of 1 to {LARGEST} are read: "
            f"copy it again"
        )
    return shape


def copy_values(file: BinaryIO, path: Path, size: int, dest: Path) -> None:
    """Copy what follows an IDX file's header into a file, never more than the header says.

    Raises:
        InputError: there is less, or more.
    """
    left = size
    with dest.open("wb") as copy:
        while left and (piece := file.read(min(left, PIECE))):
            copy.write(piece)
            left -= len(piece)
    if left:
        raise InputError(f"{path} ends after {size - left} of the {size} bytes that its header says: copy it again")
    if file.read(1):
        raise InputError(f"{path} goes on after the {size} bytes that its header says: copy it again")
