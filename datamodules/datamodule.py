"""The LightningDataModule: which shards are streamed, and how they become batches of glimpses."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from lightning import LightningDataModule
from torch.utils.data import DataLoader

from datamodules.digits import ensure_digits
from datamodules.glimpses import FixedGlimpses, TrainingGlimpses
from datamodules.index import ShardIndex
from datamodules.order import epoch_order
from datamodules.stream import SampleStream
from mambaeye.batch import Cell, GlimpseBatch
from mambaeye.errors import InputError
from mambaeye.trajectory import scan_pattern

TRAINING, VALIDATION = 0, 1  # the first part of every random key


class ShardDataModule(LightningDataModule):
    """Streams WebDataset shards as sequences of glimpses.

    Args:
        train_shards: Folder of training shards with their index.json; null for the embedded digits.
        val_shards: Folder of validation shards with their index.json; null for the embedded digits.
        data_dir: Folder that the embedded digits are packed into on first use.
        num_classes: Number of classes, as in the index's class list; the encoder's head takes it from here.
        patch_size: Side of a glimpse in pixels; the encoder takes it from here.
        canvas: Smallest and largest canvas side in training, in pixels, drawn anew for every sample.
        length: Glimpses an image in training (T).
        inside: Probability that a training trajectory keeps to the image instead of the whole canvas.
        resolutions: Canvas sides to validate at, in pixels.
        scans: Scan patterns to validate with.
        validation_length: Glimpses an image in validation (T).
        batch_size: Images a batch and process.
        num_workers: Worker processes that load data, for each process.
        seed: Seed of the order, the canvases and the trajectories.
    """

    def __init__(
        self,
        train_shards: str | None = None,
        val_shards: str | None = None,
        data_dir: str = "data",
        num_classes: int = 10,
        patch_size: int = 16,
        canvas: tuple[int, int] = (32, 64),
        length: int = 64,
        inside: float = 0.5,
        resolutions: tuple[int, ...] = (48,),
        scans: tuple[str, ...] = ("random",),
        validation_length: int = 64,
        batch_size: int = 64,
        num_workers: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False)
        smallest, largest = canvas
        if not patch_size <= smallest <= largest:
            raise InputError(
                f"data.canvas is {smallest}..{largest} pixels and a glimpse {patch_size}: give two sides, the smaller "
                f"first, of at least data.patch_size"
            )
        for resolution in resolutions:
            if resolution < patch_size:
                raise InputError(
                    f"data.resolutions has {resolution}, less than a glimpse of {patch_size} pixels: "
                    f"give canvas sides of at least data.patch_size"
                )
        if not 0 <= inside <= 1:
            raise InputError(f"data.inside is {inside}: give a probability, 0 to 1")
        for name in ("length", "validation_length", "batch_size"):
            if self.hparams[name] < 1:
                raise InputError(f"data.{name} is {self.hparams[name]}: give at least 1")
        for scan in scans:
            scan_pattern(scan)
        embedded = Path(data_dir) / "digits"
        self.embedded = embedded if train_shards is None or val_shards is None else None
        self.train_folder = Path(train_shards) if train_shards is not None else embedded / "train"
        self.val_folder = Path(val_shards) if val_shards is not None else embedded / "val"
        self.cells = [Cell(resolution, scan) for resolution in resolutions for scan in scans]
        self.validation_length = validation_length

    def prepare_data(self) -> None:
        if self.embedded:
            ensure_digits(self.embedded)

    def setup(self, stage: str) -> None:
        if stage == "fit":
            self.train_index = self._read_index(self.train_folder)
        self.val_index = self._read_index(self.val_folder)

    def _read_index(self, folder: Path) -> ShardIndex:
        index = ShardIndex.read(folder)
        if len(index.classes) != self.hparams.num_classes:
            raise InputError(
                f"{folder} has {len(index.classes)} classes in its index and data.num_classes is "
                f"{self.hparams.num_classes}: set --data.num_classes {len(index.classes)}, or give other shards"
            )
        return index

    @property
    def train_batches(self) -> int:
        """Training batches an epoch and process; the samples of an incomplete global batch are left out."""
        global_batch = self.hparams.batch_size * self.trainer.world_size
        batches = len(self.train_index) // global_batch
        if not batches:
            raise InputError(
                f"{self.train_folder} has {len(self.train_index)} samples, less than one batch of {global_batch} over "
                f"all processes: set a smaller --data.batch_size"
            )
        return batches

    def train_dataloader(self) -> "EpochLoader":
        return EpochLoader(self._train_epoch, lambda: self.trainer.current_epoch, self.train_batches)

    def _train_epoch(self, epoch: int) -> DataLoader:
        h = self.hparams
        order = epoch_order(self.train_index.counts, h.seed, epoch)
        glimpses = TrainingGlimpses(tuple(h.canvas), h.patch_size, h.length, h.inside)
        return self._loader(self.train_index, order, self.train_batches, glimpses, (TRAINING, h.seed, epoch))

    def val_dataloader(self) -> list[DataLoader]:
        """One loader a cell: every sample once over all ranks, in the order of the shards, at fixed positions."""
        h = self.hparams
        order = np.arange(len(self.val_index))
        batches = -(-len(order) // (h.batch_size * self.trainer.world_size))
        loaders = []
        for resolution, scan in self.cells:
            glimpses = FixedGlimpses(resolution, scan, h.patch_size, h.validation_length)
            loaders.append(self._loader(self.val_index, order, batches, glimpses, (VALIDATION, h.seed, resolution)))
        return loaders

    def test_dataloader(self) -> list[DataLoader]:
        """The validation shards: testing is validating under another name."""
        return self.val_dataloader()

    def predict_dataloader(self) -> list[DataLoader]:
        """The validation shards."""
        return self.val_dataloader()

    def _loader(
        self,
        index: ShardIndex,
        order: np.ndarray,
        batches: int,
        glimpses: TrainingGlimpses | FixedGlimpses,
        key: tuple[int, ...],
    ) -> DataLoader:
        h = self.hparams
        stream = SampleStream(index, order, batches, h.batch_size, self.trainer.global_rank, glimpses, key)
        pin = self.trainer.strategy.root_device.type == "cuda"
        return DataLoader(stream, h.batch_size, num_workers=h.num_workers, pin_memory=pin)


class EpochLoader:
    """A loader whose every pass is another epoch: it asks which one it is and streams that epoch's order."""

    def __init__(self, stream: Callable[[int], DataLoader], epoch: Callable[[], int], batches: int) -> None:
        self.stream, self.epoch, self.batches = stream, epoch, batches

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[GlimpseBatch]:
        return iter(self.stream(self.epoch()))
