"""Files that are on the disk whole, or not at all."""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mambaeye.errors import InputError

GO_ON = ", and continue with --ckpt_path last"  # what a run has to be told besides


@contextmanager
def atomic_write(path: str | Path, what: str = "", remedy: str = "") -> Iterator[Path]:
    """Yield a path beside the file to write to; on leaving, bring it to the disk and rename it.

    A kill or a loss of power at any moment leaves the old file or the new one. An exception inside leaves the old one,
    and nothing beside it. Several writers of one file, threads or processes, each write their own, and the last to
    finish stays. Folders are made as needed. The temporary name has the ending .partial: say what format is to be
    written where a library would take it from the name.

    Args:
        path: of the file that appears in the end.
        what: what it is, for a message; the path if not given.
        remedy: what else to do about a full disk, for a message.

    Raises:
        InputError: the system refuses to write it.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with refusals(what or path, remedy):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield partial
            _sync(partial)
            os.replace(partial, path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise
    with suppress(OSError):  # some network file systems cannot sync a folder
        _sync(path.parent)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a new folder beside the path to write files to; on leaving, bring it to the disk and rename it.

    What was there before is renamed aside and removed, so that a reader finds the old folder, for a moment none, or the
    new one, and never half of either. An exception inside leaves the old one, and nothing beside it.

    Args:
        path: of the folder that appears in the end.

    Raises:
        InputError: the system refuses to write it.
    """
    path = Path(path)
    partial, before = (path.with_name(f".{path.name}.{secrets.token_hex(4)}.{end}") for end in ("partial", "before"))
    try:
        with refusals(path):
            partial.mkdir(parents=True)
            yield partial
            for written in sorted(partial.rglob("*")):
                _sync(written)
            if path.exists():
                os.replace(path, before)
            os.replace(partial, path)
    except BaseException:
        if before.exists() and not path.exists():
            os.replace(before, path)
        raise
    finally:
        for left in (partial, before):
            shutil.rmtree(left, ignore_errors=True)
    with suppress(OSError):  # some network file systems cannot sync a folder
        _sync(path.parent)


@contextmanager
def refusals(what: str | Path, remedy: str = "") -> Iterator[None]:
    """Turn the system's refusal to write, of a full disk or a folder that is read-only, into one sentence.

    Raises:
        InputError: there was one.
    """
    try:
        yield
    except OSError as error:
        raise InputError(refusal(what, error, remedy)) from None


def refusal(what: str | Path, error: OSError, remedy: str = "") -> str:
    """Return the sentence for that."""
    return f"{what} cannot be written ({error.strerror or error}): make room or repair the folder{remedy}"


def _sync(path: Path) -> None:
    """Bring a file's bytes, or a folder's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
