"""Training of a learned scan through Lightning: which part learns when, exact resume, and back from its checkpoint."""

from contextlib import suppress
from pathlib import Path

import pytest
import torch
from lightning import Callback, Trainer
from resuming import Interrupted
from torch import Tensor, nn

from datamodules.datamodule import ShardDataModule
from datamodules.loading.config import LoaderConfig
from datamodules.views.evaluate import EvaluateView
from datamodules.views.train import TrainView
from mambaeye.encoders.mambaeye import MambaEye
from mambaeye.errors import InputError
from mambaeye.module import ClassifierModule
from mambaeye.optim import OptimizerConfig
from mambaeye.policies.learned import LearnedScan
from mambaeye.policy_learning import PolicyLearning

SIZES = {"dim": 8, "depth": 1, "d_state": 4, "headdim": 4, "move_embedding_dim": 4}
SHARES = {"random": 2.0, "learned": 1.0}


class Watch(Callback):
    """Notes after every backward pass which parts had a gradient, before and after those that idle were left alone.

    Saves and dies, as a kill would, after so many optimizer steps.
    """

    def __init__(self, die_after: int = 0, path: Path | None = None) -> None:
        self.die_after, self.path = die_after, path
        self.all_had_one: list[bool] = []
        self.learning: list[set[str]] = []
        self.losses: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: ClassifierModule, *_: object) -> None:
        self.steps = trainer.global_step
        self.weights = [parameter.detach().clone() for parameter in pl_module.parameters()]
        self.with_gradient: set[nn.Parameter] = set()
        self.handles = [
            parameter.register_post_accumulate_grad_hook(self.with_gradient.add) for parameter in pl_module.parameters()
        ]

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: ClassifierModule, *_: object) -> None:
        self.all_had_one.append(self.with_gradient == set(pl_module.parameters()))
        names = {name.split(".")[0] for name, each in pl_module.named_parameters() if each.grad is not None}
        self.learning.append(names)

    def on_train_batch_end(self, trainer: Trainer, pl_module: ClassifierModule, outputs: dict, *_: object) -> None:
        for handle in self.handles:
            handle.remove()
        self.losses.append(float(outputs["loss"]))
        changed = {
            name.split(".")[0]
            for (name, parameter), before in zip(pl_module.named_parameters(), self.weights, strict=True)
            if not parameter.equal(before)
        }
        stepped = trainer.global_step > self.steps
        assert changed == (self.learning[-1] if stepped else set())
        if stepped and trainer.global_step == self.die_after:
            trainer.save_checkpoint(self.path)
            raise Interrupted


def fit(
    data_dir: Path,
    watch: Watch,
    train_scan: str | dict[str, float] = SHARES,
    ckpt: Path | None = None,
    max_epochs: int = 2,
) -> ClassifierModule:
    """Four optimizer steps in two epochs, of two micro-batches each; the encoder is frozen for half of them."""
    torch.manual_seed(0)
    folder = str(data_dir / "digits" / "val")
    data = ShardDataModule(
        folder,
        folder,
        resolutions=(32,),
        scans=("random", "learned"),
        train_scan=train_scan,
        train=TrainView(num_glimpses=5),
        evaluate=EvaluateView(num_glimpses=4),
        loader=LoaderConfig(batch_size=20, micro_batch_size=10, num_workers=0),
    )
    learning = PolicyLearning(frozen=0.5, glimpses=4, candidates=2)
    optimizer = OptimizerConfig(lr=1e-2, weight_decay=0.5, warmup_epochs=0)
    module = ClassifierModule(
        MambaEye(num_classes=10, **SIZES), LearnedScan(candidates=4, dim=8), learning, optimizer=optimizer
    )
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=max_epochs,
        limit_train_batches=4,
        limit_val_batches=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        reload_dataloaders_every_n_epochs=1,
        num_sanity_val_steps=0,
        callbacks=[watch],
    )
    with suppress(Interrupted):
        trainer.fit(module, data, ckpt_path=ckpt, weights_only=True)
    return module


def state_of(module: ClassifierModule) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


@pytest.fixture(scope="module")
def whole(data_dir: Path) -> tuple[Watch, ClassifierModule]:
    watch = Watch()
    return watch, fit(data_dir, watch)


def test_the_policy_learns_alone_and_then_both(whole: tuple[Watch, ClassifierModule]) -> None:
    """Weight decay too leaves a frozen part alone; and DDP, which waits for every gradient, gets them all."""
    watch, module = whole
    assert watch.learning == [{"policy"}] * 2 + [{"policy", "encoder"}] * 2
    assert all(watch.all_had_one)
    assert {condition.condition.scan for condition in module.result.conditions} == {"random", "learned"}


def test_without_its_scan_the_encoder_learns_alone(data_dir: Path) -> None:
    watch = Watch()
    fit(data_dir, watch, "random")
    assert watch.learning == [{"encoder"}] * 4
    assert all(watch.all_had_one)


def test_a_training_without_end_has_no_shares(data_dir: Path) -> None:
    with pytest.raises(InputError, match="^a policy learns by shares of all steps, and there is no last one: give"):
        fit(data_dir, Watch(), max_epochs=-1)


@pytest.mark.parametrize("after", [1, 3])
def test_a_resumed_run_takes_the_same_walks(
    after: int, whole: tuple[Watch, ClassifierModule], data_dir: Path, tmp_path: Path
) -> None:
    """To the bit: the losses and weights are those of the run that nothing interrupted, in either phase."""
    first, second, path = Watch(after, tmp_path / "at.ckpt"), Watch(), tmp_path / "at.ckpt"
    fit(data_dir, first)
    module = fit(data_dir, second, ckpt=path)
    assert first.losses + second.losses == whole[0].losses
    for name, tensor in state_of(whole[1]).items():
        assert tensor.equal(module.state_dict()[name]), name


def test_a_checkpoint_brings_the_policy_back(
    whole: tuple[Watch, ClassifierModule], data_dir: Path, tmp_path: Path
) -> None:
    path = tmp_path / "at.ckpt"
    fit(data_dir, Watch(4, path))
    loaded = ClassifierModule.load_from_checkpoint(path, weights_only=True, map_location="cpu")
    assert isinstance(loaded.policy, LearnedScan)
    sizes = {"feature_dim": 8, "num_classes": 10, "axes": 2}
    assert loaded.policy.settings.items() >= {"candidates": 4, "dim": 8, **sizes}.items()
    for name, tensor in state_of(whole[1]).items():
        assert tensor.equal(loaded.state_dict()[name]), name
