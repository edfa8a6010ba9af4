"""report.html at the end of a fit."""

from importlib.util import find_spec
from pathlib import Path

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from mambaeye.contracts import model_of


class RunPage(Callback):
    """Writes report.html into the run directory when a fit ends, if plotly is installed and there was a validation.

    The page is that of `python -m callbacks.page RUN`, which writes it at any other time, and of several runs.

    Args:
        write: Write it; false saves its seconds.
    """

    def __init__(self, write: bool = True) -> None:
        self.write = write

    @rank_zero_only
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.write or model_of(pl_module).result is None or find_spec("plotly") is None:
            return
        from callbacks.page.write import write_page  # plotly is not among what the project must have

        run_dir = Path(trainer.default_root_dir)
        write_page([run_dir], run_dir / "report.html")
