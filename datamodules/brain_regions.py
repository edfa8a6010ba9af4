"""Real volumes: python -m datamodules.brain_regions MRICRON DEST cuts class folders of MRI crops to pack.

A crop is 40 mm of a brain along each axis, and its class the region of the voxel in its middle. Only what is around
it tells: a crop holds no place in the brain.

    DEST/train/{central,cerebellum,...}/NNNNNN.nii.gz   2000 crops of the left half of one brain
    DEST/val/...                                        800 of its right half, mirrored
    DEST/other/...                                      800 of the left half of another brain, with --other FILE

MRICRON is the folder of templates in Debian's package mricron-data (apt-get download mricron-data && dpkg -x
mricron-data*.deb . unpacks it): ch2bet.nii.gz is one man's brain, scanned 27 times (Holmes et al. 1998, doi
10.1097/00004728-199803000-00032), and aal.nii.gz names 116 regions of it (Tzourio-Mazoyer et al. 2002, doi
10.1006/nimg.2001.0978). FILE is mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz of the wheel nilearn 0.14.1, the mean
of 152 brains (Fonov et al. 2011, doi 10.1016/j.neuroimage.2010.07.033), whose regions are taken to be where the first
brain's are: both lie in MNI's space. The regions here are groups of AAL's. Files are known by their SHA-256. They have
terms of their own: do not pass on what is made of them.
"""

import argparse
import gzip
import sys
from hashlib import sha256
from pathlib import Path

import numpy as np

from datamodules.transforms.headers import PixelLimit
from datamodules.transforms.nifti import WHITE, gray_range, nibabel, read_nifti
from mambaeye.atomic import atomic_folder
from mambaeye.errors import InputError

BRAIN, REGIONS = "ch2bet.nii.gz", "aal.nii.gz"
OTHER = "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
KNOWN = {
    BRAIN: "592a2d20abdf36eefcb540ca8958428040edffc1bc1a18ba1dcfbabac77c5dd1",
    REGIONS: "b512dcd3f36b77f56be7a9a038134096e66314b7e8c31d25875b96bcf6991454",
    OTHER: "421a10e872fd6cadae7f61d358dffbcc1795a497d61ee76c5dda2503e1a1e9e6",
}
GROUPS = {  # by AAL's numbers, of left and right
    "central": (1, 2, 17, 18, 19, 20, 57, 58, 69, 70),
    "cerebellum": tuple(range(91, 109)),
    "deep": tuple(range(71, 79)),  # caudate, putamen, pallidum, thalamus
    "frontal": tuple(range(3, 17)) + tuple(range(21, 29)),
    "fusiform": (55, 56),
    "insula": (29, 30),
    "medial_temporal": tuple(range(37, 43)),  # hippocampus, parahippocampal gyrus, amygdala
    "occipital": tuple(range(43, 55)),
    "parietal": tuple(range(59, 69)),
    "temporal": tuple(range(79, 91)),
}
MIDDLE = {BRAIN: (90, 125, 71), OTHER: (98, 134, 72)}  # voxel of MNI's origin, in the middle along left and right
SIDE = 40  # of a crop, voxels of 1 mm
APART = 2  # voxels between middles along each axis, at least: no two are neighbours
TRAIN, HELD_OUT = 200, 80  # crops of a class
SEED = 0


def write_splits(source: Path, other: Path | None, dest: Path) -> None:
    """Write all crops below a new folder.

    Args:
        source: folder of mricron's templates.
        other: file of the other brain; None for none.
        dest: is not there yet.

    Raises:
        InputError: a file is missing or another one; the folder is there, or cannot be written.
    """
    if dest.exists():
        raise InputError(f"{dest} is there already: give a new folder, or pack what is in it")
    brain, regions = known_file(source / BRAIN, BRAIN), known_file(source / REGIONS, REGIONS)
    halves = {"train": (brain, regions, TRAIN), "val": (brain[::-1], regions[::-1], HELD_OUT)}
    if other is not None:
        first = [there - here for here, there in zip(MIDDLE[BRAIN], MIDDLE[OTHER], strict=True)]
        inside = tuple(slice(start, start + side) for start, side in zip(first, regions.shape, strict=True))
        halves["other"] = (known_file(other, OTHER)[inside], regions, HELD_OUT)
    dest.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(dest) as partial:
        for number, (split, (voxels, labels, count)) in enumerate(halves.items()):
            write_crops(partial / split, voxels, labels, count, (SEED, number))


def known_file(path: Path, name: str) -> np.ndarray:
    """Read a file whose checksum is known: (X, Y, Z) uint8, along the axes right, front, up.

    Raises:
        InputError: it is not there, or another one.
    """
    try:
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"{path} does not exist: --help says where {name} comes from") from None
    if sha256(data).hexdigest() != KNOWN[name]:
        raise InputError(f"{path} is not the {name} that this was written for (SHA-256 {KNOWN[name]}): get that one")
    return read_nifti(data, PixelLimit(), str(path))[0]


def write_crops(folder: Path, brain: np.ndarray, labels: np.ndarray, count: int, key: tuple[int, int]) -> None:
    """Write crops of the left half of a brain.

    Args:
        folder: gets a folder for each class.
        brain: (X, Y, Z) uint8; half of the first axis is left.
        labels: (X, Y, Z) integers of GROUPS, of these voxels.
        count: of each class, or all that there are.
        key: of the draws.
    """
    low, high = gray_range(brain[labels > 0])
    gray = np.rint(((brain - low) * (WHITE / (high - low))).clip(0, WHITE)).astype(np.uint8)
    padded = np.pad(gray, SIDE // 2)  # so that a voxel's place is where its crop begins
    for number, (name, members) in enumerate(GROUPS.items()):
        (folder / name).mkdir(parents=True)
        for place, (x, y, z) in enumerate(middles(np.isin(labels, members), count, (*key, number)).tolist()):
            crop = padded[x : x + SIDE, y : y + SIDE, z : z + SIDE]
            image = nibabel().Nifti1Image(crop, np.eye(4))
            (folder / name / f"{place:06d}.nii.gz").write_bytes(gzip.compress(image.to_bytes(), 6, mtime=0))


def middles(region: np.ndarray, count: int, key: tuple[int, ...]) -> np.ndarray:
    """Draw voxels of a region, APART of each other, whose crops lie wholly in the left half: (n, 3), n up to count.

    Args:
        region: (X, Y, Z) bool.
        count: of voxels.
        key: of the draw.
    """
    most = region.shape[0] // 2 - SIDE // 2  # of the first axis; a crop ends at the middle
    found = np.argwhere(region[: most + 1 : APART, ::APART, ::APART]) * APART
    return found[np.random.default_rng(key).permutation(len(found))[:count]]


def main(args: list[str] | None = None) -> None:
    """Run the command line; a user's mistake ends in one sentence and exit code 1."""
    parser = argparse.ArgumentParser(
        prog="python -m datamodules.brain_regions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", type=Path, metavar="MRICRON", help=f"folder with {BRAIN} and {REGIONS}")
    parser.add_argument("dest", type=Path, metavar="DEST", help="new folder")
    parser.add_argument("--other", type=Path, metavar="FILE", help=f"{OTHER}, for a third set")
    given = parser.parse_args(args)
    try:
        write_splits(given.source, given.other, given.dest)
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
