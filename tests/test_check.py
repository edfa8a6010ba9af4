"""The check of shards against their index: every kind of damage is named, and nothing else."""

import hashlib
import io
import json
import re
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from datamodules.check import main
from datamodules.parallel import Stopped, in_parallel
from datamodules.shards.index import write_index
from datamodules.shards.scan import scan_shard
from mambaeye.errors import InputError

ROOT = Path(__file__).parents[1]


def write_shard(path: Path, keys: list[str], extension: str) -> None:
    """Noise under each key, with its place in the list as the label."""
    with tarfile.open(path, "w") as tar:
        for label, key in enumerate(keys):
            pixels = np.random.default_rng(list(key.encode())).integers(0, 256, (40, 30, 3), dtype=np.uint8)
            data = {extension: cv2.imencode(f".{extension}", pixels)[1].tobytes(), "cls": str(label).encode()}
            for name, content in data.items():
                member = tarfile.TarInfo(f"{key}.{name}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three shards, a-0, a-1, ... c-3, of PNGs, which notice every wrong byte, and of JPEGs, which often do."""
    for name, extension in (("a", "png"), ("b", "jpg"), ("c", "png")):
        write_shard(tmp_path / f"{name}.tar", [f"{name}-{number}" for number in range(4)], extension)
    write_index(tmp_path, list("0123"), [scan_shard(path) for path in sorted(tmp_path.glob("*.tar"))])
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, list[str]]:
    """The exit code and the lines on standard output."""
    capsys.readouterr()
    try:
        main([str(arg) for arg in args])
        code = 0
    except SystemExit as error:
        code = error.code
    return code, capsys.readouterr().out.splitlines()


def edit(path: Path, place: int, data: bytes) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:place] + data + content[place + len(data) :])


def edit_index(folder: Path, change: Callable[[dict], object]) -> None:
    path = folder / "index.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def offset(folder: Path, shard: int, sample: int) -> int:
    return json.loads((folder / "index.json").read_text())["shards"][shard]["offsets"][sample]


@pytest.mark.parametrize("flags", [[], ["--decode"], ["--decode", "--jobs", "1"]])
def test_says_nothing_of_what_is_whole(
    folder: Path, capsys: pytest.CaptureFixture[str], flags: list[str], data_dir: Path
) -> None:
    for whole in (folder, data_dir / "digits" / "val"):
        code, lines = run(capsys, whole, *flags)
        assert code == 0
        assert lines == [f"{whole} is as its index says" + (", and every image decodes" if flags else "")]


def test_names_the_image_with_a_wrong_byte(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "a.tar"
    place = offset(folder, 0, 2) + 200
    edit(path, place, bytes([path.read_bytes()[place] ^ 1]))
    wrong_sum = f"{path} has another checksum than in the index (sha256)"
    assert run(capsys, folder) == (1, [wrong_sum])
    code, lines = run(capsys, folder, "--decode")
    assert (code, lines[0], len(lines)) == (1, wrong_sum, 2)
    assert lines[1].startswith(f"the image of sample a-2 in {path} does not decode")


def test_a_wrong_byte_that_libjpeg_only_warns_of_is_noticed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "b.tar"
    place = offset(folder, 1, 1) + 700
    edit(path, place, bytes([path.read_bytes()[place] ^ 1]))
    wrong_sum = f"{path} has another checksum than in the index (sha256)"
    assert run(capsys, folder) == (1, [wrong_sum])
    code, lines = run(capsys, folder, "--decode")
    assert (code, lines[0], len(lines)) == (1, wrong_sum, 2)
    assert lines[1].startswith(f"the image of sample b-1 in {path} does not decode (Corrupt JPEG data: ")


def test_a_shard_cut_short(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "c.tar"
    whole = path.stat().st_size
    length = offset(folder, 2, 2) + 100
    path.write_bytes(path.read_bytes()[:length])
    code, lines = run(capsys, folder, "--decode")
    assert code == 1
    assert lines[0] == f"{path} has {length} bytes, and {whole} in the index"
    assert re.fullmatch(rf"{path} is damaged .*", lines[1])
    assert re.fullmatch(r"the image of sample c-2 .* does not decode.*", lines[2])
    assert lines[3] == f"{path} does not hold sample c-3 where the index says"
    assert len(lines) == 4


def test_a_missing_shard_and_a_stray_one(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "b.tar").rename(folder / "d.tar")
    expected = [f"{folder / 'd.tar'} is not in the index", f"{folder / 'b.tar'} is missing"]
    assert run(capsys, folder, "--decode") == (1, expected)


def test_a_newer_shard_of_the_same_size(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An index that is older than its shard."""
    path = folder / "a.tar"
    size = path.stat().st_size
    write_shard(path, ["a-0", "a-2", "a-1", "a-3"], "png")
    path.write_bytes(path.read_bytes()[:size].ljust(size, b"\0"))
    code, lines = run(capsys, folder)
    assert (code, lines[0]) == (1, f"{path} has another checksum than in the index (sha256)")
    assert lines[1] == f"{path} has other keys than the index in 2 samples, the first a-1: a-2, and a-1 in the index"


def test_a_shard_with_another_number_of_samples(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "a.tar"
    write_shard(path, ["a-0", "a-1", "a-2"], "png")
    code, lines = run(capsys, folder)
    assert code == 1
    assert f"{path} has 3 samples, and 4 in the index" in lines


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("labels", 3, "has other labels than the index in 1 samples, the first b-1: 1, and 3 in the index"),
        ("keys", "zz", "has other keys than the index in 1 samples, the first zz: b-1, and zz in the index"),
        ("sizes", 7, r"has other sizes than the index in 1 samples, the first b-1: \d+, and 7 in the index"),
        ("sizes", 0, r"has other sizes than the index in 1 samples, the first b-1: \d+, and 0 in the index"),
        ("offsets", 600, r"has other offsets than the index in 1 samples, the first b-1: \d+, and 600 in the index"),
    ],
)
def test_a_wrong_index(
    folder: Path, capsys: pytest.CaptureFixture[str], column: str, value: object, message: str
) -> None:
    edit_index(folder, lambda content: content["shards"][1][column].__setitem__(1, value))
    code, lines = run(capsys, folder)
    assert (code, len(lines)) == (1, 1)
    assert re.fullmatch(f"{folder / 'b.tar'} {message}", lines[0])
    code, lines = run(capsys, folder, "--decode")
    assert code == 1
    place = rf"{folder / 'b.tar'} does not hold sample \S+ where the index says"
    assert [bool(re.fullmatch(place, line)) for line in lines[1:]] == ([] if column == "labels" else [True])


@pytest.mark.parametrize(("column", "value"), [("offsets", 7), ("offsets", 10**15), ("sizes", -1)])
@pytest.mark.parametrize("decode", [(), ("--decode",)])
def test_an_index_of_what_no_shard_is_like(
    folder: Path, capsys: pytest.CaptureFixture[str], column: str, value: int, decode: tuple[str, ...]
) -> None:
    edit_index(folder, lambda content: content["shards"][1][column].__setitem__(1, value))
    with pytest.raises(SystemExit, match=r"index\.json is not an index of shards \(an image .* b\.tar.*\)"):
        main([str(folder), *decode])


def test_labels_and_keys_of_the_whole_index(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit_index(folder, lambda content: content["classes"].pop())
    code, lines = run(capsys, folder)
    assert (code, len(lines)) == (1, 1)
    assert "sample a-3" in lines[0]
    assert "outside the 3 classes" in lines[0]


def test_an_index_of_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_index(tmp_path, ["a"], [])
    assert run(capsys, tmp_path) == (1, [f"{tmp_path / 'index.json'} lists no shard"])


@pytest.mark.long
def test_the_command_line(folder: Path) -> None:
    def check(*args: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "datamodules.check", *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)

    whole = check(folder)
    assert (whole.returncode, whole.stdout) == (0, f"{folder} is as its index says\n")
    assert "12/12" in whole.stderr
    wrong = check(folder / "none")
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert re.fullmatch(r"error: .* does not exist: .*\n", wrong.stderr)


def test_parallel_work_keeps_the_order_and_ends_at_the_first_error() -> None:
    def work(item: int, advance: Callable[[int], None]) -> str:
        advance(1)
        return hashlib.sha256(bytes([item])).hexdigest()

    expected = [hashlib.sha256(bytes([item])).hexdigest() for item in range(20)]
    assert in_parallel(work, range(20), 4, 20, "x") == expected
    ended = []

    def failing(item: int, advance: Callable[[int], None]) -> None:
        if item == 1:
            raise InputError("the second")
        try:
            for _ in range(100):
                advance(0)
                time.sleep(0.01)
        except Stopped:
            ended.append(item)
            raise

    with pytest.raises(InputError, match="the second"):
        in_parallel(failing, range(20), 2, 20, "x")
    assert ended == [0]
