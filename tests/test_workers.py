"""Loader workers end with their parent, even when they are stuck, and not of what is sent to the whole run."""

import os
import signal
import sys
import time
from multiprocessing import Process, set_forkserver_preload, set_start_method
from pathlib import Path

import pytest
import torch
from commands import start
from torch.utils.data import DataLoader, IterableDataset

from datamodules.loading import workers
from datamodules.loading.workers import PATIENCE, block_signals, exit_with_parent

if __name__ in ("__main__", "__mp_main__"):  # what is started below waits less long, in every process of it
    workers.PATIENCE = 1
    torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL = 1.0


class Stuck(IterableDataset):
    """Gives its process's id, then nothing more."""

    def __iter__(self):
        yield os.getpid()
        time.sleep(1000)


def main(method: str, timeout: str) -> None:
    """Two workers that get stuck, and the end of this process when nothing came for a while."""
    set_start_method(method)
    set_forkserver_preload(["pytest", "commands", "datamodules.loading.workers"])
    first = Process(target=os.getpid)
    with block_signals():
        first.start()
    first.join()  # now the fork server has imported what workers need
    loader = DataLoader(Stuck(), None, num_workers=2, timeout=float(timeout), worker_init_fn=exit_with_parent)
    with block_signals():
        batches = iter(loader)
    print(next(batches), next(batches))
    next(batches)


def gone(process: int) -> bool:
    """Tell whether a process has ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.long
@pytest.mark.parametrize("method", ["fork", "forkserver"])
@pytest.mark.parametrize("end", ["of itself", "killed"])
def test_stuck_workers_end_with_their_parent(end: str, method: str) -> None:
    run = start([method, "3" if end == "of itself" else "100"], script=Path(__file__))
    workers = [int(word) for word in run.stdout.readline().split()]
    assert len(workers) == 2
    for number in (signal.SIGTERM, signal.SIGUSR1):
        for worker in workers:
            os.kill(worker, number)
    if end == "killed":
        time.sleep(0.5)
        assert not any(map(gone, workers))
        run.send_signal(signal.SIGKILL)
    said, _ = run.communicate(timeout=60)
    assert run.returncode == (1 if end == "of itself" else -signal.SIGKILL)
    assert "timed out" in said or end == "killed"
    until = time.monotonic() + 2 * PATIENCE
    while not all(map(gone, workers)):
        assert time.monotonic() < until
        time.sleep(0.1)


if __name__ == "__main__":
    main(*sys.argv[1:])
