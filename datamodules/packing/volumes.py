"""Volumes as a source: NIfTI files in class folders; each is read as an AVI of its slices, gray PNGs."""

from collections import Counter
from dataclasses import dataclass, field
from hashlib import sha256

from datamodules.files import VOLUMES
from datamodules.packing.sources import Found, Member, Source, counted_kind
from datamodules.shards.index import CLIP_EXTENSION
from datamodules.transforms.headers import PixelLimit
from datamodules.transforms.nifti import LARGEST_FILE, Grays, as_slices, nibabel, read_nifti
from mambaeye.errors import InputError


@dataclass(frozen=True)
class Volumes(Source):
    """Source of volumes: a folder or an uncompressed tar of class folders with NIfTI files."""

    kinds = VOLUMES
    noun = "volumes"
    limit: PixelLimit = field(default_factory=PixelLimit)
    """Of each slice."""
    grays: Grays = field(default_factory=Grays)

    def __post_init__(self) -> None:
        nibabel()  # raises before anything is listed

    def samples(self) -> tuple[list[Found], Counter[str]]:
        """List NIfTI files, and count other files by extension."""
        found: list[Found] = []
        others: Counter[str] = Counter()
        told = repr(tuple(self.grays)).encode()
        for member in self.members():
            kind = next((kind for kind in VOLUMES if member.path.lower().endswith(f".{kind}")), None)
            if kind is None:
                _, dot, extension = member.path.rpartition(".")
                others[counted_kind(dot, extension)] += 1
            else:
                # other grays are other samples, as a file with another time would be
                changed = sha256(told + str(member.changed).encode()).digest()[:7]
                marked = member._replace(changed=int.from_bytes(changed))
                found.append(Found(member.path[: -len(kind) - 1], CLIP_EXTENSION, marked))
        return found, others

    def read(self, member: Member) -> bytes:
        """Read a volume, and return it as an AVI of slices.

        Raises:
            InputError: it is no whole NIfTI file of one volume, or is too large.
        """
        if member.size > LARGEST_FILE:
            raise InputError(
                f"{member.path} has {member.size} bytes, more than {LARGEST_FILE}: cut it, or leave it out"
            )
        voxels, sides = read_nifti(super().read(member), self.limit, member.path)
        return as_slices(voxels, sides, self.grays, self.limit, member.path)
