"""`train.py calibrate`: from a checkpoint to one beside it that has a temperature."""

import shlex
import warnings
from pathlib import Path

from lightning import LightningDataModule, Trainer

from callbacks.run.checkpointing import AtomicCheckpointIO
from callbacks.run.directory import print_rank_zero
from mambaeye.calibrating import CalibratingModule, Calibration
from mambaeye.errors import InputError
from mambaeye.temperature import TEMPERATURE

NAME = "{}-calibrated.ckpt"


class CalibratingTrainer(Trainer):
    """A trainer that calibrates besides."""

    def calibrate(
        self,
        model: CalibratingModule,
        datamodule: LightningDataModule,
        ckpt_path: str | None = None,
        weights_only: bool | None = None,
    ) -> None:
        """Fit a temperature to training samples, and write a checkpoint with it beside the one that is given.

        Args:
            model: gathers answers.
            datamodule: of training samples, as validation looks at them.
            ckpt_path: of the checkpoint, which stays as it is.
            weights_only: read it without running code.

        Raises:
            InputError: there are several processes; the temperature cannot be fitted, or the checkpoint not written.
        """
        if self.world_size > 1:
            raise InputError(f"calibrate takes one process, and these would be {self.world_size}: --trainer.devices 1")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Be aware that when using `ckpt_path`, callbacks")  # all left out
            self.validate(model, datamodule=datamodule, ckpt_path=ckpt_path, verbose=False, weights_only=weights_only)
        assert ckpt_path is not None
        found = model.fitted()  # not before, for a validation is in inference mode
        path = Path(ckpt_path).with_name(NAME.format(Path(ckpt_path).stem))
        entry = {TEMPERATURE: found.temperature.saved()}
        AtomicCheckpointIO().save_checkpoint(model.checkpoint | entry, path)
        print_rank_zero(summary(found))
        print_rank_zero(f"next: python train.py validate --ckpt_path {shlex.quote(str(path))}")


def summary(found: Calibration) -> str:
    """Return what came of it, in a line."""
    before, after = found.before, found.after
    return (
        f"of {found.answers} answers {100 * found.top1:.1f}% are right: {100 * before.confidence:.1f}% sure before and "
        f"{100 * after.confidence:.1f}% after, NLL {before.nll:.3f} and {after.nll:.3f}"
    )
