"""Crops of brains: where they are cut, which class they have, and files that are not those that are known."""

import itertools
from pathlib import Path

import numpy as np
import pytest

nibabel = pytest.importorskip("nibabel", reason="needs the extra nifti")

from datamodules.brain_regions import APART, GROUPS, SIDE, main, middles, write_crops  # noqa: E402


def test_every_region_of_the_atlas_has_one_group_but_those_in_the_middle() -> None:
    numbers = [number for members in GROUPS.values() for number in members]
    assert len(set(numbers)) == len(numbers)
    left_out = {*range(1, 117)} - {*numbers}
    assert left_out == {*range(31, 37), *range(109, 117)}  # cingulum and vermis
    assert all(number + 1 in members for members in GROUPS.values() for number in members if number % 2)  # both sides


def test_crops_are_around_their_middles_and_in_the_left_half(tmp_path: Path) -> None:
    shape = (65, 30, 31)
    labels = np.random.default_rng(0).choice([0, *(members[0] for members in GROUPS.values())], shape)
    brain = np.random.default_rng(1).integers(1, 201, shape).astype(np.uint8)
    brain[32:] = 0  # what a crop must not show
    low, high = np.percentile(brain[labels > 0], (0.5, 99.5))
    gray = np.rint(np.clip((brain - low) / (high - low), 0, 1) * 255)
    around = np.full((65 + 2 * SIDE, 30 + 2 * SIDE, 31 + 2 * SIDE), 0.0)
    around[SIDE:-SIDE, SIDE:-SIDE, SIDE:-SIDE] = gray
    write_crops(tmp_path, brain, labels, 5, (0, 0))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(GROUPS)
    for number, (name, members) in enumerate(GROUPS.items()):
        found = middles(np.isin(labels, members), 5, (0, 0, number))
        assert len(found) == 5
        assert (labels[tuple(found.T)] == members[0]).all()
        assert found[:, 0].max() + SIDE // 2 <= 32
        assert all(abs(one - other).max() >= APART for one, other in itertools.combinations(found, 2))
        for place, middle in enumerate(found):
            image = nibabel.load(tmp_path / name / f"{place:06d}.nii.gz")
            start = middle + SIDE - SIDE // 2
            expected = around[tuple(slice(first, first + SIDE) for first in start)]
            assert np.array_equal(np.asarray(image.dataobj), expected)
            assert np.array_equal(image.affine, np.eye(4))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.gz")}
    write_crops(tmp_path / "again", brain, labels, 5, (0, 0))
    assert all((tmp_path / "again" / path.relative_to(tmp_path)).read_bytes() == data for path, data in before.items())
    assert not np.array_equal(middles(labels > 0, 5, (0, 0, 1)), middles(labels > 0, 5, (0, 1, 1)))


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="ch2bet.nii.gz does not exist: --help says where"):
        main([str(tmp_path), str(tmp_path / "dest")])
    (tmp_path / "ch2bet.nii.gz").write_bytes(b"another")
    with pytest.raises(SystemExit, match="is not the ch2bet.nii.gz that this was written for"):
        main([str(tmp_path), str(tmp_path / "dest")])
    (tmp_path / "dest").mkdir()
    with pytest.raises(SystemExit, match="dest is there already"):
        main([str(tmp_path), str(tmp_path / "dest")])
