"""The sources of the samples to train on and to validate on."""

from dataclasses import dataclass
from pathlib import Path

from datamodules.digits import ensure_digits
from datamodules.loading.config import LoaderConfig
from datamodules.packing.folder import ensure_packed, packed
from datamodules.shards.index import ShardIndex
from datamodules.shards.locate import open_index
from datamodules.storage.limits import ReadLimits
from datamodules.transforms.pixels import Pixels
from mambaeye.contracts import SplitSummary
from mambaeye.errors import InputError


@dataclass(frozen=True)
class Splits:
    """Sources of both splits, by the data module's arguments: shards, one's own pictures, or the embedded digits.

    Raises:
        InputError: the pictures are given together with shards.
    """

    folder: str | None
    """Folder of pictures in class folders."""
    shards: dict[str, str | None]
    """For train and val, the shards; None where they are not given."""
    index: dict[str, str | None]
    """For train and val, the path or URL of their index; None where it is beside them."""
    data_dir: Path
    """Folder that pictures or digits are packed into."""
    pixels: Pixels
    """Pixels of the images, which indices must have too."""

    def __post_init__(self) -> None:
        given = [split for split, value in self.shards.items() if value is not None]
        if self.folder is not None and given:
            raise InputError(
                f"data.folder is {self.folder} and data.{given[0]}_shards is given too: give the folder, which is "
                f"packed into shards by itself, or the shards"
            )

    @property
    def digits(self) -> Path:
        """Return where the embedded digits are packed."""
        return self.data_dir / "digits"

    def prepare(self, reads: set[str], config: LoaderConfig) -> None:
        """Pack the pictures or the digits, if these splits need that and it was not done."""
        if reads and self.folder is not None:
            ensure_packed(Path(self.folder), self.data_dir, config.max_unreadable, config.pixel_limit, self.pixels)
        elif any(self.shards[split] is None for split in reads):
            ensure_digits(self.digits)

    def require_both(self) -> None:
        """Require that shards to train on and to validate on are given together.

        Raises:
            InputError: there are only one of them.
        """
        missing = [split for split, value in self.shards.items() if value is None]
        if len(missing) == 1:
            (there,) = self.shards.keys() - set(missing)
            raise InputError(
                f"data.{there}_shards is given and data.{missing[0]}_shards is not, which would be the embedded "
                f"digits: give --data.{missing[0]}_shards too"
            )

    def open(self, split: str, limits: ReadLimits) -> ShardIndex:
        """Open the index of a split, train or val; limits are for one at a URL.

        Raises:
            InputError: it cannot be opened, or its images have other pixels.
        """
        if self.folder is not None:
            index = open_index(str(packed(Path(self.folder), self.data_dir) / split))
        else:
            index = open_index(self.shards[split] or str(self.digits / split), self.index[split], limits)
        require_pixels(index, self.pixels)
        return index


def require_same_kind(train: ShardIndex, val: ShardIndex) -> None:
    """Require that both splits hold images, or both clips.

    Raises:
        InputError: one holds images, and the other clips.
    """
    if (train.frames is None) != (val.frames is None):
        holds = ["images" if index.frames is None else "clips" for index in (train, val)]
        raise InputError(f"{train.name} holds {holds[0]} and {val.name} {holds[1]}: give shards of one kind")


def require_pixels(index: ShardIndex, pixels: Pixels) -> None:
    """Require that images have the channels and bits that the arguments say.

    Raises:
        InputError: they have others.
    """
    if index.pixels[:2] != pixels[:2]:
        raise InputError(
            f"{index.name} holds images of {index.pixels.words}, and data.channels and data.bits are {pixels.channels} "
            f"and {pixels.bits}: give other shards, or --data.channels {index.pixels.channels} --data.bits "
            f"{index.pixels.bits} to a model that was made for them"
        )


def summary(index: ShardIndex) -> SplitSummary:
    """Return a split in numbers."""
    return SplitSummary(len(index), len(index.sources), index.streaming)
