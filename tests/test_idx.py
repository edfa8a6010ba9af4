"""IDX files, packed: against files written byte by byte here, and read back with tarfile and Pillow."""

import gzip
import io
import json
import random
import struct
import tarfile
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules import pack as packing
from datamodules.check import main as check
from datamodules.packing.idx import unpack
from mambaeye.errors import InputError

ROOT = Path(__file__).parents[1]
SIZES = {"train": 23, "t10k": 7}
PARTS = {"train": "train", "t10k": "val"}


def idx(values: np.ndarray) -> bytes:
    """Values in the format: 0, 0, 8 for unsigned bytes, axes, their lengths, values."""
    return struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.astype(np.uint8).tobytes()


def images(split: str) -> np.ndarray:
    return np.random.default_rng(len(split)).integers(0, 256, (SIZES[split], 5, 9), dtype=np.uint8)


def labels(split: str) -> np.ndarray:
    return np.arange(SIZES[split], dtype=np.uint8) * 7 % 4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The four files; those of train gzipped."""
    folder = tmp_path / "mnist"
    folder.mkdir()
    for split, pack in (("train", gzip.compress), ("t10k", bytes)):
        ending = ".gz" if split == "train" else ""
        (folder / f"{split}-images-idx3-ubyte{ending}").write_bytes(pack(idx(images(split))))
        (folder / f"{split}-labels-idx1-ubyte{ending}").write_bytes(pack(idx(labels(split))))
    (folder / "README.md").write_text("whatever lies beside")
    return folder


def run(*args: object) -> None:
    packing.main([str(arg) for arg in args])


def refusal(*args: object) -> str:
    with pytest.raises(SystemExit) as error:
        run(*args)
    assert isinstance(error.value.code, str)
    assert error.value.code.startswith("error: ")
    assert "\n" not in error.value.code
    return error.value.code


def read_back(folder: Path) -> dict[str, tuple[np.ndarray, int]]:
    """Pixels and label of every sample in a folder of shards, by key."""
    samples = {}
    for path in sorted(folder.glob("*.tar")):
        with tarfile.open(path) as tar:
            content = {member.name: tar.extractfile(member).read() for member in tar.getmembers()}
        for name, data in content.items():
            key, _, extension = name.partition(".")
            if extension == "png":
                picture = Image.open(io.BytesIO(data))
                assert picture.mode == "L"
                samples[key] = np.asarray(picture), int(content[f"{key}.cls"])
    return samples


def test_every_image_comes_back_pixel_by_pixel_with_its_label(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "out", "--samples_per_shard", 10)
    for split, part in PARTS.items():
        samples = read_back(tmp_path / "out" / part)
        assert list(samples) != sorted(samples)  # shuffled
        assert len(samples) == SIZES[split]
        for number, key in enumerate(sorted(samples)):
            pixels, label = samples[key]
            np.testing.assert_array_equal(pixels, images(split)[number])
            assert label == labels(split)[number]
        assert json.loads((tmp_path / "out" / part / "index.json").read_text())["classes"] == ["0", "1", "2", "3"]
        check([str(tmp_path / "out" / part), "--decode"])
    assert {path.name for path in tmp_path.iterdir()} == {"mnist", "out"}
    run(folder, tmp_path / "out", "--samples_per_shard", 10)  # it is there, and stays


def test_plain_or_gzipped_and_by_either_name_the_shards_are_the_same(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "kin"
    other.mkdir()
    for path in folder.glob("*ubyte*"):
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else gzip.compress(path.read_bytes())
        name = path.name.removesuffix(".gz").replace("-idx", ".idx")  # told by content, not by name
        (other / name).write_bytes(data)
    run(folder, tmp_path / "a")
    run(other, tmp_path / "b")
    found = [{path.name: path.read_bytes() for path in (tmp_path / out).rglob("*.tar")} for out in "ab"]
    assert found[0] == found[1]
    assert len(found[0]) == 1  # of the same name in train and val
    assert len(list((tmp_path / "a").rglob("*.tar"))) == 2


def test_the_classes_of_fashion_mnist_have_names(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "out", "--classes", ROOT / "configs/fashion_classes.txt")
    classes = json.loads((tmp_path / "out/val/index.json").read_text())["classes"]
    assert len(classes) == 10
    assert classes[0] == "T-shirt/top"
    assert classes[9] == "Ankle boot"


IMAGES, LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
HEADER = struct.pack(">BBBBIII", 0, 0, 8, 3, 7, 5, 9)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (IMAGES, b"", f"{IMAGES} begins with nothing, and an IDX file of images with 00000803: copy it again"),
        (IMAGES, HEADER[:9], "begins with 00000803"),
        (IMAGES, idx(labels("t10k")), "begins with 00000801, and an IDX file of images with 00000803"),
        (LABELS, idx(images("t10k")), "begins with 00000803, and an IDX file of labels with 00000801"),
        (IMAGES, b"\0\0\x0d\3" + HEADER[4:], "begins with 00000d03"),  # floats
        (IMAGES, HEADER + bytes(7 * 45 - 1), f"{IMAGES} ends after 314 of the 315 bytes that its header says"),
        (IMAGES, HEADER + bytes(7 * 45 + 1), f"{IMAGES} goes on after the 315 bytes that its header says"),
        (IMAGES, struct.pack(">BBBBIII", 0, 0, 8, 3, 0, 5, 9), "says that it holds 0 x 5 x 9 bytes"),
        (IMAGES, struct.pack(">BBBBIII", 0, 0, 8, 3, *[2**32 - 1] * 3), "says that it holds 4294967295 x 4294967295"),
        (LABELS, idx(labels("train")), "has 7 images, and t10k-labels-idx1-ubyte has 23 labels"),
        (IMAGES, gzip.compress(idx(images("t10k")))[:-20], f"{IMAGES} is damaged or cut short"),
        (IMAGES, gzip.compress(idx(images("t10k")))[:-6] + bytes(6), f"{IMAGES} is damaged or cut short"),  # checksum
    ],
)
def test_a_file_that_is_not_what_it_says_is_refused_in_one_sentence(
    folder: Path, tmp_path: Path, name: str, content: bytes, said: str
) -> None:
    (folder / name).write_bytes(content)
    assert said in refusal(folder, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"mnist"}


def test_damage_at_any_byte_is_refused_in_a_sentence_unless_it_changes_nothing(folder: Path, tmp_path: Path) -> None:
    path, drawn = folder / "train-images-idx3-ubyte.gz", random.Random(0)
    whole = path.read_bytes()
    for number in range(60):
        damaged = bytearray(whole)
        damaged[drawn.randrange(len(whole) if number % 2 else 20)] ^= 1 << drawn.randrange(8)
        path.write_bytes(damaged)
        try:
            same = gzip.decompress(damaged) == gzip.decompress(whole)
        except (EOFError, zlib.error, gzip.BadGzipFile):
            same = False
        if same:  # it is in the time, which gzip stores too
            run(folder, tmp_path / f"out{number}")
        else:
            refusal(folder, tmp_path / f"out{number}")


def test_what_does_not_fit_the_source_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "names").write_text("a\nb\nc\n")
    assert "has the label 3, and --classes names 0 to 2" in refusal(
        folder, tmp_path / "o", "--classes", tmp_path / "names"
    )
    assert "drop --prefix and --split" in refusal(folder, tmp_path / "o", "--split", 0.1)
    assert "drop --prefix and --split" in refusal(folder, tmp_path / "o", "--prefix", "train")
    assert "5 x 9 pixels, more than the 44 of --max_pixels" in refusal(folder, tmp_path / "o", "--max_pixels", 44)
    (folder / LABELS).unlink()
    assert f"has {IMAGES} and no {LABELS}: put all four files there" in refusal(folder, tmp_path / "o")


def test_a_header_that_lies_takes_no_memory(folder: Path, tmp_path: Path) -> None:
    """1.8 GB announced, and not there; and a gigabyte of zeros in a small file where 315 bytes are announced."""
    announced = struct.pack(">BBBBIII", 0, 0, 8, 3, 7, 1 << 14, 1 << 14)
    bomb = io.BytesIO()
    with gzip.open(bomb, "wb", compresslevel=1) as file:
        file.write(HEADER)
        for _ in range(1024):
            file.write(bytes(1 << 20))
    unpacked = tmp_path / "unpacked"
    for content, said in ((announced, "ends after 0 of the 1879048192"), (bomb.getvalue(), "goes on after the 315")):
        (folder / IMAGES).write_bytes(content)
        tracemalloc.start()
        with pytest.raises(InputError, match=said):
            unpack(folder / IMAGES, 3, unpacked)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 16 << 20
        assert unpacked.stat().st_size <= 315
