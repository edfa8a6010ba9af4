"""The run's configuration in TensorBoard: as text, and beside what came of it in the HPARAMS tab."""

from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.tensorboard.summary import hparams

from callbacks.reports.saved_config import config_text, config_values
from callbacks.reports.tensorboard import tensorboards
from mambaeye.contracts import data_of

RESULTS = ("top1", "ece")  # of every condition, after the last glimpse


class RunDescription(Callback):
    """Puts the resolved config, config.yaml, into TensorBoard: under TEXT, and its values under HPARAMS.

    There, val/top1, train/loss, and top-1 and ECE of every resolution and scan stand beside them: the last that were
    logged, so that runs can be compared while they last.
    """

    @rank_zero_only
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.end: Any = None
        text = config_text(Path(trainer.default_root_dir))
        if text is None:
            return
        names = [condition.name for condition in data_of(trainer).conditions]
        metrics = ["val/top1", "train/loss", *(f"val/{result}/{name}" for result in RESULTS for name in names)]
        values = config_values(text)
        for logger in tensorboards(trainer):
            writer = logger.experiment
            writer.add_text("config", "\n".join(f"    {line}" for line in text.splitlines()))  # Markdown: verbatim
            experiment, start, self.end = hparams(values, dict.fromkeys(metrics, 0.0))
            for summary in (experiment, start):
                writer.file_writer.add_summary(summary)

    @rank_zero_only
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.end is not None:
            for logger in tensorboards(trainer):
                logger.experiment.file_writer.add_summary(self.end)
