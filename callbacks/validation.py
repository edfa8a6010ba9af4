"""What a validation leaves behind: a table on the console, validation.json and a picture in the run directory."""

import json
import os
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from callbacks.pictures import accuracy_by_glimpse


class ValidationReport(Callback):
    """Writes validation.json (or test.json) below the run directory; validate and test draw and print it too.

    Reads the module's `validation_rows`: one dictionary for each resolution, scan and step.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.report(trainer, pl_module.validation_rows, "validation")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.report(trainer, pl_module.validation_rows, "test")

    @rank_zero_only
    def report(self, trainer: Trainer, rows: list[dict[str, Any]], name: str) -> None:
        """Write <run directory>/<name>.json and .png; print the table unless training goes on."""
        path = Path(trainer.default_root_dir) / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps({"rows": rows}, indent=1) + "\n")
        os.replace(partial, path)
        if trainer.state.fn != TrainerFn.FITTING:
            accuracy_by_glimpse(rows, path.with_suffix(".png"))
            Console().print(accuracy_table(rows))
            Console().print(
                f"{path} has every number, {path.with_suffix('.png').name} beside it a picture", soft_wrap=True
            )


def accuracy_table(rows: list[dict[str, Any]]) -> Table:
    """Top-1 by glimpses for every canvas side and scan; top-5 and mean confidence after the last glimpse. All in %."""
    steps = sorted({row["step"] for row in rows})
    title = f"Top-1 (%) after so many glimpses, {rows[0]['samples']} images"
    table = Table(title=title, box=SIMPLE_HEAD, collapse_padding=True, pad_edge=False)
    for heading in ("side", "scan", *map(str, steps), "top-5", "sure"):
        table.add_column(heading, justify="left" if heading == "scan" else "right", no_wrap=True)
    for resolution, scan in dict.fromkeys((row["resolution"], row["scan"]) for row in rows):
        cell = {row["step"]: row for row in rows if (row["resolution"], row["scan"]) == (resolution, scan)}
        last = cell[steps[-1]]
        shares = [*(cell[step]["top1"] for step in steps), last["top5"], last["confidence"]]
        table.add_row(str(resolution), scan, *(f"{100 * share:.1f}" for share in shares))
    return table
