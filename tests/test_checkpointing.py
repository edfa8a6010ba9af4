"""last.ckpt is always whole, and the disk's refusals end in one sentence."""

import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from zipfile import ZipFile

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


def flip(path: Path) -> None:
    """One bit of the first optimizer moment's last bytes, say, or of another tensor: somewhere in the middle."""
    content = bytearray(path.read_bytes())
    with ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda record: record.file_size)
        record = archive.read(largest)
    content[content.index(record) + len(record) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_checkpoint_restores_nothing_and_the_newest_other_one_is_offered(data_dir: Path) -> None:
    every = {"data.data_dir": data_dir, "run_dir": "run", "trainer.limit_val_batches": 2, "trainer.max_epochs": 2}
    fit = ["fit", *flags(SETTINGS | every)]
    main(fit)
    folder = Path("run/checkpoints")
    shutil.copy(folder / "best.ckpt", folder / "early.ckpt")
    torch.save(torch.load(folder / "best.ckpt") | {"global_step": 1}, folder / "early.ckpt")
    flip(folder / "last.ckpt")
    step = torch.load(folder / "best.ckpt")["global_step"]
    reason = r"damaged or not a checkpoint of a MambaEye run: its archive/data/\d+ is not as it was written"
    for command in (fit, ["validate", "--run_dir=run"], ["predict", "--run_dir=run", "--data.images=a.png"]):
        with pytest.raises(SystemExit, match=rf"^error: --ckpt_path run/checkpoints/last.ckpt is {reason}") as stop:
            main([*command, "--ckpt_path=last"])
        offer = f"the newest undamaged one beside it is --ckpt_path {folder}/best.ckpt, saved after {step} steps"
        assert str(stop.value).endswith(f"; {offer}")
        assert "\n" not in str(stop.value)
    flip(folder / "best.ckpt")
    with pytest.raises(SystemExit, match=rf"--ckpt_path {folder}/early.ckpt, saved after 1 steps$"):
        main([*fit, "--ckpt_path=last"])
    flip(folder / "early.ckpt")
    with pytest.raises(SystemExit, match=rf"^error: --ckpt_path run/checkpoints/last.ckpt is {reason}$"):
        main([*fit, "--ckpt_path=last"])
    with pytest.raises(InputError, match=rf"^the checkpoint {folder}/best.ckpt is damaged: its \S+ is not as"):
        AtomicCheckpointIO().load_checkpoint(folder / "best.ckpt", weights_only=True)


def test_a_checkpoint_of_version_0_1_has_checksums_too(tmp_path: Path) -> None:
    shutil.copy(Path(__file__).with_name("version_0_1.ckpt"), "old.ckpt")
    AtomicCheckpointIO().load_checkpoint("old.ckpt", weights_only=True)
    flip(Path("old.ckpt"))
    with pytest.raises(InputError, match="^the checkpoint old.ckpt is damaged: "):
        AtomicCheckpointIO().load_checkpoint("old.ckpt", weights_only=True)
