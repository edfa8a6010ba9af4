"""Scanning shards and reading indexes, against tarfile, hashlib and tars that are damaged on purpose."""

import hashlib
import io
import json
import os
import pickle
import shutil
import subprocess
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from datamodules.shards.index import (
    Shard,
    ShardIndex,
    header_matches,
    read_index,
    write_index,
)
from datamodules.shards.locate import open_index
from datamodules.shards.scan import scan_shard
from mambaeye.errors import InputError

BLOCK = 512


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def sample(key: str, label: int, size: int = 700, extension: str = "jpg") -> list[tuple[str, bytes]]:
    return [(f"{key}.{extension}", os.urandom(size)), (f"{key}.cls", str(label).encode())]


def folder_of(folder: Path, *shards: list[tuple[str, bytes]]) -> Path:
    """A folder of shards with its index, three classes."""
    folder.mkdir()
    paths = [write_tar(folder / f"s-{number}.tar", members) for number, members in enumerate(shards)]
    write_index(folder, ["a", "b", "c"], [scan_shard(path) for path in paths])
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two shards of three and two samples."""
    first = [member for number in range(3) for member in sample(f"x/{number}", number)]
    return folder_of(tmp_path / "shards", first, sample("y/0", 2) + sample("y/1", 1))


NAMES = {
    "plain": "n01/image_1",
    "from the current folder": "./n01/image_1",
    "dots in the folder": "n01.v2/image_1",
    "two hundred letters": "n01/" + "long" * 50,
    "more than a ustar header holds": "n01/" + "folder/" * 40 + "x",
    "not ASCII": "Vögel/Blaumeise_Größe",
    "long and not ASCII": "Vögel/" + "ä" * 120,
}


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("name", NAMES)
def test_notes_where_every_image_lies(tmp_path: Path, name: str, form: int) -> None:
    key = NAMES[name]
    if form == tarfile.USTAR_FORMAT and len(key) > 90:
        pytest.skip("ustar has no room for the name")
    members = sample("before", 1, 1) + sample(key, 2, 1024, "JPEG") + sample("after", 0, 600, "webp")
    path = write_tar(tmp_path / "s.tar", members, form)
    shard = scan_shard(path)
    data = path.read_bytes()
    assert (shard.name, shard.bytes, shard.sha256) == ("s.tar", len(data), hashlib.sha256(data).hexdigest())
    assert shard.keys == ["before", key, "after"]
    assert shard.labels == [1, 2, 0]
    for key, offset, size, (_, image) in zip(shard.keys, shard.offsets, shard.sizes, members[::2], strict=True):
        assert data[offset : offset + size] == image
        header = data[offset - BLOCK : offset]
        assert header_matches(header, key, size)
        assert not header_matches(header, key, size + 1)
        assert not header_matches(data[offset : offset + BLOCK].ljust(BLOCK, b"\0"), key, size)
    assert not header_matches(data[shard.offsets[0] - BLOCK : shard.offsets[0]], "other", 1)


@pytest.mark.skipif(not shutil.which("tar"), reason="no tar command")
def test_reads_what_the_tar_command_writes(tmp_path: Path) -> None:
    images = {"n01/a": b"1" * 1000, "n01/" + "long" * 40: b"2" * 10, "Vögel/ä": b"3" * 513}
    for number, (key, data) in enumerate(images.items()):
        (tmp_path / key).parent.mkdir(exist_ok=True)
        (tmp_path / f"{key}.jpg").write_bytes(data)
        (tmp_path / f"{key}.cls").write_text(f"{number}\n")
    for form in ("gnu", "pax"):
        path = tmp_path / f"{form}.tar"
        command = ["tar", "--format", form, "--create", "--file", str(path), "--exclude=*.tar", "--directory"]
        if subprocess.run([*command, str(tmp_path), "."], check=False, capture_output=True).returncode:
            pytest.skip("another tar")
        shard, data = scan_shard(path), path.read_bytes()
        places = list(zip(shard.keys, shard.offsets, shard.sizes, strict=True))
        found = {key: data[o : o + s] for key, o, s in places}
        assert found == {f"./{key}": image for key, image in images.items()}
        assert all(header_matches(data[o - BLOCK : o], key, s) for key, o, s in places)


@pytest.mark.skipif(not shutil.which("tar"), reason="no tar command")
def test_refuses_sparse_images(tmp_path: Path) -> None:
    with (tmp_path / "a.jpg").open("wb") as file:
        file.truncate(1 << 20)
    path = tmp_path / "s.tar"
    subprocess.run(["tar", "--sparse", "-cf", str(path), "-C", str(tmp_path), "a.jpg"], check=True)
    if path.stat().st_size > 1 << 19:
        pytest.skip("the disk keeps no sparse files")
    with pytest.raises(InputError, match="sample a in .* is stored sparse"):
        scan_shard(path)


def test_cut_short_anywhere_is_noticed(tmp_path: Path) -> None:
    """Also between two members, where tarfile sees a tar that is whole but shorter."""
    members = [member for number in range(3) for member in sample(f"x/{number}", number)]
    whole = write_tar(tmp_path / "s.tar", members).read_bytes()
    end = max(place for place in range(0, len(whole), BLOCK) if any(whole[place : place + BLOCK])) + BLOCK
    path = tmp_path / "cut.tar"
    for length in {*range(0, end + 1, BLOCK), *range(1, end, 311), end + BLOCK - 1}:
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"cut\.tar is (cut short|damaged)"):
            scan_shard(path)
    path.write_bytes(whole[: end + BLOCK])
    assert scan_shard(path).keys == ["x/0", "x/1", "x/2"]


def test_damaged_headers_are_noticed(tmp_path: Path) -> None:
    """Every header in turn: tarfile takes a damaged one for the end."""
    path = write_tar(tmp_path / "s.tar", sample("x/0", 0) + sample("x/1", 1))
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        headers = [member.offset for member in tar]
    for place in headers:
        path.write_bytes(whole[: place + 10] + b"#" + whole[place + 11 :])
        with pytest.raises(InputError, match="is damaged"):
            scan_shard(path)


def test_two_tars_in_one_file_are_noticed(tmp_path: Path) -> None:
    first, second = (write_tar(tmp_path / f"{key}.tar", sample(key, 0)).read_bytes() for key in "ab")
    (tmp_path / "s.tar").write_bytes(first + second)
    with pytest.raises(InputError, match="two tars in one file"):
        scan_shard(tmp_path / "s.tar")


JPG, CLS = ("k.jpg", b"image"), ("k.cls", b"1")


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([], "holds no sample"),
        ([("readme.txt", b"hello")], "holds no sample"),
        ([JPG], "sample k in .* has no label"),
        ([CLS], "sample k in .* has no image"),
        ([JPG, CLS, JPG], "sample k in .* has two images"),
        ([JPG, ("k.png", b"image"), CLS], "sample k in .* has two images"),
        ([JPG, CLS, CLS], "sample k in .* has two labels"),
        ([JPG, ("k.cls", b"cat")], "sample k in .* has the label b'cat'"),
        ([JPG, ("k.cls", b"")], "sample k in .* has the label b''"),
        ([("\udcff.jpg", b"image"), ("\udcff.cls", b"1")], "is not UTF-8"),
    ],
)
def test_refuses_what_are_no_samples(tmp_path: Path, members: list[tuple[str, bytes]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        scan_shard(write_tar(tmp_path / "s.tar", members, tarfile.GNU_FORMAT))


@pytest.mark.parametrize("data", [b"", b"not a tar", bytes(100), b"\x1f\x8b" + bytes(2000)])
def test_refuses_what_is_no_tar(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "s.tar").write_bytes(data)
    with pytest.raises(InputError, match=r"s\.tar"):
        scan_shard(tmp_path / "s.tar")
    with pytest.raises(InputError, match="does not exist"):
        scan_shard(tmp_path / "none.tar")


class Trap:
    """Unpickling it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    sprung = tmp_path / "sprung"
    trap = pickle.dumps(Trap(sprung))
    names = ["pyd", "pickle", "pkl", "pth", "pt", "npy", "ten", "cls.pyd", "jpg.pickle"]
    path = write_tar(tmp_path / "s.tar", [*sample("k", 1), *((f"k.{name}", trap) for name in names)])
    assert scan_shard(path).keys == ["k"]
    assert not sprung.exists()
    pickle.loads(trap)  # the trap itself works
    assert sprung.exists()


def test_written_and_read_again(folder: Path) -> None:
    index = ShardIndex.read(folder)
    shards = [scan_shard(path) for path in sorted(folder.glob("*.tar"))]
    assert index.classes == ["a", "b", "c"]
    assert [index.key(number) for number in range(5)] == ["x/0", "x/1", "x/2", "y/0", "y/1"]
    assert [index.shard_path(number).name for number in range(5)] == ["s-0.tar"] * 3 + ["s-1.tar"] * 2
    assert (index.counts.tolist(), index.starts.tolist(), len(index)) == ([3, 2], [0, 3], 5)
    assert index.labels.tolist() == [0, 1, 2, 2, 1]
    assert index.offsets.tolist() == shards[0].offsets + shards[1].offsets
    assert index.sizes.tolist() == [700] * 5
    assert {index.labels.dtype, index.offsets.dtype, index.sizes.dtype, index.counts.dtype} == {np.dtype(np.int64)}
    direct = ShardIndex(folder, ["a", "b", "c"], shards)
    np.testing.assert_array_equal(direct.keys, index.keys)
    assert direct.bytes == index.bytes == [path.stat().st_size for path in index.paths]


def test_the_file_is_json_as_documented(folder: Path) -> None:
    content = json.loads((folder / "index.json").read_text())
    assert list(content) == ["classes", "shards"]
    assert list(content["shards"][0]) == ["name", "bytes", "sha256", "keys", "labels", "offsets", "sizes"]
    assert content["shards"][1]["keys"] == ["y/0", "y/1"]
    assert {path.name for path in folder.iterdir()} == {"index.json", "s-0.tar", "s-1.tar"}
    shards = [Shard(**shard) for shard in content["shards"]]
    write_index(folder, content["classes"], shards, {"seed": 7})
    assert json.loads((folder / "index.json").read_text()) == content | {"packing": {"seed": 7}}
    assert read_index(folder)["packing"] == {"seed": 7}
    assert len(ShardIndex.read(folder)) == 5


def test_a_key_that_no_index_may_have_is_refused(tmp_path: Path) -> None:
    longest = "x/" + "n" * 1022
    assert scan_shard(write_tar(tmp_path / "s.tar", sample(longest, 0))).keys == [longest]
    with pytest.raises(InputError, match="has more than 1024 bytes: rename the sample"):
        scan_shard(write_tar(tmp_path / "s.tar", sample(longest + "n", 0)))


def test_a_key_in_two_shards_is_refused(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "shards", sample("a", 0) + sample("b", 0), sample("c", 0) + sample("b", 0))
    with pytest.raises(InputError, match=r"two samples have the key b, in .*s-0\.tar and in .*s-1\.tar"):
        ShardIndex.read(folder)


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_outside_the_classes_is_refused(tmp_path: Path, label: int) -> None:
    folder = folder_of(tmp_path / "shards", sample("a", 0), sample("b", label))
    with pytest.raises(InputError, match=rf"sample b in .*s-1\.tar has label {label}"):
        ShardIndex.read(folder)


@pytest.mark.parametrize("length", [0, 1024, -1])
def test_a_shard_of_another_size_is_refused(folder: Path, length: int) -> None:
    shard = folder / "s-1.tar"
    shard.write_bytes(shard.read_bytes()[:length] if length >= 0 else shard.read_bytes() + bytes(BLOCK))
    with pytest.raises(InputError, match=r"s-1\.tar has \d+ bytes and its index says 10240"):
        ShardIndex.read(folder)


def test_a_missing_shard_is_refused(folder: Path) -> None:
    (folder / "s-0.tar").unlink()
    with pytest.raises(InputError, match=r"s-0\.tar is missing"):
        ShardIndex.read(folder)


def test_a_folder_without_an_index_is_refused(folder: Path) -> None:
    (folder / "index.json").unlink()
    for path in (folder, folder / "none", folder / "s-0.tar"):
        with pytest.raises(InputError, match=r"index\.json does not exist"):
            ShardIndex.read(path)


def damage(content: dict, how: str) -> str:
    shard = content["shards"][1]
    if how == "uneven":
        shard["labels"].append(0)
    elif how == "text":
        shard["sizes"][0] = "many"
    elif how == "none":
        shard["offsets"][0] = None
    elif how == "number":
        shard["keys"][0] = 5
    elif how == "large":
        shard["offsets"][0] = 10**30
    elif how == "nested":
        shard["labels"] = [[0], [1]]
    elif how == "field":
        del shard["sha256"]
    elif how == "more":
        shard["crc"] = 1
    elif how == "keys":
        del shard["keys"]
    elif how == "classes":
        content["classes"] = [0, 1, 2]
    elif how == "top":
        del content["shards"]
    elif how == "list":
        return json.dumps([content])
    elif how == "cut":
        return json.dumps(content)[:-20]
    return json.dumps(content)


HOWS = ["uneven", "text", "none", "number", "large", "nested", "field", "more", "keys", "classes", "top", "list", "cut"]


def is_refused(folder: Path, entry: str, value: object) -> bool:
    """Tell whether an index with another entry of a shard is refused, by the sentence for what is no index."""
    content = json.loads((folder / "index.json").read_text())
    content["shards"][1][entry] = value
    (folder / "index.json").write_text(json.dumps(content))
    with pytest.raises(
        InputError, match=r"index\.json is not an index of shards \(.*\): index the folder anew"
    ) as caught:
        read_index(folder)
    return "\n" not in str(caught.value)


NAMES_ELSEWHERE = [
    "../s-1.tar",
    "/etc/passwd",
    "a/s-1.tar",
    "..",
    ".",
    "",
    "pipe:touch was_run",
    "https://host/s-1.tar",
]
NAMES_ELSEWHERE += ["a\\s-1.tar", "s-1.tar\n", "s-1\0.tar", "\x1b[2J"]


@pytest.mark.parametrize("name", [*NAMES_ELSEWHERE, 5, None, ["s-1.tar"]])
def test_an_index_names_no_file_outside_its_folder(folder: Path, name: object) -> None:
    assert is_refused(folder, "name", name)


def test_an_index_in_the_current_folder_names_no_command(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    content = json.loads(Path("index.json").read_text())
    content["shards"][1]["name"] = "pipe:touch was_run; cat s-1.tar"
    Path("index.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="is not the name of a file in its folder"):
        ShardIndex.read(".")


@pytest.mark.parametrize("name", ["s'; touch was_run; '.tar", "s-$(touch was_run).tar", "s 1.tar", "s{1..9}.tar"])
def test_what_is_fetched_by_a_tool_has_no_shell_characters(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    content = json.loads(Path("index.json").read_text())
    content["shards"][1]["name"] = name
    Path("index.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="a name that is not for URLs"):
        open_index("gs://bucket", "index.json")


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        *[("bytes", value) for value in (-1, 2**62, 1e4, True, None, "10240", [10240])],
        *[("sha256", value) for value in (None, 5, ["a"])],
        *[(column, value) for column in ("keys", "labels", "offsets", "sizes") for value in (None, 5, "ab", {"a": 1})],
        *[("labels", [value, 0]) for value in (0.5, 1.0, True, "0", [0], 10**30)],
        *[("offsets", [512, value]) for value in (-1, 0, 511, 2**62, 2**63, 1024.0, True, None, 10240)],
        *[("sizes", [700, value]) for value in (-1, 2**62, 2**30 + 1, 700.0, False, [700], 10240)],
        *[("keys", ["y/0", value]) for value in ("x" * 1025, "y\0", "\ud800", 5, None, ["y"])],
        ("labels", [0, [[[[[1]]]]]]),
    ],
    ids=lambda value: str(value)[:20].encode("ascii", "replace").decode(),
)
def test_what_no_shard_is_like_is_refused(folder: Path, entry: str, value: object) -> None:
    assert is_refused(folder, entry, value)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"classes": ' * 100_000, '{"classes": [], "shards": ' + "9" * 10_000])
def test_depth_and_digits_of_an_index_are_bounded(folder: Path, text: str) -> None:
    (folder / "index.json").write_text(text)
    with pytest.raises(InputError, match="is not an index of shards"):
        read_index(folder)


@pytest.mark.parametrize("how", HOWS)
def test_a_damaged_index_is_refused(folder: Path, how: str) -> None:
    path = folder / "index.json"
    path.write_text(damage(json.loads(path.read_text()), how))
    with pytest.raises(InputError, match="is not an index of shards"):
        ShardIndex.read(folder)


def test_an_index_that_is_not_text_is_refused(folder: Path) -> None:
    (folder / "index.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is not an index of shards"):
        ShardIndex.read(folder)


def test_an_index_without_samples_is_refused(tmp_path: Path) -> None:
    write_index(tmp_path, ["a"], [])
    with pytest.raises(InputError, match="lists no sample"):
        ShardIndex.read(tmp_path)


def test_an_interrupted_writing_leaves_the_old_index(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = (folder / "index.json").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError("no space")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="index.json cannot be written .no space.: make room"):
        write_index(folder, ["z"], [scan_shard(folder / "s-0.tar")])
    assert (folder / "index.json").read_bytes() == before
