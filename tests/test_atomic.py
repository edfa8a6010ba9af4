"""A file is there whole or not at all, however many write it, and whatever the system refuses."""

import io
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from commands import ROOT

from mambaeye.atomic import atomic_folder, atomic_write
from mambaeye.errors import InputError

WRITE = """
import sys
import torch
from callbacks.run.checkpointing import AtomicCheckpointIO
first, count, path = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
print("ready", flush=True)
sys.stdin.readline()
for number in range(first, first + count):  # of sizes that differ
    AtomicCheckpointIO().save_checkpoint({"number": number, "weights": torch.full((100 + 37 * number,), number)}, path)
"""


@pytest.mark.long
def test_of_a_thousand_interleaved_writes_every_load_is_complete(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    command = [sys.executable, "-c", WRITE]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "cwd": ROOT}
    writers = [subprocess.Popen([*command, str(first), "500", str(path)], **pipes) for first in (0, 500)]
    assert [writer.stdout.readline() for writer in writers] == ["ready\n"] * 2
    for writer in writers:
        writer.stdin.close()
    seen = []
    while any(writer.poll() is None for writer in writers):
        if path.exists():
            read = torch.load(io.BytesIO(path.read_bytes()), weights_only=True)
            assert read["weights"].equal(torch.full((100 + 37 * read["number"],), read["number"]))
            seen.append(read["number"] < 500)
        time.sleep(0.002)
    assert [writer.returncode for writer in writers] == [0, 0]
    turns = sum(one != other for one, other in pairwise(seen))
    assert turns > 10, "the two did not write in turns"
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_of_one_process_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    with atomic_write(path) as first, atomic_write(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # which was renamed last
    assert list(tmp_path.iterdir()) == [path]


def test_what_the_system_refuses_is_one_sentence(tmp_path: Path) -> None:
    """The kernel's own answer: writes to /dev/full find no space, and a file is no folder."""

    def write(path: Path) -> None:
        with atomic_write(path) as partial:
            partial.symlink_to("/dev/full")
            partial.write_text("1")

    with pytest.raises(InputError) as refused:
        write(tmp_path / "table.csv")
    expected = f"{tmp_path}/table.csv cannot be written (No space left on device): make room or repair the folder"
    assert str(refused.value) == expected
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file/table.csv cannot be written .File exists"):
        write(tmp_path / "file" / "table.csv")


def test_an_exception_inside_is_not_the_systems(tmp_path: Path) -> None:
    def fail() -> None:
        with atomic_write(tmp_path / "table.csv") as partial:
            partial.touch()
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert not list(tmp_path.iterdir())


def test_a_folder_replaces_another_when_it_is_complete_and_not_before(tmp_path: Path) -> None:
    target = tmp_path / "made/out"
    for name in ("first", "second"):
        with atomic_folder(target) as partial:
            (partial / name).mkdir()
            (partial / name / "file").write_text(name)
            assert not (target / name).exists()
        assert [path.name for path in target.iterdir()] == [name]
    with pytest.raises(InputError), atomic_folder(target) as partial:
        (partial / "third").rename(partial / "nowhere/third")
    assert [path.name for path in target.iterdir()] == ["second"]
    assert [path.name for path in target.parent.iterdir()] == ["out"]


def test_a_folder_that_cannot_be_made_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(InputError, match=r"file/out cannot be written \(Not a directory\)"),
        atomic_folder(tmp_path / "file/out"),
    ):
        pass
