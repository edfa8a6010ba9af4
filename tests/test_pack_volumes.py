"""NIfTI files, packed: their voxels as nibabel reads and turns them, and damage and bombs answered in a sentence."""

import gzip
import io
import itertools
import json
import sys
import tarfile
import tracemalloc
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import zoom

nibabel = pytest.importorskip("nibabel", reason="needs the extra nifti")

from volumes import LIMIT, nifti, noise, packed, slices_of  # noqa: E402

from datamodules import check, pack  # noqa: E402
from datamodules.shards.index import ShardIndex  # noqa: E402
from datamodules.shards.reading import read_images  # noqa: E402
from datamodules.transforms.headers import PixelLimit  # noqa: E402
from datamodules.transforms.nifti import Grays, as_slices, read_nifti, resampled  # noqa: E402
from mambaeye.errors import InputError, NotInstalledError  # noqa: E402

TURNS = [
    (axes, signs) for axes in itertools.permutations(range(3)) for signs in itertools.product((1.0, -1.0), repeat=3)
]


def through(data: bytes, grays: Grays | None = None) -> np.ndarray:
    """Slices (Z, Y, X) of a file."""
    voxels, sides = read_nifti(data, LIMIT, "x")
    return slices_of(as_slices(voxels, sides, grays or Grays(), LIMIT, "x"))


def laid_out(voxels: np.ndarray) -> np.ndarray:
    """Slices from below to above, rows from front to back, columns from left to right: (X, Y, Z) -> (Z, Y, X)."""
    return voxels.transpose(2, 1, 0)[:, ::-1]


def turned(axes: tuple[int, ...], signs: tuple[float, ...], sides: tuple[float, ...] = (1, 1, 1)) -> np.ndarray:
    """An affine whose axes point along others."""
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (goes, sign, side) in enumerate(zip(axes, signs, sides, strict=True)):
        affine[goes, axis] = sign * side
    return affine


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_every_orientation_is_turned_as_nibabel_does(kind: type) -> None:
    voxels = noise(3, 4, 5)
    tilt = np.array([[1, 0.1, 0, 0], [-0.1, 1, 0.2, 0], [0, -0.2, 1, 0], [0, 0, 0, 1]])
    for axes, signs in TURNS:
        affine = tilt @ turned(axes, signs)
        data = nifti(voxels, affine, kind)
        expected = np.asarray(nibabel.as_closest_canonical(kind.from_bytes(data)).dataobj)
        assert np.array_equal(through(data), laid_out(expected))


def test_a_known_head_lies_as_it_should() -> None:
    """One voxel at the right, front and top ends in the last column, first row and last slice."""
    voxels = np.zeros((3, 4, 5), np.uint8)
    voxels[0, 3, 4] = 255  # right, for the first axis points to the left
    assert np.argwhere(through(nifti(voxels, np.diag([-1.0, 1, 1, 1])))).tolist() == [[4, 0, 2]]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Class folders with NIfTI files of several kinds."""
    folder = tmp_path / "source"
    for name in ("a", "b/deeper"):
        (folder / name).mkdir(parents=True)
    (folder / "a/one.nii").write_bytes(nifti(noise(4, 5, 6)))
    (folder / "a/two.x.NII.GZ").write_bytes(packed(nifti(noise(7, 5, 1, seed=1))))
    (folder / "b/deeper/three.nii.gz").write_bytes(packed(nifti(noise(2, 3, 9, seed=2), kind=nibabel.Nifti2Image)))
    (folder / "b/four.nii").write_bytes(nifti(noise(4, 4, 4, 1, seed=3)))  # a fourth axis of one
    (folder / "b/readme.txt").write_text("no volume")
    return folder


def volumes_in(folder: Path) -> dict[str, np.ndarray]:
    index = ShardIndex.read(folder)
    found = list(read_images(index, np.arange(len(index)), 0))
    assert index.frames is not None
    volumes = {index.key(number): slices_of(data) for number, data in enumerate(found) if isinstance(data, bytes)}
    assert index.frames.tolist() == [len(slices) for slices in volumes.values()]
    return volumes


def test_volumes_are_packed_as_clips_of_their_slices(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pack.main([str(source), str(tmp_path / "shards"), "--volumes"])
    said = capsys.readouterr().out
    assert "clips 4, classes 2, shards 1" in said
    assert "passed over files that are not volumes: 1 .txt" in said
    assert "--data.frames side" in said
    assert json.loads((tmp_path / "shards/index.json").read_text())["kind"] == "clips"
    volumes = volumes_in(tmp_path / "shards")
    expected = {"a/one": noise(4, 5, 6), "a/two_x": noise(7, 5, 1, seed=1), "b/deeper/three": noise(2, 3, 9, seed=2)}
    expected["b/four"] = noise(4, 4, 4, 1, seed=3)[..., 0]
    assert volumes.keys() == expected.keys()
    for key, voxels in expected.items():
        assert np.array_equal(volumes[key], laid_out(voxels))
    check.main([str(tmp_path / "shards"), "--decode"])
    with tarfile.open(tmp_path / "source.tar", "w") as tar:
        tar.add(source, "")
    pack.main([str(tmp_path / "source.tar"), str(tmp_path / "of_tar"), "--volumes"])
    assert all(np.array_equal(volumes[key], slices) for key, slices in volumes_in(tmp_path / "of_tar").items())


def test_other_grays_are_another_data_set(source: Path, tmp_path: Path) -> None:
    shards = str(tmp_path / "shards")
    pack.main([str(source), shards, "--volumes"])
    pack.main([str(source), shards, "--volumes"])
    for more in (["--window", "0", "99"], ["--voxel", "2"]):
        with pytest.raises(SystemExit, match="already holds another data set"):
            pack.main([str(source), shards, "--volumes", *more])


@pytest.mark.parametrize("dtype", ["<i2", ">i2", "<f4", "<f8", ">u2", "<i4"])
def test_grays_are_percentiles_of_the_file(dtype: str) -> None:
    values = np.random.default_rng(0).normal(100, 40, (9, 8, 7)).astype(dtype)
    low, high = np.percentile(values.astype(float), (0.5, 99.5))
    expected = np.rint(np.clip((values - low) / (high - low), 0, 1) * 255)
    header = nibabel.Nifti1Header(endianness=dtype[0])
    header.set_data_dtype(dtype)
    data = nibabel.Nifti1Image(values, np.eye(4), header).to_bytes()
    np.testing.assert_allclose(through(data), laid_out(expected), atol=1)
    assert np.ptp(through(data)) == 255


def test_what_a_header_scales_is_scaled() -> None:
    stored = noise(6, 5, 4)
    image = nibabel.Nifti1Image(stored, np.eye(4))
    image.header.set_slope_inter(3, -200)
    data = bytearray(image.to_bytes())
    data[112:120] = np.array([3, -200], "<f4").tobytes()  # scl_slope, scl_inter
    values = nibabel.Nifti1Image.from_bytes(bytes(data)).get_fdata()
    assert np.array_equal(values, 3.0 * stored - 200)
    low, high = np.percentile(values, (0.5, 99.5))
    expected = np.rint(np.clip((values - low) / (high - low), 0, 1) * 255)
    np.testing.assert_allclose(through(bytes(data)), laid_out(expected), atol=1)
    expected = np.rint(np.clip((values + 100) / 200, 0, 1) * 255)
    np.testing.assert_allclose(through(bytes(data), Grays(window=(-100, 100))), laid_out(expected), atol=1)


def test_voxels_that_are_no_numbers_are_black_and_do_not_count() -> None:
    values = np.random.default_rng(0).uniform(5, 9, (6, 6, 6)).astype(np.float32)
    values[0] = np.nan
    values[1, 0, 0], values[1, 0, 1] = np.inf, -np.inf
    low, high = np.percentile(values[np.isfinite(values)], (0.5, 99.5))
    shown = through(nifti(values))
    expected = np.where(np.isfinite(values), np.clip((values - low) / (high - low), 0, 1) * 255, 0)
    np.testing.assert_allclose(shown, laid_out(np.rint(expected)), atol=1)
    sparse = np.zeros((10, 10, 10), np.float32)
    sparse[5, 5, 5] = 7  # less than half a percent
    assert through(nifti(sparse)).max() == 255
    assert not through(nifti(sparse * 0)).any()


@pytest.mark.parametrize("shape", [(4, 5, 6), (1, 7, 3), (5, 1, 1)])
def test_voxels_that_grow_are_scipys(shape: tuple[int, int, int]) -> None:
    voxels = noise(*shape).astype(np.float32)
    sizes = tuple(size * factor for size, factor in zip(shape, (2, 3, 2), strict=True))
    expected = zoom(voxels, (2, 3, 2), order=1, mode="nearest", grid_mode=True)
    assert expected.shape == sizes
    np.testing.assert_allclose(resampled(voxels, sizes), expected, atol=1e-3)


def test_voxels_that_shrink_are_means() -> None:
    voxels = noise(6, 8, 9).astype(np.float32)
    blocks = voxels.reshape(3, 2, 2, 4, 3, 3).mean((1, 3, 5))
    np.testing.assert_allclose(resampled(voxels, (3, 2, 3)), blocks, rtol=1e-5)
    thirds = resampled(np.arange(4, dtype=np.float32)[:, None, None], (3, 1, 1)).ravel()
    np.testing.assert_allclose(thirds, [0.25, 1.5, 2.75], rtol=1e-5)  # 4/3 of a voxel each: (0 + 1/3) / (4/3)


def test_voxels_get_one_side_whatever_axes_they_are_stored_along() -> None:
    ramp = np.broadcast_to(np.linspace(0, 250, 6, dtype=np.float32)[:, None, None], (6, 4, 3)).astype(np.uint8)
    for axes, signs in TURNS[:8]:
        data = nifti(noise(6, 4, 3), turned(axes, signs, (1, 2, 3)))
        expected = [0, 0, 0]
        for axis, goes in enumerate(axes):
            expected[goes] = (6, 8, 9)[axis]
        assert through(data, Grays(voxel=1)).shape == tuple(expected)[::-1]
    data = nifti(ramp, np.diag([2.0, 1, 1, 1]))
    columns = through(data, Grays(voxel=1))[0, 0]
    np.testing.assert_allclose(np.diff(columns.astype(int))[1:-1], 25, atol=1)


def header_with(**fields: object) -> bytes:
    """A header of a 10 x 10 x 10 volume with other entries, and its voxels."""
    data = nifti(noise(10, 10, 10))
    header = nibabel.Nifti1Header.from_fileobj(io.BytesIO(data), check=False)
    for name, value in fields.items():
        header[name] = value
    return header.binaryblock + data[348:]


def colours() -> bytes:
    dtype = np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])
    return nifti(np.zeros((3, 3, 3), dtype))


WHOLE = nifti(noise(10, 10, 10))
DAMAGED = {
    "empty": (b"", "is no NIfTI file"),
    "text": (b"hello, this is no volume at all" * 20, "is no NIfTI file"),
    "cut": (WHOLE[:-1], "has less than the 1000 bytes of voxels"),
    "header": (WHOLE[:300], "is no NIfTI file"),
    "cut_gz": (packed(WHOLE)[:-20], "is damaged or cut short"),
    "flipped_gz": (packed(WHOLE)[:-8] + b"\0\0\0\0" + packed(WHOLE)[-4:], "is damaged or cut short"),
    "more": (WHOLE + bytes(2 << 20), "has more than the 1000 bytes of voxels"),
    "pair": (header_with(magic=b"ni1"), "is no NIfTI file of header and voxels"),
    "four": (nifti(noise(4, 4, 4, 2)), "has 4 x 4 x 4 x 2, and a volume has three axes"),
    "two": (nifti(noise(4, 4)), "has 4 x 4, and a volume has three axes"),
    "axes": (header_with(dim=[0, 1, 1, 1, 1, 1, 1, 1]), "has no voxels, and a volume has three axes"),
    "many_axes": (header_with(dim=[9, 1, 1, 1, 1, 1, 1, 1]), "the header of x has its voxels at byte"),
    "negative": (header_with(dim=[3, -10, -10, 10, 1, 1, 1, 1]), "has -10 x -10 x 10 voxels"),
    "huge": (packed(header_with(dim=[3, 32767, 32767, 32767, 1, 1, 1, 1])), "at most 268435456 in all"),
    "larger": (packed(header_with(dim=[3, 640, 640, 640, 1, 1, 1, 1])), "has less than the 262144000 bytes"),
    "type": (header_with(datatype=77), "the header of .* is damaged"),
    "colours": (colours(), "a gray is one real number"),
    "complex": (nifti(np.zeros((3, 3, 3), np.complex64)), "a gray is one real number"),
    "offset": (header_with(vox_offset=1e30), "has its voxels at byte 1e\\+30"),
    "nan_offset": (header_with(vox_offset=np.nan), "has its voxels at byte nan"),
    "early": (header_with(vox_offset=0), "has its voxels at byte 0"),
    "nowhere": (header_with(sform_code=1, srow_x=[np.nan] * 4), "of no axis where it points"),
    "flat": (header_with(sform_code=1, srow_x=[0] * 4), "of no axis where it points"),
    "no_number": (nifti(np.full((3, 3, 3), np.nan, np.float32)), "has no voxel that is a finite number"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_what_is_no_volume_is_said_in_a_sentence(name: str) -> None:
    data, message = DAMAGED[name]
    with pytest.raises(InputError, match=message) as said:
        through(data)
    assert "\n" not in str(said.value)


@given(where=st.lists(st.integers(0, 347), min_size=1, max_size=6), what=st.binary(min_size=6, max_size=6))
@settings(max_examples=150, deadline=None)
def test_a_damaged_header_is_read_or_refused(where: list[int], what: bytes) -> None:
    data = bytearray(WHOLE)
    for at, value in zip(where, what, strict=False):
        data[at] = value
    for grays in (Grays(), Grays(voxel=2)):
        with suppress(InputError):
            slices = through(bytes(data), grays)
            assert slices.ndim == 3
            assert slices.size > 0


def test_bombs_are_not_unpacked() -> None:
    bomb = gzip.compress(header_with()[:352] + bytes(1000) + bytes(60 << 20))
    liar = packed(header_with(dim=[3, 640, 640, 640, 1, 1, 1, 1]))
    for data in (bomb, liar):
        tracemalloc.start()
        with pytest.raises(InputError, match="than the .* bytes of voxels"):
            read_nifti(data, LIMIT, "x")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 8 << 20
    with pytest.raises(InputError, match=r"would have .* voxels: raise --voxel"):
        through(header_with(pixdim=[1, 1e6, 1e6, 1e6, 1, 1, 1, 1]), Grays(voxel=1))
    with pytest.raises(InputError, match="says no sides of its voxels"):
        through(header_with(pixdim=[1, 0, 1, 1, 1, 1, 1, 1], sform_code=1, qform_code=0), Grays(voxel=1))
    with pytest.raises(InputError, match="slices of more than the 99 pixels of --max_pixels"):
        read_nifti(WHOLE, PixelLimit(99, "--max_pixels"), "x")


def test_damaged_volumes_are_listed_and_refused_or_left_out(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("four", "cut_gz", "huge"):
        (source / "a" / f"{name}.nii.gz").write_bytes(DAMAGED[name][0])
    with pytest.raises(SystemExit, match="3 of 7 volumes are unreadable"):
        pack.main([str(source), str(tmp_path / "shards"), "--volumes"])
    lines = capsys.readouterr().err.splitlines()
    assert sum(line.startswith("unreadable: a/") for line in lines) == 3
    pack.main([str(source), str(tmp_path / "shards"), "--volumes", "--unreadable", "skip"])
    assert len(volumes_in(tmp_path / "shards")) == 4
    assert "3 unreadable ones left out" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--window", "0", "9"], "--window is for volumes: give --volumes, too"),
        (["--voxel", "1"], "--voxel is for volumes: give --volumes, too"),
        (["--volumes", "--voxel", "0"], "--voxel is 0: give the side of a voxel, above 0"),
        (["--volumes", "--window", "9", "0"], "--window is 9 0: give two values, the lower first"),
    ],
)
def test_flags_that_do_not_fit_are_refused(arguments: list[str], message: str, source: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=message):
        pack.main([str(source), str(tmp_path / "shards"), *arguments])


def test_without_nibabel_the_extra_is_named(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nibabel", None)
    message = r"volumes are read by nibabel, and nibabel is not installed: pip install 'mambaeye\[nifti\]'"
    with pytest.raises(SystemExit, match=message):
        pack.main([str(source), str(tmp_path / "shards"), "--volumes"])
    with pytest.raises(NotInstalledError, match=message):
        read_nifti(WHOLE, LIMIT, "x")
