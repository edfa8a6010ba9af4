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

    def prepare(self, reads: set[str], config: LoaderConfig, pixels: Pixels) -> None:
        """Pack the pictures or the digits, if these splits need that and it was not done."""
        if reads and self.folder is not None:
            ensure_packed(Path(self.folder), self.data_dir, config.max_unreadable, config.pixel_limit, pixels)
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
        """Open the index of a split, train or val; limits are for one at a URL."""
        if self.folder is not None:
            return open_index(str(packed(Path(self.folder), self.data_dir) / split))
        return open_index(self.shards[split] or str(self.digits / split), self.index[split], limits)
