"""Bytes that a command prints, without a shell where the command has none of a shell's syntax."""

import atexit
import os
import select
import shlex
import shutil
import signal
import subprocess
from contextlib import suppress

COMMAND = "pipe:"
SYNTAX = set("|&;<>()$`*?[]{}#~!\\\n")  # that a shell gives a meaning to, besides quotes and blanks
ENDING = 5.0  # seconds that a command may take to end once it has printed everything

running: set[tuple[int, int]] = set()
"""The commands that run: the process that began each, and the group that it leads."""


class CommandStream:
    """The bytes that a command prints. It leads a process group of its own, which ends when the stream is closed.

    Args:
        source: "pipe:" and the command.
        timeout: seconds for the next bytes.
        start, stop: what is wanted of it; it prints everything all the same.

    Raises:
        OSError: it cannot be started.
    """

    ranges, place = False, 0

    def __init__(self, source: str, timeout: float, start: int = 0, stop: int | None = None) -> None:
        command = source.removeprefix(COMMAND)
        words = words_of(command)
        self.timeout = timeout
        self.process = subprocess.Popen(
            words or command,
            shell=words is None,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            process_group=0,
            bufsize=0,
        )
        self.entry = os.getpid(), self.process.pid
        running.add(self.entry)
        assert self.process.stdout is not None
        self.output = self.process.stdout
        self.poll = select.poll()
        self.poll.register(self.output, select.POLLIN)

    def read(self, size: int) -> bytes:
        """Return some bytes, at most `size`, none at the end.

        Raises:
            OSError: the command prints nothing for too long, or has failed.
        """
        if not self.poll.poll(self.timeout * 1000):
            raise TimeoutError(f"no byte in {self.timeout:g} seconds")
        part = os.read(self.output.fileno(), size)
        if not part:
            try:
                status = self.process.wait(ENDING)
            except subprocess.TimeoutExpired:
                raise TimeoutError("the command does not end") from None
            if status:
                raise OSError(f"the command ended with exit code {status}")
        return part

    def close(self) -> None:
        """End the command, and all that it has started."""
        end(self.entry)
        self.output.close()
        self.process.wait()


def words_of(command: str) -> list[str] | None:
    """Return the words of a command, or None if it takes a shell to read it."""
    if SYNTAX & set(command):
        return None
    try:
        words = shlex.split(command)
    except ValueError:  # quotes that do not match, of which the shell complains
        return None
    return words if words and "=" not in words[0] and shutil.which(words[0]) else None


def end(entry: tuple[int, int]) -> None:
    """End a command of this process."""
    running.discard(entry)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(entry[1], signal.SIGKILL)


def end_commands() -> None:
    """End all commands that this process has begun; where it is about to end itself, and closes nothing."""
    for entry in [entry for entry in running if entry[0] == os.getpid()]:
        end(entry)


atexit.register(end_commands)
