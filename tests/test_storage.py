"""Hosts, commands and object stores that stall, drip, break and refuse: a read ends, and says why."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import cv2
import fsspec
import numpy as np
import pytest
from commands import ROOT
from fsspec.implementations.memory import MemoryFileSystem
from hosts import Handler, Host, serving
from test_reading import by_tar, loaders

from datamodules.loading.config import LoaderConfig
from datamodules.pack import main as pack
from datamodules.shards.index import ShardIndex
from datamodules.shards.locate import open_index
from datamodules.shards.reading import BLOCK, read_images
from datamodules.storage import commands, limits, objects, web
from datamodules.storage.limits import ReadLimits
from datamodules.storage.stream import open_stream
from mambaeye.errors import InputError

SHORT = ReadLimits(timeout=0.3, min_rate=10_000)
SHARD = "/val-000000.tar"


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PAUSE", 0.0)


@pytest.fixture
def val(data_dir: Path) -> Path:
    return data_dir / "digits" / "val"


@pytest.fixture
def host(val: Path) -> Iterator[Host]:
    with serving(val) as host:
        yield host


def first_sample_error(index: ShardIndex, attempts: int = 1) -> str:
    """Return what becomes of the last sample of the first shard."""
    results = list(read_images(index, np.arange(200), attempts, SHORT))
    assert isinstance(results[-1], InputError)
    return str(results[-1])


def mute(handler: Handler, place: int) -> bool:
    return handler.host.over.wait()


@pytest.mark.long
@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (mute, "timed out"),
        (lambda handler, place: handler.stall(40), "40 bytes in 0.3"),
        (lambda handler, place: handler.drip(100, 0.05), "bytes in 0.3|fewer than the 10000 a second"),
        (lambda handler, place: handler.break_off(40), "IncompleteRead|ends"),
        (lambda handler, place: handler.status(500), "HTTP status 500"),
        (lambda handler, place: handler.status(404), "HTTP status 404"),
    ],
)
@pytest.mark.parametrize("file", ["/index.json", SHARD])
def test_a_host_that_gives_too_little_ends_the_read_with_a_sentence(
    file: str, fault: object, says: str, host: Host, val: Path
) -> None:
    host.fault = lambda handler, place: handler.path == file and fault(handler, place)
    start = time.monotonic()
    if file == SHARD:
        error = first_sample_error(open_index(host.url, limits=SHORT))
        assert f"cannot be read, for {host.url}{SHARD} breaks off" in error
    else:
        with pytest.raises(InputError, match=f"index {host.url}/index.json cannot be read") as caught:
            open_index(host.url, limits=SHORT)
        error = str(caught.value)
    assert any(part in error for part in says.split("|")), error
    assert time.monotonic() - start < 30


def test_a_host_that_is_too_slow_all_the_time_does_not_go_on_image_by_image(host: Host) -> None:
    """Each attempt brings a few images: that alone would begin the count of attempts anew for ever."""
    host.fault = lambda handler, place: handler.path == SHARD and handler.drip(500, 0.1)
    index = open_index(host.url)
    results = list(read_images(index, np.arange(200), 2, SHORT))
    assert len([path for path, _ in host.requests if path == SHARD]) == 3
    assert isinstance(results[0], bytes)
    assert "--data.loader.min_rate" in str(results[-1])


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.parametrize("source", ["url", pytest.param("command", marks=pytest.mark.long)])
def test_a_shard_that_stalls_ends_a_pass(source: str, workers: int, host: Host, val: Path) -> None:
    host.fault = lambda handler, place: handler.path == SHARD and handler.stall(50_000)
    index = f"{val}/index.json"
    shards = host.url if source == "url" else f"pipe:head -c 50000 {val}{SHARD}; sleep 1000"
    data = loaders(
        shards,
        LoaderConfig(50, num_workers=workers, read_timeout=0.3, min_rate=1e6),
        train_index=index,
        val_index=index,
    )
    with pytest.raises(InputError, match="cannot be read, for (http|pipe:)"):
        list(data.val_dataloader())


@pytest.mark.long
def test_an_answer_that_may_change_is_asked_for_again_when_it_says(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(limits, "PAUSE", 1.0)
    monkeypatch.setattr(limits.time, "sleep", waits.append)
    turns = {SHARD: count(), "/index.json": count()}
    answers: list[tuple[int, dict[str, str]]] = [(503, {"Retry_After": "7"}), (500, {}), (429, {"Retry_After": "7"})]

    def fault(handler: Handler, place: int) -> bool:
        turn = next(turns[handler.path])
        if turn == len(answers):
            return False
        status, headers = answers[turn]
        return handler.status(status, **headers)

    host.fault = fault
    images = by_tar(host.folder)
    index = open_index(host.url)
    assert waits == [7, 2, 7]
    assert list(read_images(index, np.arange(200), 3)) == [images[index.key(n)] for n in range(200)]
    assert waits == [7, 2, 7] * 2
    host.fault = lambda handler, place: handler.status(503, Retry_After="86400")
    with pytest.raises(InputError):
        open_index(host.url)
    assert waits[6:] == [60, 60, 60]  # no longer than the limit


def test_what_is_not_there_is_not_asked_for_again(host: Host) -> None:
    index = open_index(host.url)
    host.fault = lambda handler, place: handler.status(404)
    results = list(read_images(index, np.arange(200), 3))
    assert len(host.requests) == 2
    assert all("HTTP status 404" in str(result) for result in results)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_read_goes_on_at_the_byte_where_it_broke_off(ranges: bool, val: Path) -> None:
    with serving(val, ranges) as host:
        index, images = open_index(host.url), by_tar(val)
        host.fault = lambda handler, place: place in (1, 2) and handler.break_off(90_000 * place)
        assert list(read_images(index, np.arange(200), 2)) == [images[index.key(n)] for n in range(200)]
        asked = [span for path, span in host.requests if path == SHARD]
    assert len(asked) == 3
    starts = [int(span.removeprefix("bytes=").partition("-")[0]) for span in asked]
    places = set(index.offsets[:200].tolist())
    assert all(start + BLOCK in places for start in starts)
    assert starts == sorted(set(starts))
    if ranges:  # what came is not sent again, but for an image that was not complete
        assert host.sent < val.joinpath(SHARD[1:]).stat().st_size + 60_000


@pytest.mark.parametrize("ranges", [True, False])
def test_only_what_is_wanted_is_read(ranges: bool, val: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datamodules.shards.reading.WORTH_A_REQUEST", 20_000)
    with serving(val, ranges) as host:
        index, images = open_index(host.url), by_tar(val)
        fetched, wanted = host.sent, np.array([190, 5, 6])
        assert list(read_images(index, wanted, 0)) == [images[index.key(n)] for n in wanted]
        asked, host.sent = host.requests[1:], host.sent - fetched
    if ranges:
        assert len(asked) == 2  # 5 and 6 lie side by side
        assert host.sent < 20_000 + sum(index.sizes[wanted]) or asked[0][1] != asked[1][1]
    else:
        assert len(asked) == 1


@pytest.mark.long
def test_many_shards_leave_nothing_open(tmp_path: Path) -> None:
    """320 shards, each of which breaks off once."""
    folder = tmp_path / "many"
    images = tmp_path / "images"
    rng = np.random.default_rng(0)
    for number in range(320):
        path = images / f"class-{number % 2}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), rng.integers(0, 255, (4, 4, 3), dtype=np.uint8))
    pack([str(images), str(folder), "--samples_per_shard", "1"])
    with serving(folder) as host:
        index = open_index(host.url)
        assert len(index.sources) == 320
        host.fault = lambda handler, place: place % 2 == 1 and handler.break_off(100)
        before = len(os.listdir("/proc/self/fd"))
        most = 0
        for image in read_images(index, np.random.default_rng(0).permutation(320), 1):
            assert isinstance(image, bytes)
            most = max(most, len(os.listdir("/proc/self/fd")) - before - host.connections)
        assert most <= 3
        assert host.most_connections <= 3
        end = time.monotonic() + 10
        while host.connections > 1 and time.monotonic() < end:
            time.sleep(0.01)
        assert host.connections <= 1  # one, to be used again
    local = ShardIndex.read(folder)
    before = len(os.listdir("/proc/self/fd"))
    assert sum(isinstance(image, bytes) for image in read_images(local, np.arange(320), 0)) == 320
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_connection_is_used_again(host: Host) -> None:
    index = open_index(host.url)
    for number in (3, 250, 7):
        next(read_images(index, np.array([number]), 0))
    assert host.most_connections == 1


def test_a_redirect_is_followed_and_a_loop_is_not(host: Host) -> None:
    host.fault = lambda handler, place: handler.path == "/old.json" and handler.status(302, Location="/index.json")
    with serving(host.folder):
        assert len(open_index(host.url, f"{host.url}/old.json")) == 397
    host.fault = lambda handler, place: handler.status(302, Location="/index.json")
    with pytest.raises(InputError, match="too many redirects"):
        open_index(host.url)


def test_a_user_and_a_password_in_a_url_are_for_the_host(host: Host) -> None:
    seen: list[str | None] = []
    host.fault = lambda handler, place: bool(seen.append(handler.headers.get("Authorization")))
    open_index(host.url.replace("://", "://me:s%20cret@"))
    assert seen == ["Basic bWU6cyBjcmV0"]


def test_the_proxy_of_the_environment_is_asked(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", host.url)
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(InputError):
        open_index("http://nowhere.invalid/shards")
    assert host.requests[0][0] == "http://nowhere.invalid/shards/index.json"
    monkeypatch.setenv("no_proxy", "nowhere.invalid")
    assert web.proxy_for("http://nowhere.invalid/shards") is None


def test_a_port_where_nobody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(InputError, match=f"index {url}/index.json cannot be read .*Connection refused"):
        open_index(url)


def test_a_url_is_printed_as_given(host: Host) -> None:
    data = loaders(host.url, LoaderConfig(40, max_unreadable=1, num_workers=0))
    host.fault = lambda handler, place: handler.status(404)
    with pytest.raises(InputError, match=f"of {host.url} could not be read"):
        list(data.val_dataloader())


def test_advice_for_remote_shards_works_there(host: Host, val: Path) -> None:
    index = open_index(host.url)
    index.offsets = index.offsets + 512
    (error,) = read_images(index, np.array([3]), 0)
    assert f"{host.url}{SHARD} does not hold sample" in str(error)
    assert "put that index there" in str(error)


# commands


def started(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Note whether each command that is started goes through a shell."""
    shells: list[bool] = []
    popen = subprocess.Popen

    def spy(*arguments: object, **settings: object) -> object:
        shells.append(bool(settings["shell"]))
        return popen(*arguments, **settings)

    monkeypatch.setattr(commands.subprocess, "Popen", spy)
    return shells


@pytest.mark.parametrize(
    ("command", "shell"),
    [
        ("cat {shard}", False),
        ("cat '{shard}'", False),
        ('head -c +10000000 "{shard}"', False),
        ("cat < {shard}", True),
        ("cat {shard} | cat", True),
        ("X=1 cat {shard}", True),
        ("cat {folder}/val-00000[0].tar", True),
        ("true && cat {shard}", True),
        ("exec cat {shard}", True),
    ],
)
def test_a_command_goes_through_a_shell_only_if_it_has_a_shells_syntax(
    command: str, shell: bool, val: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shells = started(monkeypatch)
    stream = open_stream("pipe:" + command.format(shard=f"{val}{SHARD}", folder=val), SHORT)
    assert stream.read_all() == (val / SHARD[1:]).read_bytes()
    stream.close()
    assert shells == [shell]


@pytest.mark.parametrize(
    "name", ["a;touch was_run;", "$(touch was_run)", "a|touch was_run", "`touch was_run`", "it's", "a&b #c"]
)
def test_braces_with_a_shells_characters_are_only_names(
    name: str, val: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / name.replace("/", "")
    folder.symlink_to(val)
    index = open_index(f"{folder}/val-{{000000..000001}}.tar")
    assert sum(isinstance(image, bytes) for image in read_images(index, np.arange(397), 0)) == 397
    with serving(val) as host:
        host.fault = lambda handler, place: handler.status(404)
        far = open_index(f"{host.url}/{name}/val-{{000000..000001}}.tar", f"{val}/index.json")
        assert all(isinstance(image, InputError) for image in read_images(far, np.arange(5), 0))
        assert len(host.requests) == 1
    assert not (tmp_path / "was_run").exists()


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("sleep 1000", "0 bytes in 0.3"),
        ("sleep 1000; true", "0 bytes in 0.3"),
        ("while true; do printf 12345; sleep 0.05; done", "fewer than the 10000 a second"),
        ("false", "exit code 1"),
        ("no-such-command-at-all", "exit code 127"),
        ("cat 'unmatched", "exit code 2"),
    ],
)
def test_a_command_that_gives_too_little_ends_the_read(command: str, says: str) -> None:
    stream = open_stream(f"pipe:{command}", SHORT)
    with pytest.raises(OSError, match=says):
        stream.read(1 << 20)
    stream.close()
    assert not commands.running


def require_ended(group: int) -> None:
    """Wait until a process group is gone."""
    end = time.monotonic() + 10
    while True:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        assert time.monotonic() < end, "it goes on"
        time.sleep(0.02)


def test_closing_a_stream_ends_all_that_its_command_has_started() -> None:
    stream = open_stream("pipe:(sleep 1000; true) | cat; sleep 1000", SHORT)
    ((_, group),) = commands.running
    os.killpg(group, 0)
    stream.close()
    require_ended(group)


@pytest.mark.long
def test_a_process_that_ends_takes_its_commands_along(tmp_path: Path) -> None:
    code = (
        "from datamodules.storage import commands, limits, stream\n"
        "opened = stream.open_stream('pipe:sleep 1000; true', limits.ReadLimits())\n"
        "print(*(group for _, group in commands.running))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    require_ended(int(done.stdout))


# object stores


class StallingFileSystem(MemoryFileSystem):
    protocol = "stalling"

    def _open(self, *arguments: object, **settings: object) -> object:
        time.sleep(5)
        raise AssertionError


def test_object_stores_are_read_by_fsspec(val: Path) -> None:
    memory = fsspec.filesystem("memory")
    for path in val.iterdir():
        memory.pipe_file(f"/bucket/val/{path.name}", path.read_bytes())
    index, images = open_index("memory://bucket/val"), by_tar(val)
    numbers = np.random.default_rng(0).permutation(397)
    assert list(read_images(index, numbers, 0)) == [images[index.key(n)] for n in numbers]
    memory.rm("/bucket/val/val-000000.tar")
    results = list(read_images(index, np.arange(3), 3))
    assert all("FileNotFoundError" in str(result) for result in results)


def test_an_object_store_that_stalls_ends_the_read() -> None:
    fsspec.register_implementation("stalling", StallingFileSystem, clobber=True)
    with pytest.raises(TimeoutError, match="no byte in 0.3 seconds"):
        open_stream("stalling://bucket/index.json", SHORT)


@pytest.mark.parametrize(
    ("scheme", "says"), [("s3", r"s3fs \(pip install 'mambaeye\[s3\]'\)"), ("gs", "gcsfs"), ("nosuch", "fsspec")]
)
def test_a_library_that_is_missing_is_named(scheme: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    if scheme != "nosuch":
        monkeypatch.setattr(objects.fsspec, "get_filesystem_class", missing)
    with pytest.raises(InputError, match=says):
        open_index(f"{scheme}://bucket/shards")


# local damage


def test_flipped_bytes_of_a_local_shard_are_errors_of_their_samples_or_pictures(val: Path, tmp_path: Path) -> None:
    """Whatever byte is flipped, in headers and images: no exception but ours, and no other sample is touched."""
    index = ShardIndex.read(val)
    rng = np.random.default_rng(0)
    shard = (val / "val-000000.tar").read_bytes()
    folder = tmp_path / "val"
    folder.mkdir()
    for path in val.iterdir():
        folder.joinpath(path.name).write_bytes(path.read_bytes())
    images = by_tar(val)
    for number in rng.integers(0, 200, 20):
        start = int(index.offsets[number]) - BLOCK
        place = start + int(rng.integers(156))  # name, mode, owner, size, time and checksum
        content = bytearray(shard)
        content[place] ^= 0x41
        folder.joinpath("val-000000.tar").write_bytes(content)
        results = list(read_images(ShardIndex.read(folder), np.arange(200), 0))
        assert "does not hold sample" in str(results[number])
        assert [result for n, result in enumerate(results) if n != number] == [
            images[index.key(n)] for n in range(200) if n != number
        ]


def test_a_local_shard_that_is_cut_short_while_it_is_read(val: Path, tmp_path: Path) -> None:
    folder = tmp_path / "val"
    folder.mkdir()
    for path in val.iterdir():
        folder.joinpath(path.name).write_bytes(path.read_bytes())
    index = ShardIndex.read(folder)
    with folder.joinpath("val-000000.tar").open("r+b") as file:
        file.truncate(int(index.offsets[120]) + 10)
    results = list(read_images(index, np.arange(200), 1))
    assert [isinstance(result, bytes) for result in results] == [True] * 120 + [False] * 80
    assert "too early" in str(results[-1])
    with pytest.raises(InputError, match="bytes and its index says"):
        ShardIndex.read(folder)
