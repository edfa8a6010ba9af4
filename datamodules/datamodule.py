"""The LightningDataModule: which shards are streamed or files opened, and how they become batches of glimpses."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning import LightningDataModule

from datamodules.digits import ensure_digits
from datamodules.files import Found, find_images
from datamodules.loading.loader import EpochLoader, FixedLoader
from datamodules.shards.index import ShardIndex
from datamodules.shards.locate import open_index
from datamodules.shards.order import LoaderLayout, batches_of, divide
from datamodules.transforms.draws import Augmentation
from datamodules.transforms.mixing import Mixing
from datamodules.views.evaluate import FixedGlimpses
from datamodules.views.predict import FileGlimpses, FileLoader
from datamodules.views.train import TrainingGlimpses
from mambaeye.batch import EvaluationCondition
from mambaeye.errors import InputError, on_all_ranks
from mambaeye.geometry.scans import scan_pattern

# the trainer's arguments that limit what runs through FixedLoader
LIMITS = {
    "fit": "limit_val_batches",
    "validate": "limit_val_batches",
    "test": "limit_test_batches",
}


class ShardDataModule(LightningDataModule):
    """Streams WebDataset shards as sequences of glimpses; for prediction, opens image files.

    Args:
        train_shards: Training shards: a folder or URL with their index.json, a brace pattern of paths or URLs, or a
            pipe: command; null for the embedded digits.
        val_shards: Validation shards, likewise.
        train_index: Path or URL of the training shards' index.json, if it is not beside them.
        val_index: Path or URL of the validation shards' index.json, if it is not beside them.
        data_dir: Folder that the embedded digits are packed into on first use.
        num_classes: Number of classes, as in the index's class list; the encoder's head takes it from here.
        patch_size: Side of a glimpse in pixels; the encoder takes it from here.
        canvas: Smallest and largest canvas side in training, in pixels, drawn anew for every sample.
        length: Glimpses an image in training (T).
        inside: Probability that a training trajectory keeps to the image instead of the whole canvas.
        train_scan: Scan pattern of training trajectories, by its name in docs/scans.md.
        augmentation: How training images are changed; null for not at all, {} for the paper's augmentations.
        mixing: Mixup and CutMix of training images; null for neither.
        resolutions: Canvas sides to validate at, in pixels.
        scans: Scan patterns to validate with, by their names in docs/scans.md; a wrong one is answered with the list.
        validation_length: Glimpses an image in validation (T); of several, validation takes the most and reports after
            each.
        shift: Rows and columns by which validation images lie further down and right, on canvases larger by as much.
        batch_size: Images an optimizer step, of all processes together; what one process takes follows from it.
        micro_batch_size: Images that a process takes at once, at most; what its share of batch_size has more is
            accumulated. null: all at once.
        num_workers: Worker processes that load data, for each process.
        max_unreadable: Samples an epoch and process that may be unreadable: left out, counted and reported. One more stops
            the run.
        timeout: Seconds without a batch after which worker processes count as stuck and the run stops; 0 for never.
        seed: Seed of the order, the canvases and the trajectories.
        images: What to predict: image files, folders of them, or patterns like "photos/**/*.jpg".
        resize: Canvas side in pixels that predict fits images into, as validation does; null to take them as they are.
    """

    def __init__(
        self,
        train_shards: str | None = None,
        val_shards: str | None = None,
        train_index: str | None = None,
        val_index: str | None = None,
        data_dir: str = "data",
        num_classes: int = 10,
        patch_size: int = 16,
        canvas: tuple[int, int] = (32, 64),
        length: int = 64,
        inside: float = 0.5,
        train_scan: str = "random",
        augmentation: Augmentation | None = None,
        mixing: Mixing | None = None,
        resolutions: tuple[int, ...] = (48,),
        scans: tuple[str, ...] = ("random",),
        validation_length: int | tuple[int, ...] = 64,
        shift: tuple[int, int] = (0, 0),
        batch_size: int = 64,
        micro_batch_size: int | None = None,
        num_workers: int = 1,
        max_unreadable: int = 0,
        timeout: float = 600.0,
        seed: int = 0,
        images: str | tuple[str, ...] | None = None,
        resize: int | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(logger=False, ignore=["images", "resize"])  # of one prediction, not of a run
        for name, config in (("augmentation", augmentation), ("mixing", mixing)):
            if config is not None:  # plain containers, so that a checkpoint loads with weights_only=True
                self.hparams[name] = asdict(config)
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
        self.budgets = (validation_length,) if isinstance(validation_length, int) else tuple(validation_length)
        for name, least in (
            ("length", length),
            ("validation_length", min(self.budgets, default=0)),
            ("batch_size", batch_size),
            ("micro_batch_size", micro_batch_size),
        ):
            if least is not None and least < 1:
                raise InputError(f"data.{name} is {self.hparams[name]}: give at least 1")
        if resize is not None and resize < patch_size:
            raise InputError(
                f"data.resize is {resize}, less than a glimpse of {patch_size} pixels: give a canvas side of at least "
                f"data.patch_size"
            )
        if min(shift) < 0:
            raise InputError(f"data.shift is {list(shift)}: give rows and columns of at least 0 pixels")
        for name in ("resolutions", "scans"):
            if not self.hparams[name]:
                raise InputError(f"data.{name} is empty: give at least one")
        for scan in (train_scan, *scans):
            scan_pattern(scan)
        embedded = Path(data_dir) / "digits"
        self.embedded = embedded if train_shards is None or val_shards is None else None
        self.train_shards = train_shards or str(embedded / "train")
        self.val_shards = val_shards or str(embedded / "val")
        self.augmentation, self.mixing = augmentation, mixing
        self.train_loader: EpochLoader | None = None
        self.fixed_loader: FixedLoader | None = None
        self.place: dict[str, Any] = {"epoch": -1}  # of the run that is continued
        self.cells = [EvaluationCondition(resolution, scan) for resolution in resolutions for scan in scans]
        self.validation_length = max(self.budgets)
        self.limits: dict[str, int | float] = {}  # of batches of images, by trainer argument
        self.image_paths = [images] if isinstance(images, str) else list(images or ())
        self.resize = resize
        self.found = Found([], 0)
        """The files to predict, and how many others there were among them."""

    def prepare_data(self) -> None:
        if self.embedded and not (self.trainer and self.trainer.predicting):
            ensure_digits(self.embedded)

    def setup(self, stage: str) -> None:
        with on_all_ranks():
            if stage == "predict":
                if not self.image_paths:
                    raise InputError("predict has no images: give --data.images files, folders or patterns")
                self.found = find_images(self.image_paths)
                return
            if stage == "fit":
                self._set_accumulation()
                self.train_index = self._open_index(self.train_shards, self.hparams.train_index)
            self._take_limit(LIMITS[stage])
            self.val_index = self._open_index(self.val_shards, self.hparams.val_index)

    def _open_index(self, shards: str, where: str | None) -> ShardIndex:
        index = open_index(shards, where)
        if len(index.classes) != self.hparams.num_classes:
            raise InputError(
                f"{shards} has {len(index.classes)} classes in its index and data.num_classes is "
                f"{self.hparams.num_classes}: set --data.num_classes {len(index.classes)}, or give other shards"
            )
        return index

    def _set_accumulation(self) -> None:
        """Tell the trainer how many batches make an optimizer step, which follows from batch_size."""
        _, accumulation = self.divided
        if self.trainer.accumulate_grad_batches not in (1, accumulation):
            raise InputError(
                f"trainer.accumulate_grad_batches is {self.trainer.accumulate_grad_batches}, but accumulation follows "
                f"from data.batch_size, the images of an optimizer step: set data.micro_batch_size instead"
            )
        self.trainer.accumulate_grad_batches = accumulation

    def _take_limit(self, name: str) -> None:
        """Keep a limit to this side: Lightning would count a batch of images once for every cell."""
        limit = getattr(self.trainer, name)
        if limit and (isinstance(limit, int) or limit < 1):  # 0 is left to Lightning, which then has no validation
            self.limits[name] = limit
            setattr(self.trainer, name, 1.0)

    @property
    def divided(self) -> tuple[int, int]:
        """Images that a process takes at once, and how many of these batches it accumulates for an optimizer step."""
        return divide(self.hparams.batch_size, self.trainer.world_size, self.hparams.micro_batch_size)

    def _crew(self, index: ShardIndex, batch_size: int, accumulation: int = 1) -> LoaderLayout:
        """Who shares the samples of an index."""
        workers = max(1, self.hparams.num_workers)
        return LoaderLayout(self.trainer.world_size, workers, batch_size, accumulation, runs=index.streaming)

    @property
    def train_batches(self) -> int:
        """Training batches an epoch and process; the samples of an incomplete optimizer step are left out."""
        batches = batches_of(len(self.train_index), self._crew(self.train_index, *self.divided))
        if not batches:
            raise InputError(
                f"{self.train_index.folder} has {len(self.train_index)} samples, less than the "
                f"{self.hparams.batch_size} of one optimizer step: set a smaller --data.batch_size"
            )
        return batches

    def train_dataloader(self) -> EpochLoader:
        """Every training sample once over all ranks, in an order of this epoch's own."""
        h = self.hparams
        drawn = (self.augmentation, self.mixing, h.train_scan)
        glimpses = TrainingGlimpses(tuple(h.canvas), h.patch_size, h.length, h.inside, *drawn)
        layout = self._crew(self.train_index, *self.divided)
        arguments = self._loader_arguments(self.train_index, layout)
        self.train_loader = EpochLoader(**arguments, glimpses=glimpses, epoch=lambda: self.trainer.current_epoch)
        self.train_loader.load_state_dict(self.place)
        return self.train_loader

    def val_dataloader(self) -> FixedLoader:
        """Every validation sample once over all ranks and in every cell, at fixed positions."""
        return self._fixed_loader("validate")

    def test_dataloader(self) -> FixedLoader:
        """The validation shards: testing is validating under another name."""
        return self._fixed_loader("test")

    def predict_dataloader(self) -> FileLoader:
        """The image files of --data.images; ranks take turns."""
        h = self.hparams
        glimpses = FileGlimpses(h.scans[0], h.patch_size, self.validation_length, self.resize, h.seed)
        files = self.found.files[self.trainer.global_rank :: self.trainer.world_size]
        return FileLoader(files, glimpses, self._images_at_once, h.num_workers, h.timeout, self._pin_memory)

    def _fixed_loader(self, stage: str) -> FixedLoader:
        h = self.hparams
        layout = self._crew(self.val_index, self._images_at_once)
        glimpses = FixedGlimpses(tuple(self.cells), h.patch_size, self.validation_length, tuple(h.shift))
        arguments = self._loader_arguments(self.val_index, layout)
        self.fixed_loader = FixedLoader(**arguments, glimpses=glimpses, limit=self.limits.get(LIMITS[stage], 1.0))
        return self.fixed_loader

    @property
    def _images_at_once(self) -> int:
        """Images that a process takes at once, at most, where it learns nothing."""
        h = self.hparams
        batch_size = -(-h.batch_size // self.trainer.world_size)
        return min(batch_size, h.micro_batch_size or batch_size)

    @property
    def _pin_memory(self) -> bool:
        return self.trainer.strategy.root_device.type == "cuda"

    def _loader_arguments(self, index: ShardIndex, layout: LoaderLayout) -> dict[str, Any]:
        """What every loader wants to know."""
        h = self.hparams
        return {
            "index": index,
            "layout": layout,
            "rank": self.trainer.global_rank,
            "num_workers": h.num_workers,
            "max_unreadable": h.max_unreadable,
            "timeout": h.timeout,
            "pin_memory": self._pin_memory,
            "seed": h.seed,
        }

    def state_dict(self) -> dict[str, Any]:
        """The training loader's place, kept here too: Lightning asks a loader how long it is before it restores it."""
        return self.train_loader.state_dict() if self.train_loader else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the place that the next training loader begins from."""
        self.place = state_dict or self.place
