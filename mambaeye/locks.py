"""One writer of a folder at a time, on one machine or several that share it."""

import fcntl
import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from mambaeye.errors import InputError

RECORD_BYTES = 4096  # of a record, at most
GRACE = 1.0  # seconds that another machine may take from making its file to writing its record
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # of the running kernel, which containers share


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock."""

    pid: int
    host: str
    kernel: str
    """Name of the running kernel that it is a process of; empty where there is none."""
    since: str
    """The time in UTC, to be shown and never compared: clocks differ."""
    job: str
    """Its SLURM job; empty without one."""
    restarts: int
    """Number of times that the job was put back into the queue."""

    @classmethod
    def this_process(cls) -> "Holder":
        """Return what this process writes down."""
        return cls(
            pid=os.getpid(),
            host=socket.gethostname(),
            kernel=BOOT_ID.read_text().strip() if BOOT_ID.exists() else "",
            since=datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC"),
            job=os.environ.get("SLURM_JOB_ID", ""),
            restarts=int(os.environ.get("SLURM_RESTART_COUNT") or 0),
        )

    @classmethod
    def read(cls, descriptor: int) -> "Holder | None":
        """Return who an open file says holds it; None if a process ended, or is, in the middle of writing that."""
        try:
            holder = cls(**json.loads(os.pread(descriptor, RECORD_BYTES, 0)))
        except (ValueError, TypeError):
            return None
        ours = cls.this_process()
        same = all(type(value) is type(getattr(ours, name)) for name, value in asdict(holder).items())
        return holder if same and f"{holder.host}{holder.since}".isprintable() else None

    def on_machine_of(self, other: "Holder") -> bool:
        """Tell whether two processes are, or were, on one machine, where the system's own locks hold for certain."""
        return self.host == other.host or (self.kernel == other.kernel != "")

    def continues(self, other: "Holder") -> bool:
        """Tell whether this is the other's SLURM job, put back into the queue: SLURM has ended that one before."""
        return self.job == other.job != "" and self.restarts > other.restarts

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.since}"


class WriterLock:
    """A file that is there as long as a process of any machine holds it, and says which one.

    On one machine the system's lock on the file (flock) decides: it ends with its process, however that ends, so that
    what a dead process left is taken over. Between machines the file itself decides, which one process alone can make;
    left by a process that was killed, it has to be deleted by hand, except by the same SLURM job when it is back.

    Args:
        path: of the file.
        busy: says in a message what another process does there, and the remedy after a colon.
    """

    def __init__(self, path: Path, busy: tuple[str, str]) -> None:
        self.path, self.busy = path, busy
        self.descriptor: int | None = None
        os.register_at_fork(after_in_child=self._forget)  # else loader workers would hold it longer than their run

    def acquire(self) -> None:
        """Take the lock; nothing is written anywhere else, and nothing waited for.

        Raises:
            InputError: another process holds it, or the file cannot be made.
        """
        try:
            while self.descriptor is None:
                self.descriptor = self._attempt()
            os.ftruncate(self.descriptor, 0)
            os.pwrite(self.descriptor, json.dumps(asdict(Holder.this_process())).encode(), 0)
        except OSError as error:
            self.release()
            raise InputError(
                f"{self.path} cannot be written ({error.strerror}): make room or repair the folder, or choose another"
            ) from None

    def _attempt(self) -> int | None:
        """Return the file, open and locked; None if it went away meanwhile.

        Raises:
            InputError: another process holds it.
        """
        try:
            descriptor, made = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), True
        except FileExistsError:
            try:
                descriptor, made = os.open(self.path, os.O_RDWR), False
            except FileNotFoundError:
                return None
        try:
            exact = lock(descriptor)
            if not names(self.path, descriptor):
                os.close(descriptor)
                return None
            if not made:
                self._require_left(descriptor, exact)
        except BlockingIOError:
            holder = Holder.read(descriptor)
            os.close(descriptor)
            raise self._refusal(holder, foreign=False) from None
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _require_left(self, descriptor: int, exact: bool) -> None:
        """Require that whoever made the file has ended.

        Raises:
            InputError: it has not, or is on another machine, where that cannot be seen.
        """
        holder, ours = Holder.read(descriptor), Holder.this_process()
        if holder is None:
            time.sleep(GRACE)
            holder = Holder.read(descriptor)
        if holder is None or ours.continues(holder):
            return
        if not holder.on_machine_of(ours):
            raise self._refusal(holder, foreign=True)
        if not exact and is_alive(holder.pid):
            raise self._refusal(holder, foreign=False)

    def _refusal(self, holder: Holder | None, foreign: bool) -> InputError:
        who = f" ({holder})" if holder else ""
        what, remedy = self.busy
        return InputError(f"{what}{who}: {remedy}" + (f"; if it has ended, delete {self.path}" if foreign else ""))

    def release(self) -> None:
        """Give the lock back and remove the file; without a lock, do nothing."""
        if self.descriptor is None:
            return
        with suppress(OSError):  # a folder that has become read-only; what is left there says whose it was
            if names(self.path, self.descriptor):
                self.path.unlink()
        os.close(self.descriptor)
        self.descriptor = None

    def _forget(self) -> None:
        """Leave the lock to the parent, in a process that was forked."""
        if self.descriptor is not None:
            os.close(self.descriptor)
            self.descriptor = None


def lock(descriptor: int) -> bool:
    """Take the system's lock on an open file, and tell whether the file system has such.

    Raises:
        BlockingIOError: another process has it.
    """
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # of network file systems that are mounted without locks
        return False
    return True


def names(path: Path, descriptor: int) -> bool:
    """Tell whether a path still leads to an open file."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def is_alive(pid: int) -> bool:
    """Tell whether this machine has such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
