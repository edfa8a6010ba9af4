"""Small volumes, and NIfTI files of them; imported only where nibabel is there."""

import gzip

import nibabel
import numpy as np

from datamodules.packing.sources import Member
from datamodules.transforms.clips import Clip
from datamodules.transforms.headers import PixelLimit

LIMIT = PixelLimit()
MEMBER = Member("a/x.nii.gz", 0, 0, 0)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    """Noise, (X, Y, Z) uint8."""
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def nifti(voxels: np.ndarray, affine: np.ndarray | None = None, kind: type = nibabel.Nifti1Image) -> bytes:
    """The bytes of a NIfTI file, not packed."""
    return kind(voxels, np.eye(4) if affine is None else affine).to_bytes()


def packed(data: bytes) -> bytes:
    """The same, gzipped."""
    return gzip.compress(data, mtime=0)


def slices_of(data: bytes) -> np.ndarray:
    """The gray slices of a packed volume, (Z, Y, X) uint8."""
    clip = Clip.open(data, LIMIT, "a volume")
    frames = np.stack([clip.decoded(at) for at in range(len(clip))])
    assert (frames == frames[..., :1]).all()
    return frames[..., 0]
