"""Runs of train.py that start at once, as processes of their own: a warm process forks one whenever it is told to.

Everything is imported, and nothing has run, so that a fork is as a fresh process is. Told by lines of JSON on stdin.
"""

import gc
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
from runpy import run_path
from threading import TIMEOUT_MAX, Lock, Thread
from typing import Any, NoReturn

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {"PYTHONPATH": f"{ROOT}{os.pathsep}{Path(__file__).parent}", "OMP_NUM_THREADS": "1"}


class ForkServer:
    """The side of the tests. Threads may use it."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            env=os.environ | ENVIRONMENT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            start_new_session=True,
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

    def start(
        self,
        arguments: list[str],
        log: Path,
        file_limit: int | None = None,
        script: Path = ROOT / "train.py",
        cwd: str = ".",
        **environment: str,
    ) -> int:
        """Start a script as a process group of its own, and return its id.

        Args:
            arguments: of the command line.
            log: what it says is appended to this file.
            file_limit: bytes that a file may have, as if the disk were full then.
            script: train.py, or another whose imports are among its or cheap.
            cwd: the folder that it runs in, from the one of the tests.
            environment: variables besides those of the tests.
        """
        return self._ask(
            arguments=arguments,
            log=str(log),
            file_limit=file_limit,
            script=str(script),
            cwd=os.path.abspath(cwd),
            environment=os.environ | ENVIRONMENT | environment,
        )

    def run(self, arguments: list[str], **settings: Any) -> "ForkedRun":
        """Start a script likewise, with a pipe that brings what it says."""
        read, write = os.pipe()
        pid = self.start(arguments, Path(f"/proc/{os.getpid()}/fd/{write}"), **settings)
        os.close(write)
        return ForkedRun(self, pid, read)

    def end_of(self, pid: int, seconds: float) -> int | None:
        """Return a run's exit code, negative for a signal; None if it has not ended after so long."""
        end = time.monotonic() + seconds
        while True:
            code = self._ask(poll=pid)
            if code is not None or time.monotonic() > end:
                return code
            time.sleep(0.005)


class ForkedRun:
    """A run that a fork server has started, with the part of subprocess.Popen that tests need."""

    def __init__(self, server: ForkServer, pid: int, pipe: int) -> None:
        self.server, self.pid = server, pid
        self.stdout = open(pipe)  # noqa: SIM115  # read for as long as it runs
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return its exit code, negative for a signal; None while it runs."""
        return self.wait(0)

    def wait(self, seconds: float = float("inf")) -> int | None:
        """Return its exit code once it has ended; None if it has not after so long."""
        if self.returncode is None:
            self.returncode = self.server.end_of(self.pid, seconds)
        return self.returncode

    def communicate(self, timeout: float = float("inf")) -> tuple[str, None]:
        """Return what it said and has not been read, once it and all that write to its pipe have ended.

        Raises:
            subprocess.TimeoutExpired: they have not after so many seconds.
        """
        said: list[str] = []
        end = time.monotonic() + timeout
        reader = Thread(target=lambda: said.append(self.stdout.read()), daemon=True)
        reader.start()
        reader.join(min(timeout, TIMEOUT_MAX))
        if reader.is_alive() or self.wait(end - time.monotonic()) is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
        self.stdout.close()
        return said[0], None

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


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
            log = os.open(request.pop("log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            answer = os.fork()
            if not answer:
                run(log, **request)
            os.close(log)
        print(json.dumps(answer), flush=True)


def run(
    log: int, arguments: list[str], file_limit: int | None, script: str, cwd: str, environment: dict[str, str]
) -> NoReturn:
    """Be a run of a script from now on, which says everything to a descriptor at once."""
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, copy in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(descriptor, copy)
    os.close(log)
    sys.stdout.reconfigure(line_buffering=True)
    os.chdir(cwd)
    os.environ.clear()
    os.environ |= environment
    sys.path += [folder for folder in environment["PYTHONPATH"].split(os.pathsep) if folder not in sys.path]
    rank_zero_only.rank = _get_rank() or 0  # as it is when Lightning is imported
    if file_limit is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # writing fails, instead
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    sys.argv = [script, *arguments]
    run_path(script, run_name="__main__")
    sys.exit()


if __name__ == "__main__":
    import quick_parsing

    quick_parsing.remember()
    from lightning.fabric.utilities.rank_zero import _get_rank, rank_zero_only

    from train import main

    for command in ("fit", "validate"):  # what parsing keeps
        with redirect_stdout(StringIO()), suppress(SystemExit):
            main([command, "--model.init_from=none", "--print_config"])
    gc.freeze()  # what is collected in a fork would be copied into it
    serve()
