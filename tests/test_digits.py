import io
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from commands import FORK_SERVER
from PIL import Image
from sklearn.datasets import load_digits

from datamodules.digits import ensure_digits
from datamodules.shards.index import ShardIndex


def packed_files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*.*"))}


def test_every_digit_once_with_its_label_and_pixels(data_dir: Path) -> None:
    digits, seen = load_digits(), set()
    for split, samples in (("train", 1400), ("val", 397)):
        index = ShardIndex.read(data_dir / "digits" / split)
        assert len(index) == samples
        assert index.classes == list("0123456789")
        for path in index.paths:
            with tarfile.open(path) as tar:
                members = {member.name: tar.extractfile(member).read() for member in tar}
            for name in (name for name in members if name.endswith(".png")):
                number = int(name.removesuffix(".png").removeprefix("digit-"))
                seen.add(number)
                pixels = np.asarray(Image.open(io.BytesIO(members[name])))
                np.testing.assert_allclose(pixels / 255, digits.images[number] / 16, atol=0.5 / 255)
                assert int(members[name.replace(".png", ".cls")]) == digits.target[number]
    assert seen == set(range(1797))


def test_packing_twice_gives_the_same_bytes(data_dir: Path, tmp_path: Path) -> None:
    ensure_digits(tmp_path / "digits")
    assert packed_files(tmp_path / "digits") == packed_files(data_dir / "digits")


@pytest.mark.long
def test_two_processes_at_once(data_dir: Path, tmp_path: Path) -> None:
    with FORK_SERVER.Pool(2) as pool:
        pool.map(ensure_digits, [tmp_path / "digits"] * 2)
    assert packed_files(tmp_path / "digits") == packed_files(data_dir / "digits")
    assert {path.name for path in tmp_path.iterdir()} <= {"digits", "digits.lock"}


@pytest.mark.long
def test_a_killed_packing_leaves_nothing_half_made(data_dir: Path, tmp_path: Path) -> None:
    """Killed as soon as its first shard is there: no folder under the final name, and the next packing is whole."""
    folder = tmp_path / "digits"
    packing = FORK_SERVER.Process(target=ensure_digits, args=(folder,))
    packing.start()
    while not list(tmp_path.glob("digits.partial/train/*.tar")) and packing.is_alive():
        time.sleep(0.0005)
    packing.kill()
    packing.join()
    assert not folder.exists() or packed_files(folder) == packed_files(data_dir / "digits")
    ensure_digits(folder)
    assert packed_files(folder) == packed_files(data_dir / "digits")
    assert not (tmp_path / "digits.partial").exists()
