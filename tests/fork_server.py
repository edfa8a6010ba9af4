"""Runs of train.py that start at once, as processes of their own: a warm process forks one whenever it is told to.

Everything is imported, and nothing has run, so that a fork is as a fresh process is. Told by lines of JSON on stdin.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import redirect_stdout, suppress
from io import StringIO
from pathlib import Path
from threading import Lock
from typing import Any, NoReturn

ROOT = Path(__file__).parents[1]


class ForkServer:
    """The side of the tests. Threads may use it."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}", "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.lock = Lock()

    def close(self) -> None:
        """End the server; runs that go on do so."""
        self.process.communicate()

    def _ask(self, **request: Any) -> Any:
        with self.lock:
            assert self.process.stdin is not None
            assert self.process.stdout is not None
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
            return json.loads(self.process.stdout.readline())

    def start(self, arguments: list[str], log: Path, file_limit: int | None = None, **environment: str) -> int:
        """Start train.py as a process group of its own, and return its id.

        Args:
            arguments: of the command line.
            log: what it says is appended to this file.
            file_limit: bytes that a file may have, as if the disk were full then.
            environment: further variables.
        """
        return self._ask(arguments=arguments, log=str(log), file_limit=file_limit, environment=environment)

    def end_of(self, pid: int, seconds: float) -> int | None:
        """Return a run's exit code, negative for a signal; None if it has not ended after so long."""
        end = time.monotonic() + seconds
        while True:
            code = self._ask(poll=pid)
            if code is not None or time.monotonic() > end:
                return code
            time.sleep(0.005)


def serve() -> None:
    """Do what lines on stdin say, until there are no more."""
    ended: dict[int, int] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if pid := request.get("poll"):
            found, status = (pid, None) if pid in ended else os.waitpid(pid, os.WNOHANG)
            if found and status is not None:
                ended[pid] = os.waitstatus_to_exitcode(status)
            answer = ended.get(pid)
        else:
            answer = os.fork()
            if not answer:
                run(**request)
        print(json.dumps(answer), flush=True)


def run(arguments: list[str], log: str, file_limit: int | None, environment: dict[str, str]) -> NoReturn:
    """Be a run of train.py from now on."""
    os.setsid()
    said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, copy in ((nothing, 0), (said, 1), (said, 2)):
        os.dup2(descriptor, copy)
    os.environ |= environment
    if file_limit is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing fails, instead
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    sys.argv = ["train.py"]
    main(arguments)
    sys.exit()


if __name__ == "__main__":
    import quick_parsing

    quick_parsing.remember()
    from train import main

    for command in ("fit", "validate"):  # what parsing keeps
        with redirect_stdout(StringIO()), suppress(SystemExit):
            main([command, "--model.init_from=none", "--print_config"])
    serve()
