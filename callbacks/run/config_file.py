"""config.yaml, and validate.yaml and its like: what the last command of that name ran with."""

from pathlib import Path

from jsonargparse import Namespace
from lightning import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback

from callbacks.run.agreement import facts_of, require_agreement
from mambaeye.atomic import atomic_write


class ConfigFile(SaveConfigCallback):
    """Writes a command's configuration into the run directory, once all processes of the run are seen to have the same.

    Args:
        parser: of the command.
        config: of the run.
        config_filename: of the file.
    """

    def __init__(self, parser: LightningArgumentParser, config: Namespace, config_filename: str) -> None:
        super().__init__(parser, config, config_filename, save_to_log_dir=False)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if trainer.world_size > 1:
            require_agreement(facts_of(self.config))
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        with atomic_write(Path(trainer.default_root_dir) / self.config_filename) as partial:
            partial.write_text(self.parser.dump(self.config, skip_none=False), encoding="utf-8")
