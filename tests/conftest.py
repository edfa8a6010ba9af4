import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: on tensors this small, threads only wait

import gc
import signal
import subprocess
import sys
from pathlib import Path

import hypothesis
import pytest
import quick_parsing

from datamodules.digits import ensure_digits

ROOT = Path(__file__).parents[1]

hypothesis.settings.register_profile("any machine", deadline=None)
hypothesis.settings.load_profile("any machine")

quick_parsing.remember()

# a shell that starts us in the background has it ignored, and so would the processes that tests interrupt
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Leave what is imported by now, torch among it, out of all further garbage collections."""
    gc.freeze()


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with the digits packed into it."""
    folder = tmp_path_factory.mktemp("data")
    ensure_digits(folder / "digits")
    return folder


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the quickstart was trained, as README says it: ten minutes, for tests that are marked long."""
    folder = tmp_path_factory.mktemp("quickstart")
    # another number of threads gives another model
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "train", "fit", "--config", str(ROOT / "configs/quickstart.yaml")]
    subprocess.run([*command, "--ckpt_path", "last"], cwd=folder, env=environment, check=True, timeout=2400)
    return folder


@pytest.fixture(scope="session")
def small_checkpoint(data_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a model that was trained for a step, with a learned scan."""
    import exports  # here, for it imports all of train.py

    return exports.train_small(tmp_path_factory.mktemp("exports") / "run", data_dir)


@pytest.fixture(scope="session")
def exported(small_checkpoint: Path) -> Path:
    """The folder that export makes of it."""
    import exports

    return exports.export_small(small_checkpoint)
