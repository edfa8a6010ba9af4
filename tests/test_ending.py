"""A process of several ends with its own exit code, whatever a collective does meanwhile."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# The other process ends while this one is in its last C call, so that the thread of the collective that fails waits
# for the interpreter when it ends.
PROGRAM = """
import atexit, os, subprocess, sys, time
last = range(10**8)
atexit.register(sum, last)
import torch
import torch.distributed as dist
from mambaeye.command_line.ending import ending_among_others

rank = int(sys.argv[2])
other = None if rank else subprocess.Popen([sys.executable, *sys.argv[:2], "1"])
dist.init_process_group("gloo", init_method=f"file://{os.getcwd()}/meeting", rank=rank, world_size=2)
group = dist.new_group(backend="gloo")
if rank:
    time.sleep(100)
with ending_among_others():
    dist.all_reduce(torch.ones(1), group=group, async_op=True)
    subprocess.Popen(f"sleep 0.3; kill -9 {other.pid}", shell=True)
    print("said", end="")
    raise SystemExit(75 if sys.argv[1] == "number" else "error: one sentence")
"""


@pytest.mark.long
@pytest.mark.parametrize(("code", "expected"), [("number", (75, "")), ("message", (1, "error: one sentence\n"))])
def test_a_failing_collective_does_not_change_the_end(code: str, expected: tuple[int, str], tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, program, code, "0"],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stderr, done.stdout) == (*expected, "said")
