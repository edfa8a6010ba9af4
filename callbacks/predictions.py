"""predictions.jsonl: what `predict` leaves behind."""

import json
from pathlib import Path
from typing import Any

from lightning import Callback, LightningModule, Trainer


class PredictionWriter(Callback):
    """Writes one JSON line an image and cell: key, resolution, scan, predicted class, confidence.

    The file is <run directory>/predictions.jsonl, made anew by every run; of several processes each writes its own
    part, predictions-<rank>.jsonl.
    """

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        name = "predictions.jsonl" if trainer.world_size == 1 else f"predictions-{trainer.global_rank}.jsonl"
        path = Path(trainer.default_root_dir) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = path.open("w")

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: list[dict[str, Any]],
        batch: Any,
        batch_idx: int,
    ) -> None:
        cell = trainer.datamodule.cells[int(batch.cell[0])]
        for row in outputs:
            self.file.write(json.dumps({**row, **cell._asdict()}) + "\n")

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.file.close()
