"""Sources of bytes that are not local files: http(s) URLs, commands, and object stores. All are read front to back."""

import time
from collections.abc import Callable
from contextlib import closing
from typing import Protocol

from datamodules.storage.commands import COMMAND, CommandStream
from datamodules.storage.limits import ATTEMPTS, Attempts, Pace, ReadLimits
from datamodules.storage.objects import ObjectStream
from datamodules.storage.web import WebStream

AT_ONCE = 1 << 20  # bytes


class RawStream(Protocol):
    """Bytes as they come."""

    place: int
    """Offset of the first byte that comes."""
    ranges: bool
    """True where another stream of the source would begin wherever it is asked to."""

    def read(self, size: int) -> bytes:
        """Return some bytes, at most `size`, none at the end; wait no longer than the timeout."""

    def close(self) -> None: ...


class ByteStream:
    """Bytes in order, of one attempt, under limits.

    Args:
        raw: where they come from.
        limits: how slowly they may come.
    """

    def __init__(self, raw: RawStream, limits: ReadLimits) -> None:
        self.raw, self.pace = raw, Pace(limits)
        self.place, self.ranges = raw.place, raw.ranges

    def _some(self, size: int) -> bytes:
        asked, part = time.monotonic(), b""
        try:
            part = self.raw.read(size)
        finally:  # what has timed out was too slow as well
            self.pace.add(time.monotonic() - asked, len(part))
        self.place += len(part)
        return part

    def read(self, size: int) -> bytes:
        """Read that many bytes.

        Raises:
            EOFError: there are fewer.
            OSError: the source breaks off, stalls or is too slow.
        """
        parts, missing = [], size
        while missing:
            part = self._some(min(missing, AT_ONCE))
            if not part:
                raise EOFError(f"it ends {missing} bytes too early")
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def skip_to(self, place: int) -> None:
        """Pass over the bytes before a place; see read."""
        while self.place < place:
            self.read(min(AT_ONCE, place - self.place))

    def read_all(self) -> bytes:
        """Read to the end; see read."""
        return b"".join(iter(lambda: self._some(AT_ONCE), b""))

    def close(self) -> None:
        """Let go of the connection, or end the command."""
        self.raw.close()


def streams(source: str) -> bool:
    """Tell whether a source of bytes is a URL or a pipe: command, and no local file."""
    return "://" in source or source.startswith(COMMAND)


def open_stream(source: str, limits: ReadLimits, start: int = 0, stop: int | None = None) -> ByteStream:
    """Open a source, if it can, from a byte on and up to another: see ByteStream.place for where it begins.

    Raises:
        OSError: it cannot be opened, or not now.
        InputError: a library is missing that reads from such a place.
    """
    opener: Callable[[str, float, int, int | None], RawStream]
    if source.startswith(COMMAND):
        opener = CommandStream
    elif source.startswith(("http://", "https://")):
        opener = WebStream
    else:
        opener = ObjectStream
    return ByteStream(opener(source, limits.timeout, start, stop), limits)


def fetch(source: str, limits: ReadLimits) -> bytes:
    """Read all of a source, in several attempts if it must be.

    Raises:
        OSError: it cannot be read.
        InputError: a library is missing that reads from such a place.
    """
    attempts = Attempts(source, ATTEMPTS, limits)
    while True:
        try:
            with closing(open_stream(source, limits)) as stream:
                return stream.read_all()
        except (OSError, EOFError) as error:
            if not attempts.another(error):
                raise
