"""Bytes from object stores, s3:// and gs:// among them, by fsspec and what it needs for each (extras s3 and gs)."""

from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, TypeVar

import fsspec

from datamodules.storage.limits import RefusedError
from mambaeye.errors import InputError

BLOCK = 1 << 22  # bytes that are asked for at once
LIBRARIES = {"s3": "s3fs (pip install 'mambaeye[s3]')", "gs": "gcsfs (pip install 'mambaeye[gs]')"}

Result = TypeVar("Result")


class ObjectStream:
    """An object, from a byte on.

    Args:
        url: with a scheme that fsspec knows.
        timeout: seconds for opening, and for the next bytes.
        start: first byte that is wanted.
        stop: end of what is wanted; more is read ahead all the same.

    Raises:
        RefusedError: there is no such object for us.
        OSError: the store does not answer.
        InputError: no library is installed for such a URL.
    """

    ranges = True

    def __init__(self, url: str, timeout: float, start: int = 0, stop: int | None = None) -> None:
        self.timeout, self.place = timeout, start
        scheme = url.partition("://")[0]
        try:
            kind = fsspec.get_filesystem_class(scheme)
        except (ImportError, ValueError):  # ValueError: fsspec knows no such scheme
            library = LIBRARIES.get(scheme, f"a library of fsspec's for {scheme}://")
            raise InputError(f"{url} needs {library}: install it, or copy the shards to a local disk") from None
        assert kind is not None
        self.file: Any = within(timeout, lambda: opened(url, start))

    def read(self, size: int) -> bytes:
        """Return some bytes, at most `size`, none at the end."""
        return within(self.timeout, lambda: bytes(self.file.read(size)))

    def close(self) -> None:
        """Let go of the object."""
        self.file.close()


def opened(url: str, start: int) -> Any:
    """Open an object at a byte."""
    file = fsspec.open(url, "rb", block_size=BLOCK, cache_type="readahead").open()
    file.seek(start)
    return file


def within(seconds: float, call: Callable[[], Result]) -> Result:
    """Return what a call gives, which is left to itself after so many seconds: libraries have timeouts of all kinds.

    Raises:
        TimeoutError: it takes longer.
        RefusedError: there is no such object for us.
        OSError: anything else that the call raises.
    """
    done: SimpleQueue[tuple[Result | None, Exception | None]] = SimpleQueue()

    def run() -> None:
        try:
            done.put((call(), None))
        except Exception as error:  # whatever it is, it is raised where the call is waited for
            done.put((None, error))

    Thread(target=run, daemon=True).start()
    try:
        result, error = done.get(timeout=seconds)
    except Empty:
        raise TimeoutError(f"no byte in {seconds:g} seconds") from None
    if error is not None:
        text = f"{type(error).__name__}: {error}"
        raise RefusedError(text) if isinstance(error, FileNotFoundError | PermissionError) else OSError(text)
    return result  # type: ignore[return-value]
