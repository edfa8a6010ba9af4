"""When a report is due, and where it goes."""

from pathlib import Path

from lightning import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from mambaeye.contracts import model_of
from mambaeye.evaluation.result import ValidationResult


def is_fitting(trainer: Trainer) -> bool:
    """Tell whether a validation that has ended is one of a training run's, and not its sanity check."""
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking


def is_reporting(trainer: Trainer) -> bool:
    """Tell whether a validation that has ended is a command of its own: validate or test."""
    return trainer.state.fn in (TrainerFn.VALIDATING, TrainerFn.TESTING)


def report_folder(trainer: Trainer) -> Path:
    """Return the folder that such a command leaves tables and plots in."""
    name = "test" if trainer.state.fn == TrainerFn.TESTING else "validation"
    return Path(trainer.default_root_dir) / name


def result_of(pl_module: LightningModule) -> ValidationResult:
    """Return what the validation that has just ended measured."""
    result = model_of(pl_module).result
    assert result is not None, "no validation has ended"
    return result


def logs_now(trainer: Trainer, batch_idx: int) -> bool:
    """Tell whether the batch that has ended made an optimizer step at which Lightning logs."""
    stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch
    return stepped and logs_at(trainer, trainer.global_step)


def logs_at(trainer: Trainer, optimizer_step: int) -> bool:
    """Tell whether Lightning logs at that optimizer step; with log_every_n_steps 0 it never does."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # which Lightning declares nowhere
    return every > 0 and optimizer_step % every == 0


def draws_now(trainer: Trainer, every: int, validations: int) -> bool:
    """Tell whether a validation that has ended is drawn: validate's and test's always, of a fit's only some.

    Args:
        trainer: of the run.
        every: draw every so many validations of a fit, and the last epoch's; 0 for none.
        validations: those of the fit before this one.
    """
    if not is_fitting(trainer):
        return True
    last = trainer.current_epoch + 1 == trainer.max_epochs
    return every > 0 and (last or validations % every == 0)
