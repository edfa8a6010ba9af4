"""Image files -> batches of canvases, in the order of the files."""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from datamodules.loading.config import LoaderConfig
from datamodules.loading.workers import load
from datamodules.views.predict import OpenedFile
from mambaeye.batch import FileBatch, Scene

PIXELS = 1 << 24  # of all canvases of a batch; a larger image comes alone


class OpenedFiles(Dataset[OpenedFile]):
    """The files one by one."""

    def __init__(self, files: Sequence[str], opener: Callable[[str], OpenedFile]) -> None:
        self.files, self.opener = files, opener

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, place: int) -> OpenedFile:
        return self.opener(self.files[place])


class FileLoader:
    """Opens files and puts those into a batch that lie side by side and have canvases of one size.

    There is a batch for every file, so that progress counts files: a file that waits for the next one to join it leaves
    a batch without an image. So does a process without a file, for Lightning calls nothing where there is no batch.

    Args:
        files: of this process.
        opener: makes a canvas with a trajectory of a file.
        batch_size: images a batch, at most.
        config: worker processes, and how long to wait for them.
        pin_memory: whether batches are for a CUDA device.
    """

    def __init__(
        self,
        files: Sequence[str],
        opener: Callable[[str], OpenedFile],
        batch_size: int,
        config: LoaderConfig,
        pin_memory: bool = False,
    ) -> None:
        self.opened = OpenedFiles(files, opener)
        self.batch_size, self.config, self.pin_memory = batch_size, config, pin_memory

    def __len__(self) -> int:
        return max(1, len(self.opened))

    def __iter__(self) -> Iterator[FileBatch]:
        if not len(self.opened):
            yield FileBatch(None, [])
        waiting: list[OpenedFile] = []
        for opened in self._files():
            if waiting and self._joins(waiting, opened):
                yield FileBatch(None, [])
            elif waiting:
                yield collate_files(waiting)
                waiting = []
            waiting.append(opened)
            if not self._joins(waiting, opened):  # not even another one like it
                yield collate_files(waiting)
                waiting = []
            del opened  # so that the next one is decoded when this one is gone
        if waiting:
            yield collate_files(waiting)

    def _files(self) -> Iterator[OpenedFile]:
        workers = self.config.num_workers
        ahead = {"prefetch_factor": 1} if workers else {}  # images may be large
        return load(
            self.opened,
            workers,
            self.config.timeout,
            "image files",
            batch_size=None,
            pin_memory=self.pin_memory,
            **ahead,
        )

    def _joins(self, waiting: list[OpenedFile], opened: OpenedFile) -> bool:
        """Tell whether there is room for it in the batch that waits."""
        scene, before = opened.scene, waiting[-1].scene
        if scene is None or before is None or scene.canvases.shape != before.canvases.shape:
            return False
        if not isinstance(scene.canvases, Tensor):  # which is read by region, alone
            return False
        most = min(self.batch_size, PIXELS // math.prod(scene.canvases.shape[:-1]))
        return len(waiting) < most


def collate_files(opened: Sequence[OpenedFile]) -> FileBatch:
    """Return the batch of files with canvases of one size, or of one that cannot be read; one canvas is not copied."""
    files = [file for file, _ in opened]
    scenes = [scene for _, scene in opened if scene is not None]
    if not scenes:
        return FileBatch(None, files)
    if len(scenes) == 1:
        canvases, *others = scenes[0]
        return FileBatch(Scene(canvases[None], *(part[None] for part in others)), files)
    stacked = [torch.stack(parts) for parts in zip(*((scene.pixels, *scene[1:]) for scene in scenes), strict=True)]
    return FileBatch(Scene(*stacked), files)
