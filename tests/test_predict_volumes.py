"""Prediction on NIfTI files: as on the pictures of their slices, which nibabel's canonical axes and NumPy give."""

from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest

nibabel = pytest.importorskip("nibabel", reason="needs the extra nifti")

from test_predict_clips import P, expected, folder_of_frames, model, predict, somewhere_else  # noqa: E402, F401
from volumes import nifti, packed  # noqa: E402
from volumes import noise as voxels_of  # noqa: E402

from datamodules.transforms.clips import Clip  # noqa: E402
from datamodules.transforms.depth import whole  # noqa: E402
from datamodules.transforms.headers import PixelLimit  # noqa: E402
from datamodules.transforms.images import centred, resized  # noqa: E402
from datamodules.transforms.nifti import Grays, as_slices, read_nifti  # noqa: E402

TURNED = np.array([[0, -1, 0, 7], [0, 0, 2, 1], [3, 0, 0, 0], [0, 0, 0, 1.0]])  # of voxels to the world's axes


def slices_of(data: bytes) -> np.ndarray:
    """The slices (Z, Y, X, 3), from below to above, rows from the front on."""
    image = nibabel.as_closest_canonical(nibabel.Nifti1Image.from_bytes(data))
    return np.asarray(image.dataobj).transpose(2, 1, 0)[:, ::-1, :, None].repeat(3, axis=-1)


def digest_of(file: str) -> bytes:
    return sha256(Path(file).read_bytes()).digest()


@pytest.mark.parametrize("frames", [8, "side"])
def test_a_volume_is_looked_at_as_its_slices_are(frames: int | str, model: Path) -> None:  # noqa: F811
    data = nifti(voxels_of(12, 10, 11), TURNED)
    Path("a.nii").write_bytes(data)
    Path("b.nii.gz").write_bytes(packed(data))
    slices = slices_of(data)
    count = len(slices)
    got = predict(model, ["a.nii", "b.nii.gz"], **{"data.frames": frames, "data.scans": "[random]"})
    seen = count if frames == "side" else int(frames)
    for line, file in zip(got, ("a.nii", "b.nii.gz"), strict=True):
        told = expected(model, slices, digest_of(file), seen, 16, "random")
        assert {name: line[name] for name in told} == told
        assert (line["frames"], line["first_frame"]) == (count, (count - seen) // 2)


def test_depth_is_scaled_as_in_validation(model: Path) -> None:  # noqa: F811
    data = nifti(voxels_of(9, 12, 10))
    Path("a.nii").write_bytes(data)
    settings = {"data.frames": "side", "data.scans": "[random]", "data.predict.resize": 24}
    (line,) = predict(model, ["a.nii"], **settings, **{"data.evaluate.interpolation": "area"})
    limit = PixelLimit()
    clip = Clip.open(as_slices(*read_nifti(data, limit, "a"), Grays(), limit, "a"), limit, "a")
    canvas, box = whole(clip, 24, "a", lambda at, side: centred(resized(clip.decoded(at), side, "fit", "area"), 24))
    assert tuple(box.size) == (20, 24, 18)
    inside = canvas[tuple(slice(start, start + side) for start, side in zip(box.start, box.size, strict=True))]
    told = expected(model, inside, digest_of("a.nii"), 20, 16, "random")  # a place elsewhere has the same moves
    names = ("top5", "information_ratio", "confidence_by_glimpse")
    assert {name: line[name] for name in names} == {name: told[name] for name in names}
    assert line["frames"] == 10


def test_grays_are_those_that_packing_was_told(model: Path) -> None:  # noqa: F811
    voxels = voxels_of(8, 8, 8).astype(np.int16) * 10 - 1000
    Path("a.nii").write_bytes(nifti(voxels))
    (line,) = predict(model, ["a.nii"], **{"data.predict.window": "[-1000,1550]", "data.scans": "[random]"})
    told = expected(model, slices_of(nifti(voxels_of(8, 8, 8))), digest_of("a.nii"), 8, 16, "random")
    assert {name: line[name] for name in told} == told


def test_what_is_no_volume_is_said(model: Path) -> None:  # noqa: F811
    Path("cut.nii.gz").write_bytes(packed(nifti(voxels_of(9, 9, 9)))[:200])
    folder_of_frames(slices_of(nifti(voxels_of(P, P, P))), "frames")
    Path("good.nii").write_bytes(nifti(voxels_of(9, 9, 9)))
    cut, frames, good = predict(
        model, ["cut.nii.gz", "frames", "good.nii"], **{"data.frames": "side", "data.scans": "[random]"}
    )
    assert "cut.nii.gz is damaged or cut short" in cut["error"]
    assert "frames is no volume, and data.frames is side" in frames["error"]
    assert good["frames"] == 9
