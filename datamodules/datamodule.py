"""The LightningDataModule: which shards are streamed or files opened, and how they become batches for the model."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning import LightningDataModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn

from datamodules.files import FoundFiles, find_files
from datamodules.loading.config import LoaderConfig
from datamodules.loading.files import FileLoader
from datamodules.loading.loader import NO_EPOCH, EpochLoader, FixedLoader, ShardAccess
from datamodules.loading.stream import collate
from datamodules.loading.tubes import StreamLoader
from datamodules.shards.classes import relabel, require_count
from datamodules.shards.held_out import without_held_out
from datamodules.shards.index import ShardIndex
from datamodules.shards.order import LoaderLayout, batches_of
from datamodules.shards.sorting import class_sorted
from datamodules.splits import Splits, require_same_kind, summary
from datamodules.transforms.depth import AsSide
from datamodules.transforms.pixels import Pixels
from datamodules.views.evaluate import (
    EvaluateView,
    EvaluationCanvases,
    at_lengths,
    evaluation_conditions,
    require_frames,
    require_resolutions,
)
from datamodules.views.plan import AXES, CLIP_AXES, TrainScan, require_scans, require_train_scan
from datamodules.views.predict import FileCanvases, PredictView
from datamodules.views.predict_clips import ClipCanvases, require_stream
from datamodules.views.train import TrainView, training_samples
from mambaeye.batch import CanvasBatch, EvaluationCondition, GlimpseBatch
from mambaeye.contracts import DataSpec, ModelSpec, OptimizerStep, SplitSummary, limited, model_of
from mambaeye.errors import InputError, on_all_ranks
from mambaeye.geometry.box import PatchSize, glimpse_sides, patch_sides

LIMIT_VAL, LIMIT_TEST = "limit_val_batches", "limit_test_batches"  # the trainer's arguments


class ShardDataModule(LightningDataModule):
    """Streams WebDataset shards as glimpses or canvases; for prediction, opens image files. See contracts.DataSpec.

    Args:
        train_shards: Training shards: a folder or URL with their index.json, a brace pattern of paths or URLs, or a
            pipe: command; null for the embedded digits.
        val_shards: Validation shards, likewise.
        train_index: Path or URL of the training shards' index.json, if it is not beside them.
        val_index: Path or URL of the validation shards' index.json, if it is not beside them.
        folder: Your own pictures: a folder with a folder of pictures for each class, or with train/ and val/ that have
            such; or with videos, if there is no picture. Packed into data_dir on first use, and again when files have
            changed. Without val/, a tenth of each class is held out for validation. In place of the shards.
        data_dir: Folder that the embedded digits, or your own pictures, are packed into on first use.
        num_classes: Number of classes, as in the index's class list; the encoder's head takes it from here. Of folder's
            pictures they are counted.
        patch_size: Side of a glimpse in pixels, along rows and columns; the encoder takes it from here.
        tube: Of clips alone: frames of a glimpse; the encoder takes it from here.
        channels: Channels of the images, as their index says; the encoder takes them from here.
        bits: Bits of each value of the images, 8 or 16, as their index says.
        levels: Of images that are not RGB of 8 bits: the value that is black and the one that is white, one pair for
            all channels, [[0,4000]], or one for each; null for all that so many bits hold.
        train_scan: Scan pattern of training trajectories: a name in docs/scans.md, or the import path of a function;
            several with their shares, as "{random: 1, varied: 3}", are drawn by trajectory; "learned" leaves it to the
            model's policy.
        resolutions: Canvas sides to validate at, in pixels.
        frames: Of clips alone: frames of the canvases to validate on, or several numbers of them; predict takes the
            first. Of a longer clip the middle ones are taken. Or "side", for volumes: as many as the canvas has rows;
            all slices are taken, and scaled as rows and columns are.
        scans: Scan patterns to validate with, as for train_scan; predict takes the first. A wrong one is answered with
            the list.
        images: What to predict: image files, folders of them, or patterns like "photos/**/*.jpg". With a model of
            clips, videos, folders of frames and NIfTI files.
        held_out: Share of the training samples, chosen by their keys, that is kept out of training for `calibrate`.
        seed: Seed of the order, the canvases and the trajectories.
        train: How training looks at an image.
        evaluate: How validation looks at an image.
        predict: How predict looks at an image.
        loader: How samples are loaded.
    """

    def __init__(
        self,
        train_shards: str | None = None,
        val_shards: str | None = None,
        train_index: str | None = None,
        val_index: str | None = None,
        folder: str | None = None,
        data_dir: str = "data",
        num_classes: int = 10,
        patch_size: int = 16,
        tube: int = 1,
        channels: int = 3,
        bits: int = 8,
        levels: tuple[tuple[int, int], ...] | None = None,
        train_scan: TrainScan = "random",
        resolutions: tuple[int, ...] = (48,),
        frames: int | AsSide | tuple[int, ...] = 16,
        scans: tuple[str, ...] = ("random",),
        images: str | tuple[str, ...] | None = None,
        held_out: float = 0.0,
        seed: int = 0,
        train: TrainView = TrainView(),
        evaluate: EvaluateView = EvaluateView(),
        predict: PredictView = PredictView(),
        loader: LoaderConfig = LoaderConfig(),
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["images", "predict"], logger=False)  # of one prediction, not of a run
        # plain containers, so that a checkpoint loads with weights_only=True
        self.hparams.update(train=asdict(train), evaluate=asdict(evaluate), loader=asdict(loader))
        train.require_room(patch_size, tube)
        predict.require_room(patch_size)
        require_resolutions(resolutions, patch_size)
        told = (frames,) if isinstance(frames, int | str) else frames
        self.lengths = tuple(dict.fromkeys(told))
        require_frames(self.lengths, tube, resolutions)
        require_scans(scans)
        require_train_scan(train_scan)
        self.indices: dict[str, ShardIndex] = {}  # of the splits that the stage needs
        self.num_classes, self.patch_size, self.tube, self.seed = num_classes, patch_size, tube, seed
        self.channels, self.pixels = channels, Pixels(channels, bits, tuple((low, high) for low, high in levels or ()))
        self.pixels.require_possible("data.")
        shards, index = {"train": train_shards, "val": val_shards}, {"train": train_index, "val": val_index}
        self.splits = Splits(folder, shards, index, Path(data_dir), self.pixels)
        self.axes = AXES  # until an index says that samples are clips
        if not 0 <= held_out < 1:
            raise InputError(f"data.held_out is {held_out:g}: give a share of the training samples, from 0 to below 1")
        self.held_out = held_out
        self.train_scan, self.resolutions, self.frames, self.scans = train_scan, resolutions, self.lengths[0], scans
        self.train, self.evaluate, self.predict, self.loader = train, evaluate, predict, loader
        self.canvas_range, self.num_workers = train.canvas, loader.num_workers
        self.conditions: Sequence[EvaluationCondition] = ()
        self.classes: list[str] = []
        self.image_paths = [images] if isinstance(images, str) else list(images or ())
        self.found = FoundFiles([], 0)
        self.limits: dict[str, int | float] = {}  # of batches of images, by trainer argument
        self.train_loader: EpochLoader | None = None
        self.fixed_loader: FixedLoader | None = None
        self.loader_state: dict[str, Any] = dict(NO_EPOCH)  # of the run that is continued

    def prepare_data(self) -> None:
        """Pack your own pictures, or the embedded digits, if the stage reads them and they are not packed yet."""
        reads = {"train", "val"}
        if self.trainer and self.trainer.state.fn != TrainerFn.FITTING:
            reads = set() if self.trainer.predicting else {"val"}
        self.splits.prepare(reads, self.loader)

    def setup(self, stage: str) -> None:
        """Open the indices that the stage needs, or find the files to predict.

        Raises:
            InputError: shards or files that cannot be; arguments that do not go with each other or with the model.
        """
        with on_all_ranks():
            takes, has_policy = self._model.takes, self._model.has_policy
            self.conditions = evaluation_conditions(self.resolutions, self.scans, takes, has_policy)
            for name, values in (("resolutions", self.resolutions), ("scans", self.scans)):
                if repeated := [value for value, times in Counter(values).items() if times > 1]:
                    rank_zero_warn(f"data.{name} has {repeated[0]} more than once: it is measured once")
            if takes == "canvas":
                self.evaluate = replace(self.evaluate, num_glimpses=1, report_at=())
            if stage == "predict":
                self._find_files()
                return
            if stage == "fit":
                self.splits.require_both()
                self._set_accumulation()
                self._open_index("train")
                looks = (self.glimpse, self.train_scan, takes, has_policy, self.axes, self.pixels)
                self.samples = training_samples(self.train, *looks)
            self._take_limit(LIMIT_TEST if stage == "test" else LIMIT_VAL)
            self._open_index("val")
            if self.axes == CLIP_AXES:
                self.conditions = at_lengths(self.conditions, self.lengths)

    def _find_files(self) -> None:
        """Find the images to predict, or the clips if the model looks at clips."""
        looks_at = self._model.encoder.looks_at
        self.found = find_files(self.image_paths, looks_at(AXES), looks_at(CLIP_AXES))
        self.axes = CLIP_AXES if self.found.are_clips else AXES
        require_stream(self.predict, self.found.are_clips, self.conditions[0].scan, self.frames)

    def _open_index(self, split: str) -> None:
        index = self.splits.open(split, self.loader.read_limits)
        if split == "train":
            index = without_held_out(index, self.held_out)
        if self.classes:  # of the training shards, which were opened before
            require_same_kind(self.indices["train"], index)
            relabel(index, self.classes, "those that are trained on")
        self.indices[split], self.classes = index, index.classes
        self.axes = AXES if index.frames is None else CLIP_AXES

    @property
    def glimpse(self) -> PatchSize:
        """Return the sides of a glimpse, pixels."""
        return glimpse_sides(self.patch_size, self.tube, self.axes)

    @property
    def frames_of_canvas(self) -> int | AsSide | None:
        """Return the frames of the canvases that clips are validated on; None where samples are images."""
        return self.frames if self.axes == CLIP_AXES else None

    def take_classes(self, classes: Sequence[str]) -> None:
        """Give labels the meaning that they have for a checkpoint: its class names, in its order.

        Raises:
            InputError: the shards have other classes.
        """
        for index in self.indices.values():
            relabel(index, classes, "those of the checkpoint")
            self.classes = index.classes

    def _set_accumulation(self) -> None:
        """Tell the trainer how many batches make an optimizer step; Lightning knows no other way."""
        accumulation = self.optimizer_step.accumulation
        if self._trainer.accumulate_grad_batches not in (1, accumulation):
            raise InputError(
                f"trainer.accumulate_grad_batches is {self._trainer.accumulate_grad_batches}, but accumulation follows "
                f"from data.loader.batch_size, the images of an optimizer step: set data.loader.micro_batch_size "
                f"instead"
            )
        self._trainer.accumulate_grad_batches = accumulation

    def _take_limit(self, name: str) -> None:
        """Keep a limit to this side: Lightning would count a batch of images once for every condition."""
        limit = getattr(self._trainer, name)
        if limit and (isinstance(limit, int) or limit < 1):  # 0 is left to Lightning, which then has no validation
            self.limits[name] = limit
            setattr(self._trainer, name, 1.0)

    @property
    def _trainer(self) -> Trainer:
        assert self.trainer is not None, "there is no trainer yet"
        return self.trainer

    @property
    def _model(self) -> ModelSpec:
        return model_of(self._trainer.lightning_module)

    @property
    def num_glimpses(self) -> int:
        """Return the glimpses of an image in validation."""
        return self.evaluate.num_glimpses

    @property
    def report_at(self) -> Sequence[int]:
        """Return glimpse counts that validation reports after."""
        return self.evaluate.report_at

    @property
    def protocol(self) -> dict[str, Any]:
        """Return how validation looks at an image, data.evaluate; and of clips data.frames and data.tube."""
        frames = [*self.lengths] if len(self.lengths) > 1 else self.frames
        clips = {} if self.frames_of_canvas is None else {"frames": frames, "tube": self.tube}
        return asdict(self.evaluate) | clips

    @property
    def optimizer_step(self) -> OptimizerStep:
        """Return how the images of an optimizer step are shared out."""
        return self.loader.optimizer_step(self._trainer.world_size)

    @property
    def largest_sample(self) -> GlimpseBatch | CanvasBatch:
        """Return a training batch of one image, noise of the largest size that there is; after setup for fit."""
        batch = collate([self.samples.filler("", *self.train.largest)])
        pixels = batch.patches if isinstance(batch, GlimpseBatch) else batch.scene.pixels
        pixels.random_(1 << self.pixels.bits, generator=torch.Generator().manual_seed(self.seed))
        return batch

    @property
    def train_batches(self) -> int:
        """Return the training batches an epoch and process; an incomplete optimizer step's samples are left out."""
        index = self.indices["train"]
        batches = batches_of(len(index), self.loader.training_layout(index, self._trainer.world_size))
        if not batches:
            raise InputError(
                f"{index.name} has {len(index)} samples, less than the {self.loader.batch_size} of one optimizer "
                f"step: set a smaller --data.loader.batch_size"
            )
        return batches

    @property
    def batches_left(self) -> int:
        """Return the training batches a process that a continued run has left of its checkpoint's epoch."""
        if self.loader_state == NO_EPOCH:
            return 0
        loader = self._epoch_loader(epoch=lambda: self.loader_state["epoch"])
        return limited(len(loader), self._trainer.limit_train_batches) - loader.done

    @property
    def class_counts(self) -> torch.Tensor:
        """Return how many training images every class has: (C,) int64."""
        return torch.from_numpy(self.indices["train"].labels).bincount(minlength=self.num_classes)

    @property
    def train_split(self) -> SplitSummary:
        """Return the training split in numbers."""
        return summary(self.indices["train"])

    @property
    def val_split(self) -> SplitSummary:
        """Return the validation split in numbers."""
        return summary(self.indices["val"])

    @property
    def class_sorted_shards(self) -> list[str]:
        """Return the training shards of few classes, unless samples are shuffled over all shards anyway."""
        index = self.indices["train"]
        span = self.loader.training_layout(index, self._trainer.world_size).span
        return [] if span is None else class_sorted(index)

    @property
    def train_wait(self) -> float:
        """Return how many seconds the last training batch took to come."""
        return self.train_loader.waited if self.train_loader else 0.0

    @property
    def waiting(self) -> bool:
        """Tell whether this process waits for a batch."""
        return any(loader.waiting for loader in (self.train_loader, self.fixed_loader) if loader)

    @property
    def evaluation_wait(self) -> float:
        """Return how many seconds the batches of the last validation took to come."""
        return self.fixed_loader.waited if self.fixed_loader else 0.0

    @property
    def skipped_files(self) -> int:
        """Return how many files among those to predict have no extension of an image, or of a clip."""
        return self.found.skipped

    def train_dataloader(self) -> EpochLoader:
        """Load every training sample once over all ranks, in an order of this epoch's own."""
        self.train_loader = self._epoch_loader(epoch=lambda: self._trainer.current_epoch)
        return self.train_loader

    def _epoch_loader(self, epoch: Callable[[], int]) -> EpochLoader:
        layout = self.loader.training_layout(self.indices["train"], self._trainer.world_size)
        loader = EpochLoader(self._access("train", layout), self.samples, self.seed, epoch)
        loader.load_state_dict(self.loader_state)
        return loader

    def val_dataloader(self) -> FixedLoader:
        """Load every validation sample once over all ranks and under every condition, at fixed positions."""
        return self._fixed_loader(LIMIT_VAL)

    def test_dataloader(self) -> FixedLoader:
        """Load the validation shards: testing is validating under another name."""
        return self._fixed_loader(LIMIT_TEST)

    def _fixed_loader(self, limit: str) -> FixedLoader:
        layout = self.loader.evaluation_layout(self.indices["val"], self._trainer.world_size)
        how = self.evaluate, self.frames_of_canvas, self.pixels, self.loader.pixel_limit
        samples = EvaluationCanvases(self.conditions, self.glimpse, *how)
        self.fixed_loader = FixedLoader(self._access("val", layout), samples, self.seed, self.limits.get(limit, 1.0))
        return self.fixed_loader

    def predict_dataloader(self) -> FileLoader | StreamLoader:
        """Open the image files or clips of --data.images; ranks take turns."""
        scan, limit = self.conditions[0].scan, self.loader.pixel_limit
        opener: FileCanvases | ClipCanvases = FileCanvases(
            self.predict, self.evaluate, scan, self.patch_size, self.seed, limit, self.pixels
        )
        files = self.found.files[self._trainer.global_rank :: self._trainer.world_size]
        if self.axes == CLIP_AXES:
            glimpse = patch_sides(self.glimpse, CLIP_AXES)
            opener = clips = ClipCanvases(self.predict, self.evaluate, scan, glimpse, self.frames, self.seed, limit)
            if self.streams:
                return StreamLoader(files, clips.stream)
        at_once = self.loader.images_at_once(self._trainer.world_size)
        return FileLoader(files, opener, at_once, self.loader, self._pin_memory)

    @property
    def streams(self) -> bool:
        """Tell whether clips are predicted as they arrive."""
        return self.predict.stream

    def _access(self, split: str, layout: LoaderLayout) -> ShardAccess:
        index = self.indices[split]
        require_count(index, self.num_classes)  # not at setup: a checkpoint's classes, if there is one, say more
        return ShardAccess(index, layout, self._trainer.global_rank, self.loader, self._pin_memory)

    @property
    def _pin_memory(self) -> bool:
        return self._trainer.strategy.root_device.type == "cuda"

    def state_dict(self) -> dict[str, Any]:
        """Return the training loader's state, kept here too: Lightning asks for its length before it restores it."""
        return self.train_loader.state_dict() if self.train_loader else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the state that the next training loader begins from."""
        self.loader_state = state_dict or self.loader_state


if TYPE_CHECKING:
    _: DataSpec = ShardDataModule()
