"""Signals as they come: a Python handler has to wait until the main thread is back from C, a thread has not."""

import signal
import socket
from collections.abc import Callable, Collection
from threading import Thread


class SignalThread:
    """Calls a function for every signal that has a Python handler, whatever the main thread is in meanwhile.

    It is made and stopped in the main thread.

    Args:
        numbers: of the signals that count.
        call: what is called, with the signal's number.
    """

    def __init__(self, numbers: Collection[int], call: Callable[[int], None]) -> None:
        self.numbers, self.call = numbers, call
        self.reader, self.writer = socket.socketpair()
        self.writer.setblocking(False)
        self.before = signal.set_wakeup_fd(self.writer.fileno(), warn_on_full_buffer=False)
        Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        with self.reader, self.writer:
            while (number := self.reader.recv(1)[0]) != 0:
                if number in self.numbers:
                    self.call(number)

    def stop(self) -> None:
        """Call nothing any more."""
        signal.set_wakeup_fd(self.before)
        self.writer.send(b"\0")
