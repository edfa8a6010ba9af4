"""Batches in slots are torch's own, to the byte; nobody's batch is overwritten, and nothing grows or is left behind."""

import gc
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from functools import cache
from io import BytesIO
from multiprocessing import set_forkserver_preload, set_start_method
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import ROOT, start
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import Dataset, default_collate
from torch.utils.data._utils.pin_memory import pin_memory

from datamodules.loading import slots as module
from datamodules.loading import workers
from datamodules.loading.slots import SLOTS, InSlot, Slots
from datamodules.loading.stream import collate
from datamodules.loading.workers import load
from datamodules.views.samples import row_of
from mambaeye.batch import CanvasBatch, GlimpseBatch, Scene
from mambaeye.errors import InputError

if __name__ in ("__main__", "__mp_main__"):  # what is started below waits less long, in every process of it
    workers.PATIENCE = 1
    torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL = 1.0

BATCH = 4
PAGE = resource.getpagesize()


def glimpses(number: int, length: int = 5) -> GlimpseBatch:
    rng = np.random.default_rng(number)
    return GlimpseBatch(
        torch.from_numpy(rng.integers(0, 256, (length, 3, 2, 2), np.uint8)),
        torch.from_numpy(rng.integers(0, 99, (length, 2), np.int32)),
        torch.from_numpy(rng.random(length, np.float32)),
        *row_of(f"sample {number}", number % 3 > 0, number, number + 1, 0.25),
    )


def canvas(number: int, side: int = 7, length: int = 3) -> CanvasBatch:
    rng = np.random.default_rng(number)
    scene = Scene(
        torch.from_numpy(rng.integers(0, 256, (side, side, 3), np.uint8)),
        torch.from_numpy(rng.integers(0, 9, 4, np.int32)),
        torch.from_numpy(rng.integers(0, 9, (length, 2), np.int32)),
        torch.tensor(number),
        torch.tensor(number % 2 == 0),
    )
    return CanvasBatch(scene, torch.from_numpy(rng.random(length, np.float32)), *row_of("", True, number), 3)


def no_glimpses(number: int) -> CanvasBatch:
    return canvas(number, length=0)


def tensors(batch: Any) -> list[Tensor]:
    if isinstance(batch, Tensor):
        return [batch]
    return [tensor for part in batch for tensor in tensors(part)] if isinstance(batch, tuple) else []


def assert_same(one: Any, other: Any) -> None:
    """Types, shapes, dtypes, strides, values, and whatever is no tensor."""
    assert type(one) is type(other)
    if isinstance(one, Tensor):
        assert (one.dtype, one.shape, one.stride(), one.device) == (
            other.dtype,
            other.shape,
            other.stride(),
            other.device,
        )
        assert one.is_contiguous()
        assert one.data_ptr() % one.itemsize == 0
        assert one.equal(other)
    elif isinstance(one, tuple):
        for part, of_other in zip(one, other, strict=True):
            assert_same(part, of_other)
    else:
        assert one == other


class Samples(Dataset):
    """Samples by number."""

    def __init__(self, make: Callable[[int], GlimpseBatch | CanvasBatch], count: int) -> None:
        self.make, self.count = make, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, number: int) -> GlimpseBatch | CanvasBatch:
        return self.make(number)


def batches_of(data: Dataset, workers: int, in_slots: bool = True) -> Any:
    made_by = Slots(workers, collate) if in_slots else collate
    return load(data, workers, 60, "numbers", batch_size=BATCH, collate_fn=made_by)


def there_and_back(batch: Any) -> Any:
    """Send a batch as a worker does, and receive it as its process does."""
    sent = BytesIO()
    ForkingPickler(sent).dump(batch)
    return pickle.loads(sent.getvalue())


@pytest.fixture
def as_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process be the worker, too."""
    monkeypatch.setattr(module, "get_worker_info", lambda: type("Info", (), {"id": 0}))


@pytest.mark.parametrize("make", [glimpses, canvas, no_glimpses])
def test_batches_in_slots_are_those_without(make: Callable) -> None:
    count = 11 * BATCH - 1
    expected = [
        default_collate([make(number) for number in range(first, min(first + BATCH, count))])
        for first in range(0, count, BATCH)
    ]
    by_hand = [batch._replace(keys=list(batch.keys)) for batch in expected]
    if make is not glimpses:
        by_hand = [batch._replace(condition=3) for batch in by_hand]
    for count_of_workers, in_slots in ((0, False), (1, True), (3, True), (2, False)):
        batches = batches_of(Samples(make, count), count_of_workers, in_slots)
        for batch, other in zip(batches, by_hand, strict=True):
            assert_same(batch, other)


@pytest.mark.usefixtures("as_worker")
@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 2 * SLOTS), st.booleans()), min_size=1, max_size=4 * SLOTS),
    st.booleans(),
)
def test_a_batch_that_is_kept_is_not_overwritten(steps: list[tuple[int, int, bool]], later: bool) -> None:
    """Batches of any size, each kept for any number of others; one tensor of it alone, or all of it."""
    slots, held, used = Slots(1, collate), [], 0
    for turn, (length, kept, partly) in enumerate(steps):
        samples = [glimpses(1000 * turn + row, length) for row in range(2)]
        made = slots(samples)
        used += isinstance(made.patches, InSlot)
        batch, expected = there_and_back(made), default_collate(samples)
        held = [(until, *both) for until, *both in held if until > turn]
        if partly:
            held.append((turn + kept, batch.positions[1:, 2:], expected.positions[1:, 2:]))
        else:
            held.append((turn + kept, list(tensors(batch)), tensors(expected)))
        del made, batch
        if later:
            slots.__dict__["_free"].sort()  # whichever is used next
        for _, now, before in held:
            pairs = [(now, before)] if isinstance(now, Tensor) else zip(now, before, strict=True)
            assert all(one.equal(other) for one, other in pairs)
    assert used >= min(SLOTS, len(steps))


@pytest.mark.usefixtures("as_worker")
def test_slots_come_back_when_the_last_tensor_is_gone() -> None:
    slots = Slots(1, collate)
    samples = [glimpses(row) for row in range(2)]
    held = [there_and_back(slots(samples)) for _ in range(SLOTS)]
    for _ in range(2):  # nothing is free: fresh memory
        assert isinstance(slots(samples).patches, Tensor)
    last = held.pop().valid
    assert isinstance(slots(samples).patches, Tensor)
    del last
    assert isinstance(slots(samples).patches, InSlot)
    assert isinstance(slots(samples).patches, Tensor)


@pytest.mark.usefixtures("as_worker")
def test_a_batch_that_is_copied_to_pinned_memory_frees_its_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the thread does that pins batches for a GPU; without one, a copy stands for it."""
    monkeypatch.setattr(Tensor, "pin_memory", lambda tensor, _=None: tensor.clone())
    slots, pinned = Slots(1, collate), []
    for number in range(3 * SLOTS):
        made = slots([glimpses(number)])
        assert isinstance(made.patches, InSlot)
        pinned.append(pin_memory(there_and_back(made)))
    for number, batch in enumerate(pinned):
        assert_same(batch, collate([glimpses(number)]))


@pytest.mark.usefixtures("as_worker")
def test_an_ordinary_consumer_touches_few_slots_and_they_grow_only_to_the_largest_batch() -> None:
    slots = Slots(1, collate)
    largest = 0
    for turn in range(40):
        samples = [glimpses(turn, 1 + turn % 7 * 100) for _ in range(2)]
        batch = there_and_back(slots(samples))
        largest = max(largest, sum(-(-tensor.nbytes // 64) * 64 for tensor in tensors(batch)))
        memory = slots.__dict__["_memory"]
        assert len(memory) <= 2
        assert all(len(slot) <= largest for slot in memory.values())


@pytest.mark.usefixtures("as_worker")
def test_samples_that_make_no_batch_cost_no_slot() -> None:
    slots = Slots(1, collate)
    for _ in range(2 * SLOTS):
        with pytest.raises(RuntimeError, match="stack expects each tensor to be equal size"):
            slots([glimpses(0, 5), glimpses(1, 6)])
    assert isinstance(slots([glimpses(0)]).patches, InSlot)


@pytest.mark.usefixtures("as_worker")
def test_a_fork_that_drops_its_copy_gives_nothing_back() -> None:
    slots = Slots(1, collate)
    held = [there_and_back(slots([glimpses(number)])) for number in range(SLOTS)]
    child = os.fork()
    if not child:
        held.clear()
        gc.collect()
        os._exit(0)
    os.waitpid(child, 0)
    again = [there_and_back(slots([glimpses(100)])) for _ in range(SLOTS)]
    for number, batch in enumerate(held):
        assert_same(batch, collate([glimpses(number)]))
    assert len(again) == SLOTS


@cache
def memory_of_sample(place: int) -> Tensor:
    """2 MB for a sample of a batch, used again, so that pages which the allocator asks for are not counted."""
    return torch.empty((1, 1, 1024, 2048), dtype=torch.uint8)


def large(number: int) -> GlimpseBatch:
    """A sample of 2 MB that says how many pages its process was given so far."""
    patches = memory_of_sample(number % BATCH).fill_(number % 256)
    pages = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    return GlimpseBatch(
        patches, torch.zeros(1, 2, dtype=torch.int32), torch.zeros(1), *row_of(str(number), True, pages)
    )


def pages_taken(batches: int, in_slots: bool) -> tuple[float, float, float]:
    """Pages that worker and process are given in a pass, and shared ones that the process has at most, in batches.

    As many batches are held as there are slots for, so that all are in use however busy the machine is.
    """
    seen = []
    held: deque[GlimpseBatch] = deque(maxlen=SLOTS - 4)  # one more is in hand, one is made, and two wait
    for batch in batches_of(Samples(large, batches * BATCH), 1, in_slots):
        assert batch.patches.amax((1, 2, 3, 4)).tolist() == [int(key) % 256 for key in batch.keys]
        here, shared = (
            resource.getrusage(resource.RUSAGE_SELF).ru_minflt,
            Path("/proc/self/statm").read_text().split()[2],
        )
        seen.append((int(batch.labels[0]), here, int(shared)))
        held.append(batch)
    in_worker, here, shared = (np.ptp(np.array(seen), axis=0) / (batch.patches.nbytes / PAGE)).tolist()
    return in_worker, here, shared


def test_a_pass_takes_the_pages_of_its_slots_and_no_more() -> None:
    """Torch's own way takes those of every batch. In a process of its own, whose allocator has no past."""
    batches = 6 * SLOTS
    taken = f"*t.pages_taken({batches}, True), *t.pages_taken({batches}, False)"
    code = (
        f"import gc, test_slots as t; gc.freeze(); print({taken})"  # else a collection copies the heap into the worker
    )
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"}
    command = [sys.executable, "-c", code]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert ran.returncode == 0, ran.stderr
    in_worker, here, shared, without, *_ = map(float, ran.stdout.split())
    assert here < SLOTS + 1
    assert in_worker < SLOTS + 2  # and the memory of the samples themselves
    assert without > batches - 2
    assert shared < SLOTS + 1


def test_a_pass_that_ends_early_leaves_its_batches_whole() -> None:
    pipes = len(os.listdir("/proc/self/fd"))
    for _ in range(2):
        batches = batches_of(Samples(glimpses, 40), 2)
        kept = [next(batches), next(batches), next(batches)]
        batches.close()
        del batches
        gc.collect()
        for first, batch in enumerate(kept):
            assert_same(batch, collate([glimpses(BATCH * first + row) for row in range(BATCH)]))
        del kept, batch
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= pipes + 2


def in_small_shared_memory() -> None:
    """Load what is more than there is room for: in a process of its own, with 1 MiB at /dev/shm."""
    with pytest.raises(InputError, match=r"^a batch of numbers finds no room in shared memory"):
        list(batches_of(Samples(large, 40), 1))


def test_shared_memory_that_is_too_small_ends_a_pass_in_one_sentence() -> None:
    small = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"', "sh"]
    if subprocess.run([*small, "true"], capture_output=True).returncode:
        pytest.skip("this machine lets nobody mount anything")
    code = "from test_slots import in_small_shared_memory; in_small_shared_memory()"
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run(
        [*small, sys.executable, "-c", code],
        capture_output=True, text=True, timeout=120, env=os.environ | {"PYTHONPATH": path},
    )  # fmt: skip
    assert not done.returncode, done.stderr


def of_worker(number: int) -> GlimpseBatch:
    """A sample with its worker's process id as its label."""
    return glimpses(number, 1000)._replace(labels=torch.tensor(os.getpid()))


def main(method: str) -> None:
    """Take batches for as long as this lives, from workers that start in a way, and say who they are after some."""
    set_start_method(method)
    set_forkserver_preload(["hypothesis", "pytest", "datamodules.loading.workers"])
    kept: list[tuple[int, GlimpseBatch]] = []
    for turn, batch in enumerate(batches_of(Samples(of_worker, 10**6), 2)):
        kept = [*kept[-(turn % 9) :], (turn, batch)]
        for number, earlier in kept:
            expected = [glimpses(BATCH * number + row, 1000).patches for row in range(BATCH)]
            assert earlier.patches.equal(torch.stack(expected))
        if turn == 30:
            print(*{int(earlier.labels[0]) for _, earlier in kept[-2:]}, flush=True)


def gone(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.parametrize(
    ("killed", "method"),
    [
        pytest.param("process", "fork", marks=pytest.mark.long),
        ("worker", "fork"),
        pytest.param("process", "forkserver", marks=pytest.mark.long),
        pytest.param("worker", "forkserver", marks=pytest.mark.long),
        pytest.param("process", "spawn", marks=pytest.mark.long),
        pytest.param("worker", "spawn", marks=pytest.mark.long),
    ],
)
def test_nothing_is_left_when_either_side_is_killed(killed: str, method: str) -> None:
    run = start([method], script=Path(__file__))
    of_run = [int(word) for word in run.stdout.readline().split()]
    assert len(of_run) == 2
    named = {str(process) for process in (run.pid, *of_run)}
    assert not [name for name in os.listdir("/dev/shm") if named & set(name.split("_"))], "memory has no name"
    os.kill(run.pid if killed == "process" else of_run[0], signal.SIGKILL)
    said, _ = run.communicate(timeout=60)
    assert killed == "process" or "loader worker" in said.lower(), said
    assert run.returncode == (-signal.SIGKILL if killed == "process" else 1)
    until = time.monotonic() + 30
    while not all(map(gone, of_run)):
        assert time.monotonic() < until
        time.sleep(0.1)


if __name__ == "__main__":
    main(*sys.argv[1:])
