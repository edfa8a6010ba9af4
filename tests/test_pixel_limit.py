"""Images of more pixels than allowed, in small files: refused by their header, before memory is taken for them."""

import io
import json
import os
import re
import struct
import subprocess
import sys
import tarfile
import timeit
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from commands import ROOT, TINY, flags
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from datamodules.loading.config import LoaderConfig
from datamodules.shards.index import write_index
from datamodules.shards.scan import scan_shard
from datamodules.transforms.headers import MAX_PIXELS, PixelLimit, jpeg_frame, stored_size
from datamodules.transforms.images import decode_image
from mambaeye import weights
from mambaeye.encoders.mambaeye import MambaEye
from mambaeye.errors import InputError

SIDE = 30_000  # 0.9 gigapixels, which take 5.4 GB to decode
REFUSED = f"has {SIDE} x {SIDE} pixels, more than the {MAX_PIXELS} of "
ROOM = 600 * 2**20  # what a run of any kind takes besides, far less than the image
KINDS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "PPM", "AVIF", "JPEG2000")


def bomb() -> bytes:
    """A PNG of 30,000 x 30,000 black pixels, one bit each, in some 100 kB."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    pixels = zlib.compress(bytes(SIDE * (1 + SIDE // 8)), 9)
    header = struct.pack(">IIBBBBB", SIDE, SIDE, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def encoded(kind: str, height: int, width: int, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (200, 100, 50)).save(buffer, kind, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", KINDS)
@given(height=st.integers(1, 300), width=st.integers(1, 300))
def test_the_header_says_what_decoding_gives(kind: str, height: int, width: int) -> None:
    data = encoded(kind, height, width)
    assert stored_size(data) == (height, width) == decode_image(data, "x").shape[:2]


@pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 5}, {"icc_profile": b"makes it an extended one"}])
def test_the_header_of_every_kind_of_webp(options: dict[str, object]) -> None:
    assert stored_size(encoded("WEBP", 7, 300, **options)) == (7, 300)


def test_the_frame_header_of_a_jpeg_is_the_one_that_is_decoded() -> None:
    """Whatever lies before it: filling, and a marker without length, behind which another could be hidden."""
    data, small = encoded("JPEG", 48, 64, progressive=True), encoded("JPEG", 1, 1)
    hidden = bytes(4) + small[small.index(b"\xff\xc0") :][:40]  # where a jump by 0xFFFE leads
    comments = b"".join(
        b"\xff\xfe" + struct.pack(">H", 2 + len(content)) + content for content in (bytes(65_522), hidden)
    )
    for before in (b"\xff\xff\xff", b"\xff\xd0" + comments, b"\xff\x01"):
        image = data[:2] + before + data[2:]
        assert stored_size(image) == decode_image(image, "x").shape[:2] == (48, 64)
    thumbnail = encoded("JPEG", 48, 64, exif=b"Exif\0\0" + small)
    assert jpeg_frame(thumbnail) == (48, 64, 3, True)
    assert jpeg_frame(data) == (48, 64, 3, False)


@pytest.mark.parametrize("kind", KINDS)
def test_the_limit_is_the_last_number_that_is_allowed(kind: str) -> None:
    data = encoded(kind, 20, 30)
    PixelLimit(600).require(data, "x")
    with pytest.raises(InputError) as error:
        PixelLimit(599, "--max_pixels").require(data, "sample a")
    assert str(error.value) == (
        "the image of sample a has 30 x 20 pixels, more than the 599 of --max_pixels: scale it down, leave it out, or "
        "raise the limit"
    )


@given(st.sampled_from(KINDS), st.data())
def test_a_damaged_header_is_refused_or_read_and_nothing_else(kind: str, data: st.DataObject) -> None:
    image = bytearray(encoded(kind, 9, 12))
    for place in data.draw(st.lists(st.integers(0, min(len(image), 300) - 1), max_size=6)):
        image[place] = data.draw(st.integers(0, 255))
    size = stored_size(bytes(image[: data.draw(st.integers(0, len(image)))]))
    assert size is None or len(size) == 2


def test_a_limit_of_nothing_is_refused() -> None:
    with pytest.raises(InputError, match="data.loader.max_pixels is 0"):
        LoaderConfig(max_pixels=0)


def test_a_jpeg_costs_microseconds() -> None:
    """Of the size of most in ImageNet: 2 where this was written."""
    noise = np.random.default_rng(0).integers(0, 256, (375, 500, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, "JPEG", quality=90)
    data, limit = buffer.getvalue(), PixelLimit()
    assert min(timeit.repeat(lambda: limit.require(data, "x"), number=200, repeat=10)) / 200 < 10e-6


@pytest.fixture(scope="module")
def bombed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders, and shards, of 40 small images and one that is too large; and weights of a tiny encoder."""
    folder = tmp_path_factory.mktemp("bombed")
    draw = np.random.default_rng(0)
    images = {}
    for number in range(40):
        buffer = io.BytesIO()
        Image.fromarray(draw.integers(0, 256, (24, 24, 3), dtype=np.uint8)).save(buffer, "PNG")
        images[f"{number % 10}/im{number:02d}"] = buffer.getvalue()
    images["3/bomb"] = bomb()
    assert len(images["3/bomb"]) < 130_000
    (folder / "shards").mkdir()
    with tarfile.open(folder / "shards" / "a.tar", "w") as tar:
        for key, data in images.items():
            path = folder / "images" / f"{key}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            for name, content in {"png": data, "cls": key[0].encode()}.items():
                member = tarfile.TarInfo(f"{key}.{name}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    write_index(folder / "shards", list("0123456789"), [scan_shard(folder / "shards" / "a.tar")])
    sizes = {name.removeprefix("model.encoder."): size for name, size in TINY.items() if ".encoder." in name}
    weights.save(MambaEye(num_classes=10, **sizes), folder)
    return folder


# runs commands one after the other, and prints what each ended with, and the peak of resident memory so far
COMMANDS = """
import json, resource, sys
from importlib import import_module
for module, words in json.loads(sys.argv.pop()):
    sys.argv[1:] = words
    try:
        import_module(module).main()
        code = 0
    except SystemExit as stop:
        code = stop.code or 0
        if isinstance(code, str):
            print(code)
            code = 1
    print("\\nended", code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, flush=True)
"""


class Ended(NamedTuple):
    """Of a command: its exit code, what it said, and the peak of its process's resident memory until then in bytes."""

    code: int
    said: str
    peak: int


def run(folder: Path, **commands: Sequence[object]) -> dict[str, Ended]:
    """Commands in one process of their own, each a module and its arguments, by a name."""
    asked = json.dumps([(module, [str(word) for word in words]) for module, *words in commands.values()])
    command = ["sh", "-c", '"$@"; exit $?', "sh"]  # of this process, which is large, it would inherit the peak
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    python = subprocess.run(
        [*command, sys.executable, "-c", COMMANDS, asked],
        env=environment,
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    ended = re.findall(r"(.*?)^ended (\d+) (\d+)$", python.stdout, re.DOTALL | re.MULTILINE)
    assert len(ended) == len(commands), python.stdout
    return {
        name: Ended(int(code), said, int(peak) * 1024) for name, (said, code, peak) in zip(commands, ended, strict=True)
    }


@pytest.fixture(scope="module")
def of_shards(bombed: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """Return what packing and checking ended with."""
    check = ("datamodules.check", bombed / "shards", "--decode")
    return run(
        tmp_path_factory.mktemp("of_shards"),
        refuses=("datamodules.pack", bombed / "images", "out"),
        skips=("datamodules.pack", bombed / "images", "out", "--unreadable", "skip"),
        check=check,
        limited=(*check, "--max_pixels", 100),
    )


@pytest.mark.parametrize(("name", "code"), [("refuses", 1), ("skips", 0)])
def test_packing_refuses_it_or_leaves_it_out(name: str, code: int, of_shards: dict[str, Ended]) -> None:
    ended = of_shards[name]
    assert ended.code == code
    assert f"unreadable: 3/bomb.png: the image of 3/bomb.png {REFUSED}--max_pixels: " in ended.said
    assert ended.peak < ROOM


def test_checking_names_it(bombed: Path, of_shards: dict[str, Ended]) -> None:
    code, said, peak = of_shards["check"]
    assert code == 1
    assert f"the image of sample 3/bomb in {bombed / 'shards' / 'a.tar'} {REFUSED}--max_pixels: " in said
    assert peak < ROOM


def test_a_higher_limit_lets_it_through(of_shards: dict[str, Ended]) -> None:
    with pytest.raises(InputError):
        PixelLimit(SIDE**2 - 1).require(bomb(), "x")
    PixelLimit(SIDE**2).require(bomb(), "x")
    code, said, _ = of_shards["limited"]
    assert code == 1
    assert said.count("has 24 x 24 pixels, more than the 100 of --max_pixels") == 40


@pytest.mark.long
def test_runs_stop_at_it_or_leave_it_out_and_prediction_gives_it_a_line(bombed: Path, tmp_path: Path) -> None:
    settings = {**TINY, "data.loader.batch_size": 41, "model.init_from": bombed / "model.safetensors"}
    settings |= {"data.train_shards": bombed / "shards", "data.val_shards": bombed / "shards"}
    images = [bombed / "images/3/bomb.png", bombed / "images/3/im03.png"]
    sizes = {name: size for name, size in TINY.items() if ".encoder." in name or name.startswith("trainer.")}
    asked = {**sizes, "data.evaluate.num_glimpses": 9, "data.loader.num_workers": 0}
    asked |= {"model.init_from": bombed / "model.safetensors", "data.images": json.dumps([str(one) for one in images])}
    ended = run(
        tmp_path,
        fit=("train", "fit", "--run_dir=fit", "--data.loader.max_unreadable=1", *flags(settings)),
        validate=("train", "validate", "--run_dir=validate", "--data.loader.max_unreadable=0", *flags(settings)),
        predict=("train", "predict", "--run_dir=predict", *flags(asked)),
    )
    for command, allowed in (("fit", 1), ("validate", 0)):
        code, said, _ = ended[command]
        assert f"the image of sample 3/bomb {REFUSED}--data.loader.max_pixels: " in said
        assert code == (0 if allowed else 1), said
        assert said.count("left out: the image") == 2 * allowed  # of training, and of validation
    assert ended["predict"].code == 0, ended["predict"].said
    first, second = map(json.loads, (tmp_path / "predict/predictions.jsonl").read_text().splitlines())
    assert first["error"].startswith(f"the image of {images[0]} {REFUSED}--data.loader.max_pixels: ")
    assert "top5" in second
    for _, said, peak in ended.values():
        assert "Traceback" not in said
        assert peak < 2 * ROOM
