"""Files, folders and patterns -> the image files that are meant, in a fixed order."""

import glob
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from mambaeye.errors import InputError

# of formats that OpenCV reads
JPEG, TIFF, BITMAP = ("jpg", "jpeg", "jpe", "jp2"), ("tif", "tiff"), ("bmp", "dib", "ppm", "pgm", "pbm")
EXTENSIONS = (*JPEG, "png", "webp", "gif", "avif", *TIFF, *BITMAP)


class FoundFiles(NamedTuple):
    """The image files that paths lead to."""

    files: list[str]
    """Each once, where it comes first."""
    skipped: int
    """Files without an image's extension, in folders and under patterns."""


def find_images(paths: Sequence[str]) -> FoundFiles:
    """Find the image files that paths lead to: in the order of the paths, and below each in the order of their names.

    Args:
        paths: a file, which may be called anything; a folder, for what has an image's extension below it, at any depth,
            and is not hidden; or a pattern of such (*, ?, [...], and ** for any depth). What a pattern finds must have
            an image's extension too, unless the pattern spells its own out. A path that exists is never a pattern.

    Raises:
        InputError: a path leads to nothing, or none to an image.
    """
    files: dict[str, None] = {}
    others: set[str] = set()
    for path in paths:
        exists = os.path.lexists(path)
        matches = [path] if exists else sorted(glob.glob(path, recursive=True))
        if not matches:
            reason = "matches nothing" if glob.has_magic(path) else "does not exist"
            raise InputError(f"{path!r} of --data.images {reason}: give files, folders or patterns of images")
        extension = os.path.splitext(path)[1]
        any_name = exists or (extension != "" and not glob.has_magic(extension))
        entered: set[str] = set()
        for match in without_circles(matches):
            is_folder = os.path.isdir(match)
            for file in walk(match, entered) if is_folder else [match]:
                if (any_name and not is_folder) or is_named_like_an_image(file):
                    files[file] = None
                else:
                    others.add(file)
    if not files:
        raise InputError(
            f"there is no image in {', '.join(paths)}: give --data.images files, or folders and patterns of "
            f".{', .'.join(EXTENSIONS)}"
        )
    return FoundFiles(list(files), len(others - files.keys()))


def without_circles(matches: Sequence[str]) -> list[str]:
    """Leave out what a pattern finds in a folder that it also reaches by a shorter path: links may lead in circles."""

    def folder_of(match: str) -> str:
        return os.path.normpath(match if os.path.isdir(match) else os.path.dirname(match))

    shortest: dict[str, str] = {}  # name of every folder
    for folder in sorted({folder_of(match) for match in matches}, key=lambda name: (name.count(os.sep), name)):
        shortest.setdefault(os.path.realpath(folder), folder)
    names = set(shortest.values())
    return [match for match in matches if folder_of(match) in names]


def walk(folder: str, entered: set[str]) -> Iterator[str]:
    """Yield the files below a folder that are not hidden, sorted, following links but entering no folder twice."""
    for here, folders, names in os.walk(folder, followlinks=True, onerror=refuse):
        place = os.path.realpath(here)
        if place in entered:
            folders.clear()
            continue
        entered.add(place)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (os.path.join(here, name) for name in sorted(names) if not name.startswith("."))


def refuse(error: OSError) -> None:
    """Raise what os.walk would pass over: a folder that cannot be read."""
    raise InputError(
        f"{error.filename} cannot be read ({error.strerror}): change its permissions, or give other folders"
    )


def is_named_like_an_image(path: str) -> bool:
    """Tell whether it has the extension of one."""
    return os.path.splitext(path)[1][1:].lower() in EXTENSIONS
