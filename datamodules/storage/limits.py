"""Limits of a read: how long it may wait, how slow it may be, and how often it is begun again."""

import logging
import time
from dataclasses import dataclass

ATTEMPTS = 3  # to go on with what breaks off
PAUSE = 1.0  # seconds before the first new attempt; doubled for every further one

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReadLimits:
    """Limits to what storage may take its time for, be it a URL or a command."""

    timeout: float = 60.0
    """Seconds for a connection, for the next bytes, and of waiting over which the rate is looked at."""
    min_rate: float = 1000.0
    """Bytes a second."""


class UnavailableError(OSError):
    """An answer that may be another one later.

    Args:
        what: the answer.
        after: seconds to wait before one asks again, if it says so.
    """

    def __init__(self, what: str, after: float | None = None) -> None:
        super().__init__(what)
        self.after = after or 0.0


class RefusedError(OSError):
    """An answer that will not be another one: no such file, no permission."""


class TooSlowError(OSError):
    """Bytes come, but fewer than they must."""


class Pace:
    """Measures how many bytes come, in the time that is spent waiting for them alone."""

    def __init__(self, limits: ReadLimits) -> None:
        self.limits = limits
        self.waited, self.bytes = 0.0, 0

    def add(self, seconds: float, size: int) -> None:
        """Count what one wait has brought.

        Raises:
            TooSlowError: too little came in `timeout` seconds.
        """
        self.waited, self.bytes = self.waited + seconds, self.bytes + size
        if self.waited < self.limits.timeout:
            return
        if self.bytes < self.waited * self.limits.min_rate:
            raise TooSlowError(
                f"{self.bytes} bytes in {self.waited:.3g} seconds, fewer than the {self.limits.min_rate:g} a second of "
                f"--data.loader.min_rate"
            )
        self.waited, self.bytes = 0.0, 0


class Attempts:
    """Attempts at one source: waits before each new one, longer every time, until there are none left.

    Progress begins the count anew, except of those that were too slow: a host that is slow all the time makes progress.

    Args:
        source: what is read, for messages.
        most: how many new attempts there are.
        limits: whose timeout also bounds the wait that a host asks for.
    """

    def __init__(self, source: str, most: int, limits: ReadLimits) -> None:
        self.source, self.most, self.limits = source, most, limits
        self.broken = self.slow = 0

    def succeeded(self) -> None:
        """Note progress."""
        self.broken = 0

    def another(self, error: Exception) -> bool:
        """Tell whether to try again after an error; if so, wait until then."""
        if isinstance(error, TooSlowError):
            self.slow += 1
        else:
            self.broken += 1
        failed = self.broken + self.slow
        if failed > self.most or isinstance(error, RefusedError):
            return False
        log.warning("%s broke off (%s): attempt %d of %d to read on", self.source, error, failed, self.most)
        asked = min(getattr(error, "after", 0.0), self.limits.timeout)
        time.sleep(max(asked, PAUSE * 2 ** (failed - 1)))
        return True
