"""Packing, against tarfile, webdataset and the files that were packed; interrupted at every moment that matters."""

import hashlib
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from multiprocessing.synchronize import Barrier
from pathlib import Path

import numpy as np
import pytest
from commands import FORK_SERVER
from PIL import Image
from webdataset import WebDataset

from datamodules import pack as packing
from datamodules.check import main as check
from datamodules.shards.index import ShardIndex
from mambaeye.locks import WriterLock

ROOT = Path(__file__).parents[1]
KINDS = {"jpg": "JPEG", "JPEG": "JPEG", "png": "PNG", "webp": "WEBP"}
SMALL = ["--samples_per_shard", "7", "--seed", "3"]


def picture(number: int, kind: str) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 256, (9 + number % 5, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """30 images in three class folders, one of them with folders of its own; and what is to be passed over."""
    folder = tmp_path / "images"
    for number in range(30):
        extension = list(KINDS)[number % len(KINDS)]
        below = ["ant", "bee/young.v2", "Cat"][number % 3]
        path = folder / below / f"im.{number:02d}.{extension}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number, KINDS[extension]))
    (folder / "ant" / "notes.txt").write_text("not an image")
    (folder / "ant" / ".hidden.jpg").write_bytes(b"of some desktop")
    (folder / ".git").mkdir()
    (folder / ".git" / "x.jpg").write_bytes(b"of some tool")
    return folder


def pack(*args: object) -> None:
    packing.main([str(arg) for arg in args])


def refusal(*args: object) -> str:
    """Return the sentence by which packing refuses; the exit code of a message is 1."""
    with pytest.raises(SystemExit) as error:
        pack(*args)
    assert isinstance(error.value.code, str)
    assert re.fullmatch(r"error: [^\n]+", error.value.code)
    return error.value.code


def packed(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def shards(folder: Path) -> dict[str, bytes]:
    return {name: data for name, data in packed(folder).items() if name.endswith(".tar")}


def keys(folder: Path) -> list[str]:
    return [ShardIndex.read(folder).key(number) for number in range(len(ShardIndex.read(folder)))]


def test_every_image_once_untouched_with_its_label(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pack(images, out, *SMALL)
    expected = {}
    for path in images.rglob("im*.*"):
        key = path.relative_to(images).with_name(path.stem.replace(".", "_")).as_posix()
        expected[key] = path.suffix[1:].lower(), path.read_bytes(), ["Cat", "ant", "bee"].index(key.split("/")[0])
    seen = {}
    for sample in WebDataset([str(out / name) for name in shards(out)], shardshuffle=False, empty_check=False):
        (extension,) = {name for name in sample if not name.startswith("__")} - {"cls"}
        assert sample["__key__"] not in seen
        seen[sample["__key__"]] = extension, sample[extension], int(sample["cls"])
    assert seen == expected
    assert len(seen) == 30
    assert {path.name for path in tmp_path.iterdir()} == {"images", "out"}
    assert set(packed(out)) == {"index.json", *(f"shard-{number:06d}.tar" for number in range(5))}


def test_the_index_is_true(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pack(images, out, *SMALL)
    index, number = ShardIndex.read(out), 0
    assert index.classes == ["Cat", "ant", "bee"]
    assert index.counts.tolist() == [6] * 5  # not 7, 7, 7, 7, 2
    content = json.loads((out / "index.json").read_text())
    for entry in content["shards"]:
        path = out / entry["name"]
        assert entry["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        with tarfile.open(path) as tar:
            members = tar.getmembers()
            for label, image in zip(members[::2], members[1::2], strict=True):
                assert (image.offset_data, image.size) == (index.offsets[number], index.sizes[number])
                assert image.name.rpartition(".")[0] == label.name.removesuffix(".cls") == index.key(number)
                assert int(tar.extractfile(label).read()) == index.labels[number]
                assert image.mtime == 0
                number += 1
    assert number == len(index) == 30
    assert {key: content["packing"][key] for key in ("source", "seed", "left_out")} == {
        "source": "images",
        "seed": 3,
        "left_out": [],
    }
    check([str(out), "--decode"])


@pytest.mark.parametrize("form", ["w", "w:gz", "w:bz2", "w:xz"])
def test_a_tar_gives_the_same_shards(images: Path, tmp_path: Path, form: str) -> None:
    path = tmp_path / "images.archive"  # told by content, not by name
    with tarfile.open(path, form) as tar:
        tar.add(images, "./set/train")
        tar.add(images / "ant", "./set/test/ant")
    pack(images, tmp_path / "a", *SMALL)
    for number, prefix in enumerate(("set/train/", "./set/train")):
        pack(path, tmp_path / f"b{number}", *SMALL, "--prefix", prefix)
        assert shards(tmp_path / f"b{number}") == shards(tmp_path / "a")
    assert "not classes: choose one with --prefix" in refusal(path, tmp_path / "c", "--prefix", "set")
    assert not (tmp_path / "c").exists()
    pack(images.parent, tmp_path.with_name(f"{tmp_path.name}-d"), *SMALL, "--prefix", "images")
    assert shards(tmp_path.with_name(f"{tmp_path.name}-d")) == shards(tmp_path / "a")


def test_hard_links_in_a_tar_are_images_and_symbolic_ones_refused(images: Path, tmp_path: Path) -> None:
    os.link(images / "ant" / "im.00.jpg", images / "bee" / "same.jpg")
    with tarfile.open(tmp_path / "hard.tar", "w") as tar:
        tar.add(images, ".")
        assert any(member.islnk() for member in tar.getmembers())
    pack(images, tmp_path / "a", *SMALL)
    pack(tmp_path / "hard.tar", tmp_path / "b", *SMALL)
    assert shards(tmp_path / "a") == shards(tmp_path / "b")
    assert len(keys(tmp_path / "b")) == 31
    (images / "Cat" / "link.jpg").symlink_to("../ant/im.00.jpg")
    with tarfile.open(tmp_path / "soft.tar", "w") as tar:
        tar.add(images, ".")
    assert "link.jpg as a link" in refusal(tmp_path / "soft.tar", tmp_path / "c")
    pack(images, tmp_path / "d", *SMALL)  # from a folder, links are followed
    assert len(keys(tmp_path / "d")) == 32


def test_the_same_whatever_the_threads_and_another_order_by_seed(images: Path, tmp_path: Path) -> None:
    for name, flags in {"a": ["--jobs", 1], "b": ["--jobs", 5], "c": ["--seed", 4]}.items():
        pack(images, tmp_path / name, *SMALL, *flags)
    assert packed(tmp_path / "a") == packed(tmp_path / "b")
    first, other = keys(tmp_path / "a"), keys(tmp_path / "c")
    assert first != other
    assert sorted(first) == sorted(other)
    assert first != sorted(first)
    classes = ShardIndex.read(tmp_path / "a").labels[:6]
    assert len(set(classes.tolist())) > 1  # a shard is a mixture


CHANGES = ("replace", "fsync", "unlink", "rmdir", "mkdir")  # of os: what a packing changes on the disk, besides writing


def pack_until(moment: int, args: list[str]) -> bool:
    """Pack in a forked process that is killed as it is about to make its n-th change. Whether it was."""
    child = os.fork()
    if child:
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert code in (0, -signal.SIGKILL)
        return code != 0
    left = moment

    def watched(call: Callable[..., object]) -> Callable[..., object]:
        def before(*arguments: object, **options: object) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return before

    try:
        os.dup2(2, 1)  # the answers go to standard output
        for name in CHANGES:
            setattr(os, name, watched(getattr(os, name)))
        pack(*args)
        os._exit(0)
    finally:
        os._exit(1)


@pytest.fixture(scope="module")
def run_until() -> Iterator[Callable[..., bool]]:
    """pack_until, asked of a process without threads: where some just ended, a fork may find OpenCV's locks held."""
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(
        [sys.executable, __file__], env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=ROOT, **streams
    ) as server:

        def ask(moment: int, *args: object) -> bool:
            print(json.dumps([moment, [str(arg) for arg in args]]), file=server.stdin, flush=True)
            return json.loads(server.stdout.readline())

        yield ask
        server.stdin.close()


@pytest.mark.long
def test_killed_at_any_moment_it_continues_to_the_same_bytes(
    run_until: Callable[..., bool], images: Path, tmp_path: Path
) -> None:
    flags = ["--samples_per_shard", 10, "--jobs", 1]
    pack(images, tmp_path / "whole", *flags)
    expected = packed(tmp_path / "whole")
    moment = 0
    while run_until(moment, images, tmp_path / f"{moment}", *flags):
        out = tmp_path / f"{moment}"
        assert not out.exists() or packed(out) == expected
        kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob(f"{moment}.packing/notes/*.json")}
        pack(images, out, *flags)
        assert packed(out) == expected
        for note, written in kept.items():  # what had been finished was not made again
            assert (out / note.stem).stat().st_mtime_ns <= written
        assert not (tmp_path / f"{moment}.packing").exists()
        moment += 1
    assert moment > 20
    assert packed(tmp_path / f"{moment}") == expected


@pytest.mark.long
def test_other_arguments_do_not_mix_with_an_unfinished_packing(
    run_until: Callable[..., bool], images: Path, tmp_path: Path
) -> None:
    pack(images, tmp_path / "whole", "--samples_per_shard", 9, "--seed", 5)
    for moment in range(5, 30, 4):
        out = tmp_path / f"{moment}"
        assert run_until(moment, images, out, *SMALL, "--jobs", 1)
        pack(images, out, "--samples_per_shard", 9, "--seed", 5)
        assert packed(out) == packed(tmp_path / "whole")


@pytest.mark.long
def test_unfinished_packings_of_two_seeds_and_lengths(
    run_until: Callable[..., bool], images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed, started with other arguments and killed again, and then finished with the first ones."""
    flags, moments = [*SMALL, "--jobs", 1], []
    with monkeypatch.context() as patch:
        for name in CHANGES:
            call = getattr(os, name)
            patch.setattr(os, name, lambda *args, call=call, **options: (moments.append(1), call(*args, **options))[1])
        pack(images, tmp_path / "whole", *flags)
    expected = packed(tmp_path / "whole")
    for last in (2, len(moments) // 3):  # before the final renaming, and with two shards of five to go
        for others in (["--seed", 4], ["--samples_per_shard", 20]):
            for moment in (3, 4, 5, 6, 9, 12):
                out = tmp_path / f"{last} {others[1]} {moment}"
                assert run_until(len(moments) - last, images, out, *flags)
                assert run_until(moment, images, out, *flags, *others)
                pack(images, out, *flags)
                assert packed(out) == expected


@pytest.mark.long
def test_killed_as_a_process_at_random_moments(tmp_path: Path) -> None:
    """With all threads at work, again and again, until it gets through."""
    source = tmp_path / "images"
    for number in range(4000):
        path = source / f"{number % 10}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number, "PNG"))
    flags = ["--samples_per_shard", "100", "--jobs", "4"]
    command = [sys.executable, "-m", "datamodules.pack", str(source), str(tmp_path / "out"), *flags]
    chance, kills = random.Random(0), 0
    while True:
        process = subprocess.Popen(command, cwd=ROOT)
        while process.poll() is None and not (tmp_path / "out.packing.lock").exists():
            time.sleep(0.01)
        time.sleep(chance.uniform(0.05, 0.3) * (1 + kills))
        if process.poll() is None:
            process.kill()
            kills += 1
        if process.wait() == 0:
            break
        assert not (tmp_path / "out").exists() or (tmp_path / "out" / "index.json").exists()
    assert kills > 1
    pack(source, tmp_path / "whole", *flags)
    assert packed(tmp_path / "out") == packed(tmp_path / "whole")


def test_unreadable_images_are_listed_and_refused(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, bad = tmp_path / "out", [images / "ant" / "im.00.jpg", images / "Cat" / "im.05.JPEG"]
    whole = [path.read_bytes() for path in bad]
    bad[0].write_bytes(whole[0][:-30])
    bad[1].write_bytes(b"")
    message = refusal(images, out, *SMALL)
    assert "2 of 30 images are unreadable" in message
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("unreadable: ")]
    assert [line.split(": ")[1] for line in lines] == ["Cat/im.05.JPEG", "ant/im.00.jpg"]
    assert not out.exists()
    finished = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out.packing").glob("*.tar")}
    assert 3 <= len(finished) < 5
    for path, data in zip(bad, whole, strict=True):
        path.write_bytes(data)
    pack(images, out, *SMALL)  # continues with the repaired images
    assert all((out / name).stat().st_mtime_ns == written for name, written in finished.items())
    pack(images, tmp_path / "at once", *SMALL)
    assert packed(out) == packed(tmp_path / "at once")


def test_unreadable_images_are_left_out_if_told(
    images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack(images, tmp_path / "whole", *SMALL)
    (images / "ant" / "im.00.jpg").write_bytes(b"text")
    refusal(images, tmp_path / "out", *SMALL)
    capsys.readouterr()
    pack(images, tmp_path / "out", *SMALL, "--unreadable", "skip")
    streams = capsys.readouterr()
    assert "unreadable: ant/im.00.jpg: " in streams.err
    assert "1 unreadable ones left out" in streams.out
    assert keys(tmp_path / "out") == [key for key in keys(tmp_path / "whole") if key != "ant/im_00"]
    assert json.loads((tmp_path / "out" / "index.json").read_text())["packing"]["left_out"] == ["ant/im.00.jpg"]
    check([str(tmp_path / "out"), "--decode"])


@pytest.mark.long
def test_what_was_left_out_before_an_interruption_is_not_taken_for_whole(
    run_until: Callable[..., bool], images: Path, tmp_path: Path
) -> None:
    (images / "ant" / "im.00.jpg").write_bytes(b"text")
    moment = 5
    while run_until(moment, images, tmp_path / f"{moment}", *SMALL, "--jobs", 1, "--unreadable", "skip"):
        if not (tmp_path / f"{moment}.packing" / "index.json").exists():
            assert "1 of 30 images are unreadable" in refusal(images, tmp_path / f"{moment}", *SMALL)
        moment += 3
    assert moment > 20


def test_a_shard_and_a_set_with_no_readable_image(images: Path, tmp_path: Path) -> None:
    for path in images.rglob("im*.*"):
        if path.name != "im.00.jpg":
            path.write_bytes(b"text")
    pack(images, tmp_path / "one", "--samples_per_shard", 1, "--unreadable", "skip")
    assert keys(tmp_path / "one") == ["ant/im_00"]
    assert ShardIndex.read(tmp_path / "one").classes == ["Cat", "ant", "bee"]
    (images / "ant" / "im.00.jpg").write_bytes(b"text")
    assert "none of the 30 images is readable" in refusal(images, tmp_path / "none", "--unreadable", "skip")
    assert {path.name for path in tmp_path.iterdir()} == {"images", "one"}


def test_packing_again_changes_nothing_and_another_set_is_refused(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pack(images, out, *SMALL)
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    pack(images, out, *SMALL)
    for flags in (["--seed", 4], ["--samples_per_shard", 8]):
        assert "already holds another data set" in refusal(images, out, *SMALL, *flags)
    (images / "ant" / "new.jpg").write_bytes(picture(99, "JPEG"))
    assert "already holds another data set" in refusal(images, out, *SMALL)
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before
    assert {path.name for path in tmp_path.iterdir()} == {"images", "out"}


def test_destinations_that_are_refused(images: Path, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    pack(images, full, *SMALL)  # an empty folder will do
    (full / "index.json").unlink()
    before = packed(full)
    assert "already holds something else" in refusal(images, full)
    assert packed(full) == before
    assert "lies in" in refusal(images, images / "ant" / "shards")
    (tmp_path / "file").write_text("x")
    assert "already holds something else" in refusal(images, tmp_path / "file")
    lock = WriterLock(tmp_path / "busy.packing.lock", ("", ""))
    lock.acquire()
    (tmp_path / "busy.packing" / "notes").mkdir(parents=True)
    message = f"another process is packing into {tmp_path / 'busy'} (process {os.getpid()} on "
    assert message in refusal(images, tmp_path / "busy")
    assert (tmp_path / "busy.packing").exists()
    lock.release()


def pack_together(ready: Barrier, said: Path, flags: list[object]) -> None:
    """Pack in a process of its own once the other is ready too, and write to a file what is said."""
    sys.stderr = said.open("w")
    ready.wait()
    pack(*flags)


@pytest.mark.parametrize("seeds", [(3, 3), (3, 4)])
def test_two_at_once_into_one_folder(seeds: tuple[int, int], images: Path, tmp_path: Path) -> None:
    """Started together, and again and again: one packs, the other is refused, or finds it done."""
    expected = {}
    for seed in set(seeds):
        pack(images, tmp_path / f"of {seed}", "--samples_per_shard", "7", "--seed", seed)
        expected[seed] = packed(tmp_path / f"of {seed}")
    out, ready = tmp_path / "out", FORK_SERVER.Barrier(2)
    runs, said = [], [tmp_path / "said by one", tmp_path / "said by the other"]
    for seed, file in zip(seeds, said, strict=True):
        flags = [images, out, "--samples_per_shard", 7, "--seed", seed, "--jobs", 2]
        runs.append(FORK_SERVER.Process(target=pack_together, args=(ready, file, flags)))
        runs[-1].start()
    for run in runs:
        run.join()
    words = [file.read_text() for file in said]
    codes = [run.exitcode for run in runs]
    assert 0 in codes, words
    for code, text in zip(codes, words, strict=True):
        if code:
            assert code == 1
            assert re.fullmatch(r"error: (another process is packing into|\S+ already holds another) [^\n]+\n", text)
    done = packed(out)
    assert done in [expected[seed] for seed, code in zip(seeds, codes, strict=True) if code == 0]
    assert not list(tmp_path.glob("out.packing*"))


def test_sources_that_are_refused(images: Path, tmp_path: Path) -> None:
    def refused(*flags: object, source: Path = images) -> str:
        message = refusal(source, tmp_path / "out", *flags)
        assert not list(tmp_path.glob("out*"))
        return message

    assert "does not exist" in refused(source=tmp_path / "none")
    assert "has no images" in refused("--prefix", "train")
    assert "has no images" in refused("--prefix", "an")  # a part of a folder's name is no prefix
    (tmp_path / "text").write_text("hello")
    assert "damaged or not a tar" in refused(source=tmp_path / "text")
    (images / "ant" / "im_00.png").write_bytes(picture(0, "PNG"))
    message = refused()
    assert "ant/im.00.jpg" in message
    assert "ant/im_00.png" in message
    assert "the same key, ant/im_00" in message
    (images / "ant" / "im_00.png").rename(images / "top.png")
    assert "image top.png lies in no class folder" in refused()
    (images / "ant" / "v.1\n").mkdir()
    (images / "top.png").rename(images / "ant" / "v.1\n" / "x.png")
    assert "makes no key" in refused()
    (images / "ant" / "v.1\n" / "x.png").rename(images / "ant" / "\udcff.png")
    assert "is not UTF-8" in refused()


def test_a_tar_that_was_cut_short_is_refused(images: Path, tmp_path: Path) -> None:
    """Also where tarfile takes it for a whole one with fewer images."""
    for form in ("w", "w:gz", "w:xz", "w:bz2"):
        path = tmp_path / "set.tar"
        with tarfile.open(path, form) as tar:
            tar.add(images, ".")
        with tarfile.open(path) as tar:
            last = tar.getmembers()[-1].offset
        path.write_bytes(path.read_bytes()[: last if form == "w" else -20])
        assert "cut short" in refusal(path, tmp_path / "out")
        assert not list(tmp_path.glob("out*"))


def test_a_given_class_list_fixes_the_labels(images: Path, tmp_path: Path) -> None:
    classes = tmp_path / "classes.txt"
    classes.write_text("bee\nunused\n\nant\nCat\n")
    pack(images, tmp_path / "out", "--classes", classes)
    index = ShardIndex.read(tmp_path / "out")
    assert index.classes == ["bee", "unused", "ant", "Cat"]
    for number, label in enumerate(index.labels):
        assert index.key(number).split("/")[0] == index.classes[label]
    for content, message in {
        "bee\nant\n": "class folder Cat",
        "": "is empty",
        "bee\nant\nCat\nbee": "has bee twice",
    }.items():
        classes.write_text(content)
        assert message in refusal(images, tmp_path / "other", "--classes", classes)
    classes.write_bytes(b"\xff\xfe")
    assert "is not text" in refusal(images, tmp_path / "other", "--classes", classes)
    assert "does not exist" in refusal(images, tmp_path / "other", "--classes", tmp_path / "none.txt")
    assert not list(tmp_path.glob("other*"))


def test_shards_are_indexed_anew(images: Path, tmp_path: Path) -> None:
    out, classes = tmp_path / "out", tmp_path / "classes.txt"
    pack(images, out, *SMALL)
    before = json.loads((out / "index.json").read_text())
    (out / "shard-000001.tar").unlink()
    pack(out)  # the class list is that of the old index
    after = json.loads((out / "index.json").read_text())
    assert after["classes"] == before["classes"]
    assert after["shards"] == [entry for entry in before["shards"] if entry["name"] != "shard-000001.tar"]
    (out / "index.json").unlink()
    assert "--classes FILE" in refusal(out)
    classes.write_text("x\ny\n")
    assert "outside the 2 classes" in refusal(out, out, "--classes", classes)
    assert not (out / "index.json").exists()
    classes.write_text("x\ny\nz\n")
    pack(out, out, "--classes", classes)
    assert json.loads((out / "index.json").read_text())["shards"] == after["shards"]
    assert ShardIndex.read(out).classes == ["x", "y", "z"]
    (out / "copy.tar").write_bytes((out / "shard-000000.tar").read_bytes())
    assert "two samples have the key" in refusal(out)
    (out / "copy.tar").write_bytes((out / "shard-000000.tar").read_bytes()[:5000])
    assert "copy.tar is damaged" in refusal(out)
    assert "--seed is for packing" in refusal(out, "--seed", 1)
    assert "has no .tar files" in refusal(images)


def test_files_that_are_no_images_are_counted(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (images / "ant" / "old.psd").write_bytes(b"8BPS")
    (images / "ant" / "README").write_bytes(b"hello")
    pack(images, tmp_path / "out")
    lines = capsys.readouterr().out.splitlines()
    assert sorted(lines[0].removeprefix("passed over files that are not images: ").split(", ")) == [
        "1 .psd",
        "1 .txt",
        "1 without extension",
    ]
    assert re.fullmatch(rf"{tmp_path / 'out'}: images 30, classes 3, shards 1, \d+\.\d MB", lines[1])


@pytest.mark.long
def test_the_command_line(images: Path, tmp_path: Path) -> None:
    def run(*args: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "datamodules.pack", *map(str, args)]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)

    done = run(images, tmp_path / "out", *SMALL)
    assert done.returncode == 0
    assert "30/30" in done.stderr
    (images / "ant" / "im.00.jpg").write_bytes(b"")
    wrong = run(images, tmp_path / "other")
    assert wrong.returncode == 1
    assert re.search(r"^error: 1 of 30 images are unreadable: .*\n\Z", wrong.stderr, re.MULTILINE)
    assert "Traceback" not in wrong.stderr


@pytest.mark.parametrize(
    "flags", [["--jobs", "0"], ["--samples_per_shard", "0"], ["--unreadable", "mend"], ["--x", "1"]]
)
def test_malformed_arguments(tmp_path: Path, flags: list[str]) -> None:
    with pytest.raises(SystemExit) as error:
        pack(tmp_path, tmp_path / "out", *flags)
    assert error.value.code == 2
    assert "--seed is -1" in refusal(tmp_path, tmp_path / "out", "--seed", "-1")


if __name__ == "__main__":  # the process that run_until asks
    for line in sys.stdin:
        print(json.dumps(pack_until(*json.loads(line))), flush=True)
