"""Files, folders and patterns -> the image files or clips that are meant, in a fixed order."""

import errno
import glob
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from mambaeye.errors import InputError

# of formats that OpenCV reads
JPEG, TIFF, BITMAP = ("jpg", "jpeg", "jpe", "jp2"), ("tif", "tiff"), ("bmp", "dib", "ppm", "pgm", "pbm")
EXTENSIONS = (*JPEG, "png", "webp", "gif", "avif", *TIFF, *BITMAP)
VIDEOS = ("mp4", "m4v", "mov", "avi", "mkv", "webm")  # that its FFmpeg decodes
VOLUMES = ("nii", "nii.gz")  # NIfTI
NUMBER = re.compile(r"(\d+)")


class FoundFiles(NamedTuple):
    """The image files, or the clips, that paths lead to."""

    files: list[str]
    """Each once, where it comes first."""
    skipped: int
    """Files without an extension of such, in folders and under patterns."""
    are_clips: bool = False


def find_files(paths: Sequence[str], images: bool, clips: bool) -> FoundFiles:
    """Find the images that paths lead to, or the clips; if either will do, clips where there is a video or a volume.

    Args:
        paths: as for find_images and find_clips.
        images: whether images will do.
        clips: whether clips will do.

    Raises:
        InputError: there is no path, or one leads to nothing, or none to what is wanted.
    """
    if not paths:
        raise InputError("predict has no images: give --data.images files, folders or patterns")
    if clips and (has_videos(paths) or not images):
        return find_clips(paths)
    return find_images(paths)


def find_images(paths: Sequence[str]) -> FoundFiles:
    """Find the image files that paths lead to: in the order of the paths, and below each in the order of their names.

    Args:
        paths: a file, which may be called anything; a folder, for what has an image's extension below it, at any depth,
            and is not hidden; or a pattern of such (*, ?, [...], and ** for any depth). What a pattern finds must have
            an image's extension too, unless the pattern spells its own out. A path that exists is never a pattern.

    Raises:
        InputError: a path leads to nothing, or none to an image.
    """

    def image_of(file: str, given: bool) -> str | None:
        return file if given or is_named_like_an_image(file) else None

    found = find(paths, image_of, "images")
    if not found.files:
        raise InputError(
            f"there is no image in {', '.join(paths)}: give --data.images files, or folders and patterns of "
            f".{', .'.join(EXTENSIONS)}"
        )
    return found


def find_clips(paths: Sequence[str]) -> FoundFiles:
    """Find the clips that paths lead to: videos, volumes, and folders that pictures lie in, each of which is one.

    Args:
        paths: as for find_images. A picture that a folder or a pattern leads to stands for the folder that it lies in.

    Raises:
        InputError: a path leads to nothing, or none to a clip.
    """

    def clip_of(file: str, given: bool) -> str | None:
        if is_named_like_an_image(file) and file not in paths:
            return os.path.dirname(file) or os.curdir
        return file if given or is_named_like_a_clip(file) else None

    found = find(paths, clip_of, "clips")
    if not found.files:
        raise InputError(
            f"there is no clip in {', '.join(paths)}: give --data.images videos, or folders and patterns of "
            f".{', .'.join((*VIDEOS, *VOLUMES))} or of folders of frames"
        )
    return found._replace(are_clips=True)


def has_videos(paths: Sequence[str]) -> bool:
    """Tell whether there is a video or a volume where paths lead, by its extension."""

    def video_of(file: str, given: bool) -> str | None:
        return file if is_named_like_a_clip(file) else None

    return bool(find(paths, video_of, "images or clips").files)


def find(paths: Sequence[str], meant: Callable[[str, bool], str | None], noun: str) -> FoundFiles:
    """Find what paths lead to: in the order of the paths, and below each in the order of their names.

    Args:
        paths: as for find_images.
        meant: returns what a file stands for, if it is wanted; told whether it may be called anything.
        noun: what is wanted, in a message.

    Raises:
        InputError: a path leads to nothing.
    """
    files: dict[str, None] = {}
    others: set[str] = set()
    for path in paths:
        exists = os.path.lexists(path)
        matches = [path] if exists else sorted(glob.glob(path, recursive=True))
        if not matches:
            reason = "matches nothing" if glob.has_magic(path) else "does not exist"
            raise InputError(f"{path!r} of --data.images {reason}: give files, folders or patterns of {noun}")
        extension = os.path.splitext(path)[1]
        any_name = exists or (extension != "" and not glob.has_magic(extension))
        entered: set[str] = set()
        for match in without_circles(matches):
            is_folder = os.path.isdir(match)
            for file in walk(match, entered) if is_folder else [match]:
                wanted = meant(file, any_name and not is_folder)
                if wanted is None:
                    others.add(file)
                else:
                    files[wanted] = None
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
    return extension_of(path) in EXTENSIONS


def extension_of(path: str) -> str:
    """Return a name's extension in small letters, without the dot."""
    return os.path.splitext(path)[1][1:].lower()


def is_named_like_a_clip(file: str) -> bool:
    """Tell whether a file has the extension of a video or of a volume."""
    return file.lower().endswith(tuple(f".{kind}" for kind in (*VIDEOS, *VOLUMES)))


def in_order(path: str) -> list[tuple[int, str]]:
    """Return what frames are sorted by: their names, with the numbers in them as numbers."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in NUMBER.split(path)]


def open_at_once(path: str, flags: int) -> int:
    """Open a file for `open`, refusing what is no file, without waiting for what a pipe may bring."""
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file")
    return descriptor
