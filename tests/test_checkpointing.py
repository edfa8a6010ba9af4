"""last.ckpt is always whole, and the disk's refusals end in one sentence."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from commands import TINY, flags

from callbacks.run.checkpointing import AtomicCheckpointIO
from mambaeye.errors import InputError
from train import main

SETTINGS = {**TINY, "data.resolutions": "[32]", "trainer.limit_val_batches": 0, "trainer.limit_train_batches": 4}


@pytest.fixture(autouse=True)
def somewhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train.py"])


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The operating system refuses to write further than that into any file."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_checkpoint_that_does_not_fit_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "checkpoints" / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"step": 1, "weights": torch.ones(100)}, path)
    old = path.read_bytes()
    with (
        largest_file(100_000),
        pytest.raises(InputError, match="last.ckpt of 4.0 MB cannot be written .File too"),
    ):
        AtomicCheckpointIO().save_checkpoint({"step": 2, "weights": torch.ones(1_000_000)}, path)
    assert path.read_bytes() == old
    assert list(path.parent.iterdir()) == [path]
    AtomicCheckpointIO().save_checkpoint({"step": 3}, path)
    assert AtomicCheckpointIO().load_checkpoint(path, weights_only=True) == {"step": 3}
    assert list(path.parent.iterdir()) == [path]


def test_a_run_whose_checkpoint_cannot_be_written_says_so_in_one_sentence(data_dir: Path) -> None:
    fit = ["fit", *flags({**SETTINGS, "data.data_dir": data_dir, "run_dir": "run"})]
    main(fit)
    last = Path("run/checkpoints/last.ckpt")
    old = last.read_bytes()
    with largest_file(len(old) // 2), pytest.raises(SystemExit) as stop:
        main([*fit, "--ckpt_path=last", "--trainer.max_epochs=2"])
    size = f"{len(old) / 1e6:.1f} MB"
    assert str(stop.value) == (
        f"error: the checkpoint {last.absolute()} of {size} cannot be written (File too large): "
        f"make room or repair the folder, and continue with --ckpt_path last"
    )
    assert last.read_bytes() == old
    assert [path.name for path in last.parent.iterdir()] == ["last.ckpt"]


def test_a_folder_that_cannot_be(data_dir: Path) -> None:
    Path("run").mkdir()
    Path("run/checkpoints").write_text("a file")
    with pytest.raises(SystemExit) as stop:
        main(["fit", *flags({**SETTINGS, "data.data_dir": data_dir, "run_dir": "run"})])
    assert " cannot be written (File exists): make room or repair the folder" in str(stop.value)
    assert "\n" not in str(stop.value)
    assert Path("run/checkpoints").read_text() == "a file"


def test_checkpoints_by_time_are_kept_and_none_lies_within_an_optimizer_step(data_dir: Path) -> None:
    """As docs/running.md says; the time is up after every micro-batch, of which three make a step."""
    kept = {
        "trainer.callbacks": "callbacks.run.checkpointing.StepCheckpoint",
        "trainer.callbacks.train_time_interval": "0:00:00",
        "trainer.callbacks.save_top_k": -1,
        "trainer.callbacks.filename": "{step}",
    }
    steps = {
        "data.loader.batch_size": 192,
        "data.loader.micro_batch_size": 64,
        "trainer.limit_train_batches": 6,
        "trainer.max_epochs": 2,
    }
    main(["fit", *flags({**SETTINGS, **steps, **kept, "data.data_dir": data_dir, "run_dir": "run"})])
    found = {path.name for path in Path("run/checkpoints").iterdir()}
    assert found == {"last.ckpt", *(f"step={step}.ckpt" for step in (1, 2, 3, 4))}
    for step in (1, 2, 3, 4):
        checkpoint = torch.load(f"run/checkpoints/step={step}.ckpt", weights_only=True)
        batches = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"]
        assert (checkpoint["global_step"], batches) == (step, 3 * step)
