"""A run that was stopped in an epoch goes on in it: every sample once, and no micro-batch without its step."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import TINY, flags, ledger, start

from datamodules.shards.index import ShardIndex
from train import main

BATCH, STEPS = 90, 4  # an epoch of 397 digits; the other 37 fill no step
SETTINGS = {
    **TINY,
    "run_dir": "run",
    "data.loader.batch_size": BATCH,
    "data.resolutions": "[32]",
    "data.scans": "[random]",
    "trainer.max_epochs": 2,
    "trainer.num_sanity_val_steps": 0,
    "trainer.limit_val_batches": 0,
}
LEDGER = "--trainer.callbacks+=callbacks.run.ledger.SampleLedger"
RUN = Path("run")
LAST = RUN / "checkpoints" / "last.ckpt"
AT_ONCE = ["--trainer.max_time.microseconds=1"]  # as of the first micro-batch


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])


@pytest.fixture(scope="module", params=[pytest.param(1, marks=pytest.mark.long), 3], ids=["whole", "accumulated"])
def accumulation(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture(scope="module")
def own_config(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A --config, so that a run is continued without the stop that its own config.yaml asks for."""
    path = tmp_path_factory.mktemp("configs") / "own.yaml"
    path.write_text(f"seed_everything: {SETTINGS['seed_everything']}\n")
    return f"--config={path}"


@pytest.fixture(scope="module")
def fit(data_dir: Path, accumulation: int, own_config: str) -> Callable[..., None]:
    """Runs fit for two epochs, unless the arguments say otherwise."""
    settings = {**SETTINGS, "data.loader.micro_batch_size": BATCH // accumulation, **shards(data_dir)}
    return lambda *arguments: main(["fit", own_config, *flags(settings), LEDGER, *arguments])


@pytest.fixture(scope="module")
def whole(fit: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nothing stops."""
    run_dir = tmp_path_factory.mktemp("whole")
    fit(f"--run_dir={run_dir}")
    return run_dir


def shards(data_dir: Path) -> dict[str, Path]:
    return {f"data.{split}_shards": data_dir / "digits" / "val" for split in ("train", "val")}


def trained_on(run_dir: Path, rank: int = 0) -> list[dict[str, Any]]:
    """The ledger without losses, which follow from the schedule of a run's length."""
    return [{name: line[name] for name in ("epoch", "batch", "step", "keys")} for line in ledger(run_dir, rank)]


def steps_done() -> int:
    """Optimizer steps that last.ckpt has seen, by each of Lightning's counts."""
    checkpoint = torch.load(LAST, weights_only=True)
    stepped = checkpoint["loops"]["fit_loop"]["epoch_loop.state_dict"]["_batches_that_stepped"]
    assert stepped == checkpoint["global_step"]
    return stepped


@pytest.mark.parametrize(
    ("steps", "more"),
    [
        pytest.param(2, [], marks=pytest.mark.long),
        pytest.param(STEPS, ["--trainer.max_steps=8"], marks=pytest.mark.long),
        (STEPS + 3, ["--trainer.max_steps=8"]),
    ],
    ids=str,
)
def test_max_steps(steps: int, more: list[str], fit: Callable[..., None], whole: Path) -> None:
    fit(f"--trainer.max_steps={steps}")
    assert steps_done() == steps
    fit("--ckpt_path=last", *more)
    assert trained_on(RUN) == trained_on(whole)
    assert steps_done() == 2 * STEPS


def test_max_time_goes_on_bit_for_bit(fit: Callable[..., None], whole: Path) -> None:
    """Asked to stop at the first micro-batch, the run still does the step that it is part of."""
    fit(*AT_ONCE)
    assert steps_done() == 1
    fit("--ckpt_path=last", "--trainer.max_time.hours=1")
    assert ledger(RUN) == ledger(whole)
    weights = [torch.load(run / LAST.relative_to(RUN), weights_only=True)["state_dict"] for run in (RUN, whole)]
    assert all(value.equal(weights[1][name]) for name, value in weights[0].items())


@pytest.mark.long
def test_early_stopping_by_a_validation_within_an_epoch(
    fit: Callable[..., None], whole: Path, accumulation: int
) -> None:
    """Of accumulated micro-batches, the validation comes after the first of the second step."""
    validated = ["--trainer.limit_val_batches=1", f"--trainer.val_check_interval={accumulation + 1}"]
    stopping = {"monitor": "val/top1", "mode": "max", "stopping_threshold": -1, "check_on_train_epoch_end": "false"}
    fit(
        *validated,
        "--trainer.callbacks+=EarlyStopping",
        *flags({f"trainer.callbacks.{k}": stopping[k] for k in stopping}),
    )
    assert steps_done() == 2
    fit("--ckpt_path=last", *validated)
    assert ledger(RUN) == ledger(whole)
    assert steps_done() == 2 * STEPS


def test_an_epoch_goes_on_when_its_limit_is_lifted(fit: Callable[..., None], whole: Path, accumulation: int) -> None:
    fit("--trainer.max_epochs=1", f"--trainer.limit_train_batches={2 * accumulation}")
    fit("--trainer.max_epochs=1", "--trainer.limit_train_batches=0.75", "--ckpt_path=last")
    assert steps_done() == 3
    fit("--ckpt_path=last")
    assert trained_on(RUN) == trained_on(whole)


def test_an_epoch_within_a_limit_that_stays_is_over(fit: Callable[..., None], whole: Path, accumulation: int) -> None:
    limit = f"--trainer.limit_train_batches={2 * accumulation}"
    fit("--trainer.max_epochs=1", limit)
    fit("--ckpt_path=last", limit)
    assert steps_done() == 4
    assert places(RUN) == [place for place in places(whole) if place[1] < 2 * accumulation]


@pytest.mark.parametrize("now", ["lifted", *(pytest.param(now, marks=pytest.mark.long) for now in ("kept", "lowered"))])
@pytest.mark.parametrize("every", [None, 3], ids=["validated at the end", "validated after three steps"])
def test_a_checkpoint_of_the_validation_at_a_limit(
    every: int | None, now: str, fit: Callable[..., None], whole: Path, accumulation: int
) -> None:
    """best.ckpt may be saved by the validation after the last batch, before Lightning has ended the epoch."""
    validated = ["--trainer.limit_val_batches=1", "--best.save_on_train_epoch_end=false"]
    validated += [f"--trainer.val_check_interval={every * accumulation}"] if every else []
    limits = {"lifted": STEPS, "kept": 3, "lowered": 2}
    fit(*validated, f"--trainer.limit_train_batches={3 * accumulation}", "--trainer.max_epochs=1")
    best = RUN / "checkpoints" / "best.ckpt"
    assert torch.load(best, weights_only=True)["global_step"] == 3
    validated = validated if now != "lowered" else validated[:2]
    fit(*validated, f"--ckpt_path={best}", f"--trainer.limit_train_batches={limits[now] * accumulation}")
    steps = (max(3, limits[now]), limits[now])
    assert places(RUN) == [place for place in places(whole) if place[1] < steps[place[0]] * accumulation]
    assert steps_done() == sum(steps)


@pytest.mark.long
@pytest.mark.parametrize("limit", [2, 3])
def test_a_lower_limit_ends_the_epoch_that_a_checkpoint_is_within(
    limit: int, fit: Callable[..., None], whole: Path, accumulation: int
) -> None:
    """Saved after three of its steps; the next epoch has as many batches as the limit says."""
    every = {"filename": "{step}", "every_n_train_steps": 3, "save_top_k": -1}
    kept = flags({f"trainer.callbacks.{name}": value for name, value in every.items()})
    fit("--trainer.callbacks+=callbacks.run.checkpointing.StepCheckpoint", *kept, "--trainer.max_epochs=1")
    within = RUN / "checkpoints" / "step=3.ckpt"
    fit(f"--ckpt_path={within}", f"--trainer.limit_train_batches={limit * accumulation}")
    steps = (3, limit)
    assert places(RUN) == [place for place in places(whole) if place[1] < steps[place[0]] * accumulation]
    assert steps_done() == sum(steps)


def places(run_dir: Path) -> list[tuple[int, int, list[str]]]:
    return [(line["epoch"], line["batch"], line["keys"]) for line in trained_on(run_dir)]


def test_a_larger_batch_takes_what_is_left_of_a_stopped_epoch(fit: Callable[..., None], data_dir: Path) -> None:
    one_epoch = "--trainer.max_epochs=1"
    left = 397 - BATCH
    fit(one_epoch, *AT_ONCE)
    larger = [f"--data.loader.batch_size={left}", f"--data.loader.micro_batch_size={left}"]
    fit(one_epoch, "--trainer.max_time.hours=1", "--ckpt_path=last", *larger)
    index = ShardIndex.read(data_dir / "digits" / "val")
    keys = [key for line in trained_on(RUN) for key in line["keys"]]
    assert sorted(keys) == sorted(index.key(number) for number in range(len(index)))


@pytest.mark.long
@pytest.mark.parametrize("stop", [AT_ONCE, ["--trainer.max_steps=2"]], ids=["max_time", "max_steps"])
def test_two_processes(stop: list[str], data_dir: Path, own_config: str) -> None:
    settings = {**SETTINGS, "data.loader.micro_batch_size": BATCH // 6, **shards(data_dir)}
    two = ["fit", own_config, *flags(settings), LEDGER, "--trainer.devices=2", "--data.loader.num_workers=1"]
    for arguments in (["--run_dir=whole"], stop, ["--ckpt_path=last", "--trainer.max_time.hours=1"]):
        run = start([*two, *arguments])
        said, _ = run.communicate(timeout=300)
        assert run.returncode == 0, said
    for rank in range(2):
        assert trained_on(RUN, rank) == trained_on(Path("whole"), rank)
        assert len(trained_on(RUN, rank)) == 2 * STEPS * 3
