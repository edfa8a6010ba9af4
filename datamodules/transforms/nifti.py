"""NIfTI files, bytes -> voxels, turned to the axes right, front, up -> slices.

nibabel knows the headers (https://nifti.nimh.nih.gov); bytes are counted and unpacked here, no more of them than the
header asks for, and what it asks for is bounded before. Extensions of a header are passed over unread.
"""

import gzip
import io
import zlib
from collections.abc import Sequence
from math import prod
from typing import Any, Literal, NamedTuple

import cv2
import numpy as np

from datamodules.transforms.avi import MOST_FRAMES, RATE, write_avi
from datamodules.transforms.depth import axis_weights
from datamodules.transforms.headers import PixelLimit
from mambaeye.errors import InputError, NotInstalledError

GZIP = b"\x1f\x8b"
SIZES = {348: "Nifti1Header", 540: "Nifti2Header"}  # bytes of a header, which are its first number
WAYS: tuple[Literal["little", "big"], ...] = ("little", "big")  # that the bytes of a number go
MAGIC = {348: (344, b"n+1\0"), 540: (4, b"n+2\0")}  # where a header has which bytes, if voxels follow in the same file
MOST_VOXELS = 1 << 28  # 512 x 512 x 1024; float32 while they are scaled, 1 GiB
LARGEST_FILE = 8 * MOST_VOXELS + (1 << 25)  # bytes, packed or not: of float64
DEFLATES = 1032  # times, at most (https://zlib.net/zlib_tech.html)
LARGEST_EXTENSION = 1 << 24  # bytes between header and voxels
LARGEST_REST = 1 << 20  # bytes behind the voxels
PERCENTILES = (0.5, 99.5)  # that become black and white
WHITE = 255


class Grays(NamedTuple):
    """Ways of voxels to what is packed."""

    window: tuple[float, float] | None = None
    """Values that become black and white; None keeps what is stored as 8 bits, and takes PERCENTILES of others."""
    voxel: float | None = None
    """Side that voxels are brought to, in the file's unit; None leaves them as they are."""


def is_nifti(start: bytes) -> bool:
    """Tell whether a file begins as NIfTI files do, or as any that gzip has packed."""
    return start.startswith(GZIP) or any(start[:4] in (size.to_bytes(4, way) for way in WAYS) for size in SIZES)


def nibabel() -> Any:
    """Return nibabel.

    Raises:
        NotInstalledError: it is not installed.
    """
    try:
        import nibabel
    except ImportError as error:
        raise NotInstalledError(
            f"volumes are read by nibabel, and {error.name} is not installed: pip install 'mambaeye[nifti]'"
        ) from None
    return nibabel


def read_nifti(data: bytes, limit: PixelLimit, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Read a NIfTI file, plain or gzipped, and turn it to the nearest of the axes right, front, up.

    Args:
        data: the file's bytes.
        limit: of the pixels of a slice.
        what: names it in a message.

    Returns:
        Its voxels, (X, Y, Z) of the type that they are stored as, or float where the header scales them, and their
        sides, (3,) float64 in the file's unit.

    Raises:
        InputError: it is damaged, cut short, too large, or not one volume of numbers.
    """
    if len(data) > LARGEST_FILE:
        raise InputError(f"{what} has more than {LARGEST_FILE} bytes: cut it, or leave it out")
    file: io.BytesIO | gzip.GzipFile = io.BytesIO(data)
    if data.startswith(GZIP):
        file = gzip.GzipFile(fileobj=file)
    try:
        header = read_header(file, what)
        shape, dtype, offset = shape_of(header, limit, what), header.get_data_dtype(), int(header["vox_offset"])
        size = prod(shape) * dtype.itemsize
        file.read(offset - file.tell())
        raw = file.read(size) if size <= DEFLATES * len(data) else b""  # which is allocated first
        rest = file.read(LARGEST_REST + 1)  # to the end, where gzip has its checksum
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{what} is damaged or cut short ({error}): copy it again, or leave it out") from None
    if len(raw) < size or len(rest) > LARGEST_REST:
        raise InputError(
            f"{what} has {'less' if len(raw) < size else 'more'} than the {size} bytes of voxels that its header "
            f"says: copy it again, or leave it out"
        )
    voxels = np.frombuffer(raw, dtype).reshape(shape, order="F")
    slope, inter = slope_of(header)
    if (slope, inter) != (1, 0):
        with np.errstate(over="ignore", invalid="ignore"):  # what is no finite number is answered later
            voxels = voxels.astype(np.float32) * np.float32(slope) + np.float32(inter)
    orientations = nibabel().orientations
    axes = orientations.io_orientation(affine_of(header, what))  # (3, 2): of each axis, where it goes and if turned
    if not np.isfinite(axes).all():
        raise InputError(f"the header of {what} says of no axis where it points: correct it, or leave it out")
    sides = np.empty(3)
    sides[axes[:, 0].astype(int)] = [abs(float(side)) for side in header["pixdim"][1:4]]
    return orientations.apply_orientation(voxels, axes), sides


def read_header(file: io.BytesIO | gzip.GzipFile, what: str) -> Any:
    """Read the header of a NIfTI-1 or NIfTI-2 file, and check that its numbers can be.

    Raises:
        InputError: it is none, or of a file that has its voxels elsewhere.
    """
    start = file.read(4)
    size = next((size for size in SIZES if start in (size.to_bytes(4, way) for way in WAYS)), 0)
    block = start + file.read(size - len(start)) if size else b""
    at, magic = MAGIC.get(size, (0, b""))
    if not size or len(block) < size or block[at : at + len(magic)] != magic:
        raise InputError(f"{what} is no NIfTI file of header and voxels: replace it or leave it out")
    library = nibabel()
    try:
        header = getattr(library, SIZES[size])(block, check=False)
        header.get_data_dtype()
        offset = float(header["vox_offset"])
    except (library.spatialimages.HeaderDataError, ValueError, KeyError) as error:
        raise InputError(f"the header of {what} is damaged ({error}): copy it again, or leave it out") from None
    if not size <= offset <= size + LARGEST_EXTENSION:
        raise InputError(f"the header of {what} has its voxels at byte {offset:g}: copy it again, or leave it out")
    return header


def shape_of(header: Any, limit: PixelLimit, what: str) -> tuple[int, int, int]:
    """Return the sides of a volume, and refuse what is none, or too large, by its header alone.

    Raises:
        InputError: it has other axes than three, no voxel, too many, or no real numbers.
    """
    axes = int(header["dim"][0])
    sides = [int(side) for side in header["dim"][1 : axes + 1]] if 1 <= axes <= 7 else []
    while len(sides) > 3 and sides[-1] == 1:
        sides.pop()
    told = " x ".join(map(str, sides)) or "no voxels"
    if len(sides) != 3:
        raise InputError(f"{what} has {told}, and a volume has three axes: write each volume to a file of its own")
    if min(sides) < 1 or max(sides) > MOST_FRAMES or prod(sides) > MOST_VOXELS:
        raise InputError(
            f"{what} has {told} voxels: a volume has at least 1 along each axis, at most {MOST_FRAMES}, and at most "
            f"{MOST_VOXELS} in all"
        )
    largest = prod(sorted(sides)[1:])
    if largest > limit.pixels:
        raise InputError(
            f"{what} has {told} voxels, and so slices of more than the {limit.pixels} pixels of {limit.flag}: scale it "
            f"down, leave it out, or raise the limit"
        )
    if header.get_data_dtype().kind not in "iuf":
        raise InputError(f"{what} has voxels of the type {header.get_data_dtype()}, and a gray is one real number")
    return sides[0], sides[1], sides[2]


def slope_of(header: Any) -> tuple[float, float]:
    """Return what voxels are multiplied by, and what is added then; a header without (NaN, or a slope of 0): 1, 0."""
    slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
    return (slope, inter) if np.isfinite([slope, inter]).all() and slope else (1.0, 0.0)


def affine_of(header: Any, what: str) -> np.ndarray:
    """Return what takes a voxel's place to the world's: (4, 4) float64, finite.

    Raises:
        InputError: the header says none.
    """
    library = nibabel()
    try:
        affine: np.ndarray = header.get_best_affine()
    except (library.spatialimages.HeaderDataError, ValueError) as error:
        raise InputError(f"the header of {what} is damaged ({error}): copy it again, or leave it out") from None
    if not np.isfinite(affine).all():
        raise InputError(f"the header of {what} says of no axis where it points: correct it, or leave it out")
    return affine


def as_slices(voxels: np.ndarray, sides: np.ndarray, grays: Grays, limit: PixelLimit, what: str) -> bytes:
    """Return the AVI of a volume: slices from below to above, rows from front to back, columns from left to right.

    Args:
        voxels: (X, Y, Z) real, along the axes right, front, up.
        sides: of a voxel, (3,).
        grays: see there.
        limit: of the pixels of a slice.
        what: names it in a message.

    Raises:
        InputError: no voxel is a finite number; it is to have voxels of another side, and says none of its own, or
            would be too large.
    """
    finite = np.isfinite(voxels)
    if not finite.any():
        raise InputError(f"{what} has no voxel that is a finite number: replace it or leave it out")
    if grays.window:
        low, high = grays.window
    elif voxels.dtype == np.uint8:
        low, high = 0.0, float(WHITE)
    else:
        low, high = gray_range(voxels[finite])
    if grays.voxel:
        sizes = sizes_for(voxels.shape, sides, grays.voxel, limit, what)
        voxels = resampled(np.where(finite, voxels, low).astype(np.float32), sizes)
    slices = []
    for plane in np.moveaxis(voxels, 2, 0):  # (X, Y)
        scaled = (plane.T[::-1].astype(np.float64) - low) * (WHITE / (high - low) if high > low else 0)
        gray = np.rint(np.nan_to_num(scaled, posinf=0, neginf=0).clip(0, WHITE)).astype(np.uint8)
        slices.append(cv2.imencode(".png", gray)[1].tobytes())
    return write_avi(slices, voxels.shape[1], voxels.shape[0], RATE)


def gray_range(values: np.ndarray) -> tuple[float, float]:
    """Return what becomes black and what white: PERCENTILES, or where these are one, least and greatest."""
    low, high = np.percentile(values, PERCENTILES)
    if low == high:
        low, high = values.min(), values.max()
    return float(low), float(high)


def sizes_for(
    shape: tuple[int, ...], sides: np.ndarray, voxel: float, limit: PixelLimit, what: str
) -> tuple[int, int, int]:
    """Return how many voxels of a side there are to be along each axis.

    Raises:
        InputError: the file says no side of its voxels, or they would be too many.
    """
    if not (np.isfinite(sides) & (sides > 0)).all():
        raise InputError(f"the header of {what} says no sides of its voxels, which --voxel needs: correct it")
    wanted = [max(1.0, float(np.rint(count * side / voxel))) for count, side in zip(shape, sides, strict=True)]
    largest = prod(sorted(wanted)[1:])
    if max(wanted) > MOST_FRAMES or prod(wanted) > MOST_VOXELS or largest > limit.pixels:
        raise InputError(f"{what} would have {' x '.join(f'{size:.0f}' for size in wanted)} voxels: raise --voxel")
    x, y, z = map(int, wanted)
    return x, y, z


def resampled(voxels: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """Return a volume (X, Y, Z) float32 with so many voxels along each axis: means of those covered, or linear."""
    for axis, size in enumerate(sizes):
        if size != voxels.shape[axis]:
            weights = axis_weights(voxels.shape[axis], size)
            voxels = np.moveaxis(np.tensordot(weights, voxels, (1, axis)), 0, axis)
    return voxels
