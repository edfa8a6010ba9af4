"""Files that are on the disk whole, or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def atomic_write(path: str | Path) -> Iterator[Path]:
    """Yield a path beside the file to write to; on leaving, bring it to the disk and rename it.

    A kill or a loss of power at any moment leaves the old file or the new one. An exception inside leaves the old one,
    and nothing beside it. Folders are made as needed. The temporary name has the ending .partial: say what format is
    to be written where a library would take it from the name.

    Args:
        path: of the file that appears in the end.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        yield partial
        _sync(partial)
        os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
    with suppress(OSError):  # some network file systems cannot sync a folder
        _sync(path.parent)


def _sync(path: Path) -> None:
    """Bring a file's bytes, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
